"""`decur pretrain`: the command line of a pretraining run."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jsonargparse import Namespace

from decur.bounded_yaml import LOADER
from decur.config import Parser
from decur.data.base import PairedDataset
from decur.encoders.attention.base import has_geometry
from decur.errors import ConfigError
from decur.layers import flatten
from decur.objectives.base import Objective
from decur.pretrain.settings import PretrainSettings
from decur.recipes import find_config
from decur.registry import refuse_foreign
from decur.runs import RunFolder

if TYPE_CHECKING:
    from decur.pretrain.run import Pretrained

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
    parser.add_argument("--data", type=PairedDataset, required=True, help="The unlabelled pairs.")
    parser.add_argument("--objective", type=Objective, required=True, help="The method.")
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
            help="End --run now, with the encoders of its newest checkpoint; nothing is trained.",
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


def parse(arguments: Sequence[str]) -> tuple[Parser, Namespace]:
    """Parse a command line; one that names a run and no data takes the run's configuration.

    Raises:
        ConfigError: in one line, naming the key.
    """
    parser = shared_parser()
    arguments = list(arguments)
    config = _folder_named(arguments, parser.get_default("run")).config
    names_run = any(word.split("=")[0] in ("--run", "--resume") for word in arguments)
    new = any(word.startswith(("--config", "--data", "--overwrite")) for word in arguments)
    if names_run and not new and config.is_file():
        _refuse_foreign_classes(config)
        arguments = ["--config", str(config), *_as_version_0_1(config), *arguments]
    return parser, parser.parse(arguments)


def _folder_named(arguments: Sequence[str], default: str) -> RunFolder:
    """Return the run folder that a command line names, before the rest of it is understood."""
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only.add_argument("--run", nargs="?", default=default)
    if (named := only.parse_known_args(list(arguments))[0].run) is None:
        raise ConfigError("--run: give a folder")
    return RunFolder(Path(named))


def main(arguments: Sequence[str]) -> Pretrained | None:
    """Run `decur pretrain ARGUMENTS`.

    Returns:
        What was trained; None after `--finish`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    given = [f"--{order}" for order in ORDERS if f"--{order}" in arguments]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: contradict each other; give one of them")
    if "--finish" in arguments:
        _finish(_folder_named(arguments, "runs/pretrain"))
        return None
    return start(arguments)


def start(arguments: Sequence[str]) -> Pretrained:
    """Start a run, or go on with it, as a command line says.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser, settings = parse(arguments)
    with RunFolder(Path(settings.run)).owned():
        return _run(parser, settings)


def _run(parser: Parser, settings: Namespace) -> Pretrained:
    """Run with parsed settings in a folder that this process owns."""
    folder = RunFolder(Path(settings.run))
    orders = {name: settings.pop(name) for name in ORDERS}
    resume, overwrite = orders["resume"], orders["overwrite"]
    if resume and not folder.saved_checkpoints():
        raise ConfigError(f"--resume: {folder.path} holds no checkpoint to go on from")
    config = parser.dump(settings, skip_none=False, skip_validation=True)
    if not overwrite:
        config = _refuse_another_run(folder, config) + config
    settings.pop("config", None)
    made = vars(parser.instantiate_classes(settings))
    data, objective = made.pop("data"), made.pop("objective")

    from lightning.pytorch.utilities import rank_zero_only  # only now: it takes seconds

    from decur.pretrain.run import pretrain

    if overwrite and getattr(rank_zero_only, "rank", 0) == 0:
        _remove(folder)
    return pretrain(
        data, objective, settings=PretrainSettings(**made), config=config, anew=overwrite
    )


def _finish(folder: RunFolder) -> None:
    """End a run with its newest checkpoint; its data and its configuration are not needed."""
    if not folder.path.is_dir():
        raise ConfigError(f"--finish: {folder.path}: no such folder; give --run")
    with folder.owned():
        from decur.pretrain.outcome import finish  # only now: it takes seconds

        finish(folder)


def _refuse_another_run(folder: RunFolder, config: str) -> str:
    """Refuse to go on with a run that has another configuration, but for its length.

    Returns:
        Comments about the run's lengths so far, which are kept in front of its configuration.
    """
    if not folder.saved_checkpoints() or not folder.config.is_file():
        return ""
    notes = "".join(_notes(folder.config))
    for key, before, now in _changes(_kept_configuration(folder.config, config), config):
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
    _refuse_foreign_classes(path, now)
    parser = shared_parser(starts=False)
    settings = parser.parse(["--config", str(path), *_as_version_0_1(path)])
    text: str = parser.dump(settings, skip_none=False, skip_validation=True)
    return text


def _refuse_foreign_classes(path: Path, now: str = "{}") -> None:
    """Refuse a kept configuration, and what it is based on, that names modules of others."""
    for layer in find_config(str(path)):
        refuse_foreign(layer, path, yaml.load(now, LOADER))


def _as_version_0_1(path: Path) -> list[str]:
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
    if "geometry" not in encoder and has_geometry(encoder.get("attention")):
        options += ["--encoder.geometry", "centred"]
    return options


def _changes(before: str, now: str) -> Iterator[tuple[str, object, object]]:
    """Yield the keys whose values differ between two configurations, and change the result."""
    old, new = (flatten(yaml.load(text, LOADER)) for text in (before, now))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key) and not key.startswith(_FREE):
            yield key, old.get(key), new.get(key)


def _remove(folder: RunFolder) -> None:
    """Delete a run; refuse to delete a folder that holds something else."""
    if not folder.entries():
        return
    if not folder.config.is_file():
        raise ConfigError(
            f"--overwrite: {folder.path} does not look like a run (no config.yaml); not deleting it"
        )
    for path in folder.entries():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
