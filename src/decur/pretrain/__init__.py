"""Encoders, projectors and an objective under a Lightning Trainer."""

from decur.data import LoaderSettings
from decur.encoders import EncoderSettings
from decur.pretrain.data import PairedData
from decur.pretrain.module import Pretrainer
from decur.pretrain.settings import (
    CheckpointSettings,
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
