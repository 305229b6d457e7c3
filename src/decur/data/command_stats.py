"""`decur stats`: what the bands of a folder hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from decur.config import Parser
from decur.data.band_statistics import PERCENTS, BandStatistics
from decur.data.decoding import MAX_PIXELS
from decur.data.listing import subfolders
from decur.data.pairing import check_pairs, pair_files
from decur.data.stats import compute_stats, write_modalities
from decur.errors import WORKERS, ConfigError, check_ranges
from decur.modality import Modality, load_modalities, preset_of
from decur.terminal import is_quiet, make_table, tell_result


def main(arguments: Sequence[str]) -> None:
    """Run `decur stats ARGUMENTS`: compute, print, and write band statistics.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = Parser(
        "decur stats",
        "Mean, standard deviation, range and percentiles of each band of ROOT/<modality>/<id>.*, "
        "as YAML that --data.modalities takes.",
    )
    parser.usage = "decur stats ROOT [--out FILE] [--key value ...]"
    parser.add_argument("root", type=str, help="Folder of the pairs.")
    # Messages of the readers name these two as options of other commands.
    parser.add_argument(
        "--pattern",
        "--data.pattern",
        type=str | dict[str, str] | None,
        help="Names of the files where they are not ROOT/<modality>/<id>, as '{id}_S1Hand' or "
        "'{split}/{sensor}/{id}', or one a modality as '{\"s1\": \"{id}_vv\"}'.",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="File to write, by default ROOT/modalities.yaml, where pretraining finds it.",
    )
    parser.add_argument(
        "--modalities",
        type=str | None,
        help="YAML of modalities to keep; only mean and std are replaced. By default "
        "ROOT/modalities.yaml where there is one.",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="Number of reading threads."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing file.")
    parser.add_argument(
        "--max_pixels",
        "--data.max_pixels",
        type=int,
        default=MAX_PIXELS,
        help="Largest height times width of a picture; a larger raster with a place on a map is "
        "read in squares from all over it, and any other larger picture is left out.",
    )
    parser.show_first(
        {
            "what is read": ("root", "pattern", "modalities", "max_pixels", "workers"),
            "what is written": ("out", "overwrite"),
        }
    )
    settings = parser.parse(arguments)
    check_ranges(settings, workers=WORKERS)
    own = Path(settings.root) / "modalities.yaml"
    out = Path(settings.out or own)
    if out.exists() and not settings.overwrite:
        raise ConfigError(f"{out}: exists already; choose another --out, or --overwrite it")
    kept = settings.modalities or (own if own.is_file() else None)
    known = load_modalities(kept)
    if known:
        print(f"known from {kept}: {', '.join(known)}; only mean and std are replaced")
        others = sorted(set(subfolders(settings.root)) - set(known))
        if others and settings.pattern is None:
            print(f"left out: {', '.join(others)}; it does not name them")
    pairing = pair_files(Path(settings.root), tuple(known) or None, settings.pattern)
    if pairing.left_out:
        print(f"left out: {', '.join(pairing.left_out)}")
    if few := check_pairs(Path(settings.root), pairing, keep=True):
        print(f"warning: {few}")
    files = pairing.folders
    with Progress(console=Console(stderr=True), transient=True, disable=is_quiet()) as progress:
        task = progress.add_task("reading", total=sum(map(len, files.values())))
        found = compute_stats(
            settings.root,
            known or None,
            workers=settings.workers,
            advance=lambda n: progress.advance(task, n),
            max_pixels=settings.max_pixels,
            pattern=settings.pattern,
        )
    try:  # before anything is printed: who reads that may have seen enough
        write_modalities(out, found, modalities=known or None)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose --out") from error
    for name, statistics in found.items():
        _print(name, statistics, known.get(name))
    tell_result("written: ", out)


def _print(name: str, statistics: BandStatistics, known: Modality | None) -> None:
    modality = statistics.to_modality(name, known)
    title = f"{name}: {statistics.images} images"
    percentiles = statistics.percentiles()  # (percents, bands)
    rows = []
    for i, band in enumerate(modality.bands):
        values = (statistics.mean[i], statistics.std[i], statistics.minimum[i])
        row = (*values, *percentiles[:, i], statistics.maximum[i])
        rows.append((band, *(f"{value:.4g}" for value in row)))
    columns = ("band", "mean", "std", "min", *(f"p{p:g}" for p in PERCENTS), "max")
    table = make_table(columns, rows, title=title)
    console = Console(soft_wrap=True)
    # As wide as the table is: a narrow terminal, or a pipe of 80 columns, would cut its numbers.
    widest = Console(width=10_000).measure(table).maximum  # a console measures up to its own width
    console.width = max(console.width, widest, len(title))
    console.print(table)
    for line in statistics.report():
        if line.startswith("share of pixels"):
            console.print(line, highlight=False)
    if known is None and (preset := preset_of(modality.bands)):
        console.print(
            f"{len(rows)} bands without names: if they are Sentinel-2's in their order, "
            f"preset {preset!r} fits: write `{name}: {{preset: {preset}}}` into a file for "
            "--data.modalities; pictures show them so",
            highlight=False,
            markup=False,
        )
    for line in statistics.warnings:
        console.print(f"warning: {line}", highlight=False, markup=False)
    for path, reason in statistics.bad:
        console.print(f"left out: {path}: {reason}", highlight=False, markup=False)
