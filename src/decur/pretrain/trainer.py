"""Lightning's Trainer as decur uses it: how it is made, and how long it trains."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from decur.data.loader import reporting_lost_workers
from decur.devices import check_processes
from decur.errors import ConfigError
from decur.objectives.base import Objective
from decur.pretrain.data import PairedData
from decur.pretrain.distributed import Sharded, reporting_lost_processes
from decur.pretrain.loggers import reporting_callbacks
from decur.pretrain.state import TrainingState

# of Lightning's Trainer, in every pretraining: decur shows progress and divides batches itself
OWN: Mapping[str, bool] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def make_trainer(
    options: Mapping[str, Any], *, float32_matmul: str = "high", **fixed: Any
) -> L.Trainer:
    """Make Lightning's Trainer.

    Args:
        options: the user's.
        float32_matmul: how a GPU multiplies float32 matrices, see torch's
            `set_float32_matmul_precision`.
        fixed: options that decur decides itself.

    Raises:
        ConfigError: with what Lightning says where it refuses an option; for more processes than
            the machine could run.
    """
    if options.get("strategy") == "fsdp":  # a trainer has a strategy of its own
        options = {**options, "strategy": Sharded()}
    try:
        trainer = L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error
    check_processes(trainer.strategy.root_device.type, trainer.num_devices)
    keep_raw_values(trainer)
    if trainer.strategy.root_device.type == "cuda":
        torch.set_float32_matmul_precision(float32_matmul)
    if isinstance(trainer.strategy, DDPStrategy):
        # else DDP keeps all gradients a second time, in the buckets that it sends
        trainer.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
        # batch statistics are those of all processes, and so the same on each
        trainer.strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
    return trainer


def fit(
    trainer: L.Trainer,
    model: L.LightningModule,
    data: PairedData,
    checkpoint: Path | None,
    state: TrainingState,
    own_callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train to the end, from a checkpoint if there is one; what goes wrong is told in a line.

    Args:
        trainer: that trains.
        model: that is trained.
        data: to train on.
        checkpoint: to go on from.
        state: the callback that saves.
        own_callbacks: those of the person who trains.

    Raises:
        DecurError: for whatever a person can mend.
    """
    try:
        with (
            reporting_lost_processes(trainer),
            reporting_lost_workers(),
            reporting_determinism(),
            reporting_callbacks(own_callbacks),
        ):
            trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    finally:
        state.release_signals()


def keep_raw_values(trainer: L.Trainer) -> None:
    """Let pictures reach a model of half precision as they were read: it scales them first.

    Lightning would round them before, in "bf16-true" an elevation above 2,048 m to 16 m.

    Args:
        trainer: changed in place.
    """
    plugin: Any = trainer.precision_plugin
    plugin.convert_input = _unchanged


def _unchanged(data: Any) -> Any:
    return data


@contextmanager
def reporting_determinism() -> Iterator[None]:
    """Say in one line that a part of a training has no deterministic algorithm.

    Raises:
        ConfigError: with torch's name of the part.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "does not have a deterministic implementation" not in text:
            raise
        raise ConfigError(
            f"trainer.deterministic: true cannot be kept ({text.partition(',')[0]}); give warn, "
            "which says so and goes on, or choose an encoder without that part"
        ) from error


def seed_everything(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and torch, as Lightning does.

    Raises:
        ConfigError: if NumPy takes no such seed.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed: a whole number from 0 to {2**32 - 1}, is {seed!r}")
    L.seed_everything(seed, verbose=False)


def limited(batches: int, limit: float | None, what: str = "an epoch") -> int:
    """Return how many batches of an epoch the Trainer's `limit_train_batches` leaves.

    Args:
        batches: of an epoch.
        limit: a number, or a share of them; None for all.
        what: whose batches they are, for the message.

    Raises:
        ConfigError: if it leaves none.
    """
    limit_or_all = 1.0 if limit is None else limit
    if isinstance(limit_or_all, int):
        left = min(batches, limit_or_all)
    else:
        left = int(batches * limit_or_all)
    if left < 1:
        raise ConfigError(
            f"trainer.limit_train_batches: {limit} of {batches} batches {what} is none; raise it"
        )
    return left


def refuse_endless(options: Mapping[str, Any]) -> None:
    """Refuse a training without an end: the learning rate falls until then.

    Raises:
        ConfigError: if neither epochs nor steps say when training ends.
    """
    if (options.get("max_epochs") or 0) < 0 and (options.get("max_steps") or -1) < 0:
        raise ConfigError(
            "trainer.max_epochs: -1 goes on for ever, and the learning rate falls to the end; "
            "give it, or trainer.max_steps"
        )


def refuse_accumulation(options: Mapping[str, Any], objective: Objective) -> None:
    """Refuse to accumulate gradients for an objective that needs a whole batch.

    Raises:
        ConfigError: if gradients are to be accumulated over parts of a batch.
    """
    if (options.get("accumulate_grad_batches") or 1) > 1 and objective.needs_whole_batch:
        raise ConfigError(
            f"trainer.accumulate_grad_batches: refused for {type(objective).__name__}, because "
            f"{objective.needs_whole_batch}; raise loader.batch_size or use more devices"
        )


def length_of_run(options: Mapping[str, Any], batches: int) -> tuple[int, int]:
    """Return the batches of a run, and of an epoch, under options of the Trainer.

    Args:
        options: of the Trainer.
        batches: that the data has for an epoch.

    Raises:
        ConfigError: if the run never ends, or an epoch has no batch.
    """
    refuse_endless(options)
    epoch = limited(batches, options.get("limit_train_batches"))
    epochs = 100 if options.get("max_epochs") is None else options["max_epochs"]
    most = -1 if options.get("max_steps") is None else options["max_steps"]
    most *= options.get("accumulate_grad_batches") or 1
    return min(end for end in (epoch * epochs, most) if end >= 0), epoch


def take_max_steps(options: dict[str, Any], batches: int) -> int | None:
    """Remove `max_steps` from the Trainer's options, and set `max_epochs` to what it needs.

    Lightning's own `max_steps` does not go on rightly from a checkpoint at an epoch's end, so
    `Pretrainer` stops by itself.

    Args:
        options: of the Trainer, `max_epochs` among them; changed in place.
        batches: of an epoch.

    Returns:
        The step to stop at, for `Pretrainer`; None where the epochs end before it.
    """
    steps = options.pop("max_steps", -1)
    batches = limited(batches, options.get("limit_train_batches"))
    if steps < 0:
        return None
    needed = math.ceil(steps * (options.get("accumulate_grad_batches") or 1) / batches)
    epochs = options["max_epochs"]
    options["max_epochs"] = needed if epochs < 0 else min(epochs, needed)
    return steps if needed == options["max_epochs"] else None


def training_length(
    trainer: L.Trainer, batches: int | None, max_steps: int | None
) -> tuple[int, int]:
    """Return the optimiser steps of the whole training, and of one epoch.

    Args:
        trainer: that trains.
        batches: of an epoch; None where only Lightning can count them. Lightning's own estimate
            would start the loader's workers before a run is resumed.
        max_steps: step to stop at, in place of the Trainer's own; None for no such step.

    Raises:
        ConfigError: if training would not end.
    """
    epochs, steps = trainer.max_epochs or 0, max_steps or trainer.max_steps
    refuse_endless({"max_epochs": epochs, "max_steps": steps})
    if batches is None:
        total = int(trainer.estimated_stepping_batches)
        return total, math.ceil(total / max(1, epochs))
    taken = limited(batches, trainer.limit_train_batches)
    per_epoch = math.ceil(taken / trainer.accumulate_grad_batches)
    ends = [steps] if steps > 0 else []
    return min(ends + [per_epoch * epochs] if epochs >= 0 else ends), per_epoch


def quiet_lightning() -> None:
    """Silence the warnings of Lightning that a user cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # but for why it kills this process: another one has died
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    quiet_advice()


def quiet_advice() -> None:
    """Silence what Lightning warns of or advertises where nothing is wrong."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    for text in (
        ".*does not have many workers.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*not resumable.*",
        ".*`isinstance\\(treespec.*",
        ".*The number of training batches.*",
        ".*lr_scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", text)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()
