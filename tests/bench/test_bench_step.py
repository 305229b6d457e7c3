"""`decur bench`: shares add up, floors lie below, and all that was found is written."""

import contextlib
import io
import json
from types import SimpleNamespace

import pytest
import torch

from decur.bench.measure import MOST_ROWS
from decur.bench.step import PARTS, StepClock
from decur.cli import main
from decur.data import SyntheticScenes
from decur.objectives import DeCUR
from decur.pretrain import Pretrainer

SCENES = [
    *("--data", "SyntheticScenes", "--data.samples", "16", "--data.size", "32"),
    *("--data.modalities", "[optical,sar]", "--views.size", "32", "--encoder.name", "test_resnet"),
    *("--projector.width", "16", "--loader.batch_size", "4", "--loader.workers", "0"),
    *("--optimizer.name", "adamw", "--seconds", "0.01", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    """What `decur bench all` prints, writes, and traces."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "bench.json"), "--profile", str(folder / "trace.json")]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["bench", "all", *SCENES, *files, "--dims", "8", "16"])
    written = json.loads((folder / "bench.json").read_text())
    return out.getvalue(), written, json.loads((folder / "trace.json").read_text())


def test_all_is_written(benched):
    out, written, trace = benched
    assert "encoders" in out and "fixed batch" in out and "optimiser" in out
    assert {"decur", "torch", "device", "threads", "precision", "dtype", "rates"} <= set(written)
    assert list(written["results"]) == ["data", "views", "loss", "step", "step_fixed"]
    keys = {"name", "seconds", "quartiles", "pairs_per_second", "memory", "floor", "share"}
    for rows in written["results"].values():
        assert len(rows) <= MOST_ROWS
        for row in rows:
            assert keys <= set(row)
            assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
    assert [row["dim"] for row in written["results"]["loss"]] == [8, 16]
    assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])


def test_shares_add_up_and_floors_lie_below(benched):
    results = benched[1]["results"]
    for key in ("step", "step_fixed"):
        whole, *parts = results[key]
        assert whole["name"] == "step" and tuple(row["name"] for row in parts) == PARTS
        assert sum(row["share"] for row in parts) == pytest.approx(1)
        for row in (whole, *parts):
            assert row["floor"] is None or 0 < row["floor"] < row["seconds"], row["name"]
        floors = {row["name"] for row in parts if row["floor"]}
        assert floors == {"views", "encoders", "projectors", "loss", "backward", "other"}
        assert whole["operations"] == sum(row["operations"] for row in parts)
    real, fixed = ({row["name"]: row for row in results[key]} for key in ("step", "step_fixed"))
    assert fixed["loading"]["seconds"] < real["loading"]["seconds"] / 10
    whole = real["step"]["seconds"] / fixed["step"]["seconds"]
    assert benched[1]["loading"] == pytest.approx(whole)


def test_operations_and_memory_are_those_of_the_network(benched):
    rows = {row["name"]: row for row in benched[1]["results"]["step"]}
    # two views, two sensors, four pictures, a multiply-add; test_resnet's vector has 96 numbers
    width = 2 * 2 * 4 * 2 * (96 * 16 + 2 * 16 * 16)
    assert rows["projectors"]["operations"] == width < rows["encoders"]["operations"]
    # of each product two more, but for the first layer's, whose input needs no gradient
    forward = rows["encoders"]["operations"] + width
    assert 1.5 * forward < rows["backward"]["operations"] < 2 * forward
    scenes = SyntheticScenes(samples=16, size=32, modalities=["optical", "sar"])
    model = Pretrainer(scenes.modalities, DeCUR(dim=16), encoder="test_resnet")
    gradients = sum(p.nbytes for p in model.parameters())  # all parameters', in float32
    assert 4 * gradients < rows["step"]["memory"] < 4 * gradients + 50e6


def test_a_clock_gives_all_time_to_a_part():
    clock = StepClock(torch.device("cpu"), 1.0, warm_up=0)
    clock.mark("views")
    clock.mark("loss")
    clock.on_train_batch_end(SimpleNamespace(should_stop=False))
    (step,) = clock.steps
    assert set(step) == set(PARTS)
    spent = {part for part, time in step.items() if time > 0}
    assert spent == {"views", "loss", "optimiser"}


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["loss", "--profile", "x.json"], "--profile: traces steps"),
        (["views", "--dims", "8"], "--dims: is for `decur bench loss`"),
        (["step", "--json", f"{__file__}/x.json"], "--json"),
        (["step", "--json", "/proc/x.json"], "--json /proc/x.json: cannot be written"),
        (["step", "--profile", "/proc/x.json"], "--profile /proc/x.json: cannot be written"),
        (["all", "--dims", "8", "0"], "--dims: must be at least 1, is 0"),
        (["loss", "--device", "meta"], "--device: 'meta' cannot be used"),
        (["step", "--seconds", "0"], "seconds"),
        (["step", "--data.sampels", "8"], "sampels"),
    ],
)
def test_wrong_options_end_in_one_line(wrong, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", wrong[0], *SCENES, *wrong[1:]])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and line in error and error.count("\n") == 1


@pytest.mark.gpu
def test_a_step_on_a_gpu(tmp_path):
    file, trace = tmp_path / "bench.json", tmp_path / "trace.json"
    options = ["--trainer.precision", "bf16-mixed", "--profile", str(trace), "--json", str(file)]
    main(["bench", "step", *SCENES, *options, "--device", "cuda"])
    written = json.loads(file.read_text())
    rows = {row["name"]: row for row in written["results"]["step"]}
    assert written["dtype"] == "bfloat16" and trace.stat().st_size > 0
    assert rows["loading"]["seconds"] > 0 and rows["step"]["memory"] > 0
    assert all(row["floor"] is None or row["floor"] < row["seconds"] for row in rows.values())
