"""A batch to two augmented views a modality, on the device the batch is on."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.views.augmentation import RECIPES, Augmentation
    from decur.views.counter import sample_seeds
    from decur.views.views import Drawn, Views
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["RECIPES", "Augmentation", "Drawn", "Views", "sample_seeds"]
