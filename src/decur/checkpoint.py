"""Names of version 0.1, kept for the scripts that import them from here."""

from decur.encoders import load_encoder, save_encoder
from decur.runs import RunFolder

__all__ = ["RunFolder", "load_encoder", "save_encoder"]
