"""Spatial saliency: where common and unique dimensions look (Fig. 6a, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.data import Batch
from decur.data.selection import evenly_spaced
from decur.explain.base import Analysis, Arrays, Watch, check_option, register, text, unwatched
from decur.explain.loading import SampleLoader, encoded
from decur.explain.maps import LAST, Cut, cuts
from decur.explain.model import Checkpoint, Score
from decur.explain.spatial_figures import plot_examples, plot_overlap
from decur.explain.spatial_findings import findings

Statistics = Mapping[str, tuple[Tensor, Tensor]]
Maps = dict[str, dict[str, Tensor]]

SHOWN = 128  # px, the longest side of a picture that is kept to be shown


def saliency_maps(
    checkpoint: Checkpoint,
    batch: Batch,
    statistics: Statistics | None = None,
    score: Score = "mean",
    stage: int = LAST,
) -> Maps:
    """Grad-CAM of each part of each sensor's embedding (Algorithm 2, `gradcam_vis`).

    Args:
        checkpoint: the run.
        batch: samples; of each sensor, those that have it.
        statistics: `{modality: Encoded.statistics(modality)}`, that embeddings are standardised
            by; None for those of the batch: then a map depends on the other samples in it.
        score: what of a part is asked about, see `Checkpoint.scores`.
        stage: whose feature map; -1 is the last, as in the paper.

    Returns:
        `{modality: {part: (n, H, W)}}`, 0 or more, of the size of `checkpoint.pictures`, float32
        on the CPU; without sensors that no sample of the batch has. All 0 where nothing in a
        picture raises the score.

    Raises:
        DoesNotApply: if an encoder has no such map, or none with places.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    found: Maps = {}
    for name, cut in cuts(checkpoint, batch, stage).items():
        size = tuple(batch["images"][name].shape[-2:])
        size = size if checkpoint.size is None else (checkpoint.size,) * 2
        scores = _Scores(checkpoint, name, cut, (statistics or {}).get(name), score)
        cam = LayerGradCam(scores, scores.entry)
        values = cut.values.detach().requires_grad_()  # (n, C, h, w)
        found[name] = {}
        for number, part in enumerate(checkpoint.parts):
            coarse = cam.attribute(values, target=number, relu_attributions=True)  # (n, 1, h, w)
            maps = LayerAttribution.interpolate(coarse.detach(), size, "bilinear")
            found[name][part] = maps[:, 0].float().cpu()
    return found


class _Scores(nn.Module):
    """From a feature map to one number a part, with an `entry` for captum to hook on to."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        modality: str,
        cut: Cut,
        statistics: tuple[Tensor, Tensor] | None,
        score: Score,
    ) -> None:
        super().__init__()
        self.entry = nn.Identity()
        self._head, self._scores = cut.head, checkpoint.scores
        self._given = (modality, statistics, score)

    def forward(self, values: Tensor) -> Tensor:
        """(n, C, h, w) to (n, parts)."""
        modality, statistics, score = self._given
        vector = self._head(self.entry(values))
        return self._scores(modality, vector, statistics, score)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two maps that are nowhere negative: 0 where they are disjoint, 1 where the same.

    The product of Algorithm 2's `gradcam_stat`, its `norm` taken as division by the L2 norm.

    Args:
        a: (n, H, W), 0 or more.
        b: (n, h, w), likewise; brought to the size of a where it has another.

    Returns:
        (n,) in [0, 1]; NaN where a map is 0 everywhere.
    """
    if a.shape[-2:] != b.shape[-2:]:
        b = interpolate(b[:, None], a.shape[-2:], mode="bilinear")[:, 0]
    a, b = a.flatten(1).double(), b.flatten(1).double()
    lengths = a.norm(dim=1) * b.norm(dim=1)
    cosine = ((a * b).sum(1) / lengths).clamp(max=1)
    return torch.where(lengths > 0, cosine, torch.nan)


def spatial(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    watch: Watch = unwatched,
    score: Score = "mean",
    stage: int = LAST,
    examples: int = 4,
) -> Arrays:
    """Overlap of two sensors' saliency on every sample, and some samples to look at.

    Args:
        checkpoint: the run.
        loader: the samples.
        watch: shows how far it is.
        score: "mean", as in the paper, or "energy"; see `Checkpoint.scores`.
        stage: whose feature map; -1 is the last, as in the paper.
        examples: samples that are shown, evenly spaced.

    Returns:
        "modalities", "parts" and "pairs", names; "score"; "stage"; for each pair and part
        "A-B/PART/overlap", (n,) of the samples that have both sensors, and "A-B/PART/other", the
        same of a picture and another scene's: what is no agreement about the scene. For each
        sensor and part "A/PART/empty", the share of maps that are 0 everywhere. For E examples
        "examples", ids; "A/pictures" (E, h, w, 3) uint8, and "A/PART/maps" (E, h, w) float32 with
        the largest value 1, or NaN where the sensor is absent.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if an encoder has no such map, or none with places.
    """
    check_option("spatial.examples", examples, 0)
    names, parts = list(checkpoint.modalities), list(checkpoint.parts)
    pairs = list(combinations(names, 2))
    whole = encoded(checkpoint, loader, watch)
    statistics = {name: whole.statistics(name) for name in names}
    wanted = set(evenly_spaced(len(loader.indices), examples).tolist())
    sheet = _Sheet(checkpoint)
    overlaps: dict[str, list[Tensor]] = {
        f"{a}-{b}/{part}/{kind}": []
        for a, b in pairs
        for part in parts
        for kind in ("overlap", "other")
    }
    empty = {(name, part): [0, 0] for name in names for part in parts}
    start = 0
    for batch in watch(loader, len(loader)):
        maps = saliency_maps(checkpoint, batch, statistics, score, stage)
        for name, of_parts in maps.items():
            for part, saliency in of_parts.items():
                empty[name, part][0] += int((saliency.amax((1, 2)) <= 0).sum())
                empty[name, part][1] += len(saliency)
        for a, b in pairs:
            both = batch["present"][a] & batch["present"][b]  # (B,)
            if not both.any():
                continue
            for part in parts:
                one, two = (maps[n][part][both[batch["present"][n]]] for n in (a, b))
                overlaps[f"{a}-{b}/{part}/overlap"].append(overlap(one, two))
                if len(one) > 1:
                    other = two.roll(len(two) // 2, 0)
                    overlaps[f"{a}-{b}/{part}/other"].append(overlap(one, other))
        for row in range(len(batch["ids"])):
            if start + row in wanted:
                sheet.add(batch, row, maps)
        start += len(batch["ids"])
    found = {
        key: torch.cat(values).float().numpy() if values else np.empty(0, np.float32)
        for key, values in overlaps.items()
    }
    return {
        "modalities": text(*names),
        "parts": text(*parts),
        "pairs": text(*(f"{a}-{b}" for a, b in pairs)),
        "score": text(score),
        "stage": np.array(stage),
        **found,
        **{f"{n}/{p}/empty": np.array(k / max(of, 1)) for (n, p), (k, of) in empty.items()},
        **sheet.arrays(),
    }


class _Sheet:
    """Pictures of some samples with their maps, of a size for the eye."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.ids: list[str] = []
        self.kept: dict[str, list[NDArray[Any] | None]] = {}

    def add(self, batch: Batch, row: int, maps: Maps) -> None:
        """Keep one sample of a batch."""
        from decur.plotting import render

        self.ids.append(batch["ids"][row])
        for name, modality in self.checkpoint.modalities.items():
            has = batch["present"][name]
            there = bool(has[row])
            place = int(has[:row].sum())
            picture = None
            if there:
                x = _small(self.checkpoint.pictures(batch, name)[place])
                picture = (255 * render(x, modality)).astype(np.uint8)
            self.kept.setdefault(f"{name}/pictures", []).append(picture)
            for part in self.checkpoint.parts:
                saliency = None
                if there:
                    small = _small(maps[name][part][place][None])[0].numpy()
                    saliency = small / max(small.max(), np.finfo(np.float32).tiny)
                self.kept.setdefault(f"{name}/{part}/maps", []).append(saliency)

    def arrays(self) -> Arrays:
        """One array for each sensor, and each sensor and part."""
        stacked: Arrays = {"examples": text(*self.ids)}
        for key, values in self.kept.items():
            known = next((value for value in values if value is not None), None)
            if known is None:
                continue
            absent = np.zeros_like(known) if known.ndim == 3 else np.full_like(known, np.nan)
            stacked[key] = np.stack([absent if value is None else value for value in values])
        return stacked


def _small(x: Tensor) -> Tensor:
    longest = max(x.shape[-2:])
    if longest <= SHOWN:
        return x
    size = [max(1, round(side * SHOWN / longest)) for side in x.shape[-2:]]
    return interpolate(x[None], size, mode="bilinear", antialias=True)[0]


register(
    Analysis(
        name="spatial",
        title="Where common and unique dimensions look",
        about=(
            "Grad-CAM of the common and of the unique part of each sensor's embedding (Algorithm 2 "
            "of the paper, Fig. 6a): the places in a picture that raise it. How far the maps of "
            "two sensors overlap, over all samples, then some samples. Common dimensions should "
            "look at the same places in both sensors; unique ones need not."
        ),
        arrays=spatial,
        plots={"overlap": plot_overlap, "examples": plot_examples},
        findings=findings,
        order=40,
        needs=("captum",),
    )
)
