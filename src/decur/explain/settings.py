"""Settings of an explanation, the run that it explains, and what that run was trained on."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from decur.data import LoaderSettings, PairedDataset
from decur.data.folds import divide
from decur.data.grid import Grid
from decur.data.selection import spaced
from decur.errors import PIXELS, BadSampleError, ConfigError, DataError, DecurError, check_ranges
from decur.runs import RunFolder
from decur.verdicts import Verdict


@dataclass
class ExplainSettings:
    """What to explain, on which samples, and where to write it.

    Args:
        beside: Folders of more runs, for the analyses that compare runs.
        only: Names of the analyses to do; None for all.
        modalities: Sensors to look at; None for all of the data that the run has an encoder for.
        samples: Largest number of samples, evenly spaced.
        unseen: Where no other data is given, take samples that the run was not trained on: the fold
            that it left out (`without_fold`), the split "val" or "test" of data trained on as
            "train", more samples of generated data.
        size: Height and width that pictures are resized to; None: those of each run's views.
        device: Device that the encoders run on; "auto" takes the GPU where there is one.
        out: Folder to write; None: the run's.
        redraw: Draw kept results anew, without the data and the weights.
        overwrite: Compute everything anew.
        loader: Batches, at most 64 samples each, and workers; bad samples are listed, not refused.
        options: Options of the analyses, as `{analysis: {option: value}}`.
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


def configuration(
    run: str | os.PathLike[str], used: Collection[str] | None = None
) -> dict[str, Any]:
    """Return the configuration of a run of `decur pretrain`.

    Args:
        run: its folder.
        used: as of `RunFolder.configuration`.

    Raises:
        DataError: if there is none.
    """
    folder = RunFolder(Path(run))
    if not folder.path.is_dir():
        raise DataError(f"{run}: no such folder; give that of a run of `decur pretrain`")
    values = folder.configuration(used)
    if "views" not in values:
        raise DataError(
            f"{folder.config}: not the configuration of a run of `decur pretrain` (it names no "
            "views)"
        )
    for key in ("data", "objective"):  # a run of Python may not tell them
        told = values.get(key)
        if told and not (isinstance(told, dict) and isinstance(told.get("class_path"), str)):
            raise DataError(f"{folder.config}: {key} names no class; copy the run anew")
    return values


def own_data(run: str | os.PathLike[str]) -> PairedDataset:
    """Open the data that a run was trained on.

    Raises:
        DataError: if the run's configuration does not name it, or the data is not there.
    """
    from decur.data.base import open_data

    where = RunFolder(Path(run)).config
    if (spec := configuration(run, ("data",)).get("data")) is None:
        raise DataError(
            f"{where}: does not tell the data, as the run was started from Python; give --data"
        )
    try:
        return open_data("decur explain", spec)
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from error


def size_of_views(run: str | os.PathLike[str]) -> int:
    """Return height and width of the views that a run was trained on.

    Raises:
        DataError: if the run's configuration does not tell.
    """
    try:
        return int(configuration(run, ("views",))["views"]["size"])
    except (KeyError, TypeError, ValueError) as error:
        where = RunFolder(Path(run)).config
        raise DataError(f"{where}: does not tell views.size; give --size PIXELS") from error


# -- which samples a run was trained on, and where there are others --------------------------------

HELD_OUT = ("val", "validation", "test")  # splits beside "train", the first that is there
FURTHER = (
    1_000_000  # samples between the first of generated data that was trained on and an unseen one
)
_LOOKED_AT = 4  # samples, to tell whether they are of the same pictures
# Correlation of two pictures above which they show the same, and below which they do not.
_SAME, _OTHER = 0.95, 0.5
_LOOKED_THROUGH = 100_000  # samples of a run whose files are compared, at most


def folds_of(
    run: str | os.PathLike[str], whole: PairedDataset
) -> tuple[PairedDataset, PairedDataset | None]:
    """Divide the data that a run names into what it was trained on and the fold that it left out.

    Args:
        run: its folder.
        whole: the data, as `own_data` opens it.

    Returns:
        Both parts; None for a fold where none was left out.

    Raises:
        DataError: if the configuration of the run leaves out a fold that the data has not.
    """
    from decur.pretrain.settings import PretrainSettings

    values = configuration(run, ())
    if (fold := values.get("without_fold")) is None:
        return whole, None
    folds = values.get("folds", PretrainSettings.folds)
    try:
        return divide(whole, fold, folds, values.get("fold_seed", PretrainSettings.fold_seed))
    except (ConfigError, TypeError, ValueError) as error:
        raise DataError(f"{RunFolder(Path(run)).config}: without_fold: {error}") from error


def unseen_part(trained: PairedDataset) -> PairedDataset | None:
    """Return samples that belong to a data set and that a run on it has not seen.

    Args:
        trained: the data set that the run was trained on.

    Returns:
        Another split, where it is the split "train"; samples that begin elsewhere, where they are
        generated from a number on (`start`); None where the data set offers neither.
    """
    made_of = trained.made_of
    if "start" in made_of and "samples" in made_of:
        start = made_of["start"] + max(FURTHER, made_of["samples"])
        return type(trained)(**{**made_of, "start": start})
    if made_of.get("split") != "train":
        return None
    for name in HELD_OUT:
        try:
            other = type(trained)(**{**made_of, "split": name})
        except DecurError:  # there is no such split
            continue
        if len(other):
            return other
    return None


def was_trained_on(
    run: str | os.PathLike[str],
    data: PairedDataset,
    indices: Sequence[int],
    trained: PairedDataset | None = None,
) -> Verdict:
    """Tell whether a run was trained on samples: on any of them, as names and pictures say.

    Args:
        run: its folder.
        data: any data set.
        indices: of the samples in it.
        trained: what the run was trained on, where it is open already.

    Returns:
        UNTOLD where the run's own data cannot be opened any more, or pictures of the same names
        cannot be compared. Samples of other names without files of their own, as packed ones, count
        as other samples.
    """
    try:
        trained = folds_of(run, own_data(run))[0] if trained is None else trained
    except DecurError:
        return Verdict.UNTOLD
    place = {name: index for index, name in enumerate(trained.ids)}
    both = [(place[data.ids[i]], i) for i in indices if data.ids[i] in place]
    alike = []
    # names such as 0001 are found in many a folder: pictures decide
    for own, other in spaced(both, _LOOKED_AT):
        if _are_same_files(trained, own, data, other):
            return Verdict.YES  # though perhaps cut or scaled otherwise
        alike.append(_are_same_pictures(trained, own, data, other))
    if Verdict.YES in alike or _are_files_of(trained, data, indices):
        return Verdict.YES
    return Verdict.UNTOLD if both and Verdict.NO not in alike else Verdict.NO


def _are_same_pictures(
    trained: PairedDataset, own: int, data: PairedDataset, other: int
) -> Verdict:
    """Tell whether two samples show the same, in whatever numbers and sizes their pictures are.

    Returns:
        YES where a sensor does; NO where one surely does not and none does; UNTOLD where either
        sample cannot be read, or they have no sensor that can be compared.
    """
    try:
        one, two = trained[own]["images"], data[other]["images"]
    except BadSampleError:
        return Verdict.UNTOLD
    found = []
    for name in one.keys() & two.keys():
        if torch.equal(one[name], two[name]):
            return Verdict.YES
        scaled = trained.modalities[name].scale(one[name]), data.modalities[name].scale(two[name])
        found.append(_are_alike(*scaled))
    if Verdict.YES in found:
        return Verdict.YES
    return Verdict.NO if Verdict.NO in found else Verdict.UNTOLD


def _are_alike(one: torch.Tensor, two: torch.Tensor) -> Verdict:
    """Tell whether two pictures of one sensor show the same, by the correlation of their pixels.

    Quantising, other statistics and resizing hardly change it. Where both have the value that they
    have most often, as beyond the edge of a swath, two places are alike, too, so that pixel tells
    nothing. Pictures of other bands, pictures that are the same everywhere, and those of other
    sizes, of which one may be cut out of the other, may be the same without a correlation.

    Args:
        one: (..., C, H, W), scaled.
        two: (..., C, H', W'), scaled.
    """
    if one.shape[:-2] != two.shape[:-2]:
        return Verdict.UNTOLD
    height, width = one.shape[-2:]
    if one.shape != two.shape:  # half of the smaller one averages out how they were resized
        height, width = (max(min(one.shape[k], two.shape[k]) // 2, 1) for k in (-2, -1))
    x, y = (
        nn.functional.adaptive_avg_pool2d(each.flatten(0, -3), (height, width)).flatten(1).double()
        for each in (one, two)
    )  # (C, h w)
    tells = ~((x == x.mode(1, True).values) & (y == y.mode(1, True).values))
    count = tells.sum(1, keepdim=True).clamp_min(1)
    x, y = (tells * (each - (tells * each).sum(1, keepdim=True) / count) for each in (x, y))
    norms = float(x.norm() * y.norm())
    if norms <= 1e-6 * x.numel():  # a standard deviation of a thousandth: hardly any bits
        return Verdict.UNTOLD
    correlation = float((x * y).sum()) / norms
    if correlation > _SAME:
        return Verdict.YES
    comparable = one.shape == two.shape and correlation < _OTHER
    return Verdict.NO if comparable else Verdict.UNTOLD


def _are_same_files(trained: PairedDataset, own: int, data: PairedDataset, other: int) -> bool:
    """Return whether two samples are read from the very same files."""
    files = [
        {os.path.realpath(file) for file in _files(each.only(targets=()), row)}
        for each, row in ((trained, own), (data, other))
    ]
    return bool(files[0]) and files[0] == files[1]


def _are_files_of(trained: PairedDataset, data: PairedDataset, indices: Sequence[int]) -> bool:
    """Return whether samples are of files that a run was trained on, under names of their own.

    So are copies of other names, and windows that begin elsewhere in the same scene: these are the
    same where they overlap. Names decide where samples have no files of their own, as packed and
    generated ones, and where there are too many to be looked at.

    Args:
        trained: what the run was trained on.
        data: any data set.
        indices: of the samples in it, of which some are looked at.
    """
    pictures, own = data.only(targets=()), trained.only(targets=())
    wanted = {i: _files(pictures, i) for i in spaced(indices, _LOOKED_AT)}
    if not any(wanted.values()) or len(own) > _LOOKED_THROUGH:
        return False
    rows: dict[str, list[int]] = {}  # that a file is of
    for row in range(len(own)):
        for file in _files(own, row):
            rows.setdefault(str(file), []).append(row)
    by_size: dict[int, list[str]] = {}
    for file in rows:
        by_size.setdefault(os.path.getsize(file), []).append(file)
    for index, files in wanted.items():
        found = [
            {
                row
                for other in by_size.get(os.path.getsize(file), ())
                if filecmp.cmp(file, other, shallow=False)
                for row in rows[other]
                if _is_of(own.place(row), pictures.place(index), alone=len(rows[other]) == 1)
            }
            for file in files
        ]
        # all of them: files beside pictures may be alike everywhere
        if found and set.intersection(*found):
            return True
    return False


def _files(data: PairedDataset, index: int) -> list[str | Path]:
    """Return the files of a sample that can be read."""
    try:
        return [file for file in data.files(index) if os.access(file, os.R_OK)]
    except BadSampleError:
        return []


def _is_of(one: Grid | None, other: Grid | None, *, alone: bool) -> bool:
    """Return whether two samples of one file show the same of it.

    Args:
        one: where a sample is that was trained on; None where it does not say.
        other: where the other one is.
        alone: whether the file is of the first sample alone.
    """
    if one is None or other is None:
        return alone
    return one.crs == other.crs and one.bounds.overlap(other.bounds) > 0
