"""Pretraining objectives: embeddings to named loss terms; usable alone with plain tensors."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.objectives.barlow_twins import BarlowTwins
    from decur.objectives.base import OBJECTIVES, Objective, list_objectives
    from decur.objectives.clip import CLIP
    from decur.objectives.decur import DeCUR
    from decur.objectives.simclr import SimCLR
    from decur.objectives.vicreg import VICReg
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CLIP",
    "OBJECTIVES",
    "BarlowTwins",
    "DeCUR",
    "Objective",
    "SimCLR",
    "VICReg",
    "list_objectives",
]
