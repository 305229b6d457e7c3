"""`decur plan`: the command line of foreseeing a run, and the tables it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from decur.bench.measure import open_device
from decur.bench.tables import duration, make_table, quantity
from decur.errors import ConfigError
from decur.pretrain.command_pretrain import build_parser
from decur.runs import write_json, writing

if TYPE_CHECKING:
    from decur.bench.plan import RunCost

_ABOUT = (
    "What a pretraining run will cost: hours, memory and traffic, on one device and on many. Takes "
    "the options of `decur pretrain`, reads a few samples, makes a few training steps and writes "
    "nothing: decur plan --config R --gpus 1 4 8"
)


def main(arguments: Sequence[str]) -> RunCost:
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
    parsed = parser.parse(arguments)
    for key in ("seconds", "link", "samples", "memory"):
        if parsed[key] is not None and not parsed[key] > 0:
            raise ConfigError(f"--{key}: must be more than 0, is {parsed[key]}")
    device = open_device(parsed.device)
    made = parser.instantiate_classes(parsed)

    from decur.bench.plan import plan
    from decur.bench.step import Training
    from decur.data.selection import select

    data = select(made.data, made.modalities)
    cost = plan(
        Training.of(data, made),
        device,
        gpus=parsed.gpus,
        seconds=parsed.seconds,
        link=parsed.link * 1e9,
        samples=parsed.samples,
        memory=None if parsed.memory is None else round(parsed.memory * 1e9),
    )
    show(cost, data.describe(), parsed.link, Console(soft_wrap=True))
    if parsed.json is not None:
        path = Path(parsed.json)
        values = {"reached": cost.reached, "ahead": cost.ahead, "warnings": list(cost.warnings())}
        with writing(path, "--json"):
            write_json(path, {**dataclasses.asdict(cost), **values})
    return cost


def show(cost: RunCost, data: str, link: float, console: Console) -> None:
    """Print what a run will cost.

    Args:
        cost: of the run.
        data: one line about the data.
        link: GB/s between devices, assumed.
        console: where to.
    """

    def say(what: str, text: str) -> None:
        console.print(f"{what:<12}{text}", highlight=False, markup=False)

    def table(title: str, rows: dict[str, list[str]]) -> None:
        devices = [f"{n} device" + "s" * (n > 1) for n in (share.gpus for share in cost.shares)]
        console.print(make_table([title, *devices], [(name, *row) for name, row in rows.items()]))

    reading, shares = cost.reading, cost.shares
    say("data", data)
    say(
        "run",
        f"{cost.samples:,} samples, {cost.epochs:g} epochs, {cost.steps:,} steps of {cost.batch} "
        f"samples, {cost.precision}",
    )
    stored = reading.get("files", reading["pictures"])
    say(
        "reading",
        f"{quantity(reading['pictures'], 'B')} of pictures a sample; "
        f"{quantity(stored * cost.samples, 'B')} are read in an epoch; {reading['rate']:,.0f} "
        f"samples/s by {cost.workers} workers, which keep {quantity(cost.ahead, 'B')} ready",
    )
    steps = " and ".join(f"{duration(took)} with {size} samples" for size, took in cost.measured)
    say(
        "measured",
        f"on {cost.device}: a step takes {steps}, {cost.reached:.0%} of the "
        f"{quantity(cost.best, 'FLOP/s')} that its matrix products reach",
    )
    if cost.measured[-1][0] < cost.batch:
        say("", f"(one with {cost.batch} is too large for --seconds or for the memory)")
    if cost.compiled:
        say("", "without torch.compile, with which the run is faster")
    say(
        "a step",
        f"{cost.parameters:,} trained numbers; "
        + ", ".join(f"{part} {quantity(n, 'FLOP')}" for part, n in cost.operations.items()),
    )
    memory = {
        key: [quantity(share.memory[key], "B") for share in shares] for key in shares[0].memory
    }
    memory["all"] = [quantity(share.total, "B") for share in shares]
    memory["there are"] = [quantity(cost.capacity, "B") for share in shares]
    table("memory of a device", memory)
    texts: dict[str, Any] = {
        "samples on each": lambda share: str(share.samples),
        "sent by each in a step": lambda share: quantity(share.sent["total"], "B"),
        "computing": lambda share: duration(share.computing),
        "sending": lambda share: duration(share.exchange),
        "reading": lambda share: duration(share.reading),
        "a step": lambda share: duration(share.step),
        "hours": lambda share: f"{share.hours:,.3g}",
        "device hours": lambda share: f"{share.hours * share.gpus:,.3g}",
    }
    table("time", {name: [text(share) for share in shares] for name, text in texts.items()})
    say(
        "sent",
        "embeddings and their gradients for the loss, and the gradients of the weights; at "
        f"{link:g} GB/s, assumed",
    )
    say("assumed", f"all devices are like {cost.device}; reading has the cores of this machine")
    for warning in cost.warnings():
        say("WARNING", warning)
