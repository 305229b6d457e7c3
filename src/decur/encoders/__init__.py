"""A view to feature maps, a pooled vector, and an embedding."""

from decur.encoders.adapted import AdaptedEncoder
from decur.encoders.backbone import TimmEncoder, build_encoder, list_encoders
from decur.encoders.bands import select_bands
from decur.encoders.base import Encoder
from decur.encoders.mit import MiTEncoder
from decur.encoders.mlp import MLPEncoder
from decur.encoders.projected import ProjectedEncoder
from decur.encoders.projector import Projector

__all__ = [
    "AdaptedEncoder",
    "Encoder",
    "MLPEncoder",
    "MiTEncoder",
    "ProjectedEncoder",
    "Projector",
    "TimmEncoder",
    "build_encoder",
    "list_encoders",
    "select_bands",
]
