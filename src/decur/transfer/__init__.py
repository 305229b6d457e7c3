"""Encoders and labels to results: probes, heads, fine-tuning, metrics."""

from decur.transfer.models import FCN, Fusion, LateFusion, load_model
from decur.transfer.run import Transferred, transfer
from decur.transfer.settings import FitSettings

__all__ = ["FCN", "FitSettings", "Fusion", "LateFusion", "Transferred", "load_model", "transfer"]
