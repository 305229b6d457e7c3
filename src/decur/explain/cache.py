"""The arrays of an analysis on disk, with the digest of what they were computed from."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decur import __version__
from decur.digest import try_digest
from decur.explain.base import Analysis, Arrays, text
from decur.explain.model import Checkpoint
from decur.features import SampleLoader
from decur.runs import atomic

FORMAT = 2  # raised when an analysis would come out otherwise
_ABOUT = "decur"  # key of what belongs to the file and not to the analysis


def write_arrays(path: Path, arrays: Arrays, digest: str, samples: str) -> None:
    """Write arrays, whole or not at all.

    Args:
        path: an .npz file.
        arrays: of an analysis.
        digest: of what they depend on.
        samples: in words, what they were computed on.
    """
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{**arrays, _ABOUT: text(digest, samples)})  # type: ignore[arg-type]


def read_arrays(path: Path) -> tuple[Arrays, str, str] | None:
    """Return arrays, digest and samples as `write_arrays` wrote them; None where it has not."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        digest, samples = arrays.pop(_ABOUT).tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return arrays, digest, samples


def arrays_digest(
    analysis: Analysis,
    checkpoints: Sequence[Checkpoint],
    loader: SampleLoader,
    options: Mapping[str, Any],
) -> str | None:
    """Return the digest of what an analysis depends on: weights, data, samples and options.

    Args:
        analysis: which.
        checkpoints: the run and those beside it.
        loader: the samples.
        options: of the analysis.

    Returns:
        The digest; None where the data cannot be told from others, which the log then says.
    """
    samples = (loader.data, loader.indices)
    parts = (FORMAT, __version__, analysis.name, options, *samples, *checkpoints)
    return try_digest(*parts, what=f"{analysis.name} is computed anew each time")
