"""Weights from and for other programs."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.exchange.exporting import export_encoder
    from decur.exchange.hub import export_hub
    from decur.exchange.importing import import_weights
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["export_encoder", "export_hub", "import_weights"]
