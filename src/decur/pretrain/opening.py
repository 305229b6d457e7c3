"""A run's folder, made or found: what it holds is gone on with only if it is the same run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml
from lightning.pytorch.utilities import rank_zero_only

from decur.checkpoint import RunFolder
from decur.config import flatten
from decur.errors import ConfigError
from decur.pretrain.saving import newest_checkpoint

# What may differ when a run goes on, since it does not change the result.
_FREE = (
    *("run", "loader.workers", "checkpoint.", "encoder.checkpointing"),
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy"),
)


def open_run(folder: RunFolder, config: str | None) -> Path | None:
    """Make a run's folder; find what to go on from.

    Args:
        folder: the run's.
        config: the complete configuration as YAML; None: not known, then any run is gone on with.

    Returns:
        The newest checkpoint of an unfinished run; None where there is none.

    Raises:
        ConfigError: if the folder cannot be one, or holds a run of another configuration.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--run {folder.path}: is a file, not a folder")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run {folder.path}: cannot be made ({error.strerror})") from error
    resume = newest_checkpoint(folder)
    if resume is not None and config is not None and folder.config.is_file():
        from decur.pretrain.command import complete  # which knows every key's default

        for key, before, now in _changes(complete(folder.config), config):
            raise ConfigError(
                f"{folder.path} holds a run with {key} {before!r}, not {now!r}; choose another "
                "folder with --run, or start this one anew with --overwrite"
            )
    if getattr(rank_zero_only, "rank", 0) == 0:
        ours = folder.config.is_file() or folder.checkpoints.is_dir()
        if not ours and any(folder.path.iterdir()):
            raise ConfigError(
                f"--run {folder.path}: is not empty and holds no run; choose another folder"
            )
        if resume is None:  # what a start that came to nothing left would be mixed in
            for old in (folder.metrics, folder.bad_samples):
                old.unlink(missing_ok=True)
            shutil.rmtree(folder.path / "tensorboard", ignore_errors=True)
        if config is not None:
            folder.config.write_text(config)
    return resume


def _changes(before: str, now: str) -> Iterator[tuple[str, object, object]]:
    """Keys whose values differ between two configurations, and matter."""
    old, new = flatten(yaml.safe_load(before)), flatten(yaml.safe_load(now))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key) and not key.startswith(_FREE):
            yield key, old.get(key), new.get(key)
