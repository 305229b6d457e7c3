"""The model of `decur embed`: the vector of each sensor and, with a projector, its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from decur.data import Batch
from decur.devices import send_batch
from decur.digest import digest
from decur.embed.parquet import WHOLE
from decur.embed.settings import EmbedSettings
from decur.encoders import Encoder, ProjectedEncoder
from decur.errors import ConfigError
from decur.features import FeatureModel
from decur.modality import Modality
from decur.pretrain.restore import restore
from decur.runs import RunFolder
from decur.transfer.sources import gather_encoders

EmbeddingColumns = dict[str, Tensor]  # (n, D) of the n samples that have a sensor


class EmbeddingModel(L.LightningModule):
    """Encoders, with projectors where there are any, as a module that Lightning runs.

    Args:
        encoders: `{modality: encoder}`, in eval mode.
        modalities: those of the data.
        parts: `{column: its dimensions of the embedding}`; empty where there is no projector.
        size: height and width that pictures are resized to; None for their own.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        modalities: Mapping[str, Modality],
        parts: Mapping[str, slice],
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.taken, own, projectors = dict(encoders), dict(encoders), {}
        for name, encoder in encoders.items():
            if isinstance(encoder, ProjectedEncoder):
                own[name], projectors[name] = encoder.encoder, encoder.projector
        # weights of others may want another scaling than the data's
        scaling = {name: e.modality or modalities[name] for name, e in encoders.items()}
        self.model = FeatureModel(own, scaling, projectors=projectors, size=size)
        self.digests = {name: digest(encoder) for name, encoder in encoders.items()}
        self.widths = {"features": {name: int(encoder.dim) for name, encoder in own.items()}}
        for part, dims in parts.items():
            self.widths[part] = dict.fromkeys(encoders, dims.stop - dims.start)
        self.parts = dict(parts)
        self.to(memory_format=torch.channels_last)
        self.eval()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, EmbeddingColumns]:
        """Return vectors of the samples that have a sensor: `{modality: {column: (n, D)}}`."""
        features, embeddings = self.model(batch)
        found: dict[str, EmbeddingColumns] = {}
        for name, h in features.items():  # h: (n, D)
            found[name] = {"features": h.float()}
            for part, dims in self.parts.items():
                found[name][part] = embeddings[name].float()[:, dims]  # (n, part of K)
        return found

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Send pictures to the device; presence and ids stay, nothing is computed with them."""
        return {**batch, "images": send_batch(batch["images"], device)}


def build_embedder(
    sources: Sequence[str], modalities: Mapping[str, Modality], settings: EmbedSettings
) -> EmbeddingModel:
    """Return the model for some sensors, with projectors where every source is a run with them.

    Args:
        sources: as `gather_encoders` takes them.
        modalities: those of the data.
        settings: sensors, architecture and seed of fresh weights, missing bands, size.

    Raises:
        ConfigError: as `gather_encoders` does, or if the embeddings are of different widths.
        DataError: as `gather_encoders` and `restore` do.
    """
    size = settings.size
    runs = [RunFolder(Path(source)) for source in sources]
    projected = settings.projector and all(
        run.path.is_dir() and run.saved_checkpoints() for run in runs
    )
    encoders = gather_encoders(
        list(sources),
        modalities,
        wanted=settings.modalities,
        settings=settings.encoder,
        seed=settings.seed,
        representation="embedding" if projected else "features",
        missing_bands=settings.missing_bands,
        by_name=True,
    )
    if not projected:
        return EmbeddingModel(encoders, modalities, {}, size)
    objectives = [
        restore(run.path).objective
        for run in runs
        if any(file.stem in encoders for file in run.saved_encoders())
    ]
    first, dim = objectives[0].parts, objectives[0].dim
    covered = sum(part.stop - part.start for part in first.values()) == dim
    alike = all(o.parts == first and o.dim == dim for o in objectives)
    widths = sorted({encoder.dim for encoder in encoders.values()})
    if len(widths) > 1:
        raise ConfigError(
            f"encoders: the embeddings of these runs are {widths[0]} and {widths[-1]} wide; embed "
            "each by itself with --modalities, or leave the embedding out with --projector false"
        )
    parts = dict(first) if covered and alike else {WHOLE: slice(0, dim)}
    return EmbeddingModel(encoders, modalities, parts, size)
