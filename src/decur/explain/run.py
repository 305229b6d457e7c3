"""A whole explanation: a run and data in; arrays, pictures and a report out."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur import plotting, report
from decur.data import LoaderSettings, PairedDataset
from decur.errors import ConfigError, DataError
from decur.explain import keeping
from decur.explain.base import Analysis, Arrays, DoesNotApply, Watch
from decur.explain.loading import SampleLoader
from decur.explain.model import Checkpoint, check_alike
from decur.explain.opening import (
    check_modalities,
    choose,
    open_folder,
    own_data,
    size_of_views,
)
from decur.progress import progress_bar
from decur.runs import RunFolder

T = TypeVar("T")
FIRST = 100  # place of the first analysis in the report: after what other commands write


@dataclass(frozen=True)
class Explained:
    """What an explanation leaves.

    Args:
        folder: where it is.
        arrays: `{analysis: arrays}`.
        inapplicable: `{analysis: why it has nothing to say}`.
        computed: analyses that were computed, and not taken from disk.
        bad: file and reason of what could not be read.
    """

    folder: RunFolder
    arrays: dict[str, Arrays] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)


def explain(
    run: str,
    data: PairedDataset | None = None,
    beside: Sequence[str] = (),
    only: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    samples: int = 2000,
    size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    out: str | None = None,
    redraw: bool = False,
    overwrite: bool = False,
    loader: LoaderSettings = LoaderSettings(),  # noqa: B008
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Explained:
    """Say what is common and what is unique in a run: arrays, pictures, sections of its report.

    Each analysis is kept when it is done, as `figures/explain-NAME.npz`, and not computed again
    until weights, data, samples or options change.

    Args:
        run: folder of a run of `decur pretrain`.
        data: any data set; None: what the run was trained on.
        beside: folders of more runs, for the analyses that compare runs.
        only: names of the analyses to do; None for all.
        modalities: sensors to look at; None for all of the data that the run has an encoder for.
        samples: at most how many samples, evenly spaced.
        size: height and width that pictures are resized to; None: those of each run's views.
        device: where the encoders run; "auto" takes the GPU where there is one.
        out: folder to write; None: the run's.
        redraw: draw anew what is kept, without the data and the weights.
        overwrite: compute everything anew.
        loader: batches, at most 64 samples each, and workers; bad samples are listed, not refused.
        options: `{analysis: {option: value}}`.

    Returns:
        Arrays by analysis, and what had nothing to say.

    Raises:
        ConfigError: if an analysis or option does not exist, or a package is missing.
        DataError: if the folder holds no finished run, or it and the data do not fit together.
    """
    logging.getLogger("openTSNE").setLevel(logging.WARNING)  # it tells what it has chosen
    chosen = choose(only, options or {}, redraw)
    console = Console(soft_wrap=True)
    folder = open_folder(run, out, data)
    if redraw:
        return _redraw(folder, chosen, console)
    for key, value in (("samples", samples), ("size", size)):
        if value is not None and value < 1:
            raise ConfigError(f"{key}: at least 1, is {value}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is not there; use cpu or auto")
    home = (
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    )
    data = own_data(run) if data is None else data
    wanted = {name: data.modalities[name] for name in check_modalities(modalities, data)}
    checkpoints = [
        Checkpoint.open(path, wanted, size or size_of_views(path)).to(home)
        for path in (run, *beside)
    ]
    check_alike(checkpoints)
    for name in modalities or ():
        if name not in checkpoints[0].modalities:
            there = ", ".join(checkpoints[0].modalities)
            raise ConfigError(f"modalities: {run} has no encoder for {name!r}, but for {there}")
    seen = np.logical_or.reduce([data.present[name] for name in checkpoints[0].modalities])
    if not seen.any():
        raise DataError(f"no sample of the data has {' or '.join(checkpoints[0].modalities)}")
    data = data.only(list(checkpoints[0].modalities))
    loaded = SampleLoader(data, samples, loader, np.flatnonzero(seen).tolist())
    _introduce(console, checkpoints, loaded)
    done = Explained(folder)
    try:
        for analysis in chosen:
            given = dict((options or {}).get(analysis.name, {}))
            _do(analysis, checkpoints, loaded, given, overwrite, done, console)
    finally:
        done.bad.extend(loaded.bad)
        if loaded.bad:
            RunFolder(folder.path / "explain").list_bad(loaded.bad)
    console.print(f"report      {folder.report}", highlight=False, markup=False)
    return done


def _introduce(console: Console, checkpoints: Sequence[Checkpoint], loader: SampleLoader) -> None:
    def say(what: str, text: str) -> None:
        console.print(f"{what:<12}{text}", highlight=False, markup=False)

    for checkpoint in checkpoints:
        parts = ", ".join(f"{p} {d.stop - d.start}" for p, d in checkpoint.parts.items())
        encoders = ", ".join(
            f"{name} {checkpoint.encoder(name).name}" for name in checkpoint.modalities
        )
        say("run", f"{checkpoint.name}: {encoders}; {parts} dimensions")
    say("data", loader.data.describe())
    pixels = f"resized to {checkpoints[0].size} px"
    say("samples", f"{len(loader.indices)}, {pixels}, on {checkpoints[0].device.type}")


def _do(
    analysis: Analysis,
    checkpoints: Sequence[Checkpoint],
    loader: SampleLoader,
    options: dict[str, Any],
    overwrite: bool,
    done: Explained,
    console: Console,
) -> None:
    """Compute an analysis, or take it from disk; keep it, draw it, and tell of it."""
    started = time.monotonic()
    path = _kept_at(done.folder, analysis)
    compared = checkpoints if analysis.several else checkpoints[:1]
    digest = keeping.digest_of(analysis, compared, loader, options)
    told = f"{len(loader.indices):,} samples of {type(loader.data).__name__}"
    found = None if overwrite else keeping.kept(path)
    if found is not None and digest is not None and found[1] == digest:
        arrays, how = found[0], f"as it was in {path}"
    else:
        beside = {"beside": compared[1:]} if len(compared) > 1 else {}
        try:
            with _bar(console, analysis.name) as watch:
                arrays = analysis.arrays(compared[0], loader, watch=watch, **beside, **options)
        except DoesNotApply as reason:
            _clear(done.folder, analysis)
            done.inapplicable[analysis.name] = str(reason)
            _write(done.folder, analysis, [report.paragraph(str(reason))])
            _say(console, analysis, f"does not apply: {reason}")
            return
        keeping.keep(path, arrays, digest or "", told)
        done.computed.append(analysis.name)
        how = f"{time.monotonic() - started:.1f} s"
    done.arrays[analysis.name] = arrays
    draw(done.folder, analysis, arrays, told)
    _say(console, analysis, how)


def _redraw(folder: RunFolder, chosen: Sequence[Analysis], console: Console) -> Explained:
    done = Explained(folder)
    for analysis in chosen:
        path = _kept_at(folder, analysis)
        found = keeping.kept(path)
        if found is not None:
            done.arrays[analysis.name] = found[0]
            draw(folder, analysis, found[0], found[2])
            _say(console, analysis, f"drawn from {path}")
    if not done.arrays:
        wanted = _kept_at(folder, chosen[0]).with_stem("explain-*") if len(chosen) > 1 else path
        raise DataError(f"{wanted}: nothing kept to draw from; do without --redraw first")
    console.print(f"report      {folder.report}", highlight=False, markup=False)
    return done


def draw(folder: RunFolder, analysis: Analysis, arrays: Arrays, samples: str = "") -> None:
    """Draw what an analysis has found, and write its section of the report.

    Args:
        folder: where to write.
        analysis: whose.
        arrays: what it has found; they alone suffice.
        samples: in words, what they were computed on.
    """
    body = [report.note(analysis.about)]
    for name, plot in analysis.plots.items():
        path = folder.figures / f"explain-{analysis.name}-{name}.png"
        try:
            plotting.save(plot(arrays), path)
        except DoesNotApply as reason:
            path.unlink(missing_ok=True)
            body.append(report.paragraph(str(reason)))
            continue
        body.append(report.figure(path, (inspect.getdoc(plot) or "").partition("\n\n")[0]))
    body.append(analysis.findings(arrays))
    where = _kept_at(folder, analysis).relative_to(folder.path)
    body.append(report.note(". ".join(filter(None, [samples, f"Arrays: {where}"]))))
    _write(folder, analysis, body)


def _kept_at(folder: RunFolder, analysis: Analysis) -> Path:
    return folder.figures / f"explain-{analysis.name}.npz"


def _clear(folder: RunFolder, analysis: Analysis) -> None:
    """Take away what an analysis that no longer applies has left."""
    _kept_at(folder, analysis).unlink(missing_ok=True)
    for name in analysis.plots:
        (folder.figures / f"explain-{analysis.name}-{name}.png").unlink(missing_ok=True)


def _write(folder: RunFolder, analysis: Analysis, body: Sequence[str]) -> None:
    name = f"explain-{analysis.name}"
    report.add_section(folder, FIRST + analysis.order, name, analysis.title, "\n".join(body))


def _say(console: Console, analysis: Analysis, text: str) -> None:
    console.print(f"{analysis.name:<12}{text}", highlight=False, markup=False)


@contextmanager
def _bar(console: Console, name: str) -> Iterator[Watch]:
    """A progress bar for people; it goes when the analysis ends, however it does."""
    progress = progress_bar(console, name, "", TimeRemainingColumn())

    def watch(steps: Iterable[T], n: int) -> Iterator[T]:
        task = progress.add_task("", total=n)
        try:
            for step in steps:
                yield step
                progress.advance(task)
        finally:
            progress.remove_task(task)

    with progress:
        yield watch
