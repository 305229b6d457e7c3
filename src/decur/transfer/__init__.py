"""Encoders and labels to results: probes, heads, fine-tuning, metrics."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.transfer.heads import CMX, FCN, Fusion, LateFusion, load_model
    from decur.transfer.run import Transferred, transfer
    from decur.transfer.settings import FitSettings, TransferSettings
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

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
