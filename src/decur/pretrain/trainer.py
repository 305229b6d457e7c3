"""Lightning as we use it: what of its Trainer is ours to decide, and what it need not say."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from decur.errors import ConfigError
from decur.objectives import Objective

# Of Lightning's Trainer: what a run decides itself, and what has no meaning without validation.
FIXED = {
    *("logger", "callbacks", "default_root_dir", "plugins", "use_distributed_sampler"),
    *(
        "enable_checkpointing",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_autolog_hparams",
    ),
    *("num_sanity_val_steps", "reload_dataloaders_every_n_epochs", "model_registry", "barebones"),
    *("limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval"),
    *("check_val_every_n_epoch", "fast_dev_run", "overfit_batches", "min_epochs", "min_steps"),
    *("inference_mode", "sync_batchnorm"),
}


def make_engine(options: dict[str, Any], **fixed: Any) -> L.Trainer:
    """Lightning's Trainer; what it refuses is a wrong configuration.

    Args:
        options: a person's.
        fixed: ours.

    Raises:
        ConfigError: saying what it refuses.
    """
    try:
        engine = L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error
    if isinstance(engine.strategy, DDPStrategy):
        # else DDP keeps all gradients a second time, in the buckets that it sends
        engine.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
    return engine


def seed_everything(seed: int) -> None:
    """Seed all that is random, as Lightning does.

    Raises:
        ConfigError: if NumPy takes no such seed.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: a whole number from 0 to {2**32 - 1}, is {seed}")
    L.seed_everything(seed, verbose=False)


def limited(batches: int, limit: float | None) -> int:
    """How many batches of an epoch the Trainer's `limit_train_batches` leaves.

    Raises:
        ConfigError: if it leaves none.
    """
    some = 1.0 if limit is None else limit
    left = min(batches, some) if isinstance(some, int) else int(batches * some)
    if left < 1:
        raise ConfigError(
            f"trainer.limit_train_batches: {limit} of {batches} batches an epoch is none; raise it"
        )
    return left


def refuse_endless(options: dict[str, Any]) -> None:
    """See that a run ends: the learning rate falls until then.

    Raises:
        ConfigError: if neither epochs nor steps say when.
    """
    if (options.get("max_epochs") or 0) < 0 and (options.get("max_steps") or -1) < 0:
        raise ConfigError(
            "trainer.max_epochs: -1 goes on for ever, and the learning rate falls to the end; "
            "give it, or trainer.max_steps"
        )


def refuse_accumulation(options: dict[str, Any], objective: Objective) -> None:
    """See that an objective that needs a whole batch gets it.

    Raises:
        ConfigError: if gradients are to be accumulated over parts of one.
    """
    if (options.get("accumulate_grad_batches") or 1) > 1 and objective.needs_whole_batch:
        raise ConfigError(
            f"trainer.accumulate_grad_batches: refused for {type(objective).__name__}, because "
            f"{objective.needs_whole_batch}; raise loader.batch_size or use more devices"
        )


def quiet_lightning() -> None:
    """Silence what Lightning says that a person cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # but for why it kills this process: another one has died
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    for text in (
        ".*does not have many workers.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*not resumable.*",
        ".*`isinstance\\(treespec.*",
        ".*The number of training batches.*",
        ".*lr_scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", text)
