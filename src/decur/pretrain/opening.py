"""A run's folder, made or found."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from decur.errors import ConfigError
from decur.pretrain.saving import newest_checkpoint
from decur.runs import RunFolder, atomic, make_folder


def open_run(folder: RunFolder, config: str | None, anew: bool = False) -> Path | None:
    """Make a run's folder; find what to go on from.

    Args:
        folder: the run's.
        config: the complete configuration as YAML, kept in it; None: not known.
        anew: nothing is gone on with. One of several processes deletes what there was, and the
            others must not look at it meanwhile.

    Returns:
        The newest checkpoint of an unfinished run; None where there is none.

    Raises:
        ConfigError: if the folder cannot be one, or holds what is no run.
        DataError: if there are checkpoints and none can be read.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--run {folder.path}: is a file, not a folder")
    make_folder(folder.path, "--run")
    resume = None if anew else newest_checkpoint(folder)
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
            with atomic(folder.config) as temporary:
                temporary.write_text(config)
    return resume
