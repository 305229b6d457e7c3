"""What is computed of a batch: features and embeddings, or feature maps, of each sensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.data import Batch
from decur.devices import send
from decur.encoders import Encoder, Projector
from decur.modality import Modality

LAST_MAPS = 3  # the last feature maps of an encoder, which an FCN head reads


def scaled(raw: Tensor, modality: Modality, *, size: int | tuple[int, int] | None) -> Tensor:
    """Scale raw pictures (B, C, H, W) to [0, 1] and resize them where a size is given.

    Args:
        raw: pictures in the units of the sensor.
        modality: says how they are scaled.
        size: height and width, or one number for both; None for the pictures' own.
    """
    x = modality.scale(raw)
    sides = (size, size) if isinstance(size, int) else size
    if sides is None or x.shape[-2:] == sides:
        return x
    return interpolate(x, sides, mode="bilinear", antialias=True)


def map_names(name: str, encoder: Encoder) -> list[str]:
    """Return the keys of the last feature maps of a sensor in `Features`: "s1/0", ..."""
    return [f"{name}/{number}" for number in range(len(encoder.channels[-LAST_MAPS:]))]


class FeatureModel(nn.Module):
    """Encoders, with projectors where there are any, that take batches as a loader gives them.

    Args:
        encoders: `{modality: encoder}`.
        modalities: how the pictures of each sensor are scaled; None: as its encoder says.
        projectors: `{modality: projector}` for all encoders, or none.
        size: height and width that pictures are resized to, or one number for both; None for
            their own.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        modalities: Mapping[str, Modality] | None = None,
        *,
        projectors: Mapping[str, nn.Module] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders.items()))
        self.projectors = nn.ModuleDict(dict(projectors.items()) if projectors else {})
        self.modalities: dict[str, Modality] = {}
        for name in self.encoders:
            own = modalities[name] if modalities is not None else self.encoder(name).modality
            assert own is not None, f"{name}: an encoder without a modality needs one"
            self.modalities[name] = own
        self.size = size

    def encoder(self, name: str) -> Encoder:
        """Return the encoder of one sensor."""
        found = self.encoders[name]
        assert isinstance(found, Encoder)
        return found

    def projector(self, name: str) -> Projector:
        """Return the projector of one sensor."""
        found = self.projectors[name]
        assert isinstance(found, Projector)
        return found

    @property
    def dim(self) -> int:
        """Width K of the embedding."""
        return self.projector(next(iter(self.projectors))).dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def pictures(self, batch: Batch, name: str) -> Tensor:
        """Return what an encoder sees of the samples of a batch that have its sensor.

        Args:
            batch: raw pictures, on any device; `present` on the CPU.
            name: of the sensor.

        Returns:
            (n, C, H, W) in [0, 1], on the model's device.
        """
        raw, has = batch["images"][name], batch["present"][name]
        if not has.all():
            raw = raw[send(has.nonzero()[:, 0], raw.device)]
        raw = raw.to(self.device, non_blocking=True)
        raw = raw.contiguous(memory_format=torch.channels_last)  # before it grows to float32
        x = scaled(raw, self.modalities[name], size=self.size).to(next(self.parameters()).dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return features and embeddings of the samples that have a sensor.

        Args:
            batch: as `pictures` takes it.

        Returns:
            `{modality: (n, D)}` and `{modality: (n, K)}` of the n samples that have the sensor;
            sensors that no sample has are left out. No embeddings without projectors.
        """
        from decur.encoders.attention import encode

        features = encode(self.encoders, self._pictures(batch), present=batch["present"])
        return features, {name: p(features[name]) for name, p in self._projectors(features)}

    def maps(self, batch: Batch) -> dict[str, list[Tensor]]:
        """Return the last feature maps of the samples that have a sensor.

        Args:
            batch: as `pictures` takes it.

        Returns:
            `{modality: (n, C, H, W) each}` of the n samples that have the sensor; sensors that no
            sample has are left out.
        """
        from decur.encoders.attention import encode_maps

        found = encode_maps(self.encoders, self._pictures(batch), present=batch["present"])
        return {name: maps[-LAST_MAPS:] for name, maps in found.items()}

    def map_names(self, name: str) -> list[str]:
        """Return the keys of the last feature maps of one sensor, see `map_names`."""
        return map_names(name, self.encoder(name))

    def attended(self, name: str) -> list[str]:
        """Return the other sensors whose maps the encoder of this one attends to."""
        from decur.encoders.attention import is_crossing

        if not is_crossing(self.encoders[name]):
            return []
        return [n for n, e in self.encoders.items() if n != name and is_crossing(e)]

    @torch.no_grad()
    def rows(self, batch: Batch, maps: bool = False) -> FeatureBatch:
        """Return a row for each sample of a batch, on the CPU; NaN where the sensor is absent.

        Args:
            batch: as `pictures` takes it.
            maps: give feature maps in place of features and embeddings.
        """
        present = {name: batch["present"][name] for name in self.encoders}
        features, embeddings = {}, {}
        if maps:
            found = self.maps(batch)
            for name, has in present.items():
                given = found.get(name) or self._no_maps(batch, name)
                for key, values in zip(self.map_names(name), given, strict=True):
                    features[key] = spread(values, has)
        else:
            h, z = self(batch)
            for name, has in present.items():
                none = torch.empty(0, self.encoder(name).dim)
                features[name] = spread(h.get(name, none), has)
            for name, _ in self._projectors(present):
                embeddings[name] = spread(z.get(name, torch.empty(0, self.dim)), present[name])
        rest = (batch["target"], batch["ids"], batch["bad"])
        return FeatureBatch(features, embeddings, present, *rest)

    def _pictures(self, batch: Batch) -> dict[str, Tensor]:
        there = [name for name in self.encoders if batch["present"][name].any()]
        return {name: self.pictures(batch, name) for name in there}

    def _projectors(self, names: Iterable[str]) -> list[tuple[str, nn.Module]]:
        return [(name, self.projectors[name]) for name in names if name in self.projectors]

    def _no_maps(self, batch: Batch, name: str) -> list[Tensor]:
        """Return no maps, of the shape that there would be."""
        raw = batch["images"][name][:1].to(self.device)
        x = scaled(raw, self.modalities[name], size=self.size)
        return [y[:0] for y in self.encoder(name).forward_features(x)[-LAST_MAPS:]]


def spread(rows: Tensor, has: Tensor) -> Tensor:
    """Return the rows of the samples that have a sensor among all: (B, ...) on the CPU."""
    everyone = torch.full((len(has), *rows.shape[1:]), torch.nan)
    everyone[has] = rows.float().cpu()
    return everyone


@dataclass(frozen=True)
class FeatureBatch:
    """What the encoders give for a batch, on the CPU, a row for each sample.

    Args:
        features: `{modality: (B, D)}`, or feature maps `{"modality/0": (B, C, H, W)}`; float32,
            NaN where the sensor is absent.
        embeddings: `{modality: (B, K)}`, likewise; empty without projectors.
        present: `{modality: (B,) bool}`.
        target: `{target: (B, ...)}`, the labels as `Target` says.
        ids: names of the samples.
        bad: file and reason of every sample that could not be read.
    """

    features: dict[str, Tensor]
    embeddings: dict[str, Tensor]
    present: dict[str, Tensor]
    target: dict[str, Tensor]
    ids: list[str]
    bad: list[tuple[str, str]]
