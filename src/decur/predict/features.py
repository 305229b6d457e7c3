"""Encoders as predictors: a map of what they see, all of their features or three components."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from decur.data.selection import evenly_spaced
from decur.digest import digest
from decur.encoders import Encoder, load_encoder
from decur.encoders.attention import encode_maps
from decur.encoders.files import encoder_files
from decur.errors import ConfigError
from decur.features import scaled
from decur.predict.model import MODEL, Predictor, Size, open_predictor
from decur.predict.settings import FeatureBands
from decur.runs import RunFolder
from decur.transfer.heads import load_model

_COMPONENTS = 3
_ROWS = 2048  # places that the components are found from


class FeaturePredictor(Predictor):
    """The last feature maps of encoders, side by side, at the encoders' stride.

    Args:
        encoders: `{sensor: encoder}`, each with its modality.
        mode: "all" features, or "pca": their three principal components, see `fit`.

    Raises:
        ConfigError: if the encoders' maps differ in stride.
    """

    needs_all = True  # features of two sensors side by side need both

    def __init__(self, encoders: Mapping[str, Encoder], mode: FeatureBands) -> None:
        self.encoders, self.mode = dict(encoders), mode
        self.modules = nn.ModuleDict(self.encoders).eval()
        self.modalities = {}
        for name, encoder in self.encoders.items():
            assert encoder.modality is not None  # encoder files have one
            self.modalities[name] = encoder.modality
        strides = {name: encoder.strides[-1] for name, encoder in self.encoders.items()}
        if len(set(strides.values())) > 1:
            told = ", ".join(f"{name} {stride}" for name, stride in strides.items())
            raise ConfigError(
                f"features: the encoders' maps have different strides ({told}); map each sensor by "
                "itself, with one --scene SENSOR=FILE"
            )
        self.cell = next(iter(strides.values()))
        self.reference = next(iter(self.encoders))
        self.pictures = {name: modality.size for name, modality in self.modalities.items()}
        self.names = tuple(
            f"{name}/{number}"
            for name, encoder in self.encoders.items()
            for number in range(encoder.channels[-1])
        )
        pca = tuple(f"component {number + 1}" for number in range(_COMPONENTS))
        self.bands = pca if mode == "pca" else self.names
        self.mean: Tensor | None = None  # (D,)
        self.axes: Tensor | None = None  # (D, 3)

    @property
    def digest(self) -> str:
        """See `Predictor.digest`."""
        return digest(self.modules, self.mode)

    def to(self, device: str) -> None:
        """See `Predictor.to`."""
        self.modules.to(device)
        if self.mean is not None and self.axes is not None:
            self.mean, self.axes = self.mean.to(device), self.axes.to(device)

    def input_size(self, name: str, window: Size) -> Size | None:
        """Return None: a map of features has the encoder's stride, in pixels of the scene."""
        return None

    @torch.inference_mode()
    def features(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return the last feature maps of all sensors side by side: (B, D, h, w)."""
        pictures = {name: scaled(x, self.modalities[name], size=None) for name, x in images.items()}
        maps = encode_maps(self.modules, pictures, present=present)
        return torch.cat([maps[name][-1].float() for name in self.encoders], dim=1)

    @torch.inference_mode()
    def predict(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """See `Predictor.predict`."""
        found = self.features(images, present)  # (B, D, h, w)
        if self.mode == "all":
            return found
        assert self.mean is not None and self.axes is not None, "components need `fit`"
        return torch.einsum("bdhw,dk->bkhw", found - self.mean[:, None, None], self.axes)

    def fit(self, rows: NDArray[np.float64]) -> None:
        """Find the principal components of features.

        Args:
            rows: (N, D) features of places all over the scene.
        """
        rows = rows[evenly_spaced(len(rows), _ROWS)]
        mean = rows.mean(axis=0)
        centred = rows - mean
        # of D features there may be thousands: the N x N matrix has the same eigenvalues
        values, vectors = np.linalg.eigh(centred @ centred.T)
        best = np.argsort(values)[::-1][:_COMPONENTS]
        axes = centred.T @ vectors[:, best] / np.sqrt(np.maximum(values[best], 1e-12))  # (D, 3)
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        axes = np.pad(axes, ((0, 0), (0, _COMPONENTS - axes.shape[1])))
        self.mean = torch.from_numpy(mean.astype(np.float32))
        self.axes = torch.from_numpy(np.ascontiguousarray(axes, dtype=np.float32))


def open_model(
    path: str | os.PathLike[str], mode: FeatureBands | None, *, sensors: Sequence[str]
) -> Predictor:
    """Return what a model predicts, or where `mode` asks for it what its encoders see.

    Args:
        path: a folder of `decur transfer`; for features also one of `decur pretrain`, or an encoder
            file.
        mode: "all" features, their components ("pca"), or None.
        sensors: those that a scene has.

    Raises:
        ConfigError: if there is no such file or folder, or it holds encoders alone.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; give a folder of `decur transfer`")
    if mode is not None:
        return _open_encoders(path, mode, sensors)
    if path.is_dir() and not (path / MODEL).is_file() and RunFolder(path).saved_encoders():
        raise ConfigError(
            f"{path}: holds encoders, which know no classes; give a folder of `decur transfer`, or "
            "--features pca"
        )
    return open_predictor(path)


def _open_encoders(path: Path, mode: FeatureBands, sensors: Sequence[str]) -> FeaturePredictor:
    """Return the encoders of a file or folder as a predictor of features.

    Args:
        path: a folder of `decur pretrain` or `decur transfer`, or an encoder file.
        mode: "all" or "pca".
        sensors: those that a scene has; the others are left out. None of them: all encoders.

    Raises:
        ConfigError: if there are no encoders for any of the sensors.
    """
    if path.is_file():
        encoder = load_encoder(path)
        assert encoder.modality is not None
        found = {encoder.modality.name: encoder}
    elif (path / MODEL).is_file():
        model, _ = load_model(path / MODEL)
        found = {name: model.encoder(name) for name in model.encoders}
    else:
        found = {name: load_encoder(file) for name, file in encoder_files(str(path)).items()}
    if not found:
        raise ConfigError(f"{path}: holds no encoders; give a folder of `decur pretrain`")
    chosen = {name: found[name] for name in found if name in sensors}
    return FeaturePredictor(chosen or found, mode)
