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
from decur.bench.commands import add_device, check_files, settings_of
from decur.bench.measure import Row, formats_of, matmul_rate, open_device
from decur.errors import ConfigError
from decur.pretrain.configuration import build_parser
from decur.runs import write_json, writing
from decur.terminal import duration, make_table, quantity

_ABOUT = (
    "How fast the parts of pretraining are on this device: data (from files to views, alone and as "
    "a pipeline: which part starves the GPU?), views, loss, step (where does the time of a step "
    "go?), or all. Takes the options of `decur pretrain`, such as --data.root FOLDER; without "
    "--config and --data it measures the demo's configuration, and `data` asks for a folder. "
    "Floor: the time that the operations of matrix products take at this device's best rate, "
    "which is measured at the start."
)
_COLUMNS = {
    "data": ("pairs/s", "MB/s", "a pair"),
    "views": ("median", "half of them", "pairs/s", "memory"),
    "loss": ("median", "half of them", "memory", "floor", "x floor", "growth"),
    "step": ("median", "half of them", "share", "floor", "x floor"),
}
_CELLS: dict[str, Callable[[Row], str]] = {
    "median": lambda row: duration(row.seconds),
    "half of them": lambda row: " - ".join(map(duration, row.quartiles)),
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
    if name not in {*_COLUMNS, "all"} and not (helped and not name):
        what = f"no measurement {name!r}" if name else "say what"
        others = ", ".join(f"`{other}`" for other in list(_COLUMNS)[1:])
        raise ConfigError(f"decur bench: {what}; there is `decur bench data`, {others} and `all`")
    given = any(argument.startswith(("--config", "--data")) for argument in arguments)
    if not given and not helped and name != "data":
        arguments = ["--config", "demo", *arguments]
    parser = build_parser(f"decur bench {name}".strip(), _ABOUT, starts=False)
    add_device(parser, 3.0, "File for all figures; of `all` by default bench.json.")
    trace = "JSON file for a trace of two steps, for Perfetto or chrome://tracing."
    parser.add_argument("--profile", type=str, help=trace)
    parser.add_argument("--dims", type=int, nargs="+", help="Widths of the embeddings, for `loss`.")
    parser.show_first(
        {
            "what is measured": ("config", "data", "objective", "dims"),
            "the configuration, for example": (
                "encoder.name",
                "projector.width",
                "views.size",
                "loader.batch_size",
                "loader.workers",
                "trainer.precision",
            ),
            "how": ("device", "seconds", "json", "profile"),
        }
    )
    parsed = parser.parse(arguments)
    _check(parsed, name)
    device = open_device(parsed.device)
    found = _bench(parser.instantiate_classes(parsed), parsed, device, name)
    path = parsed.json or ("bench.json" if name == "all" else None)
    if path is not None:
        with writing(Path(path), "--json"):
            write_json(Path(path), found)
        print(f"{'written':<12}{path}")


def _check(parsed: Namespace, name: str) -> None:
    if not 0 < parsed.seconds < math.inf:
        raise ConfigError(f"seconds: must be above 0, is {parsed.seconds}")
    if parsed.profile and name not in ("step", "all"):
        raise ConfigError(f"--profile: traces steps; use it with `decur bench step`, not {name}")
    if parsed.dims and name not in ("loss", "all"):
        raise ConfigError(f"--dims: is for `decur bench loss`, not {name}; see projector.width")
    check_files(parsed, "json", "profile")


def _bench(made: Namespace, parsed: Namespace, device: torch.device, name: str) -> dict[str, Any]:
    """Measure, print each measurement as soon as it is there, and return all figures for JSON."""
    from decur.pretrain.data import seen_data

    made.data = seen_data(made.data, settings_of(made))
    formats, threads = formats_of(made.trainer.as_dict()), torch.get_num_threads()
    named = f"{device}, {threads} threads"
    if device.type == "cuda":
        named = torch.cuda.get_device_name(device)
    dtype = str(formats.products).removeprefix("torch.")
    rate = matmul_rate(device, formats.products, min(1.0, made.seconds))
    print(f"{'data':<12}{made.data.describe()}\n{'device':<12}{named}, torch {torch.__version__}")
    print(f"{'best rate':<12}{quantity(rate, 'FLOP/s')} in {dtype} matrix products")
    console = Console(soft_wrap=True)
    console.width = max(console.width, 90)
    results: dict[str, list[dict[str, Any]]] = {}
    for each in _COLUMNS if name == "all" else [name]:
        for key, rows in _measure(each, made, parsed, device, rate):
            results[key] = [row.to_dict() for row in rows]
            texts = [(row.name, *(_CELLS[title](row) for title in _COLUMNS[each])) for row in rows]
            console.print(make_table((key.replace("_", ", "), *_COLUMNS[each]), texts))
    about = {"decur": __version__, "torch": torch.__version__, "device": named, "threads": threads}
    about |= {"precision": formats.precision, "dtype": dtype, "rates": {dtype: rate}}
    return {**about, "results": results, **(_summary(results) if "step" in results else {})}


def _measure(
    name: str, made: Namespace, parsed: Namespace, device: torch.device, rate: float
) -> list[tuple[str, list[Row]]]:
    """Return the rows of one measurement by their names: two of a step, one of all others."""
    from decur.bench.data import bench_data, bench_loss, bench_views
    from decur.bench.step import Steps, bench_step

    data, seconds = made.data, made.seconds
    if name == "step":
        steps = Steps(data, made.objective, settings_of(made), device)
        real, fixed = bench_step(steps, rate, seconds=seconds, trace=made.profile)
        return [("step", real), ("step_fixed", fixed)]
    if name == "loss":
        given: Any = parsed.objective.get("init_args") or {}
        kind, options = type(made.objective), dict(given)
        objectives = [kind(**{**options, "dim": dim}) for dim in made.dims or []]
        sensors, batch = list(data.modalities), made.loader.batch_size
        rows = bench_loss(objectives or [made.objective], sensors, batch, device, rate, seconds)
    else:
        bench = bench_data if name == "data" else bench_views
        rows = bench(data, made.loader, made.views, device, seconds)
    return [(name, list(rows))]


def _summary(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print in words where the time of a step goes, and return it for JSON."""
    real, fixed = results["step"], results["step_fixed"]
    loading, memory = real[0]["seconds"] / fixed[0]["seconds"], quantity(real[0]["memory"], "B")
    networks = ("encoders", "projectors", "backward")
    shares = {
        key: sum(row["share"] for row in results[key] if row["name"] in networks)
        for key in ("step", "step_fixed")
    }
    print(f"{'memory':<12}{memory} at the peak of a step")
    print(
        f"{'loading':<12}makes a step {loading:.2f} times as long as a fixed batch in memory does"
    )
    print(
        f"{'networks':<12}take {shares['step']:.0%}, with a fixed batch {shares['step_fixed']:.0%}"
    )
    return {"loading": loading, "arithmetic": shares}
