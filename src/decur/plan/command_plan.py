"""`decur plan`: the command line, and the tables it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from decur.bench.device import open_device
from decur.errors import ConfigError
from decur.plan.costs import Memory
from decur.plan.estimate import plan
from decur.plan.result import ROOM, Plan
from decur.pretrain.command_pretrain import build_parser
from decur.runs import write_json, writing

_ABOUT = (
    "What a pretraining run will cost: parameters, operations, memory and hours, on one device and "
    "on many. Takes the options of `decur pretrain`, reads a few samples, makes a few training "
    "steps and writes nothing: decur plan --config R --gpus 1 4 8"
)
# Of the options of pretraining those that cost nothing.
_IDLE = ("run", "checkpoint", "config")


def main(arguments: Sequence[str]) -> Plan:
    """Run `decur plan ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = build_parser("decur plan", _ABOUT, starts=False)
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[1], help="Numbers of devices to plan for."
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="The device that is measured.")
    parser.add_argument("--seconds", type=float, default=30.0, help="Measured, about.")
    parser.add_argument(
        "--link",
        type=float,
        default=25.0,
        help="GB/s that each device sends to others, assumed: 25 is what PCIe 4.0 x16 reaches.",
    )
    parser.add_argument(
        "--samples",
        type=int,
        help="Samples of the whole data set, where --data is an example of it.",
    )
    parser.add_argument(
        "--memory", type=float, help="GB of a device; by default those of the one measured."
    )
    parser.add_argument("--json", type=str, help="A file that all numbers are written to.")
    settings = parser.parse(arguments)
    asked = {key: settings.pop(key) for key in ("gpus", "device", "seconds", "link", "samples")}
    asked |= {key: settings.pop(key) for key in ("memory", "json")}
    for key in ("seconds", "link", "samples", "memory"):
        if asked[key] is not None and not asked[key] > 0:
            raise ConfigError(f"--{key}: must be more than 0, is {asked[key]}")
    for key in _IDLE:
        settings.pop(key, None)
    made = vars(parser.instantiate_classes(settings))
    found = plan(
        **{key: value for key, value in made.items() if key not in ("trainer", *_IDLE)},
        trainer=made["trainer"].as_dict(),
        gpus=asked["gpus"],
        device=open_device(asked["device"]),
        seconds=asked["seconds"],
        link=asked["link"] * 1e9,
        samples=asked["samples"],
        memory=None if asked["memory"] is None else round(asked["memory"] * 1e9),
    )
    show(found, made["data"].describe(), Console(soft_wrap=True))
    if asked["json"] is not None:
        path = Path(asked["json"])
        with writing(path, "--json"):
            write_json(path, as_dict(found))
    return found


def as_dict(found: Plan) -> dict[str, Any]:
    """All numbers of a plan, and what it warns of, for JSON."""
    return {
        **dataclasses.asdict(found),
        "operations": found.operations,
        "reached": found.reached,
        "warnings": list(found.warnings()),
    }


def show(found: Plan, data: str, console: Console) -> None:
    """Print a plan.

    Args:
        found: the plan.
        data: one line about the data.
        console: where to.
    """

    def say(what: str, text: str) -> None:
        console.print(f"{what:<12}{text}", highlight=False, markup=False)

    reading, calibration = found.reading, found.calibration
    say("data", data)
    say(
        "run",
        f"{found.samples:,} samples, {found.epochs:g} epochs, {found.steps:,} steps of "
        f"{found.batch} samples, {found.precision}",
    )
    each = f"{_size(reading.pictures)} of pictures a sample"
    if reading.files is not None:
        each += f", {_size(reading.files)} read from files"
    epoch = (reading.pictures if reading.files is None else reading.files) * found.samples
    say("reading", f"{each}: {_size(epoch)} an epoch, {_size(epoch * found.epochs)} in all")
    say(
        "",
        f"{reading.rate:,.0f} samples/s by {reading.workers} workers, which keep "
        f"{_size(found.ahead)} ready",
    )
    steps = " and ".join(f"{_time(took)} with {size} samples" for size, took in calibration.steps)
    say("measured", f"on {found.device}: a step takes {steps}")
    if calibration.steps[-1][0] < found.batch:
        say("", f"from which follows what one with {found.batch} takes: it is too large for")
        say("", "--seconds or for the memory")
    best = found.rates.matrix
    say(
        "",
        f"which is {found.reached:.0%} of the {best / 1e12:.3g} TFLOP/s that its matrix products "
        "reach",
    )
    if found.compiled:
        say("", "without torch.compile, with which the run is faster")
    if calibration.peaks:
        say("", f"peak memory {' and '.join(map(_size, calibration.peaks))}")
    console.print(_parts(found))
    console.print(_memories(found))
    console.print(_shares(found))
    console.print(
        f"assumed: {found.link / 1e9:g} GB/s between devices; each is as fast as {found.device}; "
        "reading has the cores of this machine",
        highlight=False,
    )
    for warning in found.warnings():
        console.print(f"WARNING     {warning}", highlight=False, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1)
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _parts(found: Plan) -> Table:
    table = _table("a step", "", "parameters", "forward", "backward")
    for part in found.parts:
        table.add_row(
            part.name, f"{part.parameters:,}", _operations(part.forward), _operations(part.backward)
        )
    table.add_row(
        "all",
        f"{sum(part.parameters for part in found.parts):,}",
        _operations(sum(part.forward for part in found.parts)),
        _operations(sum(part.backward for part in found.parts)),
        style="bold",
    )
    return table


def _memories(found: Plan) -> Table:
    table = _table("memory of a device", "", *(_devices(share.gpus) for share in found.shares))
    for field in dataclasses.fields(Memory):
        table.add_row(
            field.name, *(_size(getattr(share.memory, field.name)) for share in found.shares)
        )
    table.add_row("all", *(_size(share.memory.total) for share in found.shares), style="bold")
    room = _size(ROOM * found.capacity)
    table.add_row("room", *(room for _ in found.shares))
    return table


def _shares(found: Plan) -> Table:
    table = _table("time", "", *(_devices(share.gpus) for share in found.shares))
    rows = (
        ("samples on each", lambda share: str(share.samples)),
        ("computing a step", lambda share: _time(share.compute)),
        ("exchange", lambda share: _time(share.exchange)),
        ("reading", lambda share: _time(share.reading)),
        ("a step", lambda share: _time(share.step)),
        ("hours", lambda share: f"{share.hours:,.3g}"),
        ("device hours", lambda share: f"{share.hours * share.gpus:,.3g}"),
    )
    for name, text in rows:
        table.add_row(name, *map(text, found.shares), style="bold" if name == "hours" else None)
    return table


def _devices(number: int) -> str:
    return f"{number} device" + "s" * (number > 1)


def _operations(number: float) -> str:
    return _with_prefix(number, "FLOP")


def _size(number: float) -> str:
    return _with_prefix(number, "B")


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _with_prefix(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:,.3g} P{unit}"
