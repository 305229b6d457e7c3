"""`decur bench`: the command line of the measurements."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console

from decur import __version__
from decur.bench.measure import Row, matmul_rate, open_device, precision_of
from decur.bench.tables import duration, make_table, quantity
from decur.config import Parser
from decur.errors import ConfigError
from decur.pretrain.command_pretrain import build_parser
from decur.runs import make_folder, write_json, writing

_NAMES = ("data", "views", "loss", "step")
_ABOUT = (
    "How fast the parts of pretraining are on this device: data (from files to views, alone and as "
    "a pipeline: which part starves the GPU?), views, loss, step (a training step and its parts: "
    "where does the time go?), or all. Takes the options of `decur pretrain`; without --config and "
    "--data it measures the demo's configuration (`data`: a PairedFolder). Floor: the time that "
    "the operations of matrix products take at the best rate of this device, which is measured at "
    "the start."
)


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
    parser = _parser(name)
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


def _parser(name: str) -> Parser:
    parser = build_parser(f"decur bench {name}".strip(), _ABOUT, starts=False)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="What is measured.")
    parser.add_argument("--seconds", type=float, default=3.0, help="Measured, for each row.")
    parser.add_argument("--json", type=str, help="File for all figures; `all`: bench.json.")
    parser.add_argument(
        "--profile",
        type=str,
        help="JSON file for a trace of two steps, for Perfetto or chrome://tracing.",
    )
    parser.add_argument("--dims", type=int, nargs="+", help="Widths of the embeddings, for `loss`.")
    return parser


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
        self.data, self.seconds = select(made.data, made.modalities), made.seconds
        self.console = Console(soft_wrap=True)
        self.console.width = max(self.console.width, 90)
        threads, precision = torch.get_num_threads(), precision_of(made.trainer.as_dict())
        gpu = device.type == "cuda"
        named = torch.cuda.get_device_name(device) if gpu else f"{device}, {threads} threads"
        self.rate = matmul_rate(device, precision.products, min(1.0, self.seconds))
        dtype = str(precision.products).removeprefix("torch.")
        self.found: dict[str, Any] = {
            "decur": __version__,
            "torch": torch.__version__,
            "device": named,
            "threads": threads,
            "precision": precision.name,
            "dtype": dtype,
            "rates": {dtype: self.rate},
            "results": {},
        }
        self.say("data", self.data.describe())
        self.say("device", f"{named}, torch {torch.__version__}")
        self.say("its best", f"{quantity(self.rate, 'FLOP/s')} in {dtype} matrix products")

    def say(self, what: str, text: str) -> None:
        """Print a line."""
        self.console.print(f"{what:<12}{text}", highlight=False, markup=False)

    def show(self, key: str, rows: Sequence[Row], columns: dict[str, Any]) -> None:
        """Keep rows for JSON, and print a table of them.

        Args:
            key: name of the measurement.
            rows: of the table.
            columns: a function of a row for each column.
        """
        self.found["results"][key] = [row.to_dict() for row in rows]
        texts = [(row.name, *(text(row) for text in columns.values())) for row in rows]
        self.console.print(make_table([key, *columns], texts))

    def bench_data(self) -> None:
        """Measure each step from files to views, and the pipeline."""
        from decur.bench.data import bench_data

        rows = list(
            bench_data(self.data, self.made.loader, self.made.views, self.device, self.seconds)
        )
        columns = {
            "pairs/s": _rate,
            "MB/s": lambda row: f"{row.about['megabytes']:,.0f}",
            "a pair": lambda row: duration(row.seconds / row.pairs),
        }
        self.show("data", rows, columns)

    def bench_views(self) -> None:
        """Measure two views of a batch, of each sensor and of all."""
        from decur.bench.data import batches, bench_views
        from decur.views import Views

        settings, modalities = self.made.views, self.data.modalities
        views = Views(modalities, settings.size, settings.shared_geometry, settings.augment)
        with contextlib.closing(
            batches(self.data, dataclasses.replace(self.made.loader, workers=0))
        ) as stream:
            batch = next(stream)
        rows = list(bench_views(modalities, views, batch, self.device, self.seconds))
        self.show("views", rows, {"time": _spread, "pairs/s": _rate, "memory": _memory})

    def bench_loss(self) -> None:
        """Measure the objective forward and backward, at one width or at several."""
        from decur.bench.data import bench_loss

        objectives = [self.made.objective]
        if self.made.dims:
            kind, arguments = type(self.made.objective), self.parsed.objective.get("init_args")
            objectives = [
                kind(**{**vars(arguments or Namespace()), "dim": k}) for k in self.made.dims
            ]
        sensors, batch = list(self.data.modalities), self.made.loader.batch_size
        rows = list(
            bench_loss(objectives, sensors, batch, self.device, self.rate, seconds=self.seconds)
        )
        columns = {"time": _spread, "memory": _memory, "floor": _floor, "x floor": _ratio}
        columns["growth"] = lambda row: f"{row.about['growth']:.2f}"
        self.show("loss", rows, columns)

    def bench_step(self) -> None:
        """Measure a training step and its parts, with and without loading."""
        from decur.bench.step import Training, bench_step

        made = self.made
        real, fixed = bench_step(
            Training.of(self.data, made),
            self.device,
            self.rate,
            seconds=self.seconds,
            trace=made.profile,
        )
        twins = {row.name: row for row in real}
        self.found["results"] |= {"step": [row.to_dict() for row in real]}
        columns = {
            "fixed batch": lambda row: duration(row.seconds),
            "share": _share,
            "with loading": lambda row: duration(twins[row.name].seconds),
            " share": lambda row: _share(twins[row.name]),
            "floor": _floor,
            "x floor": _ratio,
        }
        self.show("step_fixed", fixed, columns)
        loading = real[0].seconds / fixed[0].seconds
        arithmetic = {
            key: sum(
                row.share or 0 for row in rows if row.name in ("encoders", "projectors", "backward")
            )
            for key, rows in (("step", real), ("step_fixed", fixed))
        }
        self.say("memory", f"{quantity(fixed[0].memory, 'B')} at the peak of a step")
        self.say("loading", f"makes a step {loading:.2f} times as long ({_rate(real[0])} pairs/s)")
        self.say(
            "networks",
            f"take {arithmetic['step']:.0%} of the parts' time, {arithmetic['step_fixed']:.0%} "
            "with a fixed batch",
        )
        self.found |= {"loading": loading, "arithmetic": arithmetic}


def _rate(row: Row) -> str:
    return f"{row.pairs_per_second or 0:,.0f}"


def _spread(row: Row) -> str:
    low, high = row.quartiles
    return f"{duration(row.seconds)} ({duration(low)} - {duration(high)})"


def _memory(row: Row) -> str:
    return quantity(row.memory, "B")


def _share(row: Row) -> str:
    return "" if row.share is None else f"{row.share:.1%}"


def _floor(row: Row) -> str:
    return duration(row.floor)


def _ratio(row: Row) -> str:
    return f"{row.ratio:,.1f}" if row.ratio else ""
