"""`decur pretrain`: the command line of a pretraining run."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jsonargparse import Namespace

from decur.config import Parser, find_config
from decur.data.base import PairedDataset
from decur.encoders.attention.base import has_geometry
from decur.errors import ConfigError
from decur.layers import flatten
from decur.objectives.base import Objective
from decur.pretrain.settings import PretrainSettings
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

# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what is learned from": ("data.root", "data", "modalities"),
    "how": ("objective.common", "objective", "projector.width", "views.size"),
    "which encoders": (
        "encoder.name",
        "encoder.pretrained",
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
            "--overwrite", action="store_true", help="Start --run anew, deleting it."
        )
    # one number for both: the objective sees what the projector gives
    parser.follow("projector.width", "objective.init_args.dim")
    parser.set_defaults(_DEFAULTS)
    parser.show_first(
        {**_ESSENTIALS, "the run": ("config", "run", "overwrite")}
        if starts
        else {**_ESSENTIALS, "the run": ("config",)}
    )
    return parser


def parse(arguments: Sequence[str]) -> tuple[Parser, Namespace]:
    """Parse a command line; `--resume --run FOLDER` alone takes the folder's configuration.

    Raises:
        ConfigError: in one line, naming the key.
    """
    parser = build_parser()
    arguments = list(arguments)
    if "--resume" in arguments and not any(a.startswith("--config") for a in arguments):
        # all that can be known before the configuration is there: its folder
        only = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        only.add_argument("--run", default=parser.get_default("run"))
        folder = RunFolder(Path(only.parse_known_args(arguments)[0].run))
        if folder.config.is_file():
            _refuse_foreign_classes(folder.config)
            kept = ["--config", str(folder.config), *_as_version_0_1(folder.config)]
            arguments = [*kept, *arguments]
    return parser, parser.parse(arguments)


def main(arguments: Sequence[str]) -> Pretrained:
    """Run `decur pretrain ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser, settings = parse(arguments)
    with RunFolder(Path(settings.run)).owned():
        return _run(parser, settings)


def _run(parser: Parser, settings: Namespace) -> Pretrained:
    """Run with parsed settings in a folder that this process owns."""
    folder = RunFolder(Path(settings.run))
    resume, overwrite = settings.pop("resume"), settings.pop("overwrite")
    if resume and not folder.saved_checkpoints():
        raise ConfigError(f"--resume: {folder.path} holds no checkpoint to go on from")
    config = parser.dump(settings, skip_none=False, skip_validation=True)
    if not overwrite:
        _refuse_another_run(folder, config)
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


def _refuse_another_run(folder: RunFolder, config: str) -> None:
    """Refuse to go on with an unfinished run that has another configuration."""
    if not folder.saved_checkpoints() or not folder.config.is_file():
        return
    for key, before, now in _changes(_kept_configuration(folder.config), config):
        raise ConfigError(
            f"{folder.path} holds a run with {key} {before!r}, not {now!r}; choose another "
            "folder with --run, or start this one anew with --overwrite"
        )


def _kept_configuration(path: Path) -> str:
    """Return a kept configuration with the keys that have come since, at their defaults.

    Args:
        path: of the `config.yaml` that `pretrain` has written.

    Raises:
        ConfigError: in one line, for a key that is no more.
    """
    _refuse_foreign_classes(path)
    parser = build_parser(starts=False)
    settings = parser.parse(["--config", str(path), *_as_version_0_1(path)])
    text: str = parser.dump(settings, skip_none=False, skip_validation=True)
    return text


def _refuse_foreign_classes(path: Path) -> None:
    """Refuse a kept configuration, and what it is based on, that names modules of others."""
    for layer in find_config(str(path)):
        refuse_foreign(layer, path)


def _as_version_0_1(path: Path) -> list[str]:
    """Return options that let a run of version 0.1 go on as it began.

    Its configuration does not name what later became a choice, and now has another default.

    Args:
        path: of the `config.yaml` that `pretrain` has written.
    """
    try:
        kept = yaml.safe_load(path.read_text())
        views, encoder = dict(kept["views"]), dict(kept["encoder"])
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return []  # the parser says what is wrong with it
    options = [] if "recipes" in views else ["--views.recipes", "0.1"]
    if "geometry" not in encoder and has_geometry(encoder.get("attention")):
        options += ["--encoder.geometry", "centred"]
    return options


def _changes(before: str, now: str) -> Iterator[tuple[str, object, object]]:
    """Yield the keys whose values differ between two configurations, and change the result."""
    old, new = flatten(yaml.safe_load(before)), flatten(yaml.safe_load(now))
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
