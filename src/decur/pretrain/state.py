"""The state of a training under Lightning: when it is saved, and how a training goes on from it.

Pretraining and the fine-tuning of `decur transfer` both use `TrainingState`. A training that was
killed or told to stop ends with the weights of an uninterrupted one: on a CPU bit for bit, on a
GPU, whose sums come in no fixed order, to rounding.
"""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from decur.errors import ConfigError, DataError, Interrupted, WriteError
from decur.locks import refuse_lost
from decur.objectives.distributed import gather_integers
from decur.pretrain.data import ResumableLoader
from decur.pretrain.settings import CheckpointSettings
from decur.runs import RunFolder, atomic, make_folder, write_text
from decur.signals import STOPPING, may_be_taken, stop_at_once

log = logging.getLogger(__name__)
LOOK_EVERY = 1.0  # seconds between two looks whether the folder is still there
AGREE_EVERY = 10  # steps between two agreements of several processes to save
KEY = "decur-transfer"  # of a checkpoint's entry that says which training it belongs to
_DATA = "decur-data"  # of a checkpoint's entry that says which files it was trained on


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Return how many whole epochs the training of a checkpoint has trained."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write each checkpoint whole or not at all; read tensors and plain types only.

    Args:
        written: told of each checkpoint that has been written, in the process that writes.
    """

    def __init__(self, written: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        super().__init__()
        self.written = written

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` under a temporary name, then rename it to `path`."""
        with atomic(Path(path), _bytes_of(checkpoint)) as temporary:
            torch.save(checkpoint, temporary)
        if self.written is not None:
            self.written(checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without unpickling any object."""
        checkpoint: dict[str, Any] = torch.load(
            path, map_location=map_location or "cpu", weights_only=True
        )
        return checkpoint


def _bytes_of(value: Any) -> int:
    """Return the bytes of all tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


class TrainingState(Checkpoint):
    """Save the state of a training at the end of each epoch, every few minutes, and on a signal.

    On SIGTERM, SIGHUP (a lost terminal) or Ctrl-C the training finishes its step, saves its state
    and raises `Interrupted`. Outside the main thread, where Python takes no signals, it trains
    without. A training stops where its folder is lost, or where not one state can be saved.

    Args:
        run: the folder whose `checkpoints` are written.
        settings: how often to save within an epoch, and how many checkpoints to keep.
        loader: the training loader, if its place in the data is to be kept in the checkpoint.
            A data module that finds its own place (`PairedData`) needs none.
        identity: `{name of a setting: digest of its value}`, which tells this training from
            others. `find` discards a checkpoint of another training. None: the folder holds
            the checkpoints of this training only.
        data: digest of the files that are trained on. Going on from a checkpoint with another one
            is a warning. None: nothing is noted.
        pause: seconds that must have passed since the start or the last save for the end of an
            epoch to be saved. A short training then never waits for the disk.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: CheckpointSettings | None = None,
        *,
        loader: ResumableLoader | None = None,
        identity: Mapping[str, str] | None = None,
        data: str | None = None,
        pause: float = 0.0,
    ) -> None:
        self.run = run
        self.data = data
        self.settings = settings or CheckpointSettings()
        self.loader = loader
        self.identity = None if identity is None else dict(identity)
        self.pause = pause
        self.received: int | None = None  # the signal that told the training to stop
        self._saved_at = self._looked_at = time.monotonic()
        self._handlers: dict[int, Any] = {}

    # -- going on -------------------------------------------------------------------------------

    def find(self) -> Path | None:
        """Return the checkpoint to go on from; None where the training starts anew.

        With an `identity`, the run's folder is deleted where its checkpoints are damaged or
        belong to another training.

        Raises:
            DataError: without an `identity`, if there are checkpoints and none can be read.
        """
        if self.identity is None:
            return self.run.newest_checkpoint()
        try:
            path = self.run.newest_checkpoint()
        except DataError:
            log.warning("no state in %s can be read; training starts anew", self.run.checkpoints)
            path = None
        if path is not None:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            before = saved.get(KEY, {}).get("known_by", {})
            differing = [name for name, value in self.identity.items() if before.get(name) != value]
            if not differing:
                return path
            log.warning(
                "%s is of another training (not the same: %s); it is discarded, and training "
                "starts anew",
                path,
                ", ".join(differing),
            )
        shutil.rmtree(self.run.path, ignore_errors=True)
        return None

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the loader to its place in the data before its workers read ahead.

        Lightning does so itself within an epoch, but not at the end of one. Files that are not
        those of the checkpoint are told.
        """
        changed = self.data is not None and checkpoint.get(_DATA, self.data) != self.data
        if changed and trainer.is_global_zero:
            log.warning(
                "the data has changed since %s was saved: other samples, or files of another size "
                "or time; training goes on with what is there now. --overwrite starts anew",
                self.run.checkpoints,
            )
        if self.loader is not None:
            self.loader.load_state_dict(checkpoint[KEY]["place"])

    # -- saving ---------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add which training the state belongs to, its files, and the place in the data."""
        if self.data is not None:
            checkpoint[_DATA] = self.data
        entry: dict[str, Any] = {}
        if self.identity is not None:
            entry["known_by"] = self.identity
        if self.loader is not None:
            entry["place"] = self.loader.state_dict()
        if entry:
            checkpoint[KEY] = entry

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch when the time has come or a signal has arrived."""
        if time.monotonic() - self._looked_at > LOOK_EVERY:
            self._looked_at = time.monotonic()
            refuse_lost(self.run.checkpoints)
        if trainer.is_last_batch or trainer.should_stop:
            return  # the epoch's end follows: a state in between would lose its row of metrics
        self._advance(trainer, trainer.current_epoch, batch_idx + 1)
        due = time.monotonic() - self._saved_at > self.settings.every_minutes * 60
        wanted = due or self.received is not None
        if trainer.world_size > 1:
            if batch_idx % AGREE_EVERY:
                return
            wanted = any(theirs for (theirs,) in gather_integers([int(wanted)]))
        if wanted:
            self.save(trainer)
            self._stop_on_signal(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of an epoch, after the callbacks before this one have found no fault."""
        self._advance(trainer, trainer.current_epoch + 1, 0)
        if self.received is not None or time.monotonic() - self._saved_at >= self.pause:
            self.save(trainer)
        self._stop_on_signal(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Save now; a full disk is a warning, and the older checkpoints stay.

        Raises:
            WriteError: if it cannot be saved and there is no older one: a kill would lose all.
        """
        self._saved_at = time.monotonic()
        path = self.run.checkpoints / f"step-{trainer.global_step:09d}.ckpt"
        failed: WriteError | None = None
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except WriteError as error:
            failed = error
            if trainer.world_size > 1:  # at which the other processes wait
                trainer.strategy.barrier("Trainer.save_checkpoint")
        lost = failed is not None and not self.run.saved_checkpoints()
        if trainer.world_size > 1:
            lost = trainer.strategy.reduce_boolean_decision(lost, all=False)
        if lost:
            raise failed or WriteError(f"{path}: cannot be written by the first process")
        if failed is not None:
            log.warning("%s; training goes on, and the older checkpoints stay", failed)
        elif trainer.is_global_zero:
            for old in self.run.saved_checkpoints()[self.settings.keep :]:
                old.unlink(missing_ok=True)

    def _advance(self, trainer: L.Trainer, epoch: int, batch: int) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader):
            loader.progress = (epoch, batch)

    # -- signals --------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGTERM, SIGHUP and Ctrl-C, where that is possible."""
        self._saved_at = time.monotonic()
        for number in STOPPING:
            if may_be_taken(number):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, too, which would end the run unsaved."""
        for number in self._handlers:
            signal.signal(number, self._on_signal)
        # Of several processes, Lightning asks in each step whether one was told to stop, and the
        # host waits for the GPU's answer; `on_train_batch_end` asks the hosts.
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = _nothing

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.release_signals()

    def release_signals(self) -> None:
        """Give the signals back, also where training ended in an error: Lightning does not."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:  # asked twice
            stop_at_once()
        self.received = number
        log.warning("finishing this step, then saving; Ctrl-C again stops at once")

    def _stop_on_signal(self, trainer: L.Trainer) -> None:
        number = self.received
        if trainer.world_size > 1:  # any process may have got the signal, all stop together
            number = trainer.strategy.reduce_boolean_decision(number is not None, all=False) and (
                number or signal.SIGTERM
            )
        if number:
            raise Interrupted(number)


def _nothing() -> None:
    pass


def open_run(folder: RunFolder, config: str | None, anew: bool = False) -> Path | None:
    """Make a run's folder, and return the checkpoint of an unfinished run in it.

    Args:
        folder: the run's folder.
        config: the complete configuration as YAML, which is written to the folder; None: leave
            what is there.
        anew: start anew. One of several processes deletes what the folder holds, and the others
            must not look at it meanwhile.

    Returns:
        The newest checkpoint; None where there is none.

    Raises:
        ConfigError: if the folder cannot be made, or holds something else than a run.
        DataError: if there are checkpoints and none can be read.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--run {folder.path}: is a file, not a folder")
    make_folder(folder.path, "--run")
    resume = None if anew else folder.newest_checkpoint()
    if getattr(rank_zero_only, "rank", 0) == 0:
        is_run = folder.config.is_file() or folder.checkpoints.is_dir()
        if not is_run and folder.entries():
            raise ConfigError(
                f"--run {folder.path}: is not empty and holds no run; choose another folder"
            )
        if resume is None:  # a start that reached no checkpoint may have left these
            for old in (folder.metrics, folder.bad_samples):
                old.unlink(missing_ok=True)
            shutil.rmtree(folder.path / "tensorboard", ignore_errors=True)
        if config is not None:
            write_text(folder.config, config)
    return resume


def refuse_other_architecture(
    checkpoint: Mapping[str, Any], encoders: Mapping[str, str], state: Mapping[str, Tensor]
) -> None:
    """Refuse the checkpoint of a run whose model is not this one.

    Args:
        checkpoint: as `Pretrainer` has saved it.
        encoders: `{modality: name of the encoder}` of this run.
        state: weights of this run's model.

    Raises:
        ConfigError: naming what differs.
    """
    saved = checkpoint.get("decur")
    if saved is None:
        raise ConfigError("the checkpoint was not written by decur")
    if saved["encoders"] != encoders:
        raise ConfigError(
            f"the checkpoint holds encoders {saved['encoders']}, this run has {encoders}; "
            "set encoder.name to match, or choose another run folder with --run"
        )
    theirs = checkpoint["state_dict"]
    differing = sorted(set(theirs) ^ set(state)) or [
        key for key in state if theirs[key].shape != state[key].shape
    ]
    for key in differing:
        shapes = [tuple(s[key].shape) if key in s else "nothing" for s in (theirs, state)]
        raise ConfigError(
            f"the checkpoint is of another architecture: {key} is {shapes[0]} in it and "
            f"{shapes[1]} here; use the configuration it was made with"
        )
