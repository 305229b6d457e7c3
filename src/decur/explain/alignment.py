"""Alignment: how far two sensors agree in each dimension of the embedding (Eq. 7, Fig. 5a)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from decur.data.selection import interleaved
from decur.explain.advice import TELLS, no_verdict_on_pairs_seen
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
from decur.explain.collapse import on_constant, varying
from decur.explain.correlation import chunked, diagonal, diagonal_with_error
from decur.explain.model import Checkpoint, encoded
from decur.features import SampleLoader
from decur.objectives.blocks import COMMON, UNIQUE, is_shared_by
from decur.plotting import Figure, part_colour, part_line, plain, subplots
from decur.report import paragraph, table
from decur.verdicts import LEVEL, Interval, Verdict

Float = NDArray[np.float64]

BINS = 20  # bins over (0, 1), the paper's range
MISALIGNED = 0.25  # a dimension whose loss is above this is misaligned: its C_ii is below one half
APART = TELLS**0.5  # correlation below which a dimension tells hardly anything of its partner


def alignment(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    beside: Sequence[Checkpoint] = (),
    batch: int = 256,
    batches: int = 1,
) -> Arrays:
    """Compute the diagonal of the cross-correlation (Eq. 1) of each two sensors.

    It is computed over one batch, as in the paper, and over all samples. Pictures are not
    augmented.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        beside: More runs, on the same samples.
        batch: Number of samples in the one batch, evenly spaced.
        batches: Number of such batches that are drawn side by side, without a sample in common;
            Fig. 7 has 4.

    Returns:
        "runs" and "pairs", names; for run number R "R/parts", "R/bounds" (parts, 2), and for each
        pair that it has "R/A-B/all" and "R/A-B/batch", (K,) each, NaN where a dimension is the
        same for all samples of either sensor, with their numbers of samples,
        "R/A-B/samples" (2,); of further batches "R/A-B/batch/1" and so on, (K,); of all samples
        the standard errors, "R/A-B/error" (K,), and "R/A-B/independent", how many samples are
        independent: the groups where the data names groups.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if there are no two sensors, or fewer than two samples have both.
    """
    check_option("alignment.batch", batch, 2)
    check_option("alignment.batches", batches, 1)
    runs = [checkpoint, *beside]
    arrays: Arrays = {"runs": text(*(run.name for run in runs))}
    groups = None if loader.groups is None else np.array(loader.groups)
    pairs: dict[str, None] = {}
    for number, run in enumerate(runs):
        arrays[f"{number}/parts"] = text(*run.parts)
        arrays[f"{number}/bounds"] = np.array([[d.start, d.stop] for d in run.parts.values()])
        if len(run.modalities) < 2:
            continue
        whole = encoded(run, loader, watch=watch)
        for a, b in watch(list(combinations(run.modalities, 2)), _pairs(len(run.modalities))):
            rows = np.flatnonzero(whole.present(a, b))
            if len(rows) < 2:
                continue
            key = f"{number}/{a}-{b}"
            own = None if groups is None else groups[rows]
            two = whole.embeddings[a], whole.embeddings[b]
            arrays[f"{key}/all"], arrays[f"{key}/error"] = diagonal_with_error(*two, rows, own)
            independent = len(rows) if own is None else len(np.unique(own))
            arrays[f"{key}/independent"] = np.array(independent)
            sets = interleaved(len(rows), batch, batches)
            for drawn, spaced in enumerate(sets):
                name = f"batch/{drawn}" if drawn else "batch"
                arrays[f"{key}/{name}"] = diagonal(chunked(*two, rows[spaced]))
            arrays[f"{key}/samples"] = np.array([len(rows), len(sets[0])])
            pairs[f"{a}-{b}"] = None
    if not pairs:
        one = all(len(run.modalities) < 2 for run in runs)
        raise DoesNotApply(
            "It compares sensors, and the run has one."
            if one
            else "It needs samples that have two sensors, and fewer than two do."
        )
    return {**arrays, "pairs": text(*pairs)}


def losses(diagonal: Float) -> Float:
    """Return (1 - C_ii)^2 (Eq. 7)."""
    return (1 - diagonal) ** 2


def histogram(values: Float) -> NDArray[np.int64]:
    """Count values in `BINS` equal bins of [0, 1] and, last, those above 1: (BINS + 1,)."""
    counts, _ = np.histogram(values, bins=BINS, range=(0, 1))
    return np.append(counts, (values > 1).sum())


def plot_batch(arrays: Arrays) -> Figure:
    """Draw the histogram of one batch, as in Fig. 5a, or of several, as in Fig. 7."""
    further = {int(key.rpartition("/")[2]) for key in arrays if "/batch/" in key}
    return _histograms(arrays, "batch", *(f"batch/{number}" for number in sorted(further)))


def plot_all(arrays: Arrays) -> Figure:
    """Draw the histogram over all samples."""
    counts = [counts for key, counts in arrays.items() if key.endswith("/samples")]
    if all(whole == once for whole, once in counts):
        raise DoesNotApply("The batch holds all samples: their histogram is the one above.")
    return _histograms(arrays, "all")


def findings(arrays: Arrays) -> str:
    """Write what came out: a sentence for each pair, and a table of runs, pairs and parts."""
    runs, pairs = arrays["runs"].tolist(), arrays["pairs"].tolist()
    rows: list[list[object]] = []
    sentences = []
    for pair in pairs:
        for number, run in enumerate(runs):
            key = f"{number}/{pair}"
            if f"{key}/all" not in arrays:
                continue
            if not varying(arrays[f"{key}/all"]).any():
                sentences.append(
                    f"{pair} in {run}: no dimension varies in both, so nothing can be compared."
                )
                continue
            told = []
            diagonals = {p: arrays[f"{key}/all"][d] for p, d in _parts(arrays, number).items()}
            for part, dims in _parts(arrays, number).items():
                c = varying(diagonals[part])
                if not len(c):
                    continue
                loss, once = losses(c), losses(varying(arrays[f"{key}/batch"][dims]))
                agrees = is_shared_by(part, pair)
                apart = float(((c if agrees else np.abs(c)) < APART).mean())
                agreed = agreement(arrays, key, dims, agrees=agrees)
                rows.append(
                    [*([run] if len(runs) > 1 else []), *([pair] if len(pairs) > 1 else [])]
                    + [part, float(loss.mean()), f"{apart:.0%}", str(agreed)]
                    + [f"{(loss > 1).mean():.0%}", float(once.mean()) if len(once) else np.nan]
                    + [float(c.mean()), len(c)]
                )
                said = f"{apart:.0%} are apart"
                if seen_in_training(arrays, number) is Verdict.NO:
                    ones = "shared ones" if agrees else "dimensions that no block gives to both"
                    if part in (COMMON, UNIQUE):
                        ones = f"{part} ones"
                    said = _verdict(agreed, said, ones, agrees=agrees)
                told.append(f"{loss.mean():.2f} on its {len(loss)} {part} dimensions ({said})")
            n, once_n = arrays[f"{key}/samples"]
            independent = int(arrays.get(f"{key}/independent", n))
            chance = (
                f"{n} samples, where C_ii is 0 ± {(n - 1) ** -0.5:.2f} by chance,"
                if independent == n
                else f"{n} samples of {independent} groups"
            )
            sentences.append(
                f"{pair} in {run}: over {chance} the mean loss is "
                + ", ".join(told)
                + f". The one batch has {once_n} samples."
            )
            sentences += [f"{pair} in {run}: {said}" for said in on_constant(diagonals)]
    for number, run in enumerate(runs):
        of = f"{run}: " if len(runs) > 1 else ""
        sentences += [of + reason for reason in no_verdict_on_pairs_seen(arrays, number)]
    reading = (
        "The loss is 0 where two sensors agree in a dimension and 1 where they have nothing to do "
        f"with each other; apart is a dimension whose correlation is below {APART:.2f}, of either "
        "sign where it should be apart: it tells less than a tenth of the variance of its partner. "
        "Agreement is that share of the variance, the mean of C_ii squared, beyond what chance "
        "gives, with its 95 % interval (negative where dimensions that should agree do the "
        "opposite). Unique dimensions should be apart, all of them. Common ones should not; those "
        "that are may be shared and noisy, or not shared, which this cannot tell: see the section "
        "on how much is shared. What lies above 1 correlates negatively: of a dimension without "
        "correlation that is as likely as not, so about half of well decoupled dimensions are "
        "there. It is counted in the last bin."
    )
    head = [*(["run"] if len(runs) > 1 else []), *(["sensors"] if len(pairs) > 1 else [])]
    head += ["part", "mean loss", "apart", "agreement", "above 1", "of one batch", "mean C_ii"]
    return (
        "".join(paragraph(sentence) for sentence in sentences)
        + table([*head, "dimensions"], rows)
        + paragraph(reading)
    )


def agreement(arrays: Arrays, key: str, dims: slice, *, agrees: bool) -> Interval:
    """Return the share of the variance of dimensions that their partners tell, beyond chance.

    That is the mean of C_ii squared. Ends are those of each C_ii by Fisher's transformation and
    Student's t, averaged: they hold also where all dimensions err in the same direction.

    Args:
        arrays: of `alignment`.
        key: "RUN NUMBER/PAIR".
        dims: which dimensions.
        agrees: whether the sensors are to agree in them: a negative C_ii then counts against it,
            and chance gives both signs. Otherwise either sign is agreement.
    """
    from scipy.stats import t

    error = arrays.get(f"{key}/error", np.zeros(dims.stop))[dims]
    c, error = varying(np.stack([arrays[f"{key}/all"][dims], error]))
    samples = int(arrays[f"{key}/samples"][0])
    freedom = int(arrays.get(f"{key}/independent", samples)) - 1
    if freedom < 1:
        return Interval(float((c * np.abs(c) if agrees else c**2).mean()))
    # error of the transformed C_ii; few samples underrate it, and where there is no correlation
    # it is no less than that of independent samples
    within = np.maximum(1 - c**2, np.finfo(float).eps)
    spread = np.maximum(error / within, (samples - 1) ** -0.5)
    reach = t.ppf(1 - LEVEL / 2, freedom) * spread
    z = np.arctanh(np.clip(c, -1 + 1e-12, 1 - 1e-12))
    if agrees:
        ends = np.tanh([z, z - reach, z + reach])
        return Interval(*(float(x) for x in (ends * np.abs(ends)).mean(1)))
    ends = np.tanh([np.abs(z), np.maximum(np.abs(z) - reach, 0), np.abs(z) + reach])
    return Interval(*(float(x) for x in (ends**2).mean(1))) - float((spread**2).mean())


def _verdict(agreed: Interval, apart: str, ones: str, *, agrees: bool) -> str:
    """Say whether dimensions do what is wanted of them: that two sensors agree, or do not.

    Args:
        agreed: share of variance in which they agree, beyond chance.
        apart: "100% are apart".
        ones: what the dimensions are called: "common ones", "unique ones", ...
        agrees: whether they are to agree.
    """
    beyond, much = agreed.above(), agreed.above(TELLS)
    if beyond is not Verdict.YES and much is not Verdict.NO:
        wanted = "agree" if agrees else "are apart"
        be = "" if agrees else " be"
        return f"whether they {wanted}, as {ones} should{be}, these samples cannot tell"
    if agrees:
        if agreed.high < 0:
            return f"{apart}, as they do the opposite, which {ones} should not"
        how = {Verdict.YES: "", Verdict.NO: "; they hardly agree"}
        found = how.get(much, "; that they agree is beyond chance")
        return f"{apart}, which {ones} should not be{found}"
    if much is Verdict.YES:
        return f"{apart}, though {ones} should be"
    if beyond is Verdict.YES:
        little = "a little " if much is Verdict.NO else ""
        return f"{apart}, yet they agree {little}more than by chance, which {ones} should not"
    return f"{apart}, as {ones} should be"


def _pairs(modalities: int) -> int:
    return modalities * (modalities - 1) // 2


def _parts(arrays: Arrays, number: int) -> dict[str, slice]:
    bounds = arrays[f"{number}/bounds"].tolist()
    return {
        part: slice(*ends)
        for part, ends in zip(arrays[f"{number}/parts"].tolist(), bounds, strict=True)
    }


def _histograms(arrays: Arrays, *which: str) -> Figure:
    """Draw a panel for each pair, run and set of samples that `which` names."""
    runs, pairs = arrays["runs"].tolist(), arrays["pairs"].tolist()
    panels = [(pair, number, one) for pair in pairs for number in range(len(runs)) for one in which]
    columns = len(runs) if len(runs) > 1 else min(3, len(pairs))
    columns = min(4, len(which)) if len(which) > 1 else columns
    rows = -(-len(panels) // columns)
    width = 5.5 if columns == 1 else 8.6 / columns
    figure, axes = subplots(rows, columns, width=width, height=2.9 if rows == 1 else 2.2)
    edges = np.linspace(0, 1 + 1 / BINS, BINS + 2)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (pair, number, one) in zip(axes.flat, panels, strict=False):
        title = pair if len(runs) == 1 else f"{runs[number]}: {pair}"
        title += f", batch {which.index(one) + 1}" if len(which) > 1 else ""
        axis.set_title(plain(title), fontsize=9)
        if f"{number}/{pair}/{one}" not in arrays:
            axis.axis("off")
            axis.text(0.5, 0.5, "not in this run", ha="center", va="center", fontsize=9)
            continue
        loss = losses(arrays[f"{number}/{pair}/{one}"])
        parts = _parts(arrays, number)
        for part, dims in parts.items():
            colour = part_colour(part, list(parts))
            axis.stairs(histogram(loss[dims]), edges, fill=True, alpha=0.3, color=colour)
            axis.stairs(
                histogram(loss[dims]),
                edges,
                color=colour,
                linestyle=part_line(part),
                linewidth=1.5,
                label=f"{part} ({dims.stop - dims.start})",
            )
        axis.axvspan(1, edges[-1], color="grey", alpha=0.15, linewidth=0)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1.025], ["0", "0.25", "0.5", "0.75", "> 1"])
        axis.tick_params(labelsize=8)
        axis.set_xlim(0, edges[-1])
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("dimensions", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel(r"$(1 - C_{ii})^2$", fontsize=9)
    return figure


register(
    Analysis(
        name="alignment",
        title="Alignment of dimensions",
        about=(
            "For each dimension of the embedding, how far two sensors agree in it: (1 - C_ii)^2, "
            "with C_ii the correlation of the dimension between the sensors over samples (Eq. 7 "
            "of the paper, Fig. 5a). Common dimensions should pile up at 0, unique ones at 1. "
            "First over one batch, as in the paper, then over all samples."
        ),
        arrays=alignment,
        plots={"batch": plot_batch, "all": plot_all},
        findings=findings,
        several=True,
        order=10,
    )
)
