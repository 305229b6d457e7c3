"""Spatial saliency: where common and unique dimensions look (Fig. 6a, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from decur.data.selection import evenly_spaced
from decur.explain.advice import no_verdict_on_pairs_seen
from decur.explain.base import (
    Analysis,
    Arrays,
    DoesNotApply,
    Watch,
    check_option,
    register,
    seen_in_training,
    text,
    unwatched,
)
from decur.explain.model import Checkpoint, Score, encoded
from decur.explain.saliency import LAST, Maps, SaliencyStage, saliency_maps
from decur.features import SampleLoader
from decur.plotting import Figure, part_colour, part_line, plain, render, rgb, subplots
from decur.report import paragraph, table
from decur.verdicts import Verdict, mean_interval

if TYPE_CHECKING:
    from decur.data import Batch

SHOWN = 128  # px, the longest side of a picture that is kept to be shown
BINS = 20  # bins of the histogram of overlaps
# Blocks in a row of the figure: the two sensors of a sample or, with one sensor or more than two,
# two samples.
SIDE_BY_SIDE = 2


def spatial(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    score: Score = "mean",
    stage: int = LAST,
    paper: bool = False,
    examples: int = 4,
) -> Arrays:
    """Compute the overlap of two sensors' saliency on every sample, and keep some maps to show.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        score: Score whose gradient is taken: "mean", as in the paper, or "energy"; see
            `Checkpoint.scores`.
        stage: Stage whose feature map is looked at; -1 is the last.
        paper: Do as Algorithm 2 does: maps of the mean at the last layer `conv2` of a ResNet, and
            for their overlap the mean of their product, each scaled from its least to its largest
            value (`product`). Otherwise the overlap is a cosine (`overlap`).
        examples: Number of samples that are shown, evenly spaced.

    Returns:
        "modalities", "parts" and "pairs", names; "score"; "stage"; "paper". For each pair and part
        "A-B/PART/overlap", (n,) of the samples that have both sensors, and "A-B/PART/other", the
        overlap of a picture and the other sensor's picture of another scene, which is no
        agreement about the scene (of another group, where the data names groups; NaN where the
        batch has none), and "A-B/groups", (n,) the group of each by number. For each sensor and
        part "A/PART/empty", the share of maps that are 0 everywhere. For E examples "examples",
        ids; "A/pictures" (E, h, w, 3) uint8, and "A/PART/maps" (E, h, w) float32 with the largest
        value 1, or NaN where the sensor is absent.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if an encoder has no such map, or none with places.
    """
    check_option("spatial.examples", examples, 0)
    names, parts = list(checkpoint.modalities), list(checkpoint.parts)
    pairs = list(combinations(names, 2))
    place: SaliencyStage = "conv2" if paper else stage
    score, compare = ("mean", product) if paper else (score, overlap)
    whole = encoded(checkpoint, loader, watch=watch)
    statistics = {name: whole.statistics(name) for name in names}
    wanted = set(evenly_spaced(len(loader.indices), examples).tolist())
    sheet = _Examples(checkpoint)
    overlaps: dict[str, list[Tensor]] = {
        f"{a}-{b}/{part}/{kind}": []
        for a, b in pairs
        for part in parts
        for kind in ("overlap", "other")
    }
    groups: dict[str, list[NDArray[np.int64]]] = {f"{a}-{b}/groups": [] for a, b in pairs}
    of_sample = np.arange(len(loader.indices))
    if loader.groups is not None:
        of_sample = np.unique(loader.groups, return_inverse=True)[1]
    empty = {(name, part): [0, 0] for name in names for part in parts}
    start = 0
    for batch in watch(loader, len(loader)):
        maps = saliency_maps(checkpoint, batch, statistics=statistics, score=score, stage=place)
        for name, of_parts in maps.items():
            for part, saliency in of_parts.items():
                empty[name, part][0] += int((saliency.amax((1, 2)) <= 0).sum())
                empty[name, part][1] += len(saliency)
        for a, b in pairs:
            both = batch["present"][a] & batch["present"][b]  # (B,)
            if not both.any():
                continue
            own = of_sample[start : start + len(both)][both.numpy()]  # (n,)
            groups[f"{a}-{b}/groups"].append(own)
            elsewhere = another_scene(own)
            for part in parts:
                one, two = (maps[n][part][both[batch["present"][n]]] for n in (a, b))
                overlaps[f"{a}-{b}/{part}/overlap"].append(compare(one, two))
                chance = compare(one, two[elsewhere.clip(min=0)])
                chance[torch.from_numpy(elsewhere < 0)] = torch.nan
                overlaps[f"{a}-{b}/{part}/other"].append(chance)
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
        "paper": np.array(paper),
        **found,
        **{key: np.concatenate([np.empty(0, int), *own]) for key, own in groups.items()},
        **{f"{n}/{p}/empty": np.array(k / max(of, 1)) for (n, p), (k, of) in empty.items()},
        **sheet.arrays(),
    }


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two maps that are nowhere negative: 0 if disjoint, 1 if the same.

    It is the product of Algorithm 2's `gradcam_stat` with another `norm`, division by the L2 norm:
    the overlap of a map with itself is 1, however large the place that it shows.

    Args:
        a: (n, H, W), not negative.
        b: (n, h, w), likewise; resized to a's size where it has another.

    Returns:
        (n,) in [0, 1]; NaN where a map is 0 everywhere.
    """
    if a.shape[-2:] != b.shape[-2:]:
        b = interpolate(b[:, None], a.shape[-2:], mode="bilinear")[:, 0]
    a, b = a.flatten(1).double(), b.flatten(1).double()
    lengths = a.norm(dim=1) * b.norm(dim=1)
    cosine = ((a * b).sum(1) / lengths).clamp(max=1)
    return torch.where(lengths > 0, cosine, torch.nan)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean product of two maps, each scaled to [0, 1] by its extremes.

    Source: Algorithm 2, `gradcam_stat`; the scaling is that of the authors' notebook
    `explain_vis_gradcam_ssl4eo`.

    Args:
        a: (n, H, W).
        b: (n, h, w); resized to a's size where it has another.

    Returns:
        (n,) in [0, 1]; NaN where a map is the same everywhere.
    """
    if a.shape[-2:] != b.shape[-2:]:
        b = interpolate(b[:, None], a.shape[-2:], mode="bilinear")[:, 0]
    scaled = []
    for x in (a.flatten(1).double(), b.flatten(1).double()):
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scaled.append(torch.where(high > low, (x - low) / (high - low), torch.nan))  # (n, H W)
    return (scaled[0] * scaled[1]).mean(1)


def another_scene(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each sample of a batch one of another group, about half a batch away.

    Args:
        groups: (n,) the group of each, of one sample or more.

    Returns:
        (n,) places; -1 where all samples are of one group.
    """
    count = len(groups)
    places = (np.arange(count)[:, None] + count // 2 + np.arange(count)) % count  # (n, n)
    others = groups[places] != groups[:, None]
    first = others.argmax(1)
    return np.where(others.any(1), places[np.arange(count), first], -1)


class _Examples:
    """Pictures of some samples and their maps, of a size for the eye."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.ids: list[str] = []
        self.kept: dict[str, list[NDArray[Any] | None]] = {}

    def add(self, batch: Batch, row: int, maps: Maps) -> None:
        """Keep one sample of a batch."""
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
        """Return one array for each sensor, and for each sensor and part."""
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


def plot_overlap(arrays: Arrays) -> Figure:
    """Draw the overlap on common and on unique dimensions, a panel a pair (Fig. 6a)."""
    pairs, parts = arrays["pairs"].tolist(), arrays["parts"].tolist()
    if not pairs:
        raise DoesNotApply("Overlap compares sensors, and the run has one.")
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    width = 5.5 if columns == 1 else 8.6 / columns
    figure, axes = subplots(rows, columns, width=width, height=2.9 if rows == 1 else 2.3)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        for part in parts:
            known = arrays[f"{pair}/{part}/overlap"]
            known = known[np.isfinite(known)]
            if not len(known):
                continue
            counts, edges = np.histogram(known, BINS, (0, 1))
            colour, line = part_colour(part, parts), part_line(part)
            axis.stairs(counts, edges, fill=True, alpha=0.3, color=colour)
            label = f"{part}: mean {known.mean():.2f}"
            other = arrays[f"{pair}/{part}/other"]
            if np.isfinite(other).any():
                label += f", of other scenes {np.nanmean(other):.2f}"
            axis.stairs(counts, edges, color=colour, linestyle=line, linewidth=1.5, label=label)
            axis.axvline(known.mean(), color=colour, linestyle=line, linewidth=1)
        axis.set_title(plain(pair), fontsize=9)
        axis.set_xlabel("overlap of the two maps", fontsize=9)
        axis.set_xlim(0, 1)
        axis.tick_params(labelsize=8)
        if axis.has_data():
            axis.legend(fontsize=8, frameon=False, loc="upper left")
    for axis in axes[:, 0]:
        axis.set_ylabel("samples", fontsize=9)
    return figure


def plot_examples(arrays: Arrays) -> Figure:
    """Draw pictures of some samples, then with the places of each part in its colour."""
    names = [name for name in arrays["modalities"].tolist() if f"{name}/pictures" in arrays]
    parts, ids = arrays["parts"].tolist(), arrays["examples"].tolist()
    if not names:
        raise DoesNotApply("None of the samples to be shown could be read.")
    beside = names if len(names) == SIDE_BY_SIDE else ids[:SIDE_BY_SIDE]  # what shares a line
    wide = 1 + len(parts)
    lines = len(ids) if beside is names else -(-len(ids) // len(beside)) * len(names)
    columns = wide * len(beside)
    figure, axes = subplots(lines, columns, width=min(2.0, 8.8 / columns))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, sample in enumerate(ids):
        for place, name in enumerate(names):
            if beside is names:
                line, block = row, place
            else:
                line, block = row // len(beside) * len(names) + place, row % len(beside)
            some = axes[line, block * wide : (block + 1) * wide]
            if block == 0 or beside is not names:
                some[0].set_ylabel(plain(_short(sample)), fontsize=8)
            titled = line == 0 or beside is not names
            if titled:
                some[0].set_title(plain(name), fontsize=9)
            _draw(some, arrays, name, parts, row, titled)
    return figure


def _draw(
    axes: NDArray[Any], arrays: Arrays, name: str, parts: list[str], row: int, titled: bool
) -> None:
    if np.isnan(arrays[f"{name}/{parts[0]}/maps"][row]).any():
        axes[0].text(0.5, 0.5, "absent", ha="center", va="center", fontsize=8)
        return
    picture = arrays[f"{name}/pictures"][row]  # (h, w, 3)
    axes[0].imshow(picture, interpolation="nearest")
    grey = picture.mean(-1, keepdims=True).repeat(3, -1) / 255
    for axis, part in zip(axes[1:], parts, strict=True):
        saliency = arrays[f"{name}/{part}/maps"][row]  # (h, w)
        # faint at its least, so that the ground stays to be seen, and opaque enough at its most
        weight = 0.85 * saliency[..., None]
        axis.imshow(
            (1 - weight) * (0.25 + 0.75 * grey) + weight * rgb(part_colour(part, parts)) / 255
        )
        if saliency.max() <= 0:
            axis.text(0.5, 0.06, "nothing", transform=axis.transAxes, ha="center", fontsize=8)
        if titled:
            axis.set_title(part, fontsize=9, color=part_colour(part, parts))


def _short(sample: str) -> str:
    return sample if len(sample) <= 14 else f"…{sample[-13:]}"


def findings(arrays: Arrays) -> str:
    """Write what came out: how far maps overlap, and how far with those of other scenes."""
    parts, score = arrays["parts"].tolist(), arrays["score"].item()
    stage, paper = int(arrays["stage"]), bool(arrays.get("paper", False))
    rows: list[list[object]] = []
    sentences = []
    for pair in arrays["pairs"].tolist():
        means = {}
        for part in parts:
            same, other = (arrays[f"{pair}/{part}/{kind}"] for kind in ("overlap", "other"))
            known = same[np.isfinite(same)]
            spread = float(known.std()) if len(known) else np.nan
            counts = f"{len(known)} of {len(same)}"
            rows.append([pair, part, counts, _mean(same), spread, _mean(other)])
            if len(known):
                means[part] = _mean(known)
        if {"common", "unique"} <= means.keys():
            sentences.append(_compared(pair, arrays, means))
    if sentences:
        sentences += no_verdict_on_pairs_seen(arrays)
    if not rows:
        sentences.append("Overlap compares sensors, and the run has one.")
    empty = [
        f"{float(arrays[f'{name}/{part}/empty']):.0%} ({name}, {part})"
        for name in arrays["modalities"].tolist()
        for part in parts
        if arrays[f"{name}/{part}/empty"] > 0
    ]
    if empty:
        sentences.append(
            "Maps on which nothing raises the score, and which do not count: "
            + ", ".join(empty)
            + "."
            + (
                " The sign of a dimension is by chance, and with it that of their mean: the score "
                "'energy', of the squares, does not depend on it."
                if score == "mean"
                else ""
            )
        )
    head = ["sensors", "part", "samples", "mean overlap", "spread", "with another scene"]
    return (
        "".join(paragraph(sentence) for sentence in sentences)
        + (table(head, rows) if rows else "")
        + paragraph(
            f"Score: {score} of a part's dimensions, standardised over the samples; feature map: "
            + _of_what(paper, stage)
            + " With another scene: the same between a "
            "picture and the other sensor's of another scene; only what lies above it is "
            "agreement about the scene itself."
        )
    )


def _of_what(paper: bool, stage: int) -> str:
    if paper:
        return (
            "the last layer conv2, as in Algorithm 2 of the paper. Overlap is the mean of the "
            "product of the two maps, each scaled from its least to its largest value, as there: 0 "
            "where they are disjoint, and the larger, the larger the places are."
        )
    return (
        ("that of the last stage" if stage == LAST else f"stage {stage}, -1 being the last")
        + ", where Algorithm 2 of the paper has the last layer conv2 (--options.spatial.paper "
        "true). Overlap is the cosine of the two maps, each divided by its L2 norm: 0 where they "
        "are disjoint, 1 where they are the same."
    )


def _mean(values: NDArray[Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else np.nan


def _compared(pair: str, arrays: Arrays, means: Mapping[str, float]) -> str:
    told = " and ".join(
        f"by {means[part]:.2f} on {part} dimensions ({_mean(arrays[f'{pair}/{part}/other']):.2f} "
        "with another scene)"
        for part in ("common", "unique")
    )
    told = f"{pair}: the maps overlap {told}"
    if seen_in_training(arrays) is not Verdict.NO:
        return f"{told}."
    excess = [excess_over_another_scene(arrays, pair, part) for part in ("common", "unique")]
    difference = excess[0] - excess[1]  # (n,)
    known = np.isfinite(difference)
    if known.sum() < 2:
        return told + "; too few samples have both for a verdict."
    groups = arrays.get(f"{pair}/groups")
    found = mean_interval(difference[known], None if groups is None else groups[known])
    verdict = {
        Verdict.YES: "common maps overlap more, as the paper finds",
        Verdict.NO: "common maps overlap less, against what the paper finds",
        Verdict.UNTOLD: "no difference that could be told from chance",
    }[found.above()]
    ends = "no interval, as they are too few or all alike"
    if np.isfinite(found.low):
        ends = f"95 % interval {found.low:+.3f} to {found.high:+.3f}"
    return (
        f"{told}. Beyond another scene, common overlap less unique overlap is {found.value:+.3f} "
        f"({ends}; {known.sum()} samples): {verdict}."
    )


def excess_over_another_scene(arrays: Arrays, pair: str, part: str) -> NDArray[np.float64]:
    """Return by how much the maps of each sample overlap more than those of unlike scenes: (n,).

    Whatever the scene, maps overlap where both encoders look at the centre, or everywhere.

    Args:
        arrays: of `spatial`.
        pair: "A-B".
        part: of the embedding.
    """
    same, other = (
        arrays[f"{pair}/{part}/{kind}"].astype(np.float64) for kind in ("overlap", "other")
    )
    if len(other) != len(same):  # of version 0.1, which left some out
        return same - _mean(other)
    return np.asarray(same - other)


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
