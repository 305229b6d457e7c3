"""Encoders and labels to results: probes, heads, fine-tuning, metrics."""

from decur.transfer.heads import CMX, FCN, Fusion, LateFusion, load_model
from decur.transfer.run import Transferred, transfer
from decur.transfer.settings import FitSettings, TransferSettings

__all__ = [
    "CMX",
    "FCN",
    "FitSettings",
    "Fusion",
    "LateFusion",
    "TransferSettings",
    "Transferred",
    "load_model",
    "transfer",
]
