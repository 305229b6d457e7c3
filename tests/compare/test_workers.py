"""Cells in processes of their own, and what becomes of the others when one dies."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from decur.compare import workers
from decur.compare.command_compare import build_parser
from decur.compare.plan import Cell, MethodPlan, Plan, TaskPlan
from decur.compare.run import _devices
from decur.compare.workers import Workers, is_done, seconds
from decur.errors import DataError, Interrupted

KILLED = "its process was killed, perhaps for want of memory"


@pytest.fixture
def cells(tmp_path):
    """Two endless pretraining runs, a transfer that waits for each, and one that need not."""
    endless = {"trainer.max_epochs": 100_000, "trainer.accelerator": "cpu"}
    return Plan(
        run=tmp_path,
        methods={
            "one": MethodPlan(endless),
            "two": MethodPlan({**endless, "objective": "CLIP"}),
            "random": MethodPlan(pretrain=None),
        },
        tasks={"cover": TaskPlan({"target": "cover"})},
        backbones={"test_resnet": {"encoder.name": "test_resnet"}},
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
        modalities=[],
        label_fractions=[1.0],
        seeds=[0],
    ).cells()


def test_a_worker_that_is_killed_takes_its_cell_and_what_needs_it(cells, monkeypatch, capfd):
    ways = {"spawn": "forkserver"}  # what is forked need not import everything first
    context = multiprocessing.get_context
    monkeypatch.setattr(
        *(multiprocessing, "get_context", lambda way=None: context(ways.get(way, way)))
    )
    one, after_one, two, after_two, random = cells
    at_once = []

    def kill_both() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if all(list(cell.folder.glob("checkpoints/*.ckpt")) for cell in (one, two)):
                at_once.append(True)  # both go on for hours, so both are running
                break
            time.sleep(0.02)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_both)
    killer.start()
    started, ended = [], {}
    failed = Workers(["", ""]).run(cells, started.append, ended.__setitem__)
    killer.join()

    assert at_once
    assert started == [one, two, random]
    lost = f"its pretraining failed: {KILLED}"
    assert failed == {
        **{one.folder: KILLED, two.folder: KILLED},
        **{after_one.folder: lost, after_two.folder: lost},
    }
    assert ended == {
        **{one: KILLED, after_one: lost, two: KILLED, after_two: lost},
        **{random: None},
    }
    assert [cell for cell in cells if is_done(cell)] == [random]  # by a worker in their place
    assert seconds(random) > 0 and seconds(one) is None
    assert (random.folder / "results.json").is_file()
    assert "mAP_micro" in (random.folder / "log.txt").read_text()
    assert capfd.readouterr().out == ""  # what cells print is in their logs
    assert multiprocessing.active_children() == []


@pytest.fixture
def attempt(tmp_path, monkeypatch, capfd):
    """Run a cell in this process with something else in place of the transfer."""

    def attempt(command) -> tuple[str | None, Cell]:
        cell = Cell("transfer", tmp_path / "cell", "seed: 1\n", (), "a", "rn", 1, "cover")
        monkeypatch.setitem(workers._COMMANDS, "transfer", command)
        with capfd.disabled():  # pytest's own capturing passes file descriptors by
            return workers._work(cell, ""), cell

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
        (Interrupted(signal.SIGTERM), "its process was told to stop", "stopped"),
        (SystemExit(), "its process was told to stop", "stopped"),
    ],
)
def test_a_cell_that_fails_says_why(attempt, error, reason, logged):
    found, cell = attempt(raises(error))
    log = cell.folder / "log.txt"
    assert found == reason.format(log=log) and "\n" not in found
    assert log.read_text().startswith(logged)
    assert not is_done(cell)


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
        with FileLock(tmp_path / "cell" / workers.LOCK):
            begun.set()
            time.sleep(0.3)
            (tmp_path / "cell" / workers.DONE).write_text('{"seconds": 1}')

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
    assert _devices(wanted) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0", ["0"]), ("[0,1]", ["0", "1"]), ("cpu", [""]), ("[cpu, 1]", ["", "1"])],
)
def test_devices_as_they_are_typed(given, expected):
    methods = ["--methods={DeCUR: {}}", "--tasks={cover: {}}"]
    assert _devices(build_parser().parse([*methods, f"--devices={given}"]).devices) == expected
