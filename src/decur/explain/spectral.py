"""Spectral saliency: which bands common and unique dimensions depend on (Fig. 6b, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decur.explain.attribution import Attributed, Pixels, ScoredPictures, join_batches
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

PAPERS_STEPS = 50  # steps in the authors' notebook explain_stats_IG_spectral_ssl4eo
NAMED = 3  # bands that are named as those that matter most
UPRIGHT = 9  # bands, above which their names stand upright


@dataclass(frozen=True)
class SpectralSettings:
    """How the dependence on bands is measured.

    Args:
        samples: Largest number of samples, evenly spaced.
        steps: Number of steps of the path from the baseline to the picture, at the nodes of Gauss
            and Legendre. With 8 a picture's shares miss those of 48 by less than pictures differ,
            so that more samples tell more than more steps (`benchmarks/saliency.py`).
        score: Score whose gradient is taken: "mean", as in the paper, or "energy"; see
            `Checkpoint.scores`.
        baseline: Start of the path: "other", the picture of another sample of the batch (Erion et
            al. 2021), or the value of all pixels in [0, 1] as the encoder sees them, in the paper
            0, two standard deviations below a band's mean where a modality is scaled by them. No
            encoder has met black pictures, and a band may sway it there that tells it nothing among
            real ones.
        pixels: How a band's pixels are joined: "net", |mean of attribution|, counts what is left of
            the band when its pixels are taken together, as in Algorithm 2; "absolute", the mean of
            |attribution|, counts every pixel that sways the score either way, by chance too.
        paper: Do as the paper does: black for a baseline and 50 steps (its public code), the mean
            of a part's dimensions, attributions averaged over batch and pixels (Algorithm 2).
    """

    samples: int = 128
    steps: int = 8
    score: Score = "mean"
    baseline: float | Literal["other"] = "other"
    pixels: Pixels = "net"
    paper: bool = False


def spectral(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    settings: SpectralSettings | None = None,
) -> Arrays:
    """Compute the importance of each band to each part by Integrated Gradients.

    The importance of a band in a picture comes from its attributions over all pixels; the
    importances of a picture's bands are divided by their sum (Algorithm 2, `IG_stat`).

    Args:
        checkpoint: The run.
        loader: The samples; embeddings are standardised by statistics of all of them.
        watch: Shows how far it is.
        settings: How it is measured.

    Returns:
        "modalities" and "parts", names; "score", "steps", "baseline" and "pixels"; for each
        sensor that has several bands "A/bands", names, "A/groups" (n, 2), by number the group of
        each picture and of the one at which its path starts (pictures where the data names no
        groups), "A/grouped", whether it names some, and for each part "A/PART/importance", (n, C),
        whose rows sum to 1, and "A/PART/error", how far attributions miss the difference of the
        score between picture and baseline that they should sum to: the mean of what they miss,
        divided by the mean difference, absolute values both. "A/PART/exchanged" (m, C) is
        a measure without gradients: how much the score changes when the band alone is taken from
        another sample, of the samples that share a batch with one; rows sum to 1. With `paper`,
        "A/PART/of_batch" (C,), the mean of the attributions over samples and pixels, of either
        sign.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if every sensor has one band.
    """
    how = settings or SpectralSettings()
    if how.paper:
        how = replace(how, steps=PAPERS_STEPS, score="mean", baseline=0.0, pixels="net")
    check_option("spectral.samples", how.samples, 1)
    check_option("spectral.steps", how.steps, 1)
    names = [name for name, m in checkpoint.modalities.items() if m.channels > 1]
    if not names:
        raise DoesNotApply("It compares the bands of a sensor, and each sensor here has one.")
    whole = encoded(checkpoint, loader, watch=watch)
    statistics = {name: whole.statistics(name) for name in names}
    found: dict[str, list[Attributed]] = {name: [] for name in names}
    exchanged: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    groups: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    some = loader.some(how.samples)
    of_sample = np.arange(len(some.indices))
    if some.groups is not None:
        of_sample = np.unique(some.groups, return_inverse=True)[1]
    start = 0
    for batch in watch(some, len(some)):
        of_batch = of_sample[start : start + len(batch["ids"])]
        start += len(of_batch)
        for name in names:
            if not batch["present"][name].any():
                continue
            picture = ScoredPictures(checkpoint, batch, name, statistics[name], how.score)
            exchanged[name].append(picture.exchanged())
            found[name].append(picture.attributed(how.steps, how.baseline, how.pixels))
            own = of_batch[picture.rows.numpy()]
            groups[name].append(own[: len(found[name][-1].starts)])
    arrays: Arrays = {
        "modalities": text(*checkpoint.modalities),
        "parts": text(*checkpoint.parts),
        "score": text(how.score),
        "steps": np.array(how.steps),
        "baseline": text(str(how.baseline)),
        "pixels": text(how.pixels),
    }
    for name in names:
        bands = checkpoint.modalities[name].bands
        arrays[f"{name}/bands"] = text(*bands)
        nothing = Attributed.nothing(len(checkpoint.parts), len(bands))
        every = join_batches([nothing, *found[name]])
        changes = np.concatenate([nothing.bands, *exchanged[name]], 1)  # (parts, m, C)
        own = np.concatenate([np.empty(0, int), *groups[name]])
        arrays[f"{name}/groups"] = np.stack([own, own[every.starts]], 1)
        arrays[f"{name}/grouped"] = np.array(some.groups is not None)
        for number, part in enumerate(checkpoint.parts):
            key = f"{name}/{part}"
            arrays[f"{key}/importance"] = every.bands[number]
            if how.paper:
                arrays[f"{key}/of_batch"] = every.net[number].mean(0)
            arrays[f"{key}/exchanged"] = changes[number]
            error, span = every.missed[number].sum(), every.spans[number].sum()
            arrays[f"{key}/error"] = np.array(error / span if span else np.nan)
    return arrays


def plot_bands(arrays: Arrays) -> Figure:
    """Draw box plots over samples, a panel a sensor, a box a band and part (Fig. 6b)."""
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
        groups = arrays.get(f"{name}/groups", np.arange(count))  # version 0.1 has none
        samples = f"{count} samples"
        if arrays.get(f"{name}/grouped", False):
            samples += f" of {len(np.unique(groups[:, 0]))} groups"
        sentence, rows = _told(name, bands, values, changes, groups, samples)
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
        missed = {p: float(arrays[f"{name}/{p}/error"]) for p in parts}
        errors = ", ".join(f"{x:.0%} ({p})" for p, x in missed.items() if np.isfinite(x))
        said.append(
            paragraph(
                f"{samples}, evenly spaced; {int(arrays['steps'])} steps from {start}; "
                f"score: {arrays['score'].item()} of a part's dimensions."
                + (
                    f" Attributions miss the difference that they should sum to by {errors}; more "
                    "steps bring that down and hardly change what bands are worth."
                    if errors
                    else ""
                )
            )
        )
    said.append(
        paragraph(
            f"Importance of a band: the {_JOINED[arrays['pixels'].item()]} over its pixels, the "
            "bands of a picture summing to 1. The mean is over samples, the spread their standard "
            "deviation. Exchanged: the same without gradients, how much the score changes when the "
            "band alone is taken from another sample; a band that tells nothing is low there, "
            "whatever the start. Where the two disagree, trust neither for that band. Tests "
            "take groups as independent where the data names groups, samples where not; two of "
            "which one is the start of the other count as one."
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
    groups: NDArray[np.int64],
    samples: str,
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
    above = bands_above_even(values, groups)
    sure = [
        f"{', '.join(bands[i] for i in np.flatnonzero(of))} ({part})"
        for part, of in above.items()
        if of.any()
    ]
    if not any(mean.any() for mean in means.values()):
        return (
            f"{name}: no band changes any part; the pictures or the embeddings are all alike.",
            rows,
        )
    even = f"Were all bands alike, each would have {1 / len(bands):.0%}; " + (
        f"more than that, beyond chance, have {', '.join(sure)}."
        if sure
        else f"whether one has more cannot be told from {samples}."
    )
    if _both(list(values)):
        even += " " + _on_parts(bands, values, groups, samples)
    return f"{name}: the largest shares are to {'; to '.join(told)}. {even}", rows


def _on_parts(
    bands: list[str], values: dict[str, NDArray[Any]], groups: NDArray[np.int64], samples: str
) -> str:
    """Say which bands the unique part weighs more or less than the common one."""
    sign = bands_weighed_differently(values["unique"], values["common"], groups)
    said = [
        f"a {how} share than the common one to "
        + ", ".join(bands[i] for i in np.flatnonzero(sign == way))
        for way, how in ((1, "larger"), (-1, "smaller"))
        if (sign == way).any()
    ]
    if not said:
        return f"Whether a band matters more to one part than to the other, {samples} cannot tell."
    return f"Beyond chance, the unique part gives {', and '.join(said)}."


def bands_above_even(
    values: Mapping[str, NDArray[Any]], groups: NDArray[Any] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Tell which bands have more than an even share: t-tests corrected by Holm.

    Args:
        values: `{part: (n, C)}`, rows that sum to 1.
        groups: (n,) the group of each row, or (n, 2) the two groups that it compares: means of
            `independent_rows` are tested; None: each row is one of its own.

    Returns:
        `{part: (C,)}`, False where there is no more or it cannot be told.
    """
    shares = np.concatenate([x.T for x in values.values()]).astype(np.float64)  # (parts * C, n)
    excess = _independent(shares * shares.shape[0] / len(values) - 1, groups)
    passed = holm([paired_p(x) for x in excess]) & (excess.mean(1) > 0)
    return dict(zip(values, np.split(passed, len(values)), strict=True))


def bands_weighed_differently(
    one: NDArray[Any], two: NDArray[Any], groups: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Tell which bands one part weighs more or less than another: paired t-tests, as above.

    Args:
        one: (n, C), rows that sum to 1.
        two: (n, C), of the same pictures.
        groups: as those of `bands_above_even`.

    Returns:
        (C,): 1 more, -1 less, 0 where it cannot be told.
    """
    differences = _independent((one.astype(np.float64) - two).T, groups)
    passed = holm([paired_p(x) for x in differences])
    return np.where(passed, np.sign(differences.mean(1)), 0).astype(np.int64)


def _independent(columns: NDArray[Any], groups: NDArray[Any] | None) -> NDArray[Any]:
    """Return the means of columns (C, n) over `independent_rows`; the columns without groups."""
    if groups is None:
        return columns
    return np.stack([columns[:, rows].mean(1) for rows in independent_rows(groups)], 1)


def independent_rows(groups: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return sets of rows of which no two have a group in common.

    Rows of one group are one set. Rows that compare two groups depend on both: rows of the same
    two are a set, and of sets that share a group the one with most rows stays.

    Args:
        groups: (n,) or (n, 2).
    """
    ends = np.sort(np.asarray(groups).reshape(len(groups), -1), axis=1)  # (n, 1 or 2)
    each, of, counts = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    taken: set[Any] = set()
    kept = []
    for number in np.argsort(-counts, kind="stable").tolist():
        two = set(each[number].tolist())
        if not two & taken:
            taken |= two
            kept.append(np.flatnonzero(of.reshape(-1) == number))
    return kept


register(
    Analysis(
        name="spectral",
        title="Which bands common and unique dimensions depend on",
        about=(
            "Integrated Gradients of the common and of the unique part of each sensor's embedding "
            "(Algorithm 2 of the paper, Fig. 6b), averaged over the pixels of each band. A box is "
            "the middle half of the samples with their median, whiskers reach from the 5th to the "
            "95th percentile, a point is the mean; a diamond is a check without gradients. A band "
            "that the unique part weighs more may be what this sensor sees alone; parts of a "
            "network with fresh weights differ, too."
        ),
        arrays=spectral,
        settings=SpectralSettings,
        plots={"bands": plot_bands},
        findings=findings,
        order=45,
    )
)
