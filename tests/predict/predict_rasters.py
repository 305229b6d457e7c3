"""Rasters of a small place, and the sensors that see it."""

import numpy as np

from decur.modality import Modality

PIXEL = 10.0
SENSORS = {
    "s1": Modality(name="s1", bands=("VV",), scaling="range", value_range=(0, 1000), size=(32, 32)),
    "s2": Modality(
        name="s2", bands=("r", "g"), scaling="range", value_range=(0, 1000), size=(32, 32)
    ),
}


def noise(bands, height, width, seed=0):
    """Blobs of a few pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1000, (bands, height // 4 + 1, width // 4 + 1))
    return np.kron(coarse, np.ones((4, 4)))[:, :height, :width].astype(np.float32)
