"""Alignment: how far two sensors agree in each dimension of the embedding (Eq. 7, Fig. 5a)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.data.selection import interleaved
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
from decur.explain.model import Checkpoint, encoded
from decur.features import Features, SampleLoader
from decur.objectives.blocks import COMMON, UNIQUE, is_shared_by
from decur.plotting import Figure, part_colour, part_line, plain, subplots
from decur.report import paragraph, table

Float = NDArray[np.float64]

CHUNK = 256  # rows read at a time
BINS = 20  # bins over (0, 1), the paper's range
MISALIGNED = 0.25  # a dimension whose loss is above this is misaligned: its C_ii is below one half


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
        pair that it has "R/A-B/all" and "R/A-B/batch", (K,) each, with their numbers of samples,
        "R/A-B/samples" (2,); of further batches "R/A-B/batch/1" and so on, (K,).

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if there are no two sensors, or fewer than two samples have both.
    """
    check_option("alignment.batch", batch, 2)
    check_option("alignment.batches", batches, 1)
    runs = [checkpoint, *beside]
    arrays: Arrays = {"runs": text(*(run.name for run in runs))}
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
            arrays[f"{key}/all"] = diagonal(_chunks(whole, a, b, rows))
            sets = interleaved(len(rows), batch, batches)
            for drawn, spaced in enumerate(sets):
                name = f"batch/{drawn}" if drawn else "batch"
                arrays[f"{key}/{name}"] = diagonal(_chunks(whole, a, b, rows[spaced]))
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


def diagonal(chunks: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Float:
    """Return the correlation of each column of A with that of B, in one pass over rows (Eq. 1).

    Sums of squares about the running means are merged chunk by chunk (Chan, Golub and LeVeque
    1983), in float64: the result is exact whatever the means and the chunks.

    Args:
        chunks: rows of A and B, (n, K) each.

    Returns:
        (K,); 0 where a column is constant to the precision of what came in.
    """
    seen = 0
    mean_a = mean_b = squares_a = squares_b = product = np.zeros(0)
    rounding = 0.0
    for part_a, part_b in chunks:
        rounding = max(np.finfo(x.dtype).eps for x in (part_a, part_b))
        a, b = part_a.astype(np.float64), part_b.astype(np.float64)  # (n, K)
        new_a, new_b = a.mean(0), b.mean(0)
        a, b = a - new_a, b - new_b
        new = (a**2).sum(0), (b**2).sum(0), (a * b).sum(0)
        if not seen:
            mean_a, mean_b, (squares_a, squares_b, product) = new_a, new_b, new
        else:
            n = len(a)
            delta_a, delta_b = new_a - mean_a, new_b - mean_b
            weight = seen * n / (seen + n)
            squares_a = squares_a + new[0] + delta_a**2 * weight
            squares_b = squares_b + new[1] + delta_b**2 * weight
            product = product + new[2] + delta_a * delta_b * weight
            mean_a, mean_b = (
                mean_a + delta_a * n / (seen + n),
                mean_b + delta_b * n / (seen + n),
            )
        seen += len(a)
    varies = (squares_a > seen * (rounding * mean_a) ** 2) & (
        squares_b > seen * (rounding * mean_b) ** 2
    )
    scale = np.sqrt(squares_a) * np.sqrt(squares_b)
    zeros = np.zeros_like(product)
    correlation: Float = np.divide(product, scale, out=zeros, where=varies & (scale > 0))
    return correlation


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
            if not arrays[f"{key}/all"].any():
                sentences.append(
                    f"{pair} in {run}: one of the two has the same embedding for all samples, so "
                    "nothing can be compared."
                )
                continue
            told = []
            for part, dims in _parts(arrays, number).items():
                c = arrays[f"{key}/all"][dims]
                loss, once = losses(c), losses(arrays[f"{key}/batch"][dims])
                bad = float((loss > MISALIGNED).mean())
                rows.append(
                    [*([run] if len(runs) > 1 else []), *([pair] if len(pairs) > 1 else [])]
                    + [part, float(loss.mean()), f"{bad:.0%}", f"{(loss > 1).mean():.0%}"]
                    + [float(once.mean()), float(c.mean()), len(c)]
                )
                told.append(_sentence(part, loss, bad, agrees=is_shared_by(part, pair)))
            n, once_n = arrays[f"{key}/samples"]
            sentences.append(
                f"{pair} in {run}: over {n} samples, where C_ii is 0 ± {(n - 1) ** -0.5:.2f} by "
                "chance, the mean loss is "
                + ", ".join(told)
                + f". The one batch has {once_n} samples."
            )
    reading = (
        "The loss is 0 where two sensors agree in a dimension and 1 where they have nothing to do "
        f"with each other; apart is a loss above {MISALIGNED} (a correlation below one half). "
        "Unique dimensions should be apart, all of them. Common ones should not; those that are "
        "may be shared and noisy, or not shared, which this cannot tell: see the section on how "
        "much is shared. What lies above 1 correlates negatively: of a dimension without "
        "correlation that is as likely as not, so about half of well decoupled dimensions are "
        "there. It is counted in the last bin."
    )
    head = [*(["run"] if len(runs) > 1 else []), *(["sensors"] if len(pairs) > 1 else [])]
    head += ["part", "mean loss", "apart", "above 1", "of one batch", "mean C_ii", "dimensions"]
    return (
        "".join(paragraph(sentence) for sentence in sentences)
        + table(head, rows)
        + paragraph(reading)
    )


def _sentence(part: str, loss: Float, apart: float, *, agrees: bool) -> str:
    """Say how a part does, by what is wanted of it: that the pair agrees in it, or does not."""
    kind = part if part in (COMMON, UNIQUE) else "shared" if agrees else "other"
    told = f"{loss.mean():.2f} on its {len(loss)} {part} dimensions ({apart:.0%} are apart,"
    if agrees:
        return f"{told} which {kind} ones should not be)"
    return f"{told} {'as' if apart > 0.5 else 'though'} {kind} ones should be)"


def _pairs(modalities: int) -> int:
    return modalities * (modalities - 1) // 2


def _chunks(
    whole: Features, a: str, b: str, rows: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        yield whole.embeddings[a][some], whole.embeddings[b][some]


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
