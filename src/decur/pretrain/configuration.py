"""The configuration of a run: its parser, and what a run's folder keeps of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from decur.bounded_yaml import LOADER, read_text
from decur.config import Parser, as_yaml
from decur.data.base import PairedDataset
from decur.encoders.attention.base import has_geometry
from decur.errors import ConfigError
from decur.layers import assign, flatten
from decur.modality import Modality
from decur.objectives.base import Objective
from decur.pretrain.settings import PretrainSettings
from decur.recipes import find_config
from decur.registry import Made, refuse_foreign
from decur.runs import RunFolder

_DEFAULTS = {
    "data": {"class_path": "decur.data.PairedFolder"},
    "objective": {"class_path": "decur.objectives.DeCUR"},
}

# Keys that may differ when a run goes on, since they do not change the result.
_FREE = (
    "run",
    "loader.workers",
    "checkpoint.",
    "encoder.checkpointing",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
)

_BLOCKS = "objective.init_args.blocks"  # whose order is that of their dimensions
ORDERS = ("resume", "finish", "overwrite")  # to the command: no part of a configuration
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what is learned from": ("data.root", "data", "modalities"),
    "how": ("objective.common", "objective", "projector.width", "views.size"),
    "which encoders": (
        "encoder.name",
        "encoder.weights",
        "encoder.attention",
    ),
    "for how long, and where": (
        "trainer.max_epochs",
        "loader.batch_size",
        "optimizer.lr",
        "trainer.devices",
        "trainer.precision",
        "seed",
    ),
}

_ABOUT = (
    "Pretrain one encoder for each sensor on unlabelled pairs. A folder with "
    "<modality>/<id>.tif|png|... is all it needs: decur pretrain --data.root FOLDER"
)


def build_parser(prog: str = "decur pretrain", about: str = _ABOUT, starts: bool = True) -> Parser:
    """Return the parser of `decur pretrain`: a data set, an objective and `PretrainSettings`.

    Args:
        prog: the command's name.
        about: what the command does, shown by --help.
        starts: whether the command starts runs, and so takes --resume and --overwrite.
    """
    parser = Parser(prog, about)
    parser.add_config()
    parser.add_argument(
        "--data", type=PairedDataset, required=True, help="Data set of unlabelled pairs."
    )
    parser.add_argument(
        "--objective", type=Objective, required=True, help="Objective, which is the method."
    )
    parser.add_class_arguments(PretrainSettings, skip={"modalities"})
    parser.add_argument(
        "--modalities",
        type=str,
        nargs="+",
        help="Sensors to train on; by default all of the data.",
    )
    if starts:
        parser.add_argument("--resume", action="store_true", help="Insist on going on with --run.")
        parser.add_argument(
            "--finish",
            action="store_true",
            help="End --run now with encoders of its newest checkpoint; nothing is trained.",
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="Start --run anew, deleting it."
        )
    else:  # the files of --print_config name them
        for order in ORDERS:
            parser.add_argument(f"--{order}", action="store_true", help=argparse.SUPPRESS)
    # one number for both: the objective sees what the projector gives
    parser.follow("projector.width", "objective.init_args.dim")
    parser.set_defaults(_DEFAULTS)
    parser.show_first(
        {**_ESSENTIALS, "the run": ("config", "run", "overwrite", "finish")}
        if starts
        else {**_ESSENTIALS, "the run": ("config",)}
    )
    return parser


@cache
def shared_parser(starts: bool = True) -> Parser:
    """Return the parser of `decur pretrain`, built once: a comparison parses many command lines.

    Args:
        starts: as of `build_parser`.
    """
    return build_parser(starts=starts)


def refuse_another_run(folder: RunFolder, config: str) -> str:
    """Refuse to go on with a run that has another configuration, but for its length.

    Returns:
        Comments about the run's lengths so far, which are kept in front of its configuration.
    """
    if not folder.is_begun() or not folder.config.is_file():
        return ""
    notes = "".join(line for line in _notes(folder.config) if not line.startswith(UNTOLD))
    kept = read_text(folder.config)
    whole = not any(UNTOLD in text for text in (kept, config))
    kept = _kept_configuration(folder.config, config) if whole else kept
    for key, before, now in _changes(kept, config, whole=whole):
        if key == "trainer.max_epochs" and before != -1 != now:
            notes += (
                f"# Begun with {key} {before}, and went on with {now}: this file alone does not "
                "repeat the run.\n"
            )
            continue
        raise ConfigError(
            f"{folder.path} holds a run with {key} {before!r}, not {now!r}; choose another "
            "folder with --run, or start this one anew with --overwrite"
        )
    return notes


def _notes(path: Path) -> Iterator[str]:
    """Yield the comments at the beginning of a kept configuration."""
    return takewhile(lambda line: line.startswith("#"), path.read_text().splitlines(keepends=True))


def _kept_configuration(path: Path, now: str) -> str:
    """Return a kept configuration with the keys that have come since, at their defaults.

    Args:
        path: of the `config.yaml` that `pretrain` has written.
        now: the configuration of the command.

    Raises:
        ConfigError: in one line, for a key that is no more.
    """
    refuse_foreign_classes(path, now)
    parser = shared_parser(starts=False)
    settings = parser.parse(["--config", str(path), *as_version_0_1(path)])
    return parser.to_yaml(settings)


def refuse_foreign_classes(path: Path, now: str = "{}") -> None:
    """Refuse a kept configuration, and what it is based on, that names modules of others."""
    for layer in find_config(str(path)):
        refuse_foreign(layer, path, yaml.load(now, LOADER))


def as_version_0_1(path: Path) -> list[str]:
    """Return options that let a run of version 0.1 go on as it began.

    Its configuration does not name what later became a choice, and now has another default.

    Args:
        path: of the `config.yaml` that `pretrain` has written.
    """
    try:
        kept = yaml.load(path.read_text(), LOADER)
        views, encoder = dict(kept["views"]), dict(kept["encoder"])
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return []  # the parser says what is wrong with it
    options = [] if "recipes" in views else ["--views.recipes", "0.1"]
    if "geometry" not in encoder and has_geometry(encoder.get("attention"), of_decur=True):
        options += ["--encoder.geometry", "centred"]
    return options


def _changes(before: str, now: str, *, whole: bool) -> Iterator[tuple[str, object, object]]:
    """Yield the keys whose values differ between two configurations, and change the result.

    Of configurations that are not both whole, only keys that both of them tell are compared.
    """
    old, new = (flatten(yaml.load(text, LOADER)) for text in (before, now))
    for values in (old, new):
        if names := [key for key in values if key.startswith(f"{_BLOCKS}.")]:
            values[_BLOCKS] = [(key.removeprefix(f"{_BLOCKS}."), values.pop(key)) for key in names]
    for key in sorted(set(old) | set(new) if whole else set(old) & set(new)):
        if old.get(key) != new.get(key) and not key.startswith(_FREE):
            yield key, old.get(key), new.get(key)


# -- the configuration of a run that Python has started --------------------------------------------

UNTOLD = "# Started from Python; no file can tell "  # begins one that is not whole


class _Untold(Exception):
    """What no file can tell."""


def configuration_of(data: PairedDataset, objective: Objective, settings: PretrainSettings) -> str:
    """Return the configuration of a run that was started from Python, as YAML.

    It is the one of `decur pretrain` where data set, objective and settings are made of plain
    values. Of others, such as networks and data sets made of tensors, its first line says so.

    Args:
        data: the unlabelled pairs.
        objective: the method.
        settings: all other settings.
    """
    values: dict[str, Any] = {}
    untold: list[str] = []
    for key, value in _parts(data, objective, settings):
        try:
            assign(values, key.split("."), _plain(value))
        except _Untold:
            untold.append(key)
    if not untold:
        parser = shared_parser(starts=False)
        try:
            read = parser.read([values])
        except ConfigError:  # of a class that only Python can make
            untold.append("all of it")
        else:
            return parser.to_yaml(read)
    return f"{UNTOLD}{', '.join(untold)}.\n{as_yaml(values)}"


def _parts(
    data: PairedDataset, objective: Objective, settings: PretrainSettings
) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a configuration, of a group of settings those of each option."""
    yield "data", data
    yield "objective", objective
    usual = PretrainSettings()
    for field in fields(settings):
        group = getattr(settings, field.name)
        # encoders that are networks are of another class, and remain one value
        if is_dataclass(group) and type(group) is type(getattr(usual, field.name)):
            for option in fields(group):
                yield f"{field.name}.{option.name}", getattr(group, option.name)
        else:
            yield field.name, group


def _class_of(thing: Made) -> dict[str, Any]:
    """Return an object as its class and the arguments that it was made with."""
    kind = type(thing)
    parts = getattr(thing, "wanted", None)  # a data set of which only some sensors are read
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__ or parts is not None:
        raise _Untold
    try:
        arguments = thing.made_of
    except TypeError as error:  # of a class that takes others than it says
        raise _Untold from error
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": {name: _plain(value) for name, value in arguments.items()},
    }


def _plain(value: Any) -> Any:
    """Return a value as YAML holds it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Modality):
        return value.to_dict()
    if isinstance(value, Made):
        return _class_of(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise _Untold
