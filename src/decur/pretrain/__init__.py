"""Encoders, projectors and an objective under a Lightning Trainer."""

from decur.pretrain.loading import PairedData
from decur.pretrain.module import Pretrainer
from decur.pretrain.settings import (
    CheckpointSettings,
    EncoderSettings,
    LoaderSettings,
    MonitorSettings,
    OptimizerSettings,
    ProjectorSettings,
    ViewSettings,
)

__all__ = [
    "CheckpointSettings",
    "EncoderSettings",
    "LoaderSettings",
    "MonitorSettings",
    "OptimizerSettings",
    "PairedData",
    "Pretrainer",
    "ProjectorSettings",
    "ViewSettings",
]
