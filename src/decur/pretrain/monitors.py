"""Ranks and probes of the encoders between epochs, on samples without augmentation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from decur.data import LoaderSettings
from decur.data.selection import evenly_spaced
from decur.errors import DivergedError
from decur.features import (
    FeatureModel,
    Features,
    NotFiniteError,
    SampleLoader,
    collect,
    iterate,
)
from decur.objectives.alignment import effective_rank
from decur.pretrain.data import PairedData
from decur.pretrain.module import Pretrainer
from decur.probes import quick_probe

ENOUGH = 8  # samples that a rank can be told from: that of two is 1 whatever they are
_HERE = LoaderSettings(batch_size=64, workers=0)  # few samples: no processes of their own


def encode_samples(model: Pretrainer, data: PairedData, samples: int) -> Features:
    """Return features and embeddings of evenly spaced samples, with their labels but for masks.

    Args:
        model: whose encoders and projectors are used.
        data: where the samples come from.
        samples: at most how many.

    Raises:
        DivergedError: if the features of a sample are not finite.
    """
    targets = [name for name, spec in data.dataset.targets.items() if spec.kind != "mask"]
    loader = SampleLoader(data.dataset.only(targets=targets), samples, settings=_HERE)
    encoders = {name: model.encoder(name) for name in model.modalities}
    projectors = {name: model.projectors[name] for name in model.modalities}
    whole = FeatureModel(encoders, model.modalities, projectors=projectors, size=model.views.size)
    try:
        found = collect(iterate(whole, loader), whole, loader=loader)
    except NotFiniteError as error:
        raise DivergedError(
            f"the training broke the encoders ({error}); lower optimizer.lr, or set "
            "trainer.gradient_clip_val"
        ) from error
    return replace(found, labels={n: x.astype(np.float32) for n, x in found.labels.items()})


def effective_ranks(found: Features) -> dict[str, float]:
    """Return the effective rank of each sensor's features and embeddings.

    Args:
        found: as `encode` gives them.

    Returns:
        `{"rank/features/s1": ..., "rank/embedding/s1": ...}`; none for a sensor of few samples.
    """
    effective = {}
    for kind, arrays in (("features", found.features), ("embedding", found.embeddings)):
        for name, rows in arrays.items():
            x = torch.from_numpy(rows[~np.isnan(rows).any(axis=1)])  # (n, D)
            if len(x) >= ENOUGH:
                effective[f"rank/{kind}/{name}"] = float(effective_rank(x))
    return effective


def probes(found: Features, data: PairedData, seed: int) -> dict[str, float]:
    """Return scores of probes on each sensor's features, for each label of the data set.

    Args:
        found: as `encode` gives them.
        data: where the samples come from.
        seed: of the splits.

    Returns:
        `{"probe/cover/s1/linear": ...}`, and what they are by chance, "probe/cover/s1/chance".
    """
    scores = {}
    for name, labels in found.labels.items():
        groups = data.dataset.groups
        if groups is not None:
            groups = [groups[i] for i in evenly_spaced(len(data.dataset), len(labels))]
        for key, score in quick_probe(
            found.features, labels, data.dataset.targets[name], groups, seed
        ).items():
            scores[f"probe/{name}/{key}"] = score
    return scores


def refuse_collapse(found: dict[str, float], limit: float) -> None:
    """Stop a training whose features have collapsed onto a line.

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
