"""What a run has trained, as analyses ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from decur.data import Batch
from decur.encoders import Encoder, Projector
from decur.encoders.attention import encode
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.pretrain.restore import restore
from decur.transfer.survey import scaled

Score = Literal["mean", "energy"]


class Checkpoint(nn.Module):
    """Encoders with their projectors, and which dimensions of the embedding are whose.

    In eval mode; no parameter asks for a gradient.

    Args:
        name: of the run, for pictures.
        encoders: `{modality: encoder}`.
        projectors: `{modality: projector}`, all equally wide.
        modalities: those of the data.
        parts: dimensions of the embedding by name: "common", "unique".
        size: height and width that pictures are resized to; None for their own.
    """

    def __init__(
        self,
        name: str,
        encoders: Mapping[str, Encoder],
        projectors: Mapping[str, Projector],
        modalities: Mapping[str, Modality],
        parts: Mapping[str, slice],
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.modalities = name, {key: modalities[key] for key in encoders}
        self.encoders, self.projectors = nn.ModuleDict(encoders), nn.ModuleDict(projectors)
        self.parts, self.size = dict(parts), size
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def open(
        cls,
        run: str | Path,
        modalities: Mapping[str, Modality],
        size: int | None = None,
    ) -> Checkpoint:
        """Open a run for some data.

        Args:
            run: its folder.
            modalities: those of the data; those that the run did not train are left out.
            size: height and width that pictures are resized to; None for their own.

        Raises:
            DataError: if the folder is no finished run, has no encoder for the data, or one that
                was trained on other bands.
        """
        restored = restore(run)
        chosen = [name for name in modalities if name in restored.encoders]
        if not chosen:
            raise DataError(
                f"{run}: has encoders for {', '.join(restored.encoders)}, the data has "
                f"{', '.join(modalities)}; name the data's sensors as the run's"
            )
        for name in chosen:
            try:
                restored.encoders[name].check(modalities[name])
            except DataError as error:
                raise DataError(f"{run}: {error}") from error
        return cls(
            Path(run).resolve().name,
            {name: restored.encoders[name] for name in chosen},
            {name: restored.projectors[name] for name in chosen},
            modalities,
            restored.objective.parts,
            size,
        )

    @property
    def dim(self) -> int:
        """Width of the embedding, K."""
        return next(iter(self.projector(name).dim for name in self.modalities))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encoder(self, modality: str) -> Encoder:
        """The encoder of one sensor."""
        found = self.encoders[modality]
        assert isinstance(found, Encoder)
        return found

    def projector(self, modality: str) -> Projector:
        """The projector of one sensor."""
        found = self.projectors[modality]
        assert isinstance(found, Projector)
        return found

    def pictures(self, batch: Batch, modality: str) -> Tensor:
        """What an encoder sees of the samples of a batch that have its sensor.

        Returns:
            (n, C, H, W) in [0, 1], on the checkpoint's device.
        """
        has = batch["present"][modality]
        raw = batch["images"][modality][has].to(self.device)
        x = scaled(raw, self.modalities[modality], self.size)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features and embeddings of a batch.

        Returns:
            `{modality: (B, D)}` and `{modality: (B, K)}`, float32 on the CPU; rows of samples that
            lack the sensor are NaN.
        """
        present = {name: batch["present"][name] for name in self.modalities}
        images = {name: self.pictures(batch, name) for name, has in present.items() if has.any()}
        features, embeddings = {}, {}
        for name, h in encode(self.encoders, images, present).items():  # h: (n, D)
            z = self.projectors[name](h)  # (n, K)
            features[name], embeddings[name] = (
                _among(present[name], rows.float().cpu()) for rows in (h, z)
            )
        for name in self.modalities.keys() - images.keys():
            none = present[name]
            features[name] = _among(none, torch.empty(0, self.encoder(name).dim))
            embeddings[name] = _among(none, torch.empty(0, self.dim))
        return features, embeddings

    def scores(
        self,
        modality: str,
        vector: Tensor,
        statistics: tuple[Tensor, Tensor] | None = None,
        kind: Score = "mean",
    ) -> Tensor:
        """What saliency asks about: one number for each part of the standardised embedding z.

        Args:
            modality: whose projector.
            vector: (n, D) of its encoder.
            statistics: mean and standard deviation of each dimension of the embedding, (K,) each,
                as `Encoded.statistics` gives them; None for those of the vectors given, as in
                `z = BN(f(x))` of Algorithm 2. They count as constants.
            kind: "mean" of a part's dimensions, as in Algorithm 2; or "energy", half the mean of
                their squares. The sign of a dimension is by chance: the objective is the same
                with it turned in all sensors. It changes the mean, and not the energy.

        Returns:
            (n, parts), in the order of `parts`.
        """
        z = self.projectors[modality](vector)  # (n, K)
        if statistics is None:
            fixed = z.detach()
            statistics = fixed.mean(0), fixed.std(0, correction=0)
        mean, std = (values.to(z) for values in statistics)  # (K,)
        z = (z - mean) / std.clamp_min(1e-5)
        if kind == "energy":
            z = z**2 / 2
        return torch.stack([z[:, dims].mean(1) for dims in self.parts.values()], 1)


def _among(has: Tensor, rows: Tensor) -> Tensor:
    everyone = torch.full((len(has), rows.shape[1]), torch.nan)  # (B, D)
    everyone[has] = rows
    return everyone


def check_alike(checkpoints: list[Checkpoint]) -> None:
    """See that runs that stand side by side have names of their own.

    Raises:
        ConfigError: naming two that have not.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two runs are named {name!r}; rename a folder, to tell them apart")
