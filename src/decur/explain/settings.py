"""Settings of an explanation, and those of the run that it explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from decur.data import LoaderSettings, PairedDataset
from decur.errors import PIXELS, ConfigError, DataError, check_ranges
from decur.runs import RunFolder


@dataclass
class ExplainSettings:
    """What to explain, on which samples, and where to write it.

    Args:
        beside: folders of more runs, for the analyses that compare runs.
        only: names of the analyses to do; None for all.
        modalities: sensors to look at; None for all of the data that the run has an encoder for.
        samples: at most how many samples, evenly spaced.
        unseen: where no other data is given, take samples that the run was not trained on: the
            split "val" or "test" of data trained on as "train", more samples of generated data.
        size: height and width that pictures are resized to; None: those of each run's views.
        device: where the encoders run; "auto" takes the GPU where there is one.
        out: folder to write; None: the run's.
        redraw: draw anew what is kept, without the data and the weights.
        overwrite: compute everything anew.
        loader: batches, at most 64 samples each, and workers; bad samples are listed, not refused.
        options: `{analysis: {option: value}}`.
    """

    beside: Sequence[str] = ()
    only: Sequence[str] | None = None
    modalities: Sequence[str] | None = None
    samples: int = 2000
    unseen: bool = True
    size: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: str | None = None
    redraw: bool = False
    overwrite: bool = False
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, samples=(1, 10_000_000), size=PIXELS)


def configuration(run: str) -> dict[str, Any]:
    """Return the configuration of a run of `decur pretrain`.

    Raises:
        DataError: if there is none.
    """
    folder = RunFolder(Path(run))
    if not folder.path.is_dir():
        raise DataError(f"{run}: no such folder; give that of a run of `decur pretrain`")
    values = folder.configuration()
    if not {"data", "objective", "views"} <= set(values):
        raise DataError(
            f"{folder.config}: not the configuration of a run of `decur pretrain` (it names no "
            "data, objective and views)"
        )
    return values


def own_data(run: str) -> PairedDataset:
    """Open the data that a run was trained on.

    Raises:
        DataError: if the run's configuration does not name it, or the data is not there.
    """
    from decur.data.base import open_data

    try:
        return open_data("decur explain", configuration(run)["data"])
    except ConfigError as error:
        raise DataError(f"{RunFolder(Path(run)).config}: {error}") from error


def size_of_views(run: str) -> int:
    """Return height and width of the views that a run was trained on.

    Raises:
        DataError: if the run's configuration does not tell.
    """
    try:
        return int(configuration(run)["views"]["size"])
    except (KeyError, TypeError, ValueError) as error:
        where = RunFolder(Path(run)).config
        raise DataError(f"{where}: does not tell views.size; give --size PIXELS") from error
