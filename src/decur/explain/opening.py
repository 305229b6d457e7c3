"""What an explanation is asked for, opened and checked before any work is done."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from decur.data import PairedDataset
from decur.data.base import open_data
from decur.errors import ConfigError, DataError
from decur.explain.base import ANALYSES, Analysis
from decur.runs import RunFolder, make_folder

GIVEN = 2  # arguments of an analysis that are no options: the checkpoint and the loader


def own_data(run: str) -> PairedDataset:
    """The data that a run was trained on.

    Raises:
        DataError: if its configuration does not tell, or the data is not there.
    """
    try:
        return open_data("decur explain", configuration(run)["data"])
    except ConfigError as error:
        raise DataError(f"{RunFolder(Path(run)).config}: {error}") from error


def configuration(run: str) -> dict[str, Any]:
    """The configuration of a run of `decur pretrain`.

    Raises:
        DataError: if there is none.
    """
    path = RunFolder(Path(run)).config
    if not Path(run).is_dir():
        raise DataError(f"{run}: no such folder; give that of a run of `decur pretrain`")
    try:
        values = yaml.safe_load(path.read_text())
        if {"data", "objective", "views"} <= set(values):
            return dict(values)
        reason = "it names no data, objective and views"
    except FileNotFoundError:
        reason = "there is no such file"
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        reason = " ".join(str(error).split())
    raise DataError(f"{path}: not the configuration of a run of `decur pretrain` ({reason})")


def size_of_views(run: str) -> int:
    """Height and width of the views that a run was trained on.

    Raises:
        DataError: if its configuration does not tell.
    """
    try:
        return int(configuration(run)["views"]["size"])
    except (KeyError, TypeError, ValueError) as error:
        where = RunFolder(Path(run)).config
        raise DataError(f"{where}: does not tell views.size; give --size PIXELS") from error


def choose(
    only: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]], redraw: bool
) -> list[Analysis]:
    """The analyses that are asked for, in order.

    Args:
        only: their names; None for all.
        options: `{analysis: {option: value}}`.
        redraw: whether nothing is computed.

    Raises:
        ConfigError: if one does not exist, has no such option, or lacks a package.
    """
    for name in (*(only or ()), *options):
        if name not in ANALYSES:
            raise ConfigError(f"no analysis {name!r}; choose from {', '.join(ANALYSES)}")
    for name, given in options.items():
        known = option_names(ANALYSES[name])
        for key in given:
            if key not in known:
                there = f"it has {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"options.{name}.{key}: {name} takes no such option; {there}")
    chosen = [a for a in ANALYSES.values() if only is None or a.name in only]
    chosen.sort(key=lambda analysis: analysis.order)
    for analysis in chosen:
        for package in ("matplotlib", *(() if redraw else analysis.needs)):
            if find_spec(package) is None:
                raise ConfigError(f"{analysis.name} needs {package}: pip install 'decur[explain]'")
    return chosen


def option_names(analysis: Analysis) -> list[str]:
    """Options of an analysis: what its function takes beyond what every one is given."""
    names = list(inspect.signature(analysis.arrays).parameters)[GIVEN:]
    return [name for name in names if name not in ("watch", "beside")]


def check_modalities(names: Sequence[str] | None, data: PairedDataset) -> Sequence[str]:
    """The sensors that are asked for: all of the data where none are named.

    Raises:
        ConfigError: naming one that the data has not.
    """
    for name in names or ():
        if name not in data.modalities:
            raise ConfigError(
                f"modalities: the data has no {name!r}; choose from {', '.join(data.modalities)}"
            )
    return names or list(data.modalities)


def open_folder(run: str, out: str | None, data: PairedDataset | None) -> RunFolder:
    """Where to write.

    Args:
        run: the run's folder.
        out: another, made where it is not there; None for the run's.
        data: what it must not lie in.

    Raises:
        ConfigError: if `out` holds something else, or cannot be made.
        DataError: if there is no run.
    """
    if out is None:
        if not Path(run).is_dir():
            raise DataError(f"{run}: no such folder; give that of a run of `decur pretrain`")
        if not os.access(run, os.W_OK):
            raise ConfigError(f"{run}: cannot be written; give another folder with --out FOLDER")
        return RunFolder(Path(run))
    folder, root = RunFolder(Path(out)), getattr(data, "root", None)
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--out {out}: is a file, not a folder")
    if folder.report.exists() and not (folder.path / "report").is_dir():
        raise ConfigError(f"--out {out}: holds a report.html of another; choose another folder")
    if root is not None and Path(root).resolve() in (
        folder.path.resolve(),
        *folder.path.resolve().parents,
    ):
        raise ConfigError(f"--out {out}: lies within the data; choose a folder beside it")
    make_folder(folder.path, "--out")
    return folder
