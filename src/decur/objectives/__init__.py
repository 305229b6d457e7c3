"""Pretraining objectives: embeddings to named loss terms; usable alone with plain tensors.

To add one, write a file with a subclass of `Objective` and import the class here.
"""

from decur.objectives.barlow_twins import BarlowTwins
from decur.objectives.base import Objective
from decur.objectives.clip import CLIP
from decur.objectives.decur import DeCUR
from decur.objectives.simclr import SimCLR
from decur.objectives.vicreg import VICReg

__all__ = ["CLIP", "BarlowTwins", "DeCUR", "Objective", "SimCLR", "VICReg", "list_objectives"]


def list_objectives() -> dict[str, type[Objective]]:
    """Every method, by the name of its file: `{"decur": DeCUR, ...}`."""
    found = {
        item.__module__.rpartition(".")[2]: item
        for item in globals().values()
        if isinstance(item, type) and issubclass(item, Objective) and item is not Objective
    }
    return dict(sorted(found.items()))
