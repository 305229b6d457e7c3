"""Pretraining: encoders, projectors and an objective under a Lightning Trainer."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.data.loader import LoaderSettings
    from decur.encoders.settings import EncoderSettings
    from decur.pretrain.data import PairedData
    from decur.pretrain.module import Pretrainer
    from decur.pretrain.run import Pretrained, pretrain
    from decur.pretrain.settings import (
        CheckpointSettings,
        MonitorSettings,
        OptimizerSettings,
        PretrainSettings,
        ProjectorSettings,
        TrainerSettings,
        ViewSettings,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

__all__ = [
    "CheckpointSettings",
    "EncoderSettings",
    "LoaderSettings",
    "MonitorSettings",
    "OptimizerSettings",
    "PairedData",
    "PretrainSettings",
    "Pretrained",
    "Pretrainer",
    "ProjectorSettings",
    "TrainerSettings",
    "ViewSettings",
    "pretrain",
]
