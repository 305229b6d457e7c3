"""Pretraining objectives: embeddings to named loss terms; usable alone with plain tensors."""

from decur.objectives.barlow_twins import BarlowTwins
from decur.objectives.base import OBJECTIVES, Objective, list_objectives
from decur.objectives.clip import CLIP
from decur.objectives.decur import DeCUR
from decur.objectives.simclr import SimCLR
from decur.objectives.vicreg import VICReg

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
