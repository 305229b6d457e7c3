"""A whole explanation: a run and data in; arrays, pictures and a report out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur.data import PairedDataset
from decur.data.base import refuse_within_data, require_data
from decur.data.loader import reporting_lost_workers
from decur.errors import ConfigError, DataError
from decur.explain.base import (
    SEEN,
    Analysis,
    Arrays,
    DoesNotApply,
    Watch,
    analyses,
    check_packages,
    text,
)
from decur.explain.model import Checkpoint, check_alike
from decur.explain.section import (
    arrays_digest,
    arrays_path,
    draw,
    read_arrays,
    say_inapplicable,
    write_arrays,
)
from decur.explain.settings import (
    ExplainSettings,
    folds_of,
    own_data,
    size_of_views,
    unseen_part,
    was_trained_on,
)
from decur.features import SampleLoader
from decur.layers import override
from decur.runs import RunFolder
from decur.terminal import progress_bar, tell_result
from decur.verdicts import Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")
_SEEN = {
    Verdict.YES: "yes, so that what agrees in them may be learned by heart",
    Verdict.NO: "no",
    Verdict.UNTOLD: "cannot be told, as the data of the run is not there or cannot be compared",
}


@dataclass(frozen=True)
class Explained:
    """Results of an explanation.

    Args:
        folder: where they are written.
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

    def __repr__(self) -> str:
        return f"<{', '.join(self.arrays)}; {self.folder.report}>"


def explain(
    run: str | os.PathLike[str],
    data: PairedDataset | None = None,
    *,
    settings: ExplainSettings | None = None,
    **options: Any,
) -> Explained:
    """Say what is common and what is unique in a run: arrays, pictures, sections of its report.

    Each analysis is kept when it is done, as `figures/explain-NAME.npz`, and not computed again
    until weights, data, samples or options change.

    Args:
        run: folder of a run of `decur pretrain`, or what `decur.pretrain` has returned.
        data: any data set; None: that of the run, as far as there is any, a part that it was not
            trained on (see `ExplainSettings.unseen`).
        settings: the rest; None for the defaults.
        **options: fields of `ExplainSettings`, which replace those of `settings`.

    Returns:
        Arrays by analysis, and what had nothing to say.

    Raises:
        ConfigError: if an analysis or option does not exist, or a package is missing.
        DataError: if the folder holds no finished run, or it and the data do not fit together.
    """
    if data is not None:
        require_data(data, "explain")
    settings = override(settings or ExplainSettings(), options, "explain")
    chosen = analyses(settings.only, settings.options)
    check_packages(chosen, settings.redraw)
    run = os.fspath(run)
    folder = _open_folder(run, settings.out, data)
    with reporting_lost_workers(), folder.owned("--out" if settings.out else "RUN"):
        return _explain(run, data, folder, settings, chosen)


def _explain(
    run: str,
    data: PairedDataset | None,
    folder: RunFolder,
    settings: ExplainSettings,
    chosen: Sequence[Analysis],
) -> Explained:
    """Explain into a folder that this process owns; arguments as those of `explain`."""
    writer = _Writer(Explained(folder), Console(soft_wrap=True))
    if settings.redraw:
        writer.redraw(chosen)
    else:
        trained = None
        if data is None:
            whole = own_data(run)
            if settings.out:
                refuse_within_data(folder.path, whole)
            trained, left_out = folds_of(run, whole)
            data = ((left_out or unseen_part(whole)) if settings.unseen else None) or trained
        checkpoints = _open_checkpoints(run, data, settings)
        loader = _choose_samples(data, checkpoints[0], settings)
        writer.seen = [
            was_trained_on(path, data, loader.indices, known)
            for path, known in ((run, trained), *((other, None) for other in settings.beside))
        ]
        writer.introduce(checkpoints, loader)
        if settings.beside:
            writer.tell_compared(chosen)
        try:
            for analysis in chosen:
                writer.explain(analysis, checkpoints, loader, settings)
        finally:
            writer.list_bad(loader)
    tell_result(f"{'report':<12}", folder.report)
    return writer.done


def _open_folder(run: str, out: str | None, data: PairedDataset | None) -> RunFolder:
    """Return the folder to write to: the run's, or another, which is made where it is not there.

    Raises:
        ConfigError: if `out` holds something else, lies within the data, or cannot be made.
        DataError: if there is no run.
    """
    if out is None:
        if not Path(run).is_dir():
            raise DataError(f"{run}: no such folder; give that of a run of `decur pretrain`")
        if not os.access(run, os.W_OK):
            raise ConfigError(f"{run}: cannot be written; give another folder with --out FOLDER")
        return RunFolder(Path(run))
    folder = RunFolder(Path(out))
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--out {out}: is a file, not a folder")
    if folder.report.exists() and not (folder.path / "report").is_dir():
        raise ConfigError(f"--out {out}: holds a report.html of another; choose another folder")
    if data is not None:
        refuse_within_data(folder.path, data)
    return folder


def _open_checkpoints(run: str, data: PairedDataset, settings: ExplainSettings) -> list[Checkpoint]:
    """Return the run and those beside it, on their device, with encoders for the sensors.

    Raises:
        ConfigError: if the device is not there, or there is no such sensor.
        DataError: if a folder is no finished run, or does not fit the data.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is not there; use cpu or auto")
    device = "cpu"
    if settings.device != "cpu" and torch.cuda.is_available():
        device = "cuda"
    for name in settings.modalities or ():
        if name not in data.modalities:
            there = ", ".join(data.modalities)
            raise ConfigError(f"modalities: the data has no {name!r}; choose from {there}")
    wanted = {name: data.modalities[name] for name in settings.modalities or data.modalities}
    checkpoints = [
        Checkpoint.open(path, wanted, size=settings.size or size_of_views(path)).to(device)
        for path in (run, *settings.beside)
    ]
    check_alike(checkpoints)
    for name in settings.modalities or ():
        if name not in checkpoints[0].modalities:
            there = ", ".join(checkpoints[0].modalities)
            raise ConfigError(f"modalities: {run} has no encoder for {name!r}, but for {there}")
    return checkpoints


def _choose_samples(
    data: PairedDataset, checkpoint: Checkpoint, settings: ExplainSettings
) -> SampleLoader:
    """Return the samples that have any of the run's sensors, evenly spaced.

    Raises:
        DataError: if there are none.
    """
    names = list(checkpoint.modalities)
    seen = np.logical_or.reduce([data.present[name] for name in names])
    if not seen.any():
        raise DataError(f"no sample of the data has {' or '.join(names)}")
    among = np.flatnonzero(seen).tolist()
    return SampleLoader(data.only(names), settings.samples, settings=settings.loader, among=among)


class _Writer:
    """Computes analyses, writes what they find, and says so on the console.

    Args:
        done: results so far, which grow.
        console: where to say it.
    """

    def __init__(self, done: Explained, console: Console) -> None:
        self.done, self.console = done, console
        self.seen = [Verdict.UNTOLD]  # whether each of the runs was trained on the samples

    def say(self, what: str, text: str) -> None:
        """Print one line."""
        self.console.print(f"{what:<12}{text}", highlight=False, markup=False)

    def introduce(self, checkpoints: Sequence[Checkpoint], loader: SampleLoader) -> None:
        """Print which runs, data and samples there are."""
        for checkpoint in checkpoints:
            parts = ", ".join(f"{p} {d.stop - d.start}" for p, d in checkpoint.parts.items())
            encoders = ", ".join(
                f"{name} {checkpoint.encoder(name).name}" for name in checkpoint.modalities
            )
            self.say("run", f"{checkpoint.name}: {encoders}; {parts} dimensions")
        self.say("data", loader.data.describe())
        pixels = f"resized to {checkpoints[0].size} px"
        self.say("samples", f"{len(loader.indices)}, {pixels}, on {checkpoints[0].device.type}")
        self.say("trained on", _SEEN[self.seen[0]])

    def tell_compared(self, chosen: Sequence[Analysis]) -> None:
        """Print which of the chosen analyses compare runs; warn where none does."""
        if comparing := [analysis.name for analysis in chosen if analysis.several]:
            self.say("beside", f"compared in {', '.join(comparing)} alone")
            return
        able = ", ".join(analysis.name for analysis in analyses() if analysis.several)
        log.warning("beside: without effect, as no chosen analysis compares runs; %s does", able)

    def explain(
        self,
        analysis: Analysis,
        checkpoints: Sequence[Checkpoint],
        loader: SampleLoader,
        settings: ExplainSettings,
    ) -> None:
        """Compute an analysis or take it from disk; keep its arrays and write its section."""
        started = time.monotonic()
        options = dict(settings.options.get(analysis.name, {}))
        path = arrays_path(self.done.folder, analysis)
        compared = checkpoints if analysis.several else checkpoints[:1]
        seen = [verdict.value for verdict in self.seen[: len(compared)]]
        digest = arrays_digest(analysis, compared, loader, {**options, SEEN: seen})
        samples = (
            f"{len(loader.indices):,} samples of {type(loader.data).__name__}; the run was trained "
            f"on them: {_SEEN[self.seen[0]]}"
        )
        found = None if settings.overwrite else read_arrays(path)
        if found is not None and found[1] == digest:
            arrays, how = found[0], f"as it was in {path}"
        else:
            beside = {"beside": compared[1:]} if len(compared) > 1 else {}
            try:
                with _progress(self.console, analysis.name) as watch:
                    arrays = analysis.compute(
                        compared[0], loader, options=options, watch=watch, **beside
                    )
            except DoesNotApply as reason:
                self.done.inapplicable[analysis.name] = str(reason)
                say_inapplicable(self.done.folder, analysis, str(reason))
                self.say(analysis.name, f"does not apply: {reason}")
                return
            arrays = {**arrays, SEEN: np.array(seen) if len(seen) > 1 else np.array(seen[0])}
            write_arrays(path, arrays, digest or "", samples)
            self.done.computed.append(analysis.name)
            how = f"{time.monotonic() - started:.1f} s"
        self.done.arrays[analysis.name] = arrays
        draw(self.done.folder, analysis, arrays, samples)
        self.say(analysis.name, how)

    def redraw(self, chosen: Sequence[Analysis]) -> None:
        """Draw analyses from the arrays that are kept.

        Raises:
            DataError: if there are none.
        """
        folder = self.done.folder
        for analysis in chosen:
            path = arrays_path(folder, analysis)
            found = read_arrays(path)
            if found is not None:
                found[0].setdefault(SEEN, text(Verdict.UNTOLD.value)[0])  # of version 0.1
                self.done.arrays[analysis.name] = found[0]
                draw(folder, analysis, found[0], found[2])
                self.say(analysis.name, f"drawn from {path}")
        if not self.done.arrays:
            wanted = arrays_path(folder, chosen[0])
            wanted = wanted.with_stem("explain-*") if len(chosen) > 1 else wanted
            raise DataError(f"{wanted}: nothing kept to draw from; do without --redraw first")

    def list_bad(self, loader: SampleLoader) -> None:
        """Write down which files could not be read."""
        self.done.bad.extend(loader.bad)
        if loader.bad:
            RunFolder(self.done.folder.path / "explain").list_bad(loader.bad)


@contextmanager
def _progress(console: Console, name: str) -> Iterator[Watch]:
    """Show a progress bar, which goes when the analysis ends, however it does."""
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
