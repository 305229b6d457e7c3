"""What a run leaves, while it trains and when it ends: encoder files and the report.

The encoders are written with each checkpoint and are those of the newest one, so that a run that
was stopped is of use. All that they need lies in the checkpoint: no data and no class of a person's
own have to be there to end a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from decur.data.base import PairedDataset
from decur.encoders.files import write_encoder
from decur.errors import ConfigError, WriteError
from decur.modality import Modality
from decur.pretrain.figures import TrainedOn, write_report
from decur.pretrain.module import Pretrainer
from decur.pretrain.state import epochs_done
from decur.runs import RunFolder
from decur.terminal import tell_result

log = logging.getLogger(__name__)
KEY = "decur-outcome"  # of a checkpoint's entry
# Pictures are drawn again only after this many times as long as drawing took: 2 % of the time.
_PAUSE = 50


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of its run.

    Args:
        data: what it trains on, as `TrainedOn` has it.
        epochs: after which the run was to end.
        done: whole epochs that it has trained.
        steps: optimiser steps that it has trained.
        rate: learning rate of the next step, and the highest of the schedule.
        options: of each sensor's encoder, as `build_encoder` takes them.
        objective: what is trained with, as `Objective.about` gives it.
    """

    data: dict[str, Any]
    epochs: int
    done: int
    steps: int
    rate: tuple[float, float]
    options: dict[str, dict[str, Any]]
    objective: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> Saved | None:
        """Return what a checkpoint says; None where a decur before 0.2 has written it."""
        if KEY not in checkpoint:
            return None
        schedule = checkpoint["lr_schedulers"][0]
        return cls(
            **{key: checkpoint[KEY][key] for key in ("data", "epochs", "options", "objective")},
            done=epochs_done(checkpoint),
            steps=checkpoint["global_step"],
            rate=(schedule["_last_lr"][0], schedule["base_lrs"][0]),
        )

    @property
    def place(self) -> str:
        """How far the training has come, in words."""
        return f"epoch {self.done} of {self.epochs}, step {self.steps:,}"


class Outcome(Callback):
    """Write the encoders with each checkpoint, and the report at the end of each epoch.

    The report's pictures are drawn anew as often as 2 % of the time allow.

    Args:
        run: the run's folder.
        data: the data set that is trained on.
    """

    def __init__(self, run: RunFolder, data: PairedDataset) -> None:
        self.run, self.data = run, TrainedOn.of(data)
        self.drawing = 1.0  # seconds that the pictures took the last time; at first a guess
        self._drawn_at = time.monotonic()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what the encoder files and the report of this state need besides it."""
        assert isinstance(pl_module, Pretrainer)
        checkpoint[KEY] = {
            "data": asdict(self.data),
            "epochs": trainer.max_epochs,
            "options": {name: pl_module.encoder(name).options for name in pl_module.modalities},
            "objective": dict(pl_module.objective.about()),
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on with weights of photographs that have seen pictures of another range."""
        assert isinstance(pl_module, Pretrainer)
        saved = checkpoint.get(KEY, {}).get("options", {})
        for name in pl_module.modalities:
            kept, now = saved.get(name, {}), pl_module.encoder(name).options
            if kept.get("normalisation") != now.get("normalisation"):
                raise ConfigError(
                    f"{self.run.path}: was begun by an older decur, which gave the pretrained "
                    f"weights of {name} pictures that are not normalised as in their training; "
                    "finish it with that one, or train anew with --overwrite"
                )

    def keep_encoders(self, checkpoint: Mapping[str, Any]) -> None:
        """Write the encoders of a checkpoint that has just been written; a full disk is told."""
        try:
            write_encoders(self.run, checkpoint)
        except WriteError as error:
            log.warning("%s; training goes on", error)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the report of the epochs so far."""
        if not trainer.is_global_zero or trainer.current_epoch + 1 == trainer.max_epochs:
            return  # the report of the end follows
        assert isinstance(pl_module, Pretrainer)
        objective = pl_module.objective.about()
        begun = time.monotonic()
        draw = begun - self._drawn_at > _PAUSE * self.drawing
        about = (
            f"Epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: the run has not ended. "
            f"Stopped, it ends with what there is by: decur pretrain --run {self.run.path} --finish"
        )
        try:
            write_report(self.run, self.data, objective=objective, about=about, draw=draw)
        except WriteError as error:
            log.warning("%s; training goes on", error)
        if draw:
            self._drawn_at = time.monotonic()
            self.drawing = self._drawn_at - begun


def write_encoders(run: RunFolder, checkpoint: Mapping[str, Any], ended: bool = False) -> None:
    """Write the encoder files of a checkpoint's state.

    Args:
        run: the run's folder.
        checkpoint: as `Pretrainer` and `Outcome` have filled it.
        ended: whether the run ends with it; else the files say that it has not.

    Raises:
        DataError: if a weight is not finite.
        WriteError: if a file cannot be written.
    """
    saved = Saved.of(checkpoint)
    assert saved is not None
    about = {"objective": saved.objective} | ({} if ended else {"unfinished": saved.place})
    for name, modality in checkpoint["decur"]["modalities"].items():
        prefix = f"encoders.{name}."
        state = {
            key.removeprefix(prefix): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(prefix)
        }
        write_encoder(
            run.encoder(name),
            checkpoint["decur"]["encoders"][name],
            Modality.from_dict(modality),
            options=saved.options[name],
            state=state,
            about=about,
        )


def finish(run: RunFolder) -> None:
    """End a run with its newest checkpoint: write its encoders and its report.

    Args:
        run: the run's folder, which this process owns.

    Raises:
        ConfigError: if there is no checkpoint, or a decur before 0.2 has written it.
        DataError: if no checkpoint can be read, or its weights are not finite.
        WriteError: if a file cannot be written.
    """
    console = Console(soft_wrap=True)
    path = run.newest_checkpoint()
    if path is None:
        raise ConfigError(f"--finish: {run.path} holds no checkpoint: there is nothing to keep")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    saved = Saved.of(checkpoint)
    if saved is None:
        raise ConfigError(
            f"--finish: {path} was written by an older decur; let the run go on with "
            f"`decur pretrain --resume --run {run.path}`"
        )
    write_encoders(run, checkpoint, ended=True)
    now, highest = saved.rate
    about = f"Ended by --finish at {saved.place}."
    if saved.done < saved.epochs:
        about += f" The learning rate was {now:.3g} then, of {highest:.3g} at its highest."
    write_report(run, TrainedOn(**saved.data), objective=saved.objective, about=about)
    console.print(f"ended     {about}", highlight=False)
    tell_result("encoders  ", run.path / "encoders")
    tell_result("report    ", run.report)
    if saved.done < saved.epochs:
        console.print("the same command without --finish goes on", highlight=False)


def describe_new_length(path: Path, epochs: int) -> str:
    """Return how a run goes on that is to end after another number of epochs; empty if it is not.

    Args:
        path: of the checkpoint that it goes on from.
        epochs: after which it is to end now.

    Raises:
        ConfigError: if it has trained more than these already.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    saved = Saved.of(checkpoint)
    if saved is None or saved.epochs == epochs:
        return ""
    if saved.done > epochs:
        raise ConfigError(
            f"trainer.max_epochs: {epochs}, but {path.parent.parent} has trained {saved.done} "
            "epochs already; --finish ends it, --overwrite starts it anew"
        )
    now, _ = saved.rate
    return (
        f"{epochs} epochs in place of {saved.epochs}: goes on after epoch {saved.done}, where the "
        f"learning rate was {now:.3g}, on the schedule of {epochs} epochs, which falls to 0 at "
        "their end; a run of so many epochs from the start ends elsewhere"
    )
