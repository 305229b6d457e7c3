"""What every encoder is, their registry, and encoders that are made of another module."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from decur.errors import ConfigError, DataError, reason_of
from decur.modality import Modality
from decur.registry import Registry

# A builder takes the number of bands, and the options of the encoder by name. One that can start
# from published weights has an option `pretrained`.
Builder = Callable[..., "Encoder"]

ENCODERS: Registry[Builder] = Registry("encoder", "decur.encoders")
ADAPTED = "adapted"  # the name of an `AdaptedEncoder`

_QUICK = 2e10  # weights times pixels of a picture that is run in less time than its shape is
_SAME_SCALING = "; give the data the statistics of that training, as --data.modalities FILE"
log = logging.getLogger(__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Around what runs a model in evaluation mode: each of its modules is as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train(modes[model])  # a module's own `train` may do more than to set the mode
        for module, mode in modes.items():
            module.training = mode


class Encoder(nn.Module, ABC):
    """A picture of one sensor to feature maps and to one vector.

    To add one, write a file with a subclass, or a function that returns one, which
    `ENCODERS.register` names.

    Attributes:
        name: the architecture, as `build_encoder` takes it; it sets the name.
        channels: number of channels of the feature map of each stage.
        strides: of the feature map of each stage: input pixels for each step of the map.
        dim: length D of the pooled vector.
        modality: the sensor it was trained on, None while unknown.
        options: the options that `build_encoder` needs to build it again; by default those that
            it was given.
    """

    name: str
    channels: list[int]
    strides: list[int]
    dim: int
    modality: Modality | None = None
    options: dict[str, Any]

    @abstractmethod
    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps, one a stage: (B, channels[i], H / strides[i], W / strides[i])."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""

    def __repr__(self) -> str:
        """Return one line; `print(list(encoder.children()))` shows the layers."""
        numbers = sum(p.numel() for p in self.parameters())
        of = "" if self.modality is None else f" for {self.modality!r}"
        maps = ", ".join(map(str, self.strides))
        return (
            f"<{getattr(self, 'name', type(self).__name__)}{of}: vectors of {self.dim}, maps at "
            f"strides {maps}, {numbers:,} parameters>"
        )

    @torch.no_grad()
    def predict(
        self, pictures: Tensor | NDArray[Any] | Sequence[Any], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Return the vectors of pictures as they were measured, without gradients.

        The pictures are scaled as the encoder's modality says and go through the encoder on the
        device that it is on, without dropout and with fixed batch norms.

        Args:
            pictures: one picture (C, H, W) or several, (N, C, H, W) or a list, in raw units: the
                numbers of the files that the encoder was trained on, after `modality.convert`
                where the modality converts them. NaN and masked pixels were not measured.
            batch_size: how many go through the encoder at a time.

        Returns:
            (D,) of one picture; (N, D) of several.

        Raises:
            ConfigError: if `batch_size` is no number from 1.
            DataError: if the encoder's modality is unknown, or the pictures are not of its bands.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size: is a whole number from 1, not {batch_size!r}")
        if self.modality is None:
            raise DataError(
                f"encoder {self.name!r}: its modality is unknown, so raw pictures cannot be "
                "scaled; load_encoder gives one that knows it, or set encoder.modality"
            )
        many, one = _as_pictures(pictures)
        for picture in many:
            if (
                picture.ndim != 3
                or picture.shape[0] != self.modality.channels
                or not picture.numel()
            ):
                raise DataError(
                    f"a picture is {tuple(picture.shape)}; {self.modality.name!r} needs "
                    f"({self.modality.channels}, height, width)"
                )
        where, found = next(self.parameters()), [np.empty((0, self.dim), np.float32)]
        with evaluating(self):
            for first in range(0, len(many), batch_size):
                scaled = [self.modality.scale(p) for p in many[first : first + batch_size]]
                same = len({x.shape for x in scaled}) == 1
                for batch in [torch.stack(scaled)] if same else [x[None] for x in scaled]:
                    found.append(self(batch.to(where.device, where.dtype)).float().cpu().numpy())
        vectors = np.concatenate(found)  # (N, D)
        return vectors[0] if one else vectors

    def check(self, modality: Modality) -> None:
        """Refuse data of another sensor.

        Raises:
            DataError: saying what differs.
        """
        if self.modality is None:
            return
        differences = self.modality.differences(modality)
        if differences:
            remedy = _SAME_SCALING if self.modality.bands == modality.bands else ""
            if not remedy and modality.channels >= self.modality.channels:
                bands = ", ".join(self.modality.bands)
                remedy = (
                    f"; `bands: [{bands}]` for it in the data's modalities.yaml takes these of a "
                    "file that names them, or `bands: {NAME: NUMBER}` by their numbers from 1"
                )
            raise DataError(
                f"the encoder was trained on {self.modality.name!r} and the data "
                f"{modality.name!r} differs in {'; '.join(differences)}{remedy}"
            )
        if modality.scaled_as(self.modality) != modality:
            log.info(
                "modality %r: nobody gave its scaling, so it is that of the encoder's training",
                modality.name,
            )


def refuse_name(modality: str) -> None:
    """Refuse a sensor's name that PyTorch does not take for the name of a module.

    Raises:
        ConfigError: for a name with a dot, or one that PyTorch uses itself.
    """
    if "." in modality:
        raise ConfigError(f"modality {modality!r}: a name must not hold a dot; rename it")
    if not modality or hasattr(nn.ModuleDict(), modality):
        raise ConfigError(f"modality {modality!r}: PyTorch keeps this name for itself; rename it")


@torch.no_grad()
def refuse_size(
    encoder: Encoder, modality: Modality, *, size: tuple[int, int], key: str = "views.size"
) -> None:
    """Refuse pictures of a size that an encoder does not take.

    The encoder is run on two black pictures where that takes milliseconds. Else it is run on shapes
    alone (PyTorch's "meta" device), unless it needs numbers.

    Args:
        encoder: of any kind.
        modality: the sensor.
        size: height and width.
        key: of the configuration that gives the size, for the message.

    Raises:
        ConfigError: with what the encoder says, or if its vectors are not of its width.
    """
    try:
        with evaluating(encoder):
            found = _tried(encoder, (2, modality.channels, *size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"encoder {encoder.name!r} of {modality.name!r} does not take pictures of "
            f"{size[0]} x {size[1]} pixels ({key}) with encoder.options as they are: {reason}"
        ) from error
    if found != (2, encoder.dim):
        raise ConfigError(
            f"encoder {encoder.name!r} of {modality.name!r}: gives {found} for two pictures, "
            f"(2, {encoder.dim}) is expected; see encoder.options"
        )


def _tried(encoder: Encoder, shape: tuple[int, ...]) -> tuple[int, ...]:
    weights = list(encoder.parameters())
    if weights and sum(w.numel() for w in weights) * math.prod(shape[2:]) < _QUICK:
        return tuple(encoder(torch.zeros(shape, device=weights[0].device)).shape)
    state = {k: v.to("meta") for k, v in (*encoder.named_parameters(), *encoder.named_buffers())}
    try:
        given = functional_call(encoder, state, (torch.empty(shape, device="meta"),))
    except Exception:  # the encoder's own, or of an operation that needs numbers
        return tuple(encoder(torch.zeros(shape)).shape)
    return tuple(given.shape)


# -- any module that turns pictures into vectors or feature maps, as an encoder --------------------

_SIDES = (64, 224, 32, 96, 128, 256, 512, 16, 8)  # sides of pictures that a module is tried on


def _as_pictures(pictures: Tensor | NDArray[Any] | Sequence[Any]) -> tuple[list[Tensor], bool]:
    """Return pictures as tensors, and whether only one was given, (C, H, W) or (H, W).

    Raises:
        DataError: if they are no real numbers.
    """
    try:
        many = [_as_tensor(picture) for picture in pictures]
        one = bool(many) and many[0].ndim in (1, 2)  # its bands, or the rows of its only band
        if one:
            many = [torch.stack(many)[None] if many[0].ndim == 1 else torch.stack(many)]
    except (TypeError, ValueError, RuntimeError) as error:
        inside = pictures[0] if isinstance(pictures, list | tuple) and pictures else pictures
        raise DataError(
            "pictures are arrays or tensors of their raw numbers, (C, H, W) each; "
            f"{type(inside).__name__} is none ({reason_of(error)})"
        ) from error
    if any(picture.is_complex() for picture in many):
        raise DataError("pictures are complex; give their amplitude, or what the encoder has seen")
    return many, one


def _as_tensor(picture: Any) -> Tensor:
    """Return a picture as a tensor, NaN where an array masks it."""
    if isinstance(picture, np.ma.MaskedArray):
        picture = np.ma.filled(picture.astype(np.float32), np.nan)
    if isinstance(picture, np.ndarray):  # PyTorch takes native, contiguous, writable memory alone
        native = picture.dtype.newbyteorder("=")
        picture = np.require(picture, native, ["C_CONTIGUOUS", "WRITEABLE"])
    return torch.as_tensor(picture)


class WrappedEncoder(Encoder):
    """A module that knows nothing of decur, as an encoder.

    What it gives is found by trying it on black pictures: vectors (B, D); a feature map
    (B, D, h, w), which is averaged to a vector; or a list of maps, of which the last is averaged.

    Args:
        module: takes pictures (B, C, H, W).
        channels: number of bands C.

    Raises:
        ConfigError: if it takes pictures of none of several sizes, or gives something else.
    """

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module = module
        maps, side = self._tried(channels)
        self.channels = [each.shape[1] for each in maps]
        self.strides = [max(1, round(side / each.shape[-1])) for each in maps]
        self.dim = self.channels[-1]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the module's feature maps; a vector is a map of one pixel."""
        return self._maps(self.module(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) to (B, D)."""
        return self._maps(self.module(x))[-1].mean((2, 3))

    def _maps(self, given: Any) -> list[Tensor]:
        """Return what the module has given as maps (B, D, h, w)."""
        many = list(given) if isinstance(given, list | tuple) else [given]
        maps = [m[:, :, None, None] if isinstance(m, Tensor) and m.ndim == 2 else m for m in many]
        if not maps or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
            shown = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ConfigError(
                f"encoder: {type(self.module).__name__} gives {shown}; vectors (B, D), a map "
                "(B, D, h, w) or a list of maps are expected"
            )
        return maps

    @torch.no_grad()
    def _tried(self, channels: int) -> tuple[list[Tensor], int]:
        """Return the maps of a black picture, and the side of a picture that the module takes."""
        reason, where = "", next(self.module.parameters(), torch.empty(0)).device
        with evaluating(self.module):
            for side in _SIDES:
                try:
                    given = self.module(torch.zeros(2, channels, side, side, device=where))
                except (RuntimeError, ValueError, AssertionError, TypeError) as error:
                    reason = reason or reason_of(error)
                    continue
                return self._maps(given), side
        if where.type == "meta":  # shapes alone do not suffice for every module
            raise NotImplementedError(reason)
        raise ConfigError(
            f"encoder: {type(self.module).__name__} takes no pictures of {channels} bands "
            f"({reason})"
        )


# -- an encoder of pictures that are first put into the bands and values it was trained on ---------


class AdaptedEncoder(Encoder):
    """An encoder whose pictures are reordered and rescaled to the bands that it was trained on.

    Pictures become `(band - mean) / std` before the encoder inside; a band that they lack is 0
    there.

    Args:
        encoder: what takes one channel for each of `rows`.
        rows: for each channel the band of the pictures, None for one they lack.
        mean: of each channel, in the values of the pictures.
        std: of each channel.
    """

    rows: Tensor
    known: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[int | None],
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.encoder, self.name = encoder, ADAPTED
        self.options = {
            "encoder": encoder.name,
            "options": encoder.options,
            "rows": list(rows),
            "mean": list(mean),
            "std": list(std),
        }
        self.channels, self.strides, self.dim = encoder.channels, encoder.strides, encoder.dim
        known = [row is not None for row in rows]
        self.complete = all(known)
        shaped = [torch.tensor(values)[:, None, None] for values in (known, mean, std)]
        self.register_buffer("rows", torch.tensor([row or 0 for row in rows]), persistent=False)
        for name, values in zip(("known", "mean", "std"), shaped, strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps of the encoder inside."""
        return self.encoder.forward_features(self._adapt(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector of the encoder inside: (B, bands, H, W) to (B, D)."""
        vector: Tensor = self.encoder(self._adapt(x))
        return vector

    def _adapt(self, x: Tensor) -> Tensor:
        x = (x[:, self.rows] - self.mean) / self.std  # (B, channels, H, W)
        return x if self.complete else x.where(self.known, 0)
