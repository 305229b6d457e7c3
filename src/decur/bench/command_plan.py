"""`decur plan`: the command line of foreseeing a run, and the tables it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from decur.bench.commands import add_device, check_files, settings_of
from decur.bench.measure import open_device
from decur.errors import ConfigError
from decur.pretrain.configuration import build_parser
from decur.runs import write_json, writing
from decur.terminal import duration, make_table, quantity

if TYPE_CHECKING:
    from decur.bench.plan import RunCost, Share

_ABOUT = (
    "What a pretraining run will cost: hours, memory and traffic, on one device and on many. Takes "
    "the options of `decur pretrain`, reads a few samples, makes a few training steps and writes "
    "nothing: decur plan --config R --gpus 1 4 8"
)
_OPTIONS = {
    "samples": (
        int,
        None,
        "Number of samples of the whole data set, where --data is an example of it.",
    ),
    "memory": (float, None, "Memory of a device in GB; by default that of the one measured."),
    "link": (float, 25.0, "Rate at which each device sends, in GB/s; PCIe 4.0 x16 reaches 25."),
}
_TIMES: dict[str, Callable[[Share], str]] = {
    "samples on each": lambda share: str(share.samples),
    "sent by each in a step": lambda share: quantity(share.sent["total"], "B"),
    "computing": lambda share: duration(share.computing),
    "sending": lambda share: duration(share.exchange),
    "reading": lambda share: duration(share.reading),
    "a step": lambda share: duration(share.step),
    "hours": lambda share: f"{share.hours:,.3g}",
    "device hours": lambda share: f"{share.hours * share.gpus:,.3g}",
}


def main(arguments: Sequence[str]) -> RunCost:
    """Run `decur plan ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = build_parser("decur plan", _ABOUT, starts=False)
    numbers = "Numbers of devices to plan for."
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help=numbers)
    add_device(parser, 30.0, "File that all numbers are written to.")
    for name, (kind, default, about) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=about)
    parser.show_first(
        {
            "the run": ("config", "data.root", "data", "objective", "encoder.name"),
            "its size": ("samples", "trainer.max_epochs", "loader.batch_size", "projector.width"),
            "the devices": ("gpus", "memory", "link", "trainer.precision"),
            "how": ("device", "seconds", "json"),
        }
    )
    parsed = parser.parse(arguments)
    for key in ("seconds", *_OPTIONS):
        if parsed[key] is not None and not parsed[key] > 0:
            raise ConfigError(f"--{key}: must be more than 0, is {parsed[key]}")
    check_files(parsed, "json")
    device = open_device(parsed.device)
    made = parser.instantiate_classes(parsed)

    from decur.bench.plan import Devices, plan
    from decur.pretrain.data import seen_data

    settings = settings_of(made)
    data = seen_data(made.data, settings)
    cost = plan(
        data,
        made.objective,
        settings=settings,
        device=device,
        devices=Devices(
            counts=parsed.gpus,
            memory=None if parsed.memory is None else round(parsed.memory * 1e9),
            link=parsed.link * 1e9,
        ),
        seconds=parsed.seconds,
        samples=parsed.samples,
    )
    show(cost, data.describe(), Console(soft_wrap=True))
    if parsed.json is not None:
        values = {"reached": cost.reached, "ahead": cost.ahead, "warnings": list(cost.warnings())}
        with writing(Path(parsed.json), "--json"):
            write_json(Path(parsed.json), {**dataclasses.asdict(cost), **values})
    return cost


def show(cost: RunCost, data: str, console: Console) -> None:
    """Print what a run will cost, and one line about its data."""

    def say(what: str, text: str) -> None:
        console.print(f"{what:<12}{text}", highlight=False, markup=False)

    def table(title: str, rows: dict[str, Callable[[Share], str]]) -> None:
        devices = [f"{share.gpus} device{'s' * (share.gpus > 1)}" for share in cost.shares]
        texts = [(name, *map(text, cost.shares)) for name, text in rows.items()]
        console.print(make_table([title, *devices], texts))

    def of(key: str) -> Callable[[Share], str]:
        return lambda share: quantity(share.memory[key], "B")

    reading, batch = cost.reading, cost.batch
    say("data", data)
    length = f"{cost.samples:,} samples, {cost.epochs:g} epochs, {cost.steps:,} steps of {batch}"
    say("run", f"{length} samples, {cost.precision}")
    epoch = quantity(cost.samples * reading.get("files", reading["pictures"]), "B")
    readers = "the process that trains"
    if cost.workers:
        readers = f"{cost.workers} workers, which keep {quantity(cost.ahead, 'B')} ready"
    say("reading", f"{epoch} an epoch; {reading['rate']:,.0f} samples/s by {readers}")
    steps = " and ".join(f"{duration(took)} with {size} samples" for size, took in cost.measured)
    best = f"{cost.reached:.0%} of {quantity(cost.best, 'FLOP/s')}, the best of its matrix products"
    say("measured", f"on {cost.device}, a step takes {steps}: {best}")
    if cost.measured[-1][0] < batch:
        say("", f"from which follows what one with {batch} takes: it is too large for --seconds or")
        say("", "for the memory")
    if cost.compiled:
        say("", "without torch.compile, with which the run is faster")
    parts = ", ".join(f"{part} {quantity(n, 'FLOP')}" for part, n in cost.operations.items())
    say("a step", f"of {cost.parameters:,} trained numbers takes {parts}")
    memory = {key: of(key) for key in cost.shares[0].memory}
    memory["all"] = lambda share: quantity(share.total, "B")
    memory["there are"] = lambda share: quantity(cost.capacity, "B")
    table("memory of a device", memory)
    table("time", _TIMES)
    say("sent are", "embeddings and their gradients for the loss, and the gradients of the weights")
    say("assumed", f"all devices are like {cost.device}; reading has the cores of this machine")
    for warning in cost.warnings():
        say("WARNING", warning)
