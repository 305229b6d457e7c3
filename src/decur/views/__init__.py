"""A batch to two augmented views a modality, on the device the batch is on."""

from decur.views.augmentation import RECIPES, Augmentation
from decur.views.counter import sample_seeds
from decur.views.views import Drawn, Views

__all__ = ["RECIPES", "Augmentation", "Drawn", "Views", "sample_seeds"]
