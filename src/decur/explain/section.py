"""One section of the report: the arrays of an analysis on disk, its figures, and its text."""

from __future__ import annotations

import inspect
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decur import __version__, plotting, report
from decur.digest import try_digest
from decur.explain.base import Analysis, Arrays, DoesNotApply, text
from decur.runs import RunFolder, atomic

if TYPE_CHECKING:
    from decur.explain.model import Checkpoint
    from decur.features import SampleLoader

FIRST = 100  # place of the first analysis in the report: after what other commands write
LAST = 900  # place of the first analysis that has nothing to say: after all others
FORMAT = 6  # raised when an analysis would come out otherwise
_ABOUT = "decur"  # key of what belongs to the file and not to the analysis


def arrays_path(folder: RunFolder, analysis: Analysis) -> Path:
    """Return the file that keeps the arrays of an analysis."""
    return folder.figures / f"explain-{analysis.name}.npz"


def write_arrays(path: Path, arrays: Arrays, digest: str, samples: str) -> None:
    """Write arrays, whole or not at all.

    Args:
        path: an .npz file.
        arrays: the arrays of an analysis.
        digest: identifies what they depend on; "" where nothing can.
        samples: in words, what they were computed on.
    """
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{**arrays, _ABOUT: text(digest, samples)})  # type: ignore[arg-type]


def read_arrays(path: Path) -> tuple[Arrays, str, str] | None:
    """Read what `write_arrays` has written.

    Returns:
        Arrays, digest and samples; None where nothing readable is there.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        digest, samples = arrays.pop(_ABOUT).tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return arrays, digest, samples


def arrays_digest(
    analysis: Analysis,
    checkpoints: Sequence[Checkpoint],
    loader: SampleLoader,
    options: Mapping[str, Any],
) -> str | None:
    """Return a digest of all that the arrays of an analysis depend on.

    Args:
        analysis: which.
        checkpoints: the run and those beside it: their weights count.
        loader: the data and the samples.
        options: of the analysis.

    Returns:
        The digest; None where the data cannot be told from others, which the log then says.
    """
    samples = (loader.data, loader.indices)
    parts = (FORMAT, __version__, analysis.name, options, *samples, *checkpoints)
    return try_digest(*parts, what=f"{analysis.name} is computed anew each time")


def draw(folder: RunFolder, analysis: Analysis, arrays: Arrays, samples: str = "") -> None:
    """Draw an analysis from its arrays alone, and write its section of the report.

    Args:
        folder: where to write.
        analysis: which.
        arrays: its arrays.
        samples: in words, what they were computed on.
    """
    body = [report.note(analysis.about)]
    for name, plot in analysis.plots.items():
        path = _figure_path(folder, analysis, name)
        try:
            plotting.save(plot(arrays), path)
        except DoesNotApply as reason:
            path.unlink(missing_ok=True)
            body.append(report.paragraph(str(reason)))
            continue
        caption = (inspect.getdoc(plot) or "").partition("\n\n")[0]
        chart = analysis.charts[name](arrays) if name in analysis.charts else None
        body.append(report.figure(path, caption, chart=chart))
    body.append(analysis.findings(arrays))
    where = arrays_path(folder, analysis).relative_to(folder.path)
    body.append(report.note(". ".join(filter(None, [samples, f"Arrays: {where}"]))))
    _write(folder, analysis, body)


def say_inapplicable(folder: RunFolder, analysis: Analysis, reason: str) -> None:
    """Remove what an analysis has left, and say why in a line at the report's end."""
    arrays_path(folder, analysis).unlink(missing_ok=True)
    for name in analysis.plots:
        _figure_path(folder, analysis, name).unlink(missing_ok=True)
    line = report.note(f"{analysis.title}: {reason}")
    report.add_section(
        folder, LAST + analysis.order, name=_section_name(analysis), title="", body=line
    )


def _figure_path(folder: RunFolder, analysis: Analysis, name: str) -> Path:
    return folder.figures / f"explain-{analysis.name}-{name}.png"


def _write(folder: RunFolder, analysis: Analysis, body: Sequence[str]) -> None:
    place, name = FIRST + analysis.order, _section_name(analysis)
    report.add_section(folder, place, name=name, title=analysis.title, body="\n".join(body))


def _section_name(analysis: Analysis) -> str:
    return f"explain-{analysis.name}"
