"""Spectral saliency: which bands common and unique dimensions depend on (Fig. 6b, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.explain.base import (
    Analysis,
    Arrays,
    DoesNotApply,
    Watch,
    check_option,
    register,
    text,
    unwatched,
)
from decur.explain.model import Checkpoint, Score, encoded
from decur.features import SampleLoader
from decur.plotting import Figure, part_colour, plain, subplots
from decur.report import paragraph, table
from decur.verdicts import holm, paired_p

if TYPE_CHECKING:
    from decur.data import Batch

Pixels = Literal["absolute", "net"]

PAPERS_STEPS = 50  # of the authors' notebook explain_stats_IG_spectral_ssl4eo
NAMED = 3  # bands that are named as those that matter most
UPRIGHT = 9  # bands, above which their names stand upright


def spectral(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    samples: int = 128,
    steps: int = 16,
    score: Score = "mean",
    baseline: float | Literal["other"] = "other",
    pixels: Pixels = "net",
    paper: bool = False,
) -> Arrays:
    """Importance of each band to each part of each sensor's embedding, by Integrated Gradients.

    The importance of a band in a picture comes from its attributions over all pixels; the
    importances of a picture's bands are divided by their sum (Algorithm 2, `IG_stat`).

    Args:
        checkpoint: the run.
        loader: the samples; embeddings are standardised by statistics of all of them.
        watch: shows how far it is.
        samples: at most how many are looked at, evenly spaced.
        steps: of the path from the baseline to the picture, at the nodes of Gauss and Legendre.
        score: "mean", as in the paper, or "energy"; see `Checkpoint.scores`.
        baseline: where the path starts: "other", the picture of another sample of the batch (Erion
            et al. 2021), or the value of all pixels in [0, 1] as the encoder sees them, in the
            paper 0, two standard deviations below a band's mean where a modality is scaled by
            them. No encoder has met black pictures, and a band may sway it there that tells it
            nothing among real ones.
        pixels: how a band's pixels are joined: "net", |mean of attribution|, counts what is left
            of the band when its pixels are taken together, as in Algorithm 2; "absolute", the mean
            of |attribution|, counts every pixel that sways the score either way, by chance too.
        paper: do as the paper does: black for a baseline and 50 steps (its public code), the mean
            of a part's dimensions, attributions averaged over batch and pixels (Algorithm 2).

    Returns:
        "modalities" and "parts", names; "score", "steps", "baseline" and "pixels"; for each
        sensor that has several bands "A/bands", names, "A/paths" (n,), numbers that two samples
        share which are each other's baseline, and for each part "A/PART/importance", (n, C), whose
        rows sum to 1, and "A/PART/error", how far attributions miss the difference of the score
        between picture and baseline that they should sum to: the mean of what they miss, divided
        by the mean difference, absolute values both. "A/PART/exchanged" (m, C) is
        a measure without gradients: how much the score changes when the band alone is taken from
        another sample, of the samples that share a batch with one; rows sum to 1. With `paper`,
        "A/PART/of_batch" (C,), the mean of the attributions over samples and pixels, of either
        sign.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if every sensor has one band.
    """
    if paper:
        steps, score, baseline, pixels = PAPERS_STEPS, "mean", 0.0, "net"
    check_option("spectral.samples", samples, 1)
    check_option("spectral.steps", steps, 1)
    names = [name for name, m in checkpoint.modalities.items() if m.channels > 1]
    if not names:
        raise DoesNotApply("It compares the bands of a sensor, and each sensor here has one.")
    whole = encoded(checkpoint, loader, watch)
    statistics = {name: whole.statistics(name) for name in names}
    found: dict[str, list[_Attributed]] = {name: [] for name in names}
    exchanged: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    some = loader.some(samples)
    for batch in watch(some, len(some)):
        for name in names:
            if not batch["present"][name].any():
                continue
            picture = _Picture(checkpoint, batch, name, statistics[name], score)
            exchanged[name].append(picture.exchanged())
            found[name].append(picture.attributed(steps, baseline, pixels))
    arrays: Arrays = {
        "modalities": text(*checkpoint.modalities),
        "parts": text(*checkpoint.parts),
        "score": text(score),
        "steps": np.array(steps),
        "baseline": text(str(baseline)),
        "pixels": text(pixels),
    }
    for name in names:
        bands = checkpoint.modalities[name].bands
        arrays[f"{name}/bands"] = text(*bands)
        nothing = _Attributed.nothing(len(checkpoint.parts), len(bands))
        every = _joined([nothing, *found[name]])
        changes = np.concatenate([nothing.bands, *exchanged[name]], 1)  # (parts, m, C)
        arrays[f"{name}/paths"] = every.paths
        for number, part in enumerate(checkpoint.parts):
            key = f"{name}/{part}"
            arrays[f"{key}/importance"] = every.bands[number]
            if paper:
                arrays[f"{key}/of_batch"] = every.net[number].mean(0)
            arrays[f"{key}/exchanged"] = changes[number]
            error, span = every.missed[number].sum(), every.spans[number].sum()
            arrays[f"{key}/error"] = np.array(error / span if span else np.nan)
    return arrays


@dataclass(frozen=True)
class _Attributed:
    """What Integrated Gradients give of some pictures, for each part of the embedding.

    Args:
        net: (parts, n, C), mean attribution of the bands over pixels.
        bands: (parts, n, C), their importance.
        missed: (parts, n), by how much attributions miss the difference of the scores.
        spans: (parts, n), that difference.
        paths: (n,), the number of the path of each; two that start at each other share theirs.
    """

    net: NDArray[np.float32]
    bands: NDArray[np.float32]
    missed: NDArray[np.float32]
    spans: NDArray[np.float32]
    paths: NDArray[np.int64]

    @classmethod
    def nothing(cls, parts: int, bands: int) -> _Attributed:
        """Return what is given of no picture."""
        none = np.empty((parts, 0, bands), np.float32)
        return cls(none, none, none[..., 0], none[..., 0], np.empty(0, np.int64))


def _joined(batches: Sequence[_Attributed]) -> _Attributed:
    """Join the pictures of all batches."""
    paths, used = [], 0
    for batch in batches:
        paths.append(used + batch.paths)
        used += len(np.unique(batch.paths))
    return _Attributed(
        net=np.concatenate([batch.net for batch in batches], 1),
        bands=np.concatenate([batch.bands for batch in batches], 1),
        missed=np.concatenate([batch.missed for batch in batches], 1),
        spans=np.concatenate([batch.spans for batch in batches], 1),
        paths=np.concatenate(paths),
    )


class _Picture:
    """Pictures of one sensor, and the scores of its embedding as a function of them.

    Where two encoders attend to each other, the other sensor's pictures stay as they are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batch: Batch,
        name: str,
        statistics: tuple[Tensor, Tensor],
        score: Score,
    ) -> None:
        from decur.encoders.attention.cross import is_crossing

        self.checkpoint, self.name = checkpoint, name
        self.statistics, self.score = statistics, score
        self.x = checkpoint.pictures(batch, name)  # (n, C, H, W)
        self.others: dict[str, Tensor] = {}
        if is_crossing(checkpoint.encoder(name)):
            has = batch["present"][name]
            for other in checkpoint.modalities:
                beside = batch["present"][other]
                if other != name and is_crossing(checkpoint.encoder(other)):
                    both = has & beside
                    if both.any():
                        self.x = self.x[both[has]]
                        self.others[other] = checkpoint.pictures(batch, other)[both[beside]]

    def scores(self, x: Tensor, *others: Tensor) -> Tensor:
        """(n, C, H, W) to (n, parts)."""
        from decur.encoders.attention import encode

        images = {self.name: x, **dict(zip(self.others, others, strict=True))}
        vector = encode(self.checkpoint.encoders, images)[self.name]
        return self.checkpoint.scores(self.name, vector, self.statistics, self.score)

    def attributed(self, steps: int, baseline: float | str, pixels: Pixels) -> _Attributed:
        """Attribute the score of each part to the bands, along the way from the baseline."""
        x, others = self.x, tuple(self.others.values())
        if isinstance(baseline, str) and len(x) < 2:  # there is no other
            return _Attributed.nothing(len(self.checkpoint.parts), x.shape[1])
        start = self._another(x) if isinstance(baseline, str) else 0 * x + baseline
        # Half a batch away and back: each path is that of another picture, too, the other way
        # round, and the nodes lie alike. Both have its gradients, and half the work is saved.
        shared = isinstance(baseline, str) and len(x) % 2 == 0 and not others
        distinct = len(x) // 2 if shared else len(x)
        slopes = self._mean_slopes(x[:distinct], start[:distinct], others, steps)
        attribution = (x - start) * torch.cat([slopes] * (2 if shared else 1), 1)
        with torch.no_grad():
            after = self._another(self.own) if shared else self.scores(start, *others)
        span = (self.own - after).T  # (parts, n)
        net = attribution.mean((3, 4))  # (parts, n, C)
        bands = _shares(attribution.abs().mean((3, 4)) if pixels == "absolute" else net.abs())
        return _Attributed(
            net=_array(net),
            bands=_array(bands),
            missed=_array((attribution.sum((2, 3, 4)) - span).abs()),
            spans=_array(span.abs()),
            paths=np.arange(len(x)) % distinct,
        )

    def _mean_slopes(
        self, x: Tensor, start: Tensor, others: tuple[Tensor, ...], steps: int
    ) -> Tensor:
        """Return the mean gradient of each part's score on the way: (parts, n, C, H, W).

        That is Integrated Gradients (Sundararajan et al. 2017) but for the factor x - start, by
        the rule of Gauss and Legendre. captum would send the same pictures through the encoder
        once for each part.
        """
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        total = torch.zeros(len(self.checkpoint.parts), *x.shape, dtype=x.dtype, device=x.device)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            at = (start + float(node) * (x - start)).requires_grad_()
            scores = self.scores(at, *others).sum(0)  # (parts,)
            for part, score in enumerate(scores):
                (slope,) = torch.autograd.grad(score, at, retain_graph=part + 1 < len(scores))
                total[part] += float(weight) * slope
        return total

    @torch.no_grad()
    def exchanged(self) -> NDArray[np.float32]:
        """Importance (parts, m, C) of each band by taking it from another sample."""
        others, another = tuple(self.others.values()), self._another(self.x)
        changes = []
        for band in range(self.x.shape[1]):
            x = self.x.clone()
            x[:, band] = another[:, band]
            changes.append((self.scores(x, *others) - self.own).abs())
        change = torch.stack(changes, 2).transpose(0, 1)  # (parts, n, C)
        if len(self.x) < 2:
            change = change[:, :0]  # there is no other
        return _array(_shares(change))

    @cached_property
    @torch.no_grad()
    def own(self) -> Tensor:
        """Scores of the pictures as they are: (n, parts)."""
        return self.scores(self.x, *self.others.values())

    @staticmethod
    def _another(rows: Tensor) -> Tensor:
        """For each picture the row of another, half the batch away, while there is one."""
        return rows.roll(max(1, len(rows) // 2), 0)


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def _shares(bands: Tensor) -> Tensor:
    return bands / bands.sum(-1, keepdim=True).clamp_min(torch.finfo(bands.dtype).tiny)


def plot_bands(arrays: Arrays) -> Figure:
    """Box plots over samples, one panel a sensor, one box for each band and part (Fig. 6b)."""
    parts = arrays["parts"].tolist()
    names = [
        name
        for name in arrays["modalities"].tolist()
        if f"{name}/bands" in arrays and len(arrays[f"{name}/{parts[0]}/importance"])
    ]
    if not names:
        raise DoesNotApply("No sample that was looked at has a sensor with several bands.")
    figure, axes = subplots(len(names), 1, width=8.0, height=2.6 if len(names) > 1 else 3.2)
    for axis, name in zip(axes[:, 0], names, strict=True):
        bands = arrays[f"{name}/bands"].tolist()
        width = 0.7 / len(parts)
        for number, part in enumerate(parts):
            values = arrays[f"{name}/{part}/importance"]  # (n, C)
            shift = (number - (len(parts) - 1) / 2) * (width + 0.04)
            colour = part_colour(part, parts)
            axis.axhline(1 / len(bands), color="grey", linewidth=0.8, linestyle=":", zorder=0)
            boxes = axis.boxplot(
                values,
                positions=[i + shift for i in range(len(bands))],
                widths=width,
                whis=(5, 95),
                showfliers=False,
                showmeans=True,
                patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.45, "edgecolor": colour},
                medianprops={"color": "black", "linewidth": 1.2},
                whiskerprops={"color": colour},
                capprops={"color": colour},
                meanprops={"marker": "o", "markersize": 3, "markerfacecolor": "black"}
                | {"markeredgecolor": "black"},
            )
            boxes["boxes"][0].set_label(part)
            exchanged = arrays[f"{name}/{part}/exchanged"]
            if len(exchanged):
                axis.plot(
                    [i + shift for i in range(len(bands))],
                    exchanged.mean(0),
                    marker="D",
                    linestyle="",
                    markersize=4,
                    markerfacecolor="white",
                    color="black",
                    label="exchanged" if part == parts[-1] else None,
                )
            if part == "unique":
                for box in boxes["boxes"]:
                    box.set_linestyle("--")
        turn = {"rotation": 90} if len(bands) > UPRIGHT else {}
        axis.set_xticks(range(len(bands)), map(plain, bands), fontsize=8, **turn)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(f"{plain(name)}\nimportance", fontsize=9)
    axes[0, 0].legend(
        fontsize=8, frameon=False, ncols=len(parts) + 1, loc="lower right", bbox_to_anchor=(1, 1)
    )
    return figure


_JOINED = {"absolute": "mean of |attribution|", "net": "absolute mean of the attribution"}


def findings(arrays: Arrays) -> str:
    """Write what came out: the bands that matter most to each part, and a table of all."""
    parts, start = arrays["parts"].tolist(), arrays["baseline"].item()
    start = (
        "another sample's picture"
        if start == "other"
        else f"a picture that is {float(start):g} everywhere, in the encoder's scale"
    )
    said = []
    for name in arrays["modalities"].tolist():
        if f"{name}/bands" not in arrays:
            said.append(paragraph(f"{name} has one band: there is nothing to compare."))
            continue
        bands = arrays[f"{name}/bands"].tolist()
        values = {part: arrays[f"{name}/{part}/importance"] for part in parts}
        count = len(values[parts[0]])
        if not count:
            beside = ""
            if arrays["baseline"].item() == "other":
                beside = " besides another, whose picture is the start"
            said.append(paragraph(f"No sample that was looked at has {name}{beside}."))
            continue
        changes = {part: arrays[f"{name}/{part}/exchanged"] for part in parts}
        paths = arrays.get(f"{name}/paths", np.arange(count))  # version 0.1 has none
        sentence, rows = _told(name, bands, values, changes, paths)
        said.append(paragraph(sentence))
        head = ["band"] + [
            f"{part}, {what}" for part in parts for what in ("mean", "spread", "exchanged")
        ]
        said.append(table([*head, *(["unique less common"] if _both(parts) else [])], rows))
        if f"{name}/{parts[0]}/of_batch" in arrays:
            said.append(table(["band", *parts], _of_batch(arrays, name, bands, parts)))
            said.append(
                paragraph(
                    "As in Algorithm 2 of the paper: the attribution of a band, averaged over all "
                    "samples and pixels, divided by the sum of the magnitudes of all bands. Where "
                    "a band raises the score in some samples and lowers it in others, it cancels."
                )
            )
        errors = ", ".join(f"{float(arrays[f'{name}/{p}/error']):.0%} ({p})" for p in parts)
        said.append(
            paragraph(
                f"{count} samples, evenly spaced; {int(arrays['steps'])} steps from {start}; "
                f"score: {arrays['score'].item()} of a part's dimensions. Attributions miss the "
                f"difference that they should sum to by {errors}; more steps bring that down and "
                "hardly change what bands are worth."
            )
        )
    said.append(
        paragraph(
            f"Importance of a band: the {_JOINED[arrays['pixels'].item()]} over its pixels, the "
            "bands of a picture summing to 1. The mean is over samples, the spread their standard "
            "deviation. Exchanged: the same without gradients, how much the score changes when the "
            "band alone is taken from another sample; a band that tells nothing is low there, "
            "whatever the start. Where the two disagree, trust neither for that band. Tests "
            "take samples as independent; two whose starts are each other count as one."
        )
    )
    return "".join(said)


def _of_batch(arrays: Arrays, name: str, bands: list[str], parts: list[str]) -> list[list[object]]:
    """Return the rows of a table: for each band its share of the batch's attributions."""
    means = [arrays[f"{name}/{part}/of_batch"].astype(np.float64) for part in parts]
    shares = [x / max(np.abs(x).sum(), np.finfo(np.float64).tiny) for x in means]
    return [[band, *(f"{x[i]:+.3f}" for x in shares)] for i, band in enumerate(bands)]


def _both(parts: list[str]) -> bool:
    return {"common", "unique"} <= set(parts)


def _told(
    name: str,
    bands: list[str],
    values: dict[str, NDArray[Any]],
    changes: dict[str, NDArray[Any]],
    paths: NDArray[np.int64],
) -> tuple[str, list[list[object]]]:
    means = {part: x.mean(0, dtype=np.float64) for part, x in values.items()}  # (C,)
    spreads = {part: x.std(0, dtype=np.float64) for part, x in values.items()}
    told = []
    for part, mean in means.items():
        first = np.argsort(-mean, kind="stable")[: min(NAMED, len(bands))]
        named = ", ".join(f"{bands[i]} ({mean[i]:.0%})" for i in first)
        told.append(f"{part} dimensions {named}")
    rows: list[list[object]] = []
    for i, band in enumerate(bands):
        row: list[object] = [band]
        for part in means:
            exchanged = float(changes[part][:, i].mean()) if len(changes[part]) else np.nan
            row += [float(means[part][i]), float(spreads[part][i]), exchanged]
        if _both(list(means)):
            row.append(f"{means['unique'][i] - means['common'][i]:+.3f}")
        rows.append(row)
    # two pictures that start at each other tell the same
    distinct = np.unique(paths, return_index=True)[1]
    above = bands_above_even({part: x[distinct] for part, x in values.items()})
    sure = [
        f"{', '.join(bands[i] for i in np.flatnonzero(of))} ({part})"
        for part, of in above.items()
        if of.any()
    ]
    even = f"Were all bands alike, each would have {1 / len(bands):.0%}; more than that, beyond "
    even += f"chance, {'have ' + ', '.join(sure) if sure else 'none has'}."
    return f"{name}: the largest shares are to {'; to '.join(told)}. {even}", rows


def bands_above_even(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
    """Tell which bands have more than an even share: t-tests over samples, corrected by Holm.

    Args:
        values: `{part: (n, C)}`, rows that sum to 1.

    Returns:
        `{part: (C,)}`.
    """
    shares = np.concatenate([x.T for x in values.values()]).astype(np.float64)  # (parts * C, n)
    excess = shares * shares.shape[0] / len(values) - 1
    passed = holm([paired_p(x) for x in excess]) & (excess.mean(1) > 0)
    return dict(zip(values, np.split(passed, len(values)), strict=True))


register(
    Analysis(
        name="spectral",
        title="Which bands common and unique dimensions depend on",
        about=(
            "Integrated Gradients of the common and of the unique part of each sensor's embedding "
            "(Algorithm 2 of the paper, Fig. 6b), averaged over the pixels of each band. A box is "
            "the middle half of the samples with their median, whiskers reach from the 5th to the "
            "95th percentile, a point is the mean; a diamond is a check without gradients. Bands "
            "that the two parts weigh differently tell what this sensor sees alone."
        ),
        arrays=spectral,
        plots={"bands": plot_bands},
        findings=findings,
        order=45,
    )
)
