"""A sensor and an encoder of whose saliency the truth is known: one feature a band."""

import torch

from decur import Modality
from decur.data import Collate
from decur.encoders import Encoder, Projector
from decur.explain import Checkpoint

CELL = 4  # px, of which a step of the map is the mean


class Means(Encoder):
    """The mean of each band over cells, then over all cells: D is the number of bands."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.name, self.options, self.dim = "means", {}, bands
        self.channels, self.strides = [bands], [CELL]
        self.still = torch.nn.Parameter(torch.zeros(1))

    def forward_features(self, x):
        return [torch.nn.functional.avg_pool2d(x, CELL)]

    def forward(self, x):
        return self.forward_features(x)[-1].mean((2, 3))


def planted(names, bands, parts):
    """A checkpoint whose embedding is the mean of each band."""
    sensors = {
        name: Modality(
            name=name,
            bands=tuple(f"b{i}" for i in range(bands)),
            scaling="range",
            value_range=(0, 1),
            size=(16, 16),
        )
        for name in names
    }
    return Checkpoint(
        "planted",
        {name: Means(bands) for name in names},
        projectors={name: Projector(bands, 1, layers=0) for name in names},
        modalities=sensors,
        parts=parts,
    )


def batch_of(checkpoint, pictures):
    """A batch of `[{modality: (C, H, W)}]`."""
    samples = [{"id": str(i), "images": images} for i, images in enumerate(pictures)]
    return Collate(checkpoint.modalities, {})(samples)
