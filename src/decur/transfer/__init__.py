"""Encoders and labels to results: probes, heads, fine-tuning, metrics."""

from decur.transfer.cmx import CMX
from decur.transfer.fusion import Fusion
from decur.transfer.models import FCN, LateFusion, load_model
from decur.transfer.run import Transferred, transfer
from decur.transfer.settings import FitSettings

__all__ = [
    "CMX",
    "FCN",
    "FitSettings",
    "Fusion",
    "LateFusion",
    "Transferred",
    "load_model",
    "transfer",
]
