"""What is computed of a batch: the vector of each sensor and, with a projector, its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from decur.data import Batch
from decur.devices import send
from decur.digest import digest
from decur.encoders import Encoder, EncoderSettings, ProjectedEncoder
from decur.encoders.attention import encode
from decur.errors import ConfigError
from decur.features import scaled
from decur.modality import Modality
from decur.pretrain.restore import restore
from decur.runs import RunFolder
from decur.transfer.settings import MissingBands
from decur.transfer.sources import gather_encoders

WHOLE = "embedding"
Columns = dict[str, Tensor]  # (n, D) of the n samples that have a sensor


class EmbeddingModel(L.LightningModule):
    """Encoders, and projectors where there are any, as they are.

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
        self.encoders, self.projectors = nn.ModuleDict(), nn.ModuleDict()
        for name, encoder in encoders.items():
            if isinstance(encoder, ProjectedEncoder):
                self.encoders[name], self.projectors[name] = encoder.encoder, encoder.projector
            else:
                self.encoders[name] = encoder
        self.digests = {name: digest(encoder) for name, encoder in encoders.items()}
        self.widths = {"features": {n: int(e.dim) for n, e in self.encoders.items()}}  # type: ignore[arg-type]
        for part, dims in parts.items():
            self.widths[part] = dict.fromkeys(encoders, dims.stop - dims.start)
        # weights of others may want another scaling than the data's
        self.modalities = {name: e.modality or modalities[name] for name, e in encoders.items()}
        self.parts, self.size = dict(parts), size
        self.to(memory_format=torch.channels_last)
        self.eval()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Columns]:
        """Vectors of the samples of a batch that have a sensor: `{modality: {column: (n, D)}}`."""
        present = {name: batch["present"][name] for name in self.modalities}
        images = {}
        for name, modality in self.modalities.items():
            if (has := present[name]).any():
                raw = batch["images"][name]
                raw = raw if has.all() else raw[send(has.nonzero()[:, 0], raw.device)]
                raw = raw.contiguous(memory_format=torch.channels_last)  # while it is small
                x = scaled(raw, modality, self.size).to(self.dtype)
                images[name] = x.contiguous(memory_format=torch.channels_last)
        found: dict[str, Columns] = {}
        for name, h in encode(self.encoders, images, present).items():  # h: (n, D)
            found[name] = {"features": h.float()}
            if self.parts:
                z = self.projectors[name](h).float()  # (n, K)
                found[name].update({part: z[:, dims] for part, dims in self.parts.items()})
        return found

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Pictures to the device; presence and ids stay, they steer and are not computed with."""
        images = {k: v.to(device, non_blocking=True) for k, v in batch["images"].items()}
        return {**batch, "images": images}


def build_model(
    source: str | Sequence[str],
    modalities: Mapping[str, Modality],
    wanted: Sequence[str] | None = None,
    settings: EncoderSettings | None = None,
    seed: int = 0,
    missing_bands: MissingBands = "refuse",
    projector: bool = True,
    size: int | None = None,
) -> EmbeddingModel:
    """The model for some sensors; with projectors where every source is a run that kept them.

    Args:
        source: as `gather_encoders` takes it.
        modalities: those of the data.
        wanted: sensors to use; None for all that there is an encoder for.
        settings: the architecture of fresh weights.
        seed: of fresh weights.
        missing_bands: as `gather_encoders` takes it.
        projector: False leaves the embedding out where there is one.
        size: height and width that pictures are resized to; None for their own.

    Raises:
        ConfigError: as `gather_encoders` does.
        DataError: as `gather_encoders` and `restore` do.
    """
    runs = [RunFolder(Path(s)) for s in ([source] if isinstance(source, str) else source)]
    projected = projector and all(run.path.is_dir() and run.saved_checkpoints() for run in runs)
    encoders = gather_encoders(
        source,
        modalities,
        wanted,
        settings,
        seed,
        "embedding" if projected else "features",
        missing_bands,
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
