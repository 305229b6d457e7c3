"""Lightning as we use it: what of its Trainer is ours to decide, and what it need not say."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from decur.errors import ConfigError

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
        return L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error


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
