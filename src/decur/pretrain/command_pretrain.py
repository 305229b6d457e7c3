"""`decur pretrain`: the command line of a pretraining run."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from decur.config import Parser
from decur.errors import ConfigError
from decur.pretrain.configuration import (
    ORDERS,
    as_version_0_1,
    refuse_another_run,
    refuse_foreign_classes,
    shared_parser,
)
from decur.pretrain.settings import PretrainSettings
from decur.runs import RunFolder

if TYPE_CHECKING:
    from decur.pretrain.run import Pretrained


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
        refuse_foreign_classes(config)
        arguments = ["--config", str(config), *as_version_0_1(config), *arguments]
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
    if resume and not folder.is_begun():
        raise ConfigError(f"--resume: {folder.path} holds no checkpoint to go on from")
    config = parser.to_yaml(settings)
    if not overwrite:
        config = refuse_another_run(folder, config) + config
    settings.pop("config", None)
    made = vars(parser.instantiate(settings))
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
