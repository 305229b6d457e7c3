"""Feature maps of frozen encoders in place of pictures: an FCN then trains in a moment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from decur.data import PairedDataset, Sample
from decur.modality import Modality
from decur.transfer.models import FCN
from decur.transfer.survey import Survey, map_names


def stored_maps(data: PairedDataset, target: str, seen: Survey) -> PairedDataset:
    """A data set whose pictures are feature maps: each is a "sensor" with channels for bands.

    Args:
        data: that the maps are of.
        target: the label, a mask.
        seen: its survey, with maps and masks.
    """
    return _StoredMaps(data, target, seen)


class _StoredMaps(PairedDataset):  # private, so that --help does not offer it
    def __init__(self, data: PairedDataset, target: str, seen: Survey) -> None:
        assert seen.masks is not None  # the survey was asked for maps
        self.maps, self.masks, self.target = seen.features, seen.masks, target
        self.modalities = {
            name: Modality(
                name=name,
                bands=tuple(map(str, range(maps.shape[1]))),
                scaling="range",
                size=(maps.shape[2], maps.shape[3]),
            )
            for name, maps in self.maps.items()
        }
        self.ids, self.groups, self.targets = data.ids, data.groups, data.targets
        self.present = {name: np.ones(len(data), dtype=bool) for name in self.maps}  # else zeros

    def read(self, index: int) -> Sample:
        """Read one sample's maps and mask."""
        return {
            "id": self.ids[index],
            "images": {name: torch.from_numpy(np.array(m[index])) for name, m in self.maps.items()},
            "target": {self.target: torch.from_numpy(self.masks[index].astype(np.int64))},
        }


class OnStoredMaps(nn.Module):
    """An FCN that is given the feature maps instead of pictures.

    Args:
        model: whose convolutions are trained.
    """

    def __init__(self, model: FCN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Mapping[str, Tensor], present: object, size: tuple[int, int]
    ) -> Tensor:
        """Maps by the names of `map_names` to (B, outputs, *size)."""
        maps = {
            name: [images[key] for key in map_names(name, self.model.encoder(name))]
            for name in self.model.encoders
        }
        return self.model.classify(maps, size, len(next(iter(images.values()))))
