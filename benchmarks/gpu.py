r"""What a GPU does with decur: tests, the paper's step, and what falls short of what we aim at.

    make gpu                                               # at most 15 minutes
    python benchmarks/gpu.py --device cpu --tiny           # tries all of it, but compiles nothing

In turn, each as a command of its own: `pytest -m gpu`; packed pairs of 2 + 13 bands, 264 px; `decur
bench step` of the paper's ResNet-50 (224 px, batches of 256, 8192 dimensions, bf16-mixed) without
and with attention, with both views of a sensor apart and together, and with cuDNN's fastest
algorithms; a short run, which is then embedded and explained; where there are two GPUs, the same
steps on one and on both; the steps once more with compilation, which takes minutes. What there is
no time left for is said.

Everything goes to `gpu.json`. The table goes into docs/performance.md, but not with --tiny. A line
for each goal that is missed says which parts of a step and which kernels take the time.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- make gpu -->", "<!-- end of make gpu -->"
LIMIT = 15 * 60  # seconds of everything
# Each step that is measured, and what it is beside `--config ssl4eo`.
STEPS: dict[str, list[str]] = {
    "plain": ["--encoder.attention", "null", "--compile", "false"],
    "rda": ["--compile", "false"],
    "plain, views together": [
        *("--encoder.attention", "null", "--compile", "false", "--views.together", "true"),
    ],
    "plain, cudnn benchmark": [
        *("--encoder.attention", "null", "--compile", "false", "--trainer.benchmark", "true"),
    ],
    "plain, compiled": ["--encoder.attention", "null", "--compile", "true"],
    "rda, compiled": ["--compile", "true"],
    "plain, compiled, views together": [
        *("--encoder.attention", "null", "--compile", "true", "--views.together", "true"),
    ],
}
TINY = [
    *("--encoder.name", "test_resnet", "--views.size", "32", "--projector.width", "64"),
    *("--loader.batch_size", "16", "--loader.workers", "1", "--trainer.precision", "32-true"),
]
Found = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What we aim at.

    Args:
        name: of what is measured.
        limit: that should not be passed.
        find: the number among all that was measured; raises a KeyError where it is not there.
        form: how both are printed.
        at_least: whether the limit is a lower one.
        step: of `STEPS`, whose profile points to what takes the time; empty where none does.
    """

    name: str
    limit: float
    find: Callable[[Found], float]
    form: str = "{:.2f}"
    at_least: bool = False
    step: str = "rda"

    def is_met(self, value: float) -> bool:
        """Return whether a number reaches the goal."""
        return value >= self.limit if self.at_least else value <= self.limit


def _seconds(found: Found, step: str) -> float:
    return float(found["steps"][step]["step_fixed"]["step"]["seconds"])


def _share(found: Found, *parts: str) -> float:
    rows = found["steps"]["plain"]["step_fixed"]
    return float(sum(rows[part]["share"] for part in parts))


def _fastest(found: Found) -> float:
    steps = found["steps"] or {"none": {}}  # whose figures are not there
    return max(float(s["step"]["step"]["pairs_per_second"]) for s in steps.values())


def _quicker(found: Found, step: str, other: str) -> float:
    return 1 - _seconds(found, other) / _seconds(found, step)


GOALS = [
    Goal("GPU tests that fail", 0, lambda f: f["tests"]["failed"], "{:.0f}", step=""),
    Goal("pairs/s, the fastest step (on an H200)", 600, _fastest, "{:,.0f}", True, "plain"),
    Goal("loss, share of the step", 0.03, lambda f: _share(f, "loss"), "{:.1%}", step="plain"),
    Goal("views and loss", 0.10, lambda f: _share(f, "views", "loss"), "{:.1%}", step="plain"),
    Goal(
        "RDA, times the plain step",
        1.25,
        lambda f: _seconds(f, "rda") / _seconds(f, "plain"),
    ),
    Goal(
        "RDA, times the plain step, both compiled",
        1.25,
        lambda f: _seconds(f, "rda, compiled") / _seconds(f, "plain, compiled"),
        step="rda, compiled",
    ),
    Goal(
        "compiling saves, of the plain step",
        0.10,
        lambda f: _quicker(f, "plain", "plain, compiled"),
        "{:.1%}",
        at_least=True,
        step="plain, compiled",
    ),
    Goal(
        "loading, times a batch in memory",
        1.05,
        lambda f: f["steps"]["plain"]["loading"],
        step="plain",
    ),
    Goal(
        "optimiser, ms",
        7,
        lambda f: 1000 * f["steps"]["plain"]["step_fixed"]["optimiser"]["seconds"],
        "{:.1f}",
        step="plain",
    ),
    Goal(
        "peak memory of a step with RDA, GB",
        70,
        lambda f: f["steps"]["rda"]["step"]["step"]["memory"] / 1e9,
        "{:.1f}",
    ),
    Goal("waits of the host in a step", 0, lambda f: f["steps"]["rda"]["profile"]["waits"], "{:g}"),
    Goal("GPU idle in a step", 0.05, lambda f: f["steps"]["rda"]["profile"]["idle"], "{:.1%}"),
    Goal(
        "embed, times the bare forward pass",
        0.9,
        lambda f: f["embed"]["ratio"],
        at_least=True,
        step="",
    ),
    Goal("first layer with 13 bands, times that with 16", 1.1, lambda f: f["padding"], step=""),
    Goal(
        "two GPUs, pairs/s of twice those of one",
        0.9,
        lambda f: f["two"][1] / (2 * f["two"][0]),
        "{:.0%}",
        at_least=True,
    ),
    Goal("explain of 2,000 pairs, s", 180, lambda f: f["explain"]["seconds"], "{:.0f}", step=""),
]


# -- commands ------------------------------------------------------------------------------------


class Commands:
    """Commands in processes of their own, so that one that dies ends no other, in a limited time.

    Args:
        seconds: of all together.
        folder: for what they print.
    """

    def __init__(self, seconds: float, folder: Path) -> None:
        self.end, self.folder = time.monotonic() + seconds, folder

    def run(self, name: str, command: list[str], most: float, **environment: str) -> str | None:
        """Run a command; return what it printed, None where it failed or took too long.

        Args:
            name: of its log.
            command: after the name of the interpreter.
            most: seconds.
            environment: variables beside those of this process.
        """
        most, started = min(most, self.end - time.monotonic()), time.monotonic()
        print(f"{name:<28}", end="", flush=True)
        if most < 1:
            print("no time left")
            return None
        path = self.folder / f"{re.sub('[^a-z]+', '-', name)}.log"
        with path.open("w") as log:
            try:
                code: int | str = subprocess.run(
                    [sys.executable, *command],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=most,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"longer than {most:.0f} s"
        spent = f"{time.monotonic() - started:.0f} s"
        text = path.read_text(errors="replace")
        if code == 0 or (code == 1 and name == "tests"):
            print(spent)
            return text
        last = (text.strip().splitlines() or ["nothing printed"])[-1]
        print(f"failed ({code}) after {spent}: {last[:160]}; see {path}")
        return None


def measure(commands: Commands, device: str, tiny: bool, work: Path) -> Found:
    """Run everything, and return what was found; what failed or was left out is not in it."""
    found: Found = {"steps": {}}
    # Two of the tests compile, and two start four commands where there are two GPUs.
    text = commands.run("tests", tests(device, tiny), 420, DECUR_TEST_DEVICE=device)
    if text is not None:
        found["tests"] = {
            what: int((re.findall(rf"(\d+) {what}", text) or [0])[-1])
            for what in ("passed", "failed", "error", "skipped")
        }
        found["tests"]["failed"] += found["tests"].pop("error")
    packed, pairs = work / "packed", 64 if tiny else 2048
    pack = ["benchmarks/packing.py", "--pairs", str(pairs), "--keep", str(packed)]
    pixels = ["--pixels", "40"] if tiny else []
    if commands.run("pack", [*pack, *pixels, "--folder", str(work)], 240) is None:
        return found
    config = ["--config", "ssl4eo", "--data", "PackedPairs", "--data.root", str(packed)]
    config += ["--pairing", "fixed", *(TINY if tiny else [])]

    def bench(name: str) -> None:
        result, trace = work / "step.json", work / "trace.json"
        step = ["-m", "decur", "bench", "step", *config, *STEPS[name], "--device", device]
        step += ["--seconds", "0.2" if tiny else "4", "--json", str(result)]
        step += ["--profile", str(trace)]
        if commands.run(name, step, 240, **({"TORCH_COMPILE_DISABLE": "1"} if tiny else {})):
            found["steps"][name] = read_step(result, trace)

    for name in (name for name in STEPS if "compiled" not in name):
        bench(name)
    padding = ["benchmarks/padding.py", "--device", device]
    if not tiny:
        padding += ["--pixels", "224", "--batch", "256", "--precision", "bf16-mixed"]
    text = commands.run("padding", padding, 60)
    if text is not None:
        found["padding"] = float(re.findall(r"^ratio +([\d.]+)", text, re.M)[0])
    found |= use(commands, config, device, tiny, work)
    if tiny or torch.cuda.device_count() > 1:
        found |= two(commands, config, device, tiny, work)
    for name in (name for name in STEPS if "compiled" in name):  # minutes each: last
        bench(name)
    return found


def tests(device: str, tiny: bool) -> list[str]:
    """Return the command of the tests: on a CPU those that another device can stand in for."""
    where = [] if device == "cuda" else ["tests/test_devices.py"]
    few = ["-k", "test_resnet and not true-true"] if tiny else []
    return ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *where, *few]


def use(commands: Commands, config: list[str], device: str, tiny: bool, work: Path) -> Found:
    """Train a run for some steps, and measure what embeds and explains."""
    found, run = Found(), work / "run"
    trainer = ["--trainer.max_steps", "2" if tiny else "20", "--trainer.max_epochs", "3"]
    # one device, as their number may not divide the batch
    trainer += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
    train = ["-m", "decur", "pretrain", *config, *trainer, "--trainer.devices", "1"]
    train += ["--run", str(run)]
    trained = commands.run("pretrain", train, 180) is not None
    embed = ["benchmarks/embed.py", "--device", device]
    embed += ["--encoder", "test_resnet" if tiny else "resnet50"]
    embed += ["--pixels", "32" if tiny else "224"]
    embed += ["--samples", "64" if tiny else "8192", "--batch", "16" if tiny else "256"]
    embed += ["--workers", "1" if tiny else "8", "--repeats", "1" if tiny else "3"]
    embed += ["--precision", "32-true" if tiny else "bf16-mixed"]
    text = commands.run("embed", embed, 180)
    if text is not None:
        rates = re.findall(r"^(bare forward|embed|ratio) +([\d.]+)", text, re.M)
        found["embed"] = {name: float(value) for name, value in rates}
    started = time.monotonic()
    explain = ["-m", "decur", "explain", str(run), "--device", device]
    explain += ["--samples", "64" if tiny else "2000"]
    if trained and commands.run("explain", explain, 240) is not None:
        found["explain"] = {"seconds": time.monotonic() - started}
    return found


def two(commands: Commands, config: list[str], device: str, tiny: bool, work: Path) -> Found:
    """Train on one device and on two, each with whole batches, and return the pairs a second.

    An epoch has as many steps on both, so that what its start takes weighs the same; the fastest
    epoch counts, as in the first ones algorithms are chosen and memory is asked for.
    """
    batch, pairs = (16, 64) if tiny else (256, 2048)
    rates = []
    for devices in (1, 2):
        run = work / f"devices-{devices}"
        train = ["-m", "decur", "pretrain", *config, "--run", str(run), "--compile", "false"]
        train += ["--loader.batch_size", str(devices * batch), "--monitor.every_epochs", "0"]
        train += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
        train += ["--trainer.devices", str(devices), "--trainer.max_epochs", "2" if tiny else "8"]
        train += ["--trainer.limit_train_batches", str(pairs // (2 * batch))]
        if commands.run(f"training on {'one' if devices == 1 else 'two'}", train, 180) is None:
            return {}
        with (run / "metrics.csv").open() as lines:
            rates.append(max(float(row["pairs_per_second"]) for row in csv.DictReader(lines)))
    return {"two": rates}


# -- what was found ------------------------------------------------------------------------------


def read_step(result: Path, trace: Path) -> Found:
    """Return the figures of `decur bench step`, rows by their names, and what its trace says."""
    written = json.loads(result.read_text())
    for key, rows in written.pop("results").items():
        written[key] = {row["name"]: row for row in rows}
    events = json.loads(trace.read_text())["traceEvents"]
    return {**written, "profile": read_trace(events)}


def read_trace(events: list[Mapping[str, Any]]) -> Found:
    """Return where the time of the last step of a trace goes.

    Args:
        events: of a Chrome trace of two steps; a step ends with the optimiser's.

    Returns:
        "kernels", `{name: share}` of the ten that take most of the device's time; "idle", the share
        of the step in which the device does nothing; "waits", how often the host waits for it.
    """
    timed = [e for e in events if e.get("ph") == "X" and "dur" in e]
    gpu = [e for e in timed if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    marks = "gpu_user_annotation" if gpu else "user_annotation"
    start, end = last_step([e for e in timed if e.get("cat") == marks])
    work = gpu or [e for e in timed if e.get("cat") == "cpu_op"]
    if work and end == float("inf"):  # a profiler that marks no steps on the device: all of it
        start, end = min(e["ts"] for e in work), max(e["ts"] + e["dur"] for e in work)
    work = [e for e in work if start <= e["ts"] < end]
    spent, busy = own_times(work)
    total = sum(spent.values()) or 1.0
    begun, ended = last_step([e for e in timed if e.get("cat") == "user_annotation"])
    waits = [e for e in timed if e["name"] == "cudaStreamSynchronize" and begun <= e["ts"] < ended]
    return {
        "kernels": {name: time / total for name, time in spent.most_common(10)},
        "idle": max(0.0, 1 - busy / (end - start)) if end > start else 0.0,
        "waits": len(waits),
    }


def last_step(marks: list[Mapping[str, Any]]) -> tuple[float, float]:
    """Return where the last step of a trace begins and ends, by the marks of the optimiser."""
    ends = sorted(e["ts"] + e["dur"] for e in marks if e["name"].startswith("Optimizer.step"))
    return (ends[-2], ends[-1]) if len(ends) > 1 else (float("-inf"), float("inf"))


def own_times(events: list[Mapping[str, Any]]) -> tuple[Counter[str], float]:
    """Return what each name takes, without what is called in it, and the time that is taken at all.

    Args:
        events: with "ts" and "dur", in microseconds; those of a thread are nested.
    """
    spent: Counter[str] = Counter()
    open_events: dict[Any, list[Mapping[str, Any]]] = {}
    busy, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        first, last = event["ts"], event["ts"] + event["dur"]
        outer = open_events.setdefault(event.get("tid"), [])
        while outer and outer[-1]["ts"] + outer[-1]["dur"] <= first:
            outer.pop()
        if outer:
            spent[outer[-1]["name"]] -= event["dur"]
        spent[event["name"]] += event["dur"]
        outer.append(event)
        busy += max(0.0, last - max(first, until))
        until = max(until, last)
    return spent, busy


def judge(found: Found) -> list[Found]:
    """Return each goal with what was measured, whether it is met, and where the profile points."""
    rows = []
    for goal in GOALS:
        bound = ("at least " if goal.at_least else "at most ") + goal.form.format(goal.limit)
        row: Found = {"name": goal.name, "goal": bound, "measured": "not measured", "met": None}
        try:
            value = goal.find(found)
        except KeyError:
            rows.append(row)
            continue
        row |= {"measured": goal.form.format(value), "met": goal.is_met(value)}
        if not row["met"] and goal.step:
            row["points"] = pointed(found["steps"].get(goal.step))
        rows.append(row)
    return rows


def pointed(step: Found | None) -> str:
    """Return the parts of a step and the kernels that take most of its time, in one line."""
    if step is None:
        return "no profile"
    parts = {row["name"]: row["share"] for row in step["step"].values() if row["share"]}
    most = sorted(parts.items(), key=lambda part: -part[1])[:3]
    kernels = list(step["profile"]["kernels"].items())[:3]
    texts = [", ".join(f"{name[:60]} {share:.0%}" for name, share in x) for x in (most, kernels)]
    return f"parts: {texts[0]}; kernels: {texts[1]}; idle {step['profile']['idle']:.0%}"


def table(found: Found, rows: list[Found]) -> str:
    """Return the table of docs/performance.md."""
    lines = [f"Measured on {found.get('device', 'an unknown device')} by `make gpu`.", ""]
    lines += ["| | measured | goal | |", "|---|---|---|---|"]
    words = {True: "met", False: "**missed**", None: ""}
    for row in rows:
        lines.append(f"| {row['name']} | {row['measured']} | {row['goal']} | {words[row['met']]} |")
    lines += ["", "| step | ms | pairs/s | peak, GB |", "|---|---|---|---|"]
    for name, step in found["steps"].items():
        real, fixed = step["step"]["step"], step["step_fixed"]["step"]
        numbers = f"{1000 * fixed['seconds']:.0f} | {real['pairs_per_second']:,.0f}"
        lines.append(f"| {name} | {numbers} | {real['memory'] / 1e9:.1f} |")
    return "\n".join(lines)


def put_into(document: str, text: str) -> str:
    """Return a document with a text in place of what stands between its marks."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="Small pictures and networks.")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--folder", help="Where files are made; by default a temporary folder.")
    parser.add_argument("--minutes", type=float, default=LIMIT / 60, help="Of everything.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        logs = args.json.with_name(f"{args.json.stem}-logs")
        logs.mkdir(parents=True, exist_ok=True)
        found = measure(Commands(60 * args.minutes, logs), args.device, args.tiny, Path(name))
    found["device"] = next((step["device"] for step in found["steps"].values()), args.device)
    rows = judge(found)
    args.json.write_text(json.dumps({**found, "goals": rows}, indent=2))
    text = table(found, rows)
    print(f"\n{text}\n")
    for row in rows:
        if row["met"] is False:
            points = f"; {row['points']}" if "points" in row else ""
            print(f"falls short: {row['name']}: {row['measured']}, {row['goal']}{points}")
    document = ROOT / "docs" / "performance.md"
    if not args.tiny:
        document.write_text(put_into(document.read_text(), text))
        print(f"table in {document}")
    print(f"all figures in {args.json}")


if __name__ == "__main__":
    main()
