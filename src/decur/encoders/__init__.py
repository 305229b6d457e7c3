"""A view to feature maps, a pooled vector, and an embedding."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.encoders.bands import select_bands
    from decur.encoders.base import ENCODERS, AdaptedEncoder, Encoder
    from decur.encoders.build import build_encoder, list_encoders
    from decur.encoders.files import load_encoder, save_encoder
    from decur.encoders.mit import MiTEncoder
    from decur.encoders.mlp import MLPEncoder
    from decur.encoders.own import register_encoder
    from decur.encoders.projector import ProjectedEncoder, Projector
    from decur.encoders.settings import EncoderSettings
    from decur.encoders.timm_models import TimmEncoder
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ENCODERS",
    "AdaptedEncoder",
    "Encoder",
    "EncoderSettings",
    "MLPEncoder",
    "MiTEncoder",
    "ProjectedEncoder",
    "Projector",
    "TimmEncoder",
    "build_encoder",
    "list_encoders",
    "load_encoder",
    "register_encoder",
    "save_encoder",
    "select_bands",
]
