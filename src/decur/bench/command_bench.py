"""`decur bench`: the command line of the measurements."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich import box
from rich.console import Console
from rich.table import Table

from decur import __version__
from decur.bench.data import bench_data, endless
from decur.bench.device import Rates, measure_device, open_device
from decur.bench.floors import computing_dtype
from decur.bench.loss import bench_loss
from decur.bench.step import WORLDS, bench_step
from decur.bench.timing import Row, Timing
from decur.bench.views import bench_views
from decur.config import Parser
from decur.data import PairedDataset
from decur.data.selection import select
from decur.errors import ConfigError
from decur.objectives import Objective
from decur.pretrain.command_pretrain import build_parser
from decur.runs import make_folder, write_json, writing
from decur.views import Views

_ABOUT = (
    "How fast the parts of pretraining are on this device, and how far each is from what the "
    "device can do: data (from files to views, alone and as a pipeline: which part starves the "
    "GPU?), views, loss, step (a training step and its parts), or all. Takes the options of "
    "`decur pretrain`; without --config and --data it measures the demo's configuration (`data`: "
    "a PairedFolder). Floor: operations and bytes counted from shapes, over the device's own "
    "rates of matrix products and copies, measured at the start."
)


@dataclass
class _Bench:
    """What is measured, on what, and what has been found."""

    made: Namespace  # objects that the options describe
    parsed: Namespace  # the options
    data: PairedDataset
    device: torch.device
    console: Console
    found: dict[str, list[Row]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, Rates] = field(default_factory=dict)

    @property
    def plain(self) -> Rates:
        """The device's rates in float32, measured once."""
        if "float32" not in self.rates:
            seconds = min(1.0, self.made.seconds)
            self.rates["float32"] = measure_device(self.device, torch.float32, seconds)
        return self.rates["float32"]

    def show(self, key: str, title: str, rows: list[Row]) -> None:
        """Keep rows, and print them."""
        self.found[key] = rows
        self.console.print(table(title, rows))


def _data(bench: _Bench) -> None:
    made = bench.made
    rates = bench.plain
    speeds = list(
        bench_data(bench.data, made.loader, made.views, bench.device, made.seconds, rates)
    )
    bench.found["data"] = [speed.row for speed in speeds]
    columns = ("data", "pairs/s", "MB/s", "a pair (quartiles)", "floor", "x floor")
    shown = _table(columns)
    for speed in speeds:
        row, pairs = speed.row, speed.row.pairs
        time = Timing(
            row.time.median / pairs, row.time.low / pairs, row.time.high / pairs, row.time.turns
        )
        shown.add_row(
            speed.step,
            f"{speed.pairs:,.0f}",
            f"{speed.megabytes:,.0f}",
            _spread(time),
            _seconds((row.floor or 0.0) / pairs),
            _ratio(row.ratio),
        )
    bench.console.print(shown)


def _views(bench: _Bench) -> None:
    settings, data = bench.made.views, bench.data
    views = Views(data.modalities, settings.size, settings.shared_geometry, settings.augment)
    alone = dataclasses.replace(bench.made.loader, workers=0)
    batch = next(endless(data, alone))
    seconds = bench.made.seconds
    rows = bench_views(data.modalities, views, batch, bench.device, bench.plain, seconds)
    bench.show("views", "views", list(rows))


def _loss(bench: _Bench) -> None:
    made = bench.made
    objectives = [made.objective]
    if made.dims:
        objectives = [_of_width(made.objective, bench.parsed.objective, k) for k in made.dims]
    names, batch = list(bench.data.modalities), made.loader.batch_size
    rows = bench_loss(objectives, names, batch, bench.device, bench.plain, made.seconds)
    bench.show("loss", "loss", list(rows))


def _of_width(objective: Objective, parsed: Namespace, dim: int) -> Objective:
    arguments = vars(parsed.get("init_args") or Namespace())
    return type(objective)(**{**arguments, "dim": dim})


def _step(bench: _Bench) -> None:
    made = bench.made
    found = bench_step(
        bench.data,
        made.objective,
        made.encoder,
        made.projector,
        made.views,
        made.optimizer,
        made.loader,
        seed=made.seed,
        channels_last=made.channels_last,
        compile=made.compile,
        monitor_batches=made.monitor.batches,
        trainer=made.trainer.as_dict(),
        device=bench.device,
        seconds=made.seconds,
        trace=made.profile,
        rates=bench.plain,
    )
    bench.rates |= found.rates
    bench.show("step", "step", found.real)
    bench.show("step_fixed", "fixed batch", found.fixed)
    real, fixed = found.arithmetic
    for what, value in (
        ("step, over that with a fixed batch", f"{found.loading:.2f}"),
        ("encoders and projectors, of its parts", f"{real:.0%}, with a fixed batch {fixed:.0%}"),
        ("parts, each waited for, over the step", f"{found.watching:.2f}"),
    ):
        bench.console.print(f"{what:<40} {value}", highlight=False)
    sent = _table(("sent by each of", *(key.replace("_", " ") for key in found.traffic[WORLDS[0]])))
    for world, kinds in found.traffic.items():
        sent.add_row(f"{world} processes", *map(_bytes, kinds.values()))
    bench.console.print(sent)
    bench.extra |= {"loading": found.loading, "watching": found.watching}
    bench.extra["arithmetic"] = {"step": real, "step_fixed": fixed}
    bench.extra["traffic"] = found.traffic


_BENCHES: dict[str, Callable[[_Bench], None]] = {
    "data": _data,
    "views": _views,
    "loss": _loss,
    "step": _step,
}


def main(arguments: Sequence[str]) -> None:
    """Run `decur bench ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    arguments = list(arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    helped = {"-h", "--help"} & set(arguments)
    if name not in {*_BENCHES, "all"} and not (helped and not name):
        what = f"no measurement {name!r}" if name else "say what"
        others = ", ".join(f"`{other}`" for other in list(_BENCHES)[1:])
        raise ConfigError(f"decur bench: {what}; there is `decur bench data`, {others} and `all`")
    given = any(argument.startswith(("--config", "--data")) for argument in arguments)
    if not given and not helped and name != "data":
        arguments = ["--config", "demo", *arguments]
    parser = _parser(name)
    parsed = parser.parse(arguments)
    _check(parsed, name)
    device = open_device(parsed.device)
    made = parser.instantiate_classes(parsed)
    console = Console(soft_wrap=True)
    console.width = max(console.width, 90)
    data = select(made.data, made.modalities)
    bench = _Bench(made, parsed, data, device, console)
    names = list(_BENCHES) if name == "all" else [name]
    console.print(f"data        {data.describe()}", highlight=False)
    about = _about(device, str(made.trainer.precision or "32-true"))
    console.print(f"device      {about['device']}, torch {about['torch']}", highlight=False)
    best = bench.plain
    console.print(
        f"its best    {best.matrix / 1e9:,.0f} GFLOP/s in float32 matrix products, "
        f"{best.copy / 1e9:,.1f} GB/s in copies",
        highlight=False,
    )
    for each in names:
        _BENCHES[each](bench)
    path = made.json or ("bench.json" if name == "all" else None)
    if path is not None:
        results = {title: [row.to_dict() for row in rows] for title, rows in bench.found.items()}
        rates = {key: {"matrix": r.matrix, "copy": r.copy} for key, r in bench.rates.items()}
        with writing(Path(path), "--json"):
            found = {**about, "rates": rates, "results": results, **bench.extra}
            write_json(Path(path), found)
        console.print(f"written     {path}", highlight=False)


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


def _about(device: torch.device, precision: str) -> dict[str, Any]:
    gpu = device.type == "cuda"
    threads = torch.get_num_threads()
    return {
        "decur": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if gpu else f"{device}, {threads} threads",
        "threads": threads,
        "precision": precision,
        "dtype": str(computing_dtype(precision)).removeprefix("torch."),
    }


def table(title: str, rows: Sequence[Row]) -> Table:
    """Rows for a person: times with their quartiles, memory, and time over floor."""
    optional = {
        "memory": any(row.memory is not None for row in rows),
        "share": any(row.share is not None for row in rows),
        "growth": any("growth" in row.about for row in rows),
    }
    columns = [title, "time (quartiles)", "pairs/s", "floor", "x floor"]
    shown = _table([*columns, *(key for key, there in optional.items() if there)])
    for row in rows:
        rate = row.pairs_per_second
        more = {
            "memory": "" if row.memory is None else _bytes(row.memory),
            "share": "" if row.share is None else f"{row.share:.1%}",
            "growth": f"{row.about.get('growth', math.nan):.2f}",
        }
        shown.add_row(
            row.name,
            _spread(row.time),
            "" if rate is None or row.share is not None else f"{rate:,.0f}",
            _seconds(row.floor),
            _ratio(row.ratio),
            *(more[key] for key, there in optional.items() if there),
        )
    return shown


def _table(columns: Sequence[str]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    return shown


def _unit(value: float) -> tuple[str, float]:
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    return next(((unit, size) for unit, size in units if value >= size), units[-1])


def _seconds(value: float | None) -> str:
    unit, size = _unit(value or 0.0)
    return f"{value / size:.3g} {unit}" if value else ""


def _spread(time: Timing) -> str:
    unit, size = _unit(time.median)
    median, low, high = (f"{x / size:.3g}" for x in (time.median, time.low, time.high))
    return f"{median} {unit} ({low} - {high})"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:,.{1 if value < 100 else 0}f}"


def _bytes(value: int) -> str:
    return f"{value / 1e6:,.1f} MB"
