"""`decur bench`: the command line of the measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console

from decur import __version__
from decur.bench.commands import add_device, settings_of
from decur.bench.measure import Row, formats_of, matmul_rate, open_device
from decur.errors import ConfigError
from decur.pretrain.command_pretrain import build_parser
from decur.runs import make_folder, write_json, writing
from decur.tables import duration, make_table, quantity

_NAMES = ("data", "views", "loss", "step")
_ABOUT = (
    "How fast the parts of pretraining are on this device: data (from files to views, alone and as "
    "a pipeline: which part starves the GPU?), views, loss, step (where does the time of a step "
    "go?), or all. Takes the options of `decur pretrain`; without --config and --data it measures "
    "the demo's configuration (`data`: a PairedFolder). Floor: the time that the operations of "
    "matrix products take at this device's best rate, which is measured at the start."
)
_CELLS: dict[str, Callable[[Row], str]] = {
    "time": lambda row: " - ".join(map(duration, (row.quartiles[0], row.quartiles[1]))),
    "median": lambda row: duration(row.seconds),
    "a pair": lambda row: duration(row.seconds / row.pairs),
    "pairs/s": lambda row: f"{row.pairs_per_second or 0:,.0f}",
    "MB/s": lambda row: f"{row.about['megabytes']:,.0f}",
    "memory": lambda row: quantity(row.memory, "B"),
    "share": lambda row: "" if row.share is None else f"{row.share:.1%}",
    "floor": lambda row: duration(row.floor),
    "x floor": lambda row: f"{row.ratio:,.1f}" if row.ratio else "",
    "growth": lambda row: f"{row.about['growth']:.2f}",
}


def main(arguments: Sequence[str]) -> None:
    """Run `decur bench ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    arguments = list(arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    helped = {"-h", "--help"} & set(arguments)
    if name not in {*_NAMES, "all"} and not (helped and not name):
        what = f"no measurement {name!r}" if name else "say what"
        others = ", ".join(f"`{other}`" for other in _NAMES[1:])
        raise ConfigError(f"decur bench: {what}; there is `decur bench data`, {others} and `all`")
    given = any(argument.startswith(("--config", "--data")) for argument in arguments)
    if not given and not helped and name != "data":
        arguments = ["--config", "demo", *arguments]
    parser = build_parser(f"decur bench {name}".strip(), _ABOUT, starts=False)
    add_device(parser, 3.0, "File for all figures; `all`: bench.json.")
    trace = "JSON file for a trace of two steps, for Perfetto or chrome://tracing."
    parser.add_argument("--profile", type=str, help=trace)
    parser.add_argument("--dims", type=int, nargs="+", help="Widths of the embeddings, for `loss`.")
    parsed = parser.parse(arguments)
    _check(parsed, name)
    device = open_device(parsed.device)
    bench = _Bench(parser.instantiate_classes(parsed), parsed, device)
    for each in _NAMES if name == "all" else [name]:
        getattr(bench, f"bench_{each}")()
    path = parsed.json or ("bench.json" if name == "all" else None)
    if path is not None:
        with writing(Path(path), "--json"):
            write_json(Path(path), bench.found)
        bench.say("written", path)


def _check(parsed: Namespace, name: str) -> None:
    if not 0 < parsed.seconds < math.inf:
        raise ConfigError(f"seconds: must be above 0, is {parsed.seconds}")
    if parsed.profile and name not in ("step", "all"):
        raise ConfigError(f"--profile: traces steps; use it with `decur bench step`, not {name}")
    if parsed.dims and name not in ("loss", "all"):
        raise ConfigError(f"--dims: is for `decur bench loss`, not {name}; see projector.width")
    for key in ("json", "profile"):  # minutes before anything is written there
        if parsed[key]:
            make_folder(Path(parsed[key]).parent, f"--{key}")


class _Bench:
    """What is measured, and on what; each measurement is a method.

    Attributes:
        found: all figures, for JSON.
    """

    def __init__(self, made: Namespace, parsed: Namespace, device: torch.device) -> None:
        from decur.data.selection import select

        self.made, self.parsed, self.device = made, parsed, device
        self.data = select(made.data, made.modalities)
        self.console = Console(soft_wrap=True)
        self.console.width = max(self.console.width, 90)
        threads, formats = torch.get_num_threads(), formats_of(made.trainer.as_dict())
        named = f"{device}, {threads} threads"
        if device.type == "cuda":
            named = torch.cuda.get_device_name(device)
        self.rate = matmul_rate(device, formats.products, min(1.0, made.seconds))
        dtype = str(formats.products).removeprefix("torch.")
        self.found: dict[str, Any] = {"decur": __version__, "torch": torch.__version__}
        self.found |= {"device": named, "threads": threads, "precision": formats.precision}
        self.found |= {"dtype": dtype, "rates": {dtype: self.rate}, "results": {}}
        self.say("data", self.data.describe())
        self.say("device", f"{named}, torch {torch.__version__}")
        self.say("its best", f"{quantity(self.rate, 'FLOP/s')} in {dtype} matrix products")

    def say(self, what: str, text: str) -> None:
        """Print a line."""
        self.console.print(f"{what:<12}{text}", highlight=False, markup=False)

    def show(self, key: str, found: Sequence[Row], *columns: str) -> None:
        """Keep the rows of a measurement for JSON, and print a table of them."""
        self.found["results"][key] = [row.to_dict() for row in found]
        texts = [(row.name, *(_CELLS[column](row) for column in columns)) for row in found]
        self.console.print(make_table([key.replace("_", ", "), *columns], texts))

    def bench_data(self) -> None:
        """Measure each step from files to views, and the pipeline."""
        from decur.bench.data import bench_data

        made = self.made
        rows = list(bench_data(self.data, made.loader, made.views, self.device, made.seconds))
        self.show("data", rows, "pairs/s", "MB/s", "a pair")

    def bench_views(self) -> None:
        """Measure two views of a batch, of each sensor and of all."""
        from decur.bench.data import bench_views

        made = self.made
        rows = list(bench_views(self.data, made.loader, made.views, self.device, made.seconds))
        self.show("views", rows, "median", "time", "pairs/s", "memory")

    def bench_loss(self) -> None:
        """Measure the objective forward and backward, at one width or at several."""
        from decur.bench.data import bench_loss

        made, objectives = self.made, [self.made.objective]
        if made.dims:
            given: Any = self.parsed.objective.get("init_args") or {}
            kind, options = type(made.objective), dict(given)
            objectives = [kind(**{**options, "dim": dim}) for dim in made.dims]
        sensors, batch = list(self.data.modalities), made.loader.batch_size
        rows = list(bench_loss(objectives, sensors, batch, self.device, self.rate, made.seconds))
        self.show("loss", rows, "median", "time", "memory", "floor", "x floor", "growth")

    def bench_step(self) -> None:
        """Measure a training step and its parts, with and without loading."""
        from decur.bench.step import NETWORKS, Steps, bench_step

        made = self.made
        steps = Steps(self.data, made.objective, settings_of(made), self.device)
        real, fixed = bench_step(steps, self.rate, seconds=made.seconds, trace=made.profile)
        shares = {}
        for key, found in (("step", real), ("step_fixed", fixed)):
            self.show(key, found, "median", "time", "share", "floor", "x floor")
            shares[key] = sum(row.share or 0.0 for row in found if row.name in NETWORKS)
        loading = real[0].seconds / fixed[0].seconds
        self.say("memory", f"{quantity(real[0].memory, 'B')} at the peak of a step")
        self.say("loading", f"makes a step {loading:.2f} times as long as a fixed batch in memory")
        self.say(
            "networks", f"have {shares['step']:.0%}, with a fixed batch {shares['step_fixed']:.0%}"
        )
        self.found |= {"loading": loading, "arithmetic": shares}
