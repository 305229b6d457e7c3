"""Attention modules that follow the stages of a CNN. To add one, add a file that registers it."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.encoders.attention.base import ATTENTIONS, Stage, attach
    from decur.encoders.attention.cbam import CBAM
    from decur.encoders.attention.cross import (
        CrossDeformableAttention,
        encode,
        encode_maps,
        is_crossing,
    )
    from decur.encoders.attention.deformable import DeformableAttention, Inspection
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ATTENTIONS",
    "CBAM",
    "CrossDeformableAttention",
    "DeformableAttention",
    "Inspection",
    "Stage",
    "attach",
    "encode",
    "encode_maps",
    "is_crossing",
]
