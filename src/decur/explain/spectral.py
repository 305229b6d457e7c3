"""Spectral saliency: which bands common and unique dimensions depend on (Fig. 6b, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
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
AT_ONCE = 64  # pictures that pass an encoder together
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
        sensor that has several bands "A/bands", names, and for each part "A/PART/importance",
        (n, C), whose rows sum to 1, and "A/PART/error", how far attributions miss the difference
        of the score between picture and baseline that they should sum to: the mean of what they
        miss, divided by the mean difference, absolute values both. "A/PART/exchanged" (m, C) is
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
    importance: dict[str, list[NDArray[Any]]] = {}
    missed = {f"{name}/{part}": np.zeros(2) for name in names for part in checkpoint.parts}
    exchanged: dict[str, list[NDArray[Any]]] = {}
    signed: dict[str, list[NDArray[Any]]] = {}
    some = loader.some(samples)
    for batch in watch(some, len(some)):
        for name in names:
            if not batch["present"][name].any():
                continue
            picture = _Picture(checkpoint, batch, name, statistics[name], score)
            changes = picture.exchanged()
            for number, part in enumerate(checkpoint.parts):
                exchanged.setdefault(f"{name}/{part}", []).append(changes[number])
                net, bands, errors, spans = picture.attributed(number, steps, baseline, pixels)
                signed.setdefault(f"{name}/{part}", []).append(net)
                importance.setdefault(f"{name}/{part}", []).append(bands)
                missed[f"{name}/{part}"] += errors.sum(), spans.sum()
    arrays: Arrays = {
        "modalities": text(*checkpoint.modalities),
        "parts": text(*checkpoint.parts),
        "score": text(score),
        "steps": np.array(steps),
        "baseline": text(str(baseline)),
        "pixels": text(pixels),
    }
    for name in names:
        arrays[f"{name}/bands"] = text(*checkpoint.modalities[name].bands)
        for part in checkpoint.parts:
            key = f"{name}/{part}"
            none = np.empty((0, checkpoint.modalities[name].channels), np.float32)
            arrays[f"{key}/importance"] = np.concatenate(importance.get(key, [none]))
            if paper:
                arrays[f"{key}/of_batch"] = np.concatenate(signed.get(key, [none])).mean(0)
            arrays[f"{key}/exchanged"] = np.concatenate(exchanged.get(key, [none]))
            error, span = missed[key]
            arrays[f"{key}/error"] = np.array(error / span if span else np.nan)
    return arrays


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

    def importance(
        self, part: int, steps: int, baseline: float | str, pixels: Pixels
    ) -> tuple[NDArray[np.float32], ...]:
        """Importance of the bands (n, C), what attributions miss (n,), and of how much (n,)."""
        return self.attributed(part, steps, baseline, pixels)[1:]

    def attributed(
        self, part: int, steps: int, baseline: float | str, pixels: Pixels
    ) -> tuple[NDArray[np.float32], ...]:
        """Mean attribution of the bands over pixels (n, C), and what `importance` returns."""
        from captum.attr import IntegratedGradients

        others = tuple(self.others.values())
        if isinstance(baseline, str) and len(self.x) < 2:  # there is no other
            none = np.empty(0, np.float32)
            bands_of_none = np.empty((0, self.x.shape[1]), np.float32)
            return bands_of_none, bands_of_none, none, none
        start = self._another() if isinstance(baseline, str) else 0 * self.x + baseline
        attribution = IntegratedGradients(self.scores).attribute(
            self.x,
            baselines=start,
            target=part,
            additional_forward_args=others or None,
            n_steps=steps,
            internal_batch_size=AT_ONCE,
        )
        with torch.no_grad():
            ends = [self.scores(x, *others)[:, part] for x in (self.x, start)]
        span = ends[0] - ends[1]  # (n,)
        missed = attribution.sum((1, 2, 3)) - span
        net = attribution.mean((2, 3))  # (n, C)
        bands = _shares(attribution.abs().mean((2, 3)) if pixels == "absolute" else net.abs())
        found = (net, bands, missed.abs(), span.abs())
        return tuple(values.float().cpu().numpy() for values in found)

    @torch.no_grad()
    def exchanged(self) -> list[NDArray[np.float32]]:
        """For each part the importance (m, C) of bands by taking them from another sample."""
        others, another = tuple(self.others.values()), self._another()
        before = self.scores(self.x, *others)  # (n, parts)
        changes = []
        for band in range(self.x.shape[1]):
            x = self.x.clone()
            x[:, band] = another[:, band]
            changes.append((self.scores(x, *others) - before).abs())
        change = torch.stack(changes, 2)  # (n, parts, C)
        if len(change) < 2:
            change = change[:0]  # there is no other
        return [_shares(change[:, i]).float().cpu().numpy() for i in range(change.shape[1])]

    def _another(self) -> Tensor:
        """For each picture one of another sample, while there is one."""
        return self.x.roll(max(1, len(self.x) // 2), 0)


def _shares(bands: Tensor) -> Tensor:
    return bands / bands.sum(1, keepdim=True).clamp_min(torch.finfo(bands.dtype).tiny)


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
        sentence, rows = _told(name, bands, values, changes)
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
            "take samples as independent."
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
    above = bands_above_even(values)
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
        needs=("captum",),
    )
)
