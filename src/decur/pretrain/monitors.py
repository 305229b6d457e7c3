"""What the encoders give for pictures as they are: ranks and probes, between epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from decur.errors import DivergedError
from decur.objectives.alignment import effective_rank
from decur.pretrain.data import PairedData
from decur.pretrain.module import Pretrainer
from decur.probes import quick_probe

ENOUGH = 8  # samples that a rank can be told from: that of two is 1 whatever they are


@dataclass
class Encoded:
    """Features and embeddings of a fixed set of samples; NaN rows where a modality is absent."""

    features: dict[str, Tensor]  # (N, D)
    embeddings: dict[str, Tensor]  # (N, K)
    targets: dict[str, NDArray[np.float32]]  # (N,) or (N, classes)
    groups: list[str] | None


@torch.no_grad()
def encode(model: Pretrainer, data: PairedData, samples: int) -> Encoded:
    """Encode evenly spaced samples without augmentation, in eval mode.

    Args:
        model: whose encoders and projectors are used.
        data: where the samples come from.
        samples: at most how many.

    Raises:
        DivergedError: if an encoder gives what is not finite.
    """
    training = model.training
    model.eval()
    features: dict[str, list[Tensor]] = {name: [] for name in model.modalities}
    embeddings: dict[str, list[Tensor]] = {name: [] for name in model.modalities}
    targets: dict[str, list[Tensor]] = {
        name: [] for name, spec in data.dataset.targets.items() if spec.kind != "mask"
    }
    ids: list[str] = []
    for batch in data.fixed_batches(samples):
        ids += batch["ids"]
        present = {name: batch["present"][name] for name in model.modalities}
        pictures = {}
        for name, modality in model.modalities.items():
            if (has := present[name]).any():
                x = modality.scale(batch["images"][name][has].to(model.device))
                pictures[name] = interpolate(x, model.views.size, mode="bilinear", antialias=True)
        given, embedded = model.embed(pictures, present)
        for name, has in present.items():
            h = torch.full((len(has), model.encoder(name).dim), torch.nan)
            z = torch.full((len(has), model.objective.dim), torch.nan)
            if name in given:
                if not bool(given[name].isfinite().all()):
                    raise DivergedError(
                        f"the features of {name!r} are not finite any more; lower optimizer.lr, or "
                        "set trainer.gradient_clip_val"
                    )
                h[has], z[has] = given[name].float().cpu(), embedded[name].float().cpu()
            features[name].append(h)
            embeddings[name].append(z)
        for name in targets:
            targets[name].append(batch["target"][name])
    model.train(training)
    groups = None
    if data.dataset.groups is not None:
        group_of = dict(zip(data.dataset.ids, data.dataset.groups, strict=True))
        groups = [group_of[i] for i in ids]
    return Encoded(
        {name: torch.cat(parts) for name, parts in features.items()},
        {name: torch.cat(parts) for name, parts in embeddings.items()},
        {name: torch.cat(parts).float().numpy() for name, parts in targets.items()},
        groups,
    )


def ranks(encoded: Encoded) -> dict[str, float]:
    """Effective rank of each modality's features and embeddings.

    Returns:
        `{"rank/features/s1": ..., "rank/embedding/s1": ...}`; none for a sensor of few samples.
    """
    found = {}
    for kind, arrays in (("features", encoded.features), ("embedding", encoded.embeddings)):
        for name, x in arrays.items():
            x = x[~x.isnan().any(dim=1)]
            if len(x) >= ENOUGH:
                found[f"rank/{kind}/{name}"] = float(effective_rank(x))
    return found


def probes(encoded: Encoded, data: PairedData, seed: int) -> dict[str, float]:
    """Probes of the encoders' features for each label of the data set.

    Returns:
        `{"probe/cover/s1/linear": ...}`.
    """
    features = {name: x.numpy() for name, x in encoded.features.items()}
    scores = {}
    for name, labels in encoded.targets.items():
        found = quick_probe(features, labels, data.dataset.targets[name], encoded.groups, seed)
        scores.update({f"probe/{name}/{key}": score for key, score in found.items()})
    return scores


def refuse_collapse(found: dict[str, float], limit: float) -> None:
    """Stop where features have collapsed onto a line.

    Args:
        found: as `ranks` gives them.
        limit: effective rank below which features count as collapsed.

    Raises:
        DivergedError: naming the modality.
    """
    for name, rank in found.items():
        if name.startswith("rank/features/") and not rank >= limit:
            raise DivergedError(
                f"collapse: the features of {name.removeprefix('rank/features/')!r} have effective "
                f"rank {rank:.2f} (limit monitor.min_rank {limit:g}); lower optimizer.lr, use "
                "larger batches, or weaken views.augment"
            )
