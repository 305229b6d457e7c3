"""Weights from and for other programs."""

from decur.exchange.exporting import export_encoder
from decur.exchange.importing import import_weights

__all__ = ["export_encoder", "import_weights"]
