"""What `make gpu` says of figures: which goals are met, and where the time goes otherwise."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def event(name, ts, dur, cat="kernel", tid=1):
    return {"name": name, "ts": ts, "dur": dur, "cat": cat, "tid": tid, "ph": "X"}


def test_a_trace_tells_the_kernels_idleness_and_waits_of_its_last_step(gpu):
    marks = [event("Optimizer.step#Lars.step", at, 10, "user_annotation") for at in (90, 290)]
    there = [{**mark, "cat": "gpu_user_annotation", "ts": mark["ts"] + 100} for mark in marks]
    work = [event("old", 0, 200), event("conv", 200, 100), event("norm", 300, 60, tid=2)]
    work += [event("norm", 350, 10)]
    waits = [event("cudaStreamSynchronize", at, 5, "cuda_runtime") for at in (50, 150, 300)]
    told = gpu.read_trace([*marks, *there, *work, *waits, {"name": "x", "ph": "M"}])
    assert told["kernels"] == pytest.approx({"conv": 100 / 170, "norm": 70 / 170})
    assert told["idle"] == pytest.approx(0.2)  # from 200 to 400, 360 on nothing runs
    assert told["waits"] == 1
    unmarked = gpu.read_trace([*marks, *work])  # no marks of the device: idle from 200 on is 0
    assert unmarked["idle"] == 0 and unmarked["kernels"]["old"] == pytest.approx(200 / 370)


def test_what_is_called_within_is_not_counted_twice(gpu):
    nested = [event("outer", 0, 10), event("inner", 2, 3), event("innermost", 3, 1)]
    spent, busy = gpu.own_times([*nested, event("outer", 20, 5)])
    assert spent == {"outer": 12, "inner": 2, "innermost": 1} and busy == 15


def step(seconds, **shares):
    parts = {"loss": 0.01, "views": 0.05, "optimiser": 0.02, "backward": 0.5, **shares}
    rows = {name: {"name": name, "seconds": 0.004, "share": x} for name, x in parts.items()}
    whole = {"name": "step", "seconds": seconds, "share": None, "memory": 50e9}
    rows["step"] = {**whole, "pairs_per_second": 256 / seconds}
    profile = {"kernels": {"conv": 0.6, "norm": 0.2}, "idle": 0.01, "waits": 0}
    return {"step": rows, "step_fixed": rows, "loading": 1.0, "profile": profile}


def test_each_goal_is_judged_and_what_misses_it_is_pointed_to(gpu):
    found = {"device": "a GPU", "steps": {"plain": step(0.3, loss=0.04), "rda": step(0.33)}}
    rows = {row["name"]: row for row in gpu.judge(found)}
    assert rows["pairs/s, the fastest step (on an H200)"]["met"] is True  # 853
    assert rows["RDA, times the plain step"]["measured"] == "1.10"
    assert rows["GPU tests that fail"]["met"] is None  # not measured
    loss = rows["loss, share of the step"]
    assert loss["met"] is False and loss["measured"] == "4.0%"
    assert "backward 50%" in loss["points"] and "conv 60%" in loss["points"]
    found["embed"] = {"ratio": 0.5}  # no step's profile says why
    (embed,) = (row for row in gpu.judge(found) if row["name"].startswith("embed"))
    assert embed["met"] is False and "points" not in embed
    found["two"] = [640.0, 1100.0]
    (both,) = (row for row in gpu.judge(found) if row["name"].startswith("two GPUs"))
    assert both["met"] is False and both["measured"] == "86%" and "conv" in both["points"]
    assert gpu.judge({"steps": {}})  # where every step has failed
    text = gpu.table(found, list(rows.values()))
    assert "| loss, share of the step | 4.0% | at most 3.0% | **missed** |" in text
    document = (ROOT / "docs" / "performance.md").read_text()
    changed = gpu.put_into(document, "the table")
    assert "the table" in changed and "decur bench step" in changed.split(gpu.END)[1]
    assert gpu.put_into(changed, "the table") == changed


def test_a_command_that_fails_or_takes_too_long_ends_no_other(gpu, tmp_path, capsys):
    commands = gpu.Commands(60, tmp_path)
    assert commands.run("good", ["-c", "print('done')"], 30) == "done\n"
    assert commands.run("bad", ["-c", "raise SystemExit('broken')"], 30) is None
    assert commands.run("slow", ["-c", "import time; time.sleep(9)"], 1) is None
    gpu.Commands(0, tmp_path).run("late", ["-c", ""], 30)
    out = capsys.readouterr().out
    assert "broken" in out and "longer than 1 s" in out and "no time left" in out


def test_what_embeds_and_explains_trains_on_one_of_several_devices(gpu, tmp_path):
    asked = []

    class Asked:
        def run(self, name, command, most, **environment):
            asked.append(command)

    gpu.use(Asked(), ["--config", "ssl4eo"], "cuda", False, tmp_path)
    (train,) = (command for command in asked if "pretrain" in command)
    assert train[train.index("--trainer.devices") + 1] == "1"
