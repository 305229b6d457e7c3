"""The command lines of `decur bench` and `decur plan`, and the tables that they print."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import Namespace
from rich.console import Console

from decur import __version__
from decur.bench.measure import MOST_ROWS, Pretraining, Row, formats_of, matmul_rate, open_device
from decur.config import Parser
from decur.errors import ConfigError, require
from decur.pretrain.configuration import build_parser
from decur.pretrain.settings import PretrainSettings
from decur.runs import make_folder, write_json, writing
from decur.terminal import duration, make_table, quantity

if TYPE_CHECKING:
    from decur.bench.plan import RunCost

_BENCH = (
    "How fast the parts of pretraining are on this device. WHAT is data (from files to views, "
    "alone and as a pipeline: which part starves the GPU?), views, loss, step (where does the time "
    "of a step go?), or all. Takes the options of `decur pretrain`, such as --data.root FOLDER; "
    "without --config and --data it measures the recipe `demo`, and `data` asks for a "
    "folder. Floor: the time that the operations of matrix products take at this device's best "
    "rate, measured at the start. Growth: the time for a dimension beside that of the first."
)
_PLAN = (
    "What a pretraining run will cost: hours, memory and traffic, on one device and on many. Takes "
    "the options of `decur pretrain`, reads a few samples, makes a few training steps and writes "
    "nothing: decur plan --config R --gpus 1 4 8"
)
_COLUMNS = {
    "data": ("pairs/s",),
    "views": ("median", "half of them", "pairs/s", "memory"),
    "loss": ("median", "half of them", "memory", "x floor", "growth"),
    "step": ("median", "half of them", "share", "x floor"),
}
_CELLS: dict[str, Callable[[Row], str]] = {
    "median": lambda row: duration(row["seconds"]),
    "half of them": lambda row: " - ".join(map(duration, row["quartiles"])),
    "pairs/s": lambda row: f"{rate:,.0f}" if (rate := row["pairs_per_second"]) else "–",
    "memory": lambda row: quantity(row["memory"], "B"),
    "share": lambda row: "" if row["share"] is None else f"{row['share']:.1%}",
    "x floor": lambda row: f"{row['seconds'] / row['floor']:,.1f}" if row["floor"] else "",
    "growth": lambda row: f"{row['growth']:.2f}",
}


def bench_command(arguments: Sequence[str]) -> None:
    """Run `decur bench ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    arguments = list(arguments)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    helped = {"-h", "--help"} & set(arguments)
    if name not in {*_COLUMNS, "all"} and not (helped and not name):
        what = f"no measurement {name!r}" if name else "say what"
        others = ", ".join(f"`{other}`" for other in list(_COLUMNS)[1:])
        raise ConfigError(f"decur bench: {what}; there is `decur bench data`, {others} and `all`")
    given = any(argument.startswith(("--config", "--data")) for argument in arguments)
    if not given and not helped and name != "data":
        arguments = ["--config", "demo", *arguments]
    json = "File for all figures, of `all` by default bench.json."
    parser = _build_parser(f"decur bench {name or 'WHAT'}", _BENCH, seconds=3.0, json=json)
    trace = "JSON file for a trace of two steps, for Perfetto or chrome://tracing."
    parser.add_argument("--profile", type=str, help=trace)
    parser.add_argument("--dims", type=int, nargs="+", help="Widths of the embeddings, for `loss`.")
    parser.show_first(
        {
            "what is measured": ("config", "data", "objective", "dims"),
            "its networks": ("encoder.name", "projector.width", "trainer.precision"),
            "its batches": ("views.size", "loader.batch_size", "loader.workers"),
            "how": ("device", "seconds", "json", "profile"),
        }
    )
    parsed = parser.parse(arguments)
    if parsed.profile and name not in ("step", "all"):
        raise ConfigError(f"--profile: traces steps; use it with `decur bench step`, not {name}")
    if parsed.dims and name not in ("loss", "all"):
        raise ConfigError(f"--dims: is for `decur bench loss`, not {name}; see projector.width")
    widths, least = len(parsed.dims or ()), min(parsed.dims or [1])
    require(least >= 1, f"--dims: must be at least 1, is {least}")
    many = f"--dims: takes up to {MOST_ROWS} widths, got {widths}; give fewer"
    require(widths <= MOST_ROWS, many)
    parsed.json = parsed.json or ("bench.json" if name == "all" else None)
    _bench(parsed, _instantiate(parser, parsed), list(_COLUMNS) if name == "all" else [name])


def _bench(parsed: Namespace, run: Pretraining, names: Iterable[str]) -> None:
    """Measure, print each measurement as soon as it is there, and write all figures."""
    from decur.bench.data import bench_data, bench_loss, bench_views
    from decur.bench.step import bench_step

    device, seconds, threads = run.device, parsed.seconds, torch.get_num_threads()
    formats = formats_of(run.settings.trainer.as_dict())
    dtype = str(formats.products).removeprefix("torch.")
    gpu = device.type == "cuda"
    named = torch.cuda.get_device_name(device) if gpu else f"{device}, {threads} threads"
    best = matmul_rate(device, formats.products, min(1.0, seconds))
    _say("data", run.data.describe())
    _say("device", f"{named}, torch {torch.__version__}")
    _say("best rate", f"{quantity(best, 'FLOP/s')} in {dtype} matrix products")
    measurements: dict[str, Callable[[], dict[str, list[Row]]]] = {
        "data": lambda: {"data": list(bench_data(run, seconds))},
        "views": lambda: {"views": bench_views(run, seconds)},
        "loss": lambda: {"loss": list(bench_loss(run, parsed.dims or (), best, seconds))},
        "step": lambda: bench_step(run, best, seconds, parsed.profile),
    }
    results: dict[str, list[Row]] = {}
    for name in names:
        columns = _COLUMNS[name]
        for key, rows in measurements[name]().items():
            results[key] = rows
            texts = [(row["name"], *(_CELLS[column](row) for column in columns)) for row in rows]
            _print_table((key.replace("_", ", "), *columns), texts)
    about: dict[str, Any] = {"decur": __version__, "torch": torch.__version__, "device": named}
    about |= {"threads": threads, "precision": formats.precision}
    about |= {"dtype": dtype, "rates": {dtype: best}}
    if "step" in results:
        whole, fixed = results["step"][0], results["step_fixed"][0]
        about["loading"] = loading = whole["seconds"] / fixed["seconds"]
        _say("memory", f"{quantity(whole['memory'], 'B')} at the peak of a step")
        _say("loading", f"makes a step {loading:.2f} times as long as a fixed batch in memory does")
    _write(parsed.json, {**about, "results": results})


def plan_command(arguments: Sequence[str]) -> RunCost:
    """Run `decur plan ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = _build_parser("decur plan", _PLAN, seconds=30.0, json="File for all figures.")
    numbers = "Numbers of devices to plan for."
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help=numbers)
    samples = "Number of samples of the whole data set, where --data is an example of it."
    parser.add_argument("--samples", type=int, help=samples)
    memory = "Memory of a device in GB; by default that of the one measured."
    parser.add_argument("--memory", type=float, help=memory)
    link = "Rate at which each device sends, in GB/s; PCIe 4.0 x16 reaches 25."
    parser.add_argument("--link", type=float, default=25.0, help=link)
    parser.show_first(
        {
            "the run": ("config", "data.root", "data", "objective", "encoder.name"),
            "its size": ("samples", "trainer.max_epochs", "loader.batch_size", "projector.width"),
            "the devices": ("gpus", "memory", "link", "trainer.precision"),
            "how": ("device", "seconds", "json"),
        }
    )
    parsed = parser.parse(arguments)
    run, link = _instantiate(parser, parsed), parsed.link * 1e9
    from decur.bench.plan import plan

    cost = plan(run, gpus=parsed.gpus, link=link, seconds=parsed.seconds, samples=parsed.samples)
    if parsed.memory is not None:
        cost = dataclasses.replace(cost, capacity=round(parsed.memory * 1e9))
    _say("data", run.data.describe())
    print_cost(cost)
    said = {"assumptions": list(cost.assumptions()), "warnings": list(cost.warnings())}
    _write(parsed.json, {**dataclasses.asdict(cost), "ahead": cost.ahead, **said})
    return cost


def print_cost(cost: RunCost) -> None:
    """Print what a run will cost."""
    reading, batch = cost.reading, cost.batch
    length = f"{cost.samples:,} samples, {cost.epochs:g} epochs, {cost.steps:,} steps of {batch}"
    _say("run", f"{length} samples, {cost.precision}, {cost.parameters:,} trained numbers")
    if cost.counting:
        _say("", f"{cost.counting:,} steps come first and count the share of common dimensions")
    epoch = quantity(cost.samples * reading.get("files", reading["pictures"]), "B")
    readers = "the process that trains"
    if cost.workers:
        several = "s" * (cost.workers > 1)
        readers = f"{cost.workers} worker{several}; {quantity(cost.ahead, 'B')} are kept ready"
    _say("reading", f"{epoch} an epoch; {reading['rate']:,.0f} samples/s by {readers}")
    steps = " and ".join(f"{duration(took)} with {size} samples" for size, took in cost.measured)
    _say("measured", f"on {cost.device}, a step takes {steps}")
    if cost.measured[-1][0] < batch:
        _say("", f"{batch} samples were too many for --seconds or memory: their time is computed")
    if cost.compiled:
        _say("", "without torch.compile, with which the run is faster")
    shares, devices = cost.shares, [f"{x.gpus} device{'s' * (x.gpus > 1)}" for x in cost.shares]
    memory = ([quantity(size, "B") for size in share.memory.values()] for share in shares)
    _print_table(["memory of a device", *devices], [*zip(shares[0].memory, *memory, strict=True)])
    time = ([duration(took) for took in share.seconds.values()] for share in shares)
    rows = [
        ("samples on each", *(str(share.samples) for share in shares)),
        ("sent by each in a step", *(quantity(share.sent["total"], "B") for share in shares)),
        *zip(shares[0].seconds, *time, strict=True),
        ("hours", *(f"{share.hours:,.3g}" for share in shares)),
        ("device hours", *(f"{share.hours * share.gpus:,.3g}" for share in shares)),
    ]
    _print_table(["time", *devices], rows)
    _say("sent are", "embeddings and their gradients for the loss, and gradients of the weights")
    for assumption in cost.assumptions():
        _say("assumed:", assumption)
    for warning in cost.warnings():
        _say("WARNING", warning)


def _build_parser(prog: str, about: str, *, seconds: float, json: str) -> Parser:
    """Return the parser of `decur pretrain` with --device, --seconds and --json besides."""
    parser = build_parser(prog, about, starts=False)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="Device that is measured.")
    each = "Seconds that a measurement takes, about."
    parser.add_argument("--seconds", type=float, default=seconds, help=each)
    parser.add_argument("--json", type=str, help=json)
    return parser


def _instantiate(parser: Parser, parsed: Namespace) -> Pretraining:
    """Return what is measured, once all is refused that would fail after minutes.

    Raises:
        ConfigError: naming the option that is wrong.
    """
    for key in ("seconds", "samples", "memory", "link"):
        value = parsed.get(key)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{key}: must be more than 0, is {value}")
    for key in ("json", "profile"):
        if parsed.get(key):
            path = Path(parsed[key])
            make_folder(path.parent, f"--{key}")
            require(not path.is_dir(), f"--{key} {path}: is a folder; give a file in it")
            with writing(path, f"--{key}"):  # measuring takes minutes
                tempfile.TemporaryFile(dir=path.parent).close()
    device = open_device(parsed.device)
    made = parser.instantiate(parsed)
    from decur.pretrain.data import seen_data

    keys = (key.name for key in dataclasses.fields(PretrainSettings))
    settings = PretrainSettings(**{key: made[key] for key in keys})
    return Pretraining(seen_data(made.data, settings), made.objective, settings, device)


def _say(what: str, text: str) -> None:
    print(f"{what:<12}{text}")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # A terminal that is too narrow breaks lines; a table that is too wide would lose figures.
    Console(width=1000).print(make_table(columns, rows))


def _write(path: str | None, values: dict[str, Any]) -> None:
    if path is not None:
        with writing(Path(path), "--json"):
            write_json(Path(path), values)
        _say("written", path)
