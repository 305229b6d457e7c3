"""A run's encoders and projectors, and the parts of its embedding, as the analyses use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.encoders import Encoder, Projector
from decur.errors import ConfigError, DataError
from decur.explain.base import Watch, unwatched
from decur.features import FeatureModel, Features, SampleLoader, compute_features
from decur.modality import Modality
from decur.plotting import batch_pictures
from decur.pretrain.metrics import read_metrics
from decur.runs import RunFolder

Score = Literal["mean", "energy"]


class Checkpoint(FeatureModel):
    """Encoders with their projectors, and which dimensions of the embedding are whose.

    In eval mode; no parameter asks for a gradient.

    Args:
        name: of the run, for pictures.
        encoders: `{modality: encoder}`.
        projectors: `{modality: projector}`, all equally wide.
        modalities: those of the data.
        parts: dimensions of the embedding by name: "common", "unique".
        size: height and width that pictures are resized to; None for their own.
        ceilings: `{modality: mean C_ii of two views of it}` at the end of training: how far
            dimensions agree where only noise and augmentation differ. 0 where it is not known.
    """

    size: int | None

    def __init__(
        self,
        name: str,
        encoders: Mapping[str, Encoder],
        *,
        projectors: Mapping[str, Projector],
        modalities: Mapping[str, Modality],
        parts: Mapping[str, slice],
        size: int | None = None,
        ceilings: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(encoders, modalities, projectors=projectors, size=size)
        self.name, self.parts, self.ceilings = name, dict(parts), dict(ceilings or {})
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def open(
        cls,
        run: str | Path,
        modalities: Mapping[str, Modality],
        *,
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
        from decur.pretrain.restore import restore

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
        last = (read_metrics(RunFolder(Path(run))) or [{}])[-1]
        of_views = {name: last.get(f"diagonal/intra/{name}", 0.0) for name in chosen}
        return cls(
            Path(run).resolve().name,
            {name: restored.encoders[name] for name in chosen},
            projectors={name: restored.projectors[name] for name in chosen},
            modalities=modalities,
            parts=restored.objective.parts,
            size=size,
            ceilings=of_views,
        )

    def scores(
        self,
        modality: str,
        vector: Tensor,
        *,
        statistics: tuple[Tensor, Tensor] | None = None,
        kind: Score = "mean",
    ) -> Tensor:
        """Return what saliency asks about: one number a part of the standardised embedding z.

        Args:
            modality: whose projector.
            vector: (n, D) of its encoder.
            statistics: mean and standard deviation of each dimension of the embedding, (K,) each,
                as `Features.statistics` gives them; None for those of the vectors given, as in
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


def encoded(checkpoint: Checkpoint, loader: SampleLoader, *, watch: Watch = unwatched) -> Features:
    """Return features and embeddings of all samples, computed once for a checkpoint and a loader.

    They lie in temporary files: memory does not grow with the data set.

    Args:
        checkpoint: whose encoders and projectors.
        loader: the samples.
        watch: shows how far it is.

    Returns:
        The rows, with labels but for masks.
    """
    if checkpoint not in loader.kept:
        found = compute_features(checkpoint, loader, on_disk=True, watch=watch)
        kinds = {name: spec.kind for name, spec in loader.data.targets.items()}
        labels = {name: x for name, x in found.labels.items() if kinds[name] != "mask"}
        loader.kept[checkpoint] = replace(found, labels=labels)
    return loader.kept[checkpoint]


def pictures_of(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    rows: NDArray[np.int64],
    side: int,
    watch: Watch = unwatched,
    sensors: Sequence[str] | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Read square pictures of some samples.

    Args:
        checkpoint: whose sensors.
        loader: the samples.
        rows: (n,) which of them.
        side: of the pictures, in pixels.
        watch: shows how far it is.
        sensors: whose pictures; None for all.

    Returns:
        `{sensor: (n, side, side, 3)}`, black where a sample lacks the sensor.
    """
    shown = {name: checkpoint.modalities[name] for name in sensors or checkpoint.modalities}
    if not len(rows):
        return {name: np.zeros((0, side, side, 3), np.uint8) for name in shown}
    among = [loader.indices[row] for row in rows]
    few = SampleLoader(loader.data, settings=loader.settings, among=among)
    found = [batch_pictures(batch, shown, side) for batch in watch(few, len(few))]
    return {name: np.concatenate([pictures[name] for pictures in found]) for name in shown}


def check_alike(checkpoints: list[Checkpoint]) -> None:
    """See that runs that stand side by side have names of their own.

    Raises:
        ConfigError: naming two that have not.
    """
    names = [checkpoint.name for checkpoint in checkpoints]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two runs are named {name!r}; rename a folder, to tell them apart")
