"""Cells in jobs, and what becomes of the others when one dies."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from decur.cli import main
from decur.compare.cells import DONE, LOCK, Cell, is_done, run_cell, seconds
from decur.compare.command_compare import build_parser
from decur.compare.execute import KILLED, Execution
from decur.compare.plan import plan_cells
from decur.compare.run import visible_devices
from decur.compare.settings import (
    ClusterSettings,
    CompareSettings,
    MethodSettings,
    TaskSettings,
    check_cluster,
)
from decur.errors import ConfigError, DataError, Interrupted


@pytest.fixture
def cells(tmp_path):
    """Two endless pretraining runs, a transfer that waits for each, and one that need not."""
    endless = {"trainer.max_epochs": 100_000, "trainer.accelerator": "cpu"}
    settings = CompareSettings(
        methods={
            "one": MethodSettings(endless),
            "two": MethodSettings({**endless, "objective": "CLIP"}),
            "random": MethodSettings(pretrain=None),
        },
        tasks={"cover": TaskSettings({"target": "cover"})},
        run=str(tmp_path),
        backbones=["test_resnet"],
        data={
            "class_path": "decur.data.SyntheticScenes",
            "init_args": {"samples": 40, "size": 16, "modalities": ["optical", "sar"]},
        },
        pretrain={
            "base": "demo",
            "loader": {"batch_size": 16, "workers": 0},
            "projector.width": 32,
            "views.size": 16,
            "monitor.every_epochs": 0,
        },
        transfer={"bootstrap": 0, "loader.workers": 0, "device": "cpu"},
        seeds=[0],
    )
    return plan_cells(settings)


def events(folder: Path) -> list[dict[str, object]]:
    """What jobs have told so far."""
    text = "".join(file.read_text() for file in sorted(folder.glob("*.jsonl")))
    return [json.loads(line) for line in text.splitlines()]


def execute(cells, folder, devices, started):
    """Run cells as jobs; why some failed, and how each ended."""
    ended = {}
    execution = Execution(
        folder, ClusterSettings(), devices, started=started, ended=ended.__setitem__
    )
    return execution.run(cells), ended


def test_a_job_that_is_killed_takes_its_cell_and_what_needs_it(cells, tmp_path, capfd):
    one, after_one, _, _, random = cells
    started = []

    def start(cell):
        started.append(cell)
        if cell == one:
            (event,) = events(tmp_path / "jobs")
            os.kill(event["pid"], signal.SIGKILL)

    failed, ended = execute([one, after_one, random], tmp_path / "jobs", [""], start)
    assert started == [one, random]
    lost = f"its pretraining failed: {KILLED}"
    assert failed == {one.folder: KILLED, after_one.folder: lost}
    assert ended == {one: KILLED, after_one: lost, random: None}
    assert is_done(random) and not is_done(one)  # by another job
    assert seconds(random) > 0 and seconds(one) is None
    assert (random.folder / "results.json").is_file()
    assert "mAP_micro" in (random.folder / "log.txt").read_text()
    assert capfd.readouterr().out == ""  # what cells print is in their logs


@pytest.mark.slow
def test_jobs_run_at_once_and_each_that_is_killed_takes_its_own(cells, tmp_path):
    one, after_one, two, after_two, random = cells
    at_once = []

    def kill_both() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if all(list(cell.folder.glob("checkpoints/*.ckpt")) for cell in (one, two)):
                at_once.append(True)  # both go on for hours, so both are running
                break
            time.sleep(0.02)
        for event in events(tmp_path / "jobs"):
            os.kill(event["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill_both)
    killer.start()
    started = []
    failed, ended = execute(cells, tmp_path / "jobs", ["", ""], started.append)
    killer.join()

    assert at_once
    assert set(started[:2]) == {one, two} and started[2:] == [random]
    lost = f"its pretraining failed: {KILLED}"
    assert failed == {
        **{one.folder: KILLED, two.folder: KILLED},
        **{after_one.folder: lost, after_two.folder: lost},
    }
    assert ended == {
        **{one: KILLED, after_one: lost, two: KILLED, after_two: lost},
        **{random: None},
    }
    assert [cell for cell in cells if is_done(cell)] == [random]


# -- SLURM -----------------------------------------------------------------------------------------

PROGRAMS = {
    "sbatch": """
        id=$(( $(ls "$(dirname "$0")" | grep -c "^submission") + 1 ))
        cp "$1" "$(dirname "$0")/submission-$id.sh"
        SLURM_JOB_ID=$id setsid bash "$1" > /dev/null 2>&1 &
        echo "Submitted batch job $id"
    """,
    "srun": 'while [[ $1 == --* || $1 == *.out || $1 == *.err ]]; do shift; done; exec "$@"',
    "sacct": "echo 'JobID|State|NodeList'",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of one node, this one; the folder in which submissions are kept."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def config(tmp_path: Path, **changes) -> str:
    """A comparison of fresh weights on a cluster."""
    values = {
        "methods": {"random": {"pretrain": None}},
        "tasks": {"cover": {"transfer": {"target": "cover"}}},
        "backbones": ["test_resnet"],
        "data": {
            "class_path": "decur.data.SyntheticScenes",
            "init_args": {"samples": 40, "size": 16, "modalities": ["optical", "sar"]},
        },
        "transfer": {"bootstrap": 0, "loader.workers": 0, "device": "cpu"},
        "seeds": [0],
        "run": str(tmp_path / "run"),
        **changes,
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(values))
    return f"--config={tmp_path / 'compare.yaml'}"


ON_CLUSTER = [
    *("--cluster", "slurm", "--cluster.partition=gpu", "--cluster.timeout_min", "90"),
    *("--cluster.gpus", "2", "--cluster.cpus=4", "--cluster.mem_gb=16"),
    "--cluster.extra={account: mine}",
]


def assert_asks_for_it(submission: Path) -> None:
    given = set(re.findall(r"^#SBATCH --(.*)", submission.read_text(), re.M))
    assert {
        *("partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=4", "mem=16GB"),
        *("account=mine", "job-name=decur"),
    } <= given


@pytest.mark.slow
def test_a_cluster_gets_a_job_for_each_line_with_partition_time_and_gpus(tmp_path, slurm, capsys):
    main(["compare", config(tmp_path, label_fractions=[0.5, 1.0], seeds=[0, 1]), *ON_CLUSTER])
    submissions = list(slurm.glob("submission*"))
    assert len(submissions) == 2  # a seed each, of two transfers
    for submission in submissions:
        assert_asks_for_it(submission)
    assert len(list(tmp_path.glob("run/transfer/*/cell.json"))) == 4
    assert "4: 0 done, 4 to do" in capsys.readouterr().out


def test_a_submission_that_is_refused_is_said(tmp_path, slurm, capsys):
    (slurm / "sbatch").write_text(
        f'#!/bin/bash\ncp "$1" {slurm}/submission.sh\n'
        "echo 'invalid partition specified: gpu' >&2; exit 1\n"
    )
    with pytest.raises(SystemExit) as stopped:
        main(["compare", config(tmp_path), *ON_CLUSTER])
    assert stopped.value.code == 2
    assert_asks_for_it(slurm / "submission.sh")
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert line.startswith("error: cluster: ") and "invalid partition specified: gpu" in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--cluster", "slurm"], "cluster.name: slurm, but there is no sbatch on this machine"),
        (["--cluster.partition", "gpu"], "cluster.partition: goes with --cluster slurm"),
        (["--cluster.name=slurm", "--devices=0"], "devices: are this machine's"),
    ],
)
def test_what_does_not_go_with_where_cells_run_is_refused(tmp_path, capsys, given, message):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", config(tmp_path), *given])
    assert stopped.value.code == 2 and not (tmp_path / "run").exists()
    assert message in capsys.readouterr().err.splitlines()[-1]


# -- one cell --------------------------------------------------------------------------------------


@pytest.fixture
def attempt(tmp_path, monkeypatch, capfd):
    """Run a cell in this process with something else in place of the transfer."""

    def attempt(command) -> tuple[str | None, Cell]:
        cell = Cell("transfer", tmp_path / "cell", "seed: 1\n", (), "a", "rn", 1, "cover")
        monkeypatch.setattr("decur.transfer.command_transfer.main", command)
        with capfd.disabled():  # pytest's own capturing passes file descriptors by
            return run_cell(cell), cell

    return attempt


def raises(error):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "reason", "logged"),
    [
        (DataError("x.tif:\n  no such file"), "x.tif: no such file", "error: x.tif: no such file"),
        (ValueError("1\n2"), "ValueError: 1 2 (see {log})", "Traceback"),
    ],
)
def test_a_cell_that_fails_says_why(attempt, error, reason, logged):
    found, cell = attempt(raises(error))
    log = cell.folder / "log.txt"
    assert found == reason.format(log=log) and "\n" not in found
    assert log.read_text().startswith(logged)
    assert not is_done(cell)


@pytest.mark.parametrize("error", [Interrupted(signal.SIGTERM), SystemExit()])
def test_a_cell_that_is_told_to_stop_ends_its_job(attempt, tmp_path, error):
    with pytest.raises(Interrupted):
        attempt(raises(error))
    assert (tmp_path / "cell" / "log.txt").read_text().startswith("stopped")
    assert not (tmp_path / "cell" / DONE).exists()


def test_a_cell_gets_its_configuration_and_a_log_of_all_that_is_printed(attempt, tmp_path):
    def command(arguments):
        option, path = arguments
        assert option == "--config" and Path(path).read_text() == "seed: 1\n"
        os.system("echo a child")
        print("the cell")
        if not (tmp_path / "mended").exists():
            raise DataError("nothing there")

    assert attempt(command)[0] == "nothing there"
    (tmp_path / "mended").touch()
    found, cell = attempt(command)  # its log goes on below
    assert found is None and is_done(cell)
    printed = "a child\nthe cell\n"
    assert (cell.folder / "log.txt").read_text() == f"{printed}error: nothing there\n{printed}"


def test_a_cell_that_another_comparison_is_at_is_waited_for_and_not_done_again(attempt, tmp_path):
    (tmp_path / "cell").mkdir()
    begun = threading.Event()

    def other() -> None:
        with FileLock(tmp_path / "cell" / LOCK):
            begun.set()
            time.sleep(0.3)
            (tmp_path / "cell" / DONE).write_text('{"seconds": 1}')

    threading.Thread(target=other).start()
    assert begun.wait(60)
    found, cell = attempt(raises(DataError("done twice")))
    assert found is None and seconds(cell) == 1


def test_a_command_that_fails_does_not_keep_the_signals(attempt):
    def command(arguments):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as a run does, to save its state
        raise DataError("nothing there")

    before = signal.getsignal(signal.SIGTERM)
    attempt(command)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("wrong", ["nonsense", -1, [0, "cuda"]])
def test_devices_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"devices: .* is none; give a GPU's number"):
        check_cluster(ClusterSettings(), wrong)
    for right in (None, 0, "cpu", "1", [0, "cpu"], ["GPU-3f1a", "MIG-9c"]):
        check_cluster(ClusterSettings(), right)


@pytest.mark.parametrize(
    ("wanted", "visible", "expected"),
    [
        (["cpu", "cpu"], None, ["", ""]),
        (["1", "cpu"], "0", ["1", ""]),
        (0, None, ["0"]),
        ([0, 1], None, ["0", "1"]),
        ("cpu", None, [""]),
        (None, "2,GPU-8932f937", ["2", "GPU-8932f937"]),
        (None, "", [""]),
    ],
)
def test_devices(monkeypatch, wanted, visible, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices(wanted) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0", ["0"]), ("[0,1]", ["0", "1"]), ("cpu", [""]), ("[cpu, 1]", ["", "1"])],
)
def test_devices_as_they_are_typed(given, expected):
    methods = ["--methods={DeCUR: {}}", "--tasks={cover: {}}"]
    assert (
        visible_devices(build_parser().parse([*methods, f"--devices={given}"]).devices) == expected
    )
