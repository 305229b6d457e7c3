"""How much sensors share: what either tells of the other beyond chance, and advice on the split.

Everything is measured on the embeddings of a checkpoint as they are: the answer is about this run
on this data, not about the sensors as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decur.agreement import (
    PAIRINGS,
    Halves,
    at_random,
    canonical,
    coordinates,
    guessed,
    pairings,
    places,
    predicted,
)
from decur.data.selection import evenly_spaced
from decur.errors import SEEDS
from decur.explain.advice import advice, advice_on_blocks, by_chance, has_blocks
from decur.explain.alignment import MISALIGNED, losses
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
from decur.explain.collapse import varying
from decur.explain.correlation import diagonal_with_error
from decur.explain.model import Checkpoint, encoded
from decur.features import Features, SampleLoader
from decur.memory import require_memory
from decur.objectives.alignment import effective_rank
from decur.plotting import Figure, part_colour, part_line, plain, subplots
from decur.report import paragraph, table
from decur.scores import FEWEST_GROUPS, Float, split, standardised
from decur.verdicts import LEVEL, Interval, ratio_interval

FEWEST = 40  # samples that both sensors see
TARGETS, CHANCE_TARGETS = 512, 128  # dimensions that stand for a part when it is predicted
RECALL = (1, 5)
_CANONICAL_DRAWS = 20  # permutations are cheap there
_SAMPLES_A_COMPONENT = 10
_COMPONENTS = 128
_HATCH = {"unique": "///"}

_ANSWERS = 4  # intervals of a part that are looked at together: two directions, two predictors


def shared(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    samples: int = 2000,
    permutations: int = 3,
    seed: int = 0,
) -> Arrays:
    """Measure what each two sensors tell of each other, by common and by unique dimensions.

    Two thirds of the samples train and one third tests, by group where the data names groups.
    Chance is the same measure on samples paired at random, group by group where there are groups.
    A ridge is fitted on all dimensions of a part, through the N x N Gram matrix. At most 512 evenly
    spaced dimensions are predicted, and 128 for chance. Canonical correlations are among the first
    principal components, one for ten training samples and 128 at most.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        samples: Largest number of samples for each pair, evenly spaced.
        permutations: Number of times that predictions are tried by chance.
        seed: Seed of the split and of chance.

    Returns:
        "pairs"; for each "PAIR/sensors", "PAIR/parts", "PAIR/widths" of parts, "PAIR/samples" (all,
        training, test), "PAIR/grouped"; and for each part P, directions A to B and B to A first:
        "PAIR/aligned/P" (mean C_ii, share misaligned); "PAIR/diagonal/P" (2, k), C_ii of all
        samples and its standard error, NaN where a dimension does not vary; "PAIR/same/P" (2,),
        held-out R2 of P of one from P of the other, "PAIR/features/P" (2,), from the other's
        encoder, NaN of what does not vary, each with "PAIR/same-chance/P" (2, permutations) and
        "PAIR/same-interval/P" (2, 2), the ends of intervals that hold all four R2 of a part in 95
        of 100 cases; "PAIR/canonical/P" (r,), with the largest of each permutation
        "PAIR/canonical-chance/P", NaN where there are too few groups to know it,
        "PAIR/kept/P" (2,), variance among the components, of which there are at most "PAIR/looked";
        "PAIR/independent" (2,), the samples, or groups where there are any, of all and of the test
        part; "PAIR/ceiling" (2,), the mean C_ii of two views of either sensor at the end of
        training, 0 unknown; "PAIR/rank/P" (2,) effective rank of A and of B; "PAIR/recall/P"
        (2, 2) at 1 and 5, also of "all".

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if there are no two sensors with enough samples.
    """
    check_option("shared.samples", samples, FEWEST)
    check_option("shared.permutations", permutations, 1)
    check_option("shared.seed", seed, *SEEDS)
    if len(checkpoint.modalities) < 2:
        raise DoesNotApply("It compares sensors, and the run has one.")
    whole = encoded(checkpoint, loader, watch=watch)
    pairs: dict[str, tuple[str, str, NDArray[np.int64]]] = {}
    most = 0
    for a, b in combinations(checkpoint.modalities, 2):
        rows = np.flatnonzero(whole.present(a, b))
        most = max(most, len(rows))
        if len(rows) >= FEWEST:
            spaced = evenly_spaced(len(rows), samples)
            pairs[f"{a}-{b}"] = a, b, rows[spaced]
    if not pairs:
        raise DoesNotApply(f"It needs {FEWEST} samples that two sensors see; {most} are the most.")
    longest = max(len(rows) for _, _, rows in pairs.values())
    require_memory(
        2 * 8 * longest**2,  # the Gram matrix and its eigenvectors, float64
        what=f"spectra of {longest:,} samples",
        remedy="lower --options.shared.samples",
    )
    arrays: Arrays = {"pairs": text(*pairs)}
    groups = loader.groups
    steps = len(pairs) * (1 + 3 * len(checkpoint.parts))

    def work() -> Iterator[None]:
        for pair, (a, b, rows) in pairs.items():
            own = [groups[row] for row in rows] if groups else None
            fitting = _Fitting(checkpoint, whole, (a, b), rows, own, permutations, seed)
            for step in fitting.steps():
                arrays.update({f"{pair}/{key}": value for key, value in step.items()})
                yield

    for _ in watch(work(), steps):
        pass
    return arrays


@dataclass
class _Fitting:
    """One pair of sensors, measured step by step."""

    checkpoint: Checkpoint
    whole: Features
    sensors: tuple[str, str]
    rows: NDArray[np.int64]
    groups: list[str] | None
    permutations: int
    seed: int

    def steps(self) -> Iterator[Arrays]:
        """Yield the arrays of `shared` without the pair's name: one step, then three a part."""
        rng = np.random.default_rng(self.seed)
        self.train, self.test = split(len(self.rows), self.groups, self.seed)
        parts = self.checkpoint.parts
        raw = [self.whole.embeddings[name][self.rows] for name in self.sensors]  # (N, K)
        z = [standardised(x, self.train) for x in raw]
        vectors = [
            self._coordinates(standardised(self.whole.features[name][self.rows], self.train))
            for name in self.sensors
        ]
        grouped = self.groups is not None and len(set(self.groups)) >= FEWEST_GROUPS
        found = places(z[0], z[1], parts)
        ceilings = getattr(self.checkpoint, "ceilings", {})
        yield {
            "sensors": text(*self.sensors),
            "parts": text(*parts),
            "widths": np.array([dims.stop - dims.start for dims in parts.values()]),
            "samples": np.array([len(self.rows), len(self.train), len(self.test)]),
            "grouped": np.array(grouped),
            "looked": np.array(self._components),
            "independent": np.array([self._independent(self.rows), self._independent(self.test)]),
            "ceiling": np.array([ceilings.get(name, 0.0) for name in self.sensors]),
            **{
                f"recall/{part}": np.array([[(way < k).mean() for k in RECALL] for way in both])
                for part, both in found.items()
            },
        }
        correlation, error = diagonal_with_error(
            raw[0], raw[1], np.arange(len(self.rows)), self.groups
        )
        for part, dims in parts.items():
            own = [self._coordinates(x[:, dims]) for x in z]
            ranks = [float(effective_rank(torch.from_numpy(side.train))) for side in own]
            c = correlation[dims]
            chosen = np.arange(dims.start, dims.stop)
            chosen = chosen[:: -(-len(chosen) // TARGETS)]
            wanted = [x[:, chosen].astype(np.float64) for x in z]
            targets = [Halves(x[self.train], x[self.test]) for x in wanted]
            yield {
                f"rank/{part}": np.array(ranks),
                f"aligned/{part}": _aligned(varying(c)),
                f"diagonal/{part}": np.stack([c, error[dims]]),
                **self._canonical(part, own, rng),
            }
            for key, sources in (("same", own), ("features", vectors)):
                # from A to B, and from B to A
                scores = [self._predicted(sources[i], targets[1 - i], rng) for i in (0, 1)]
                yield {
                    f"{key}/{part}": np.array([float(true) for true, _ in scores]),
                    f"{key}-interval/{part}": np.array(
                        [[true.low, true.high] for true, _ in scores]
                    ),
                    f"{key}-chance/{part}": np.array([chance for _, chance in scores]),
                }

    def _coordinates(self, x: NDArray[np.float32]) -> Halves:
        return coordinates(x, self.train, self.test)

    @property
    def _components(self) -> int:
        """Return in how many principal components canonical correlations are looked for."""
        return min(_COMPONENTS, len(self.train) // _SAMPLES_A_COMPONENT)

    def _independent(self, rows: NDArray[np.int64]) -> int:
        """Return how many samples are independent: the groups, where there are any."""
        if self.groups is None:
            return len(rows)
        within = rows if rows is self.test else np.arange(len(rows))
        return len({self.groups[row] for row in within})

    def _predicted(self, x: Halves, y: Halves, rng: np.random.Generator) -> tuple[Interval, Float]:
        """Return R2 with its interval, and what it is by chance: (permutations,)."""
        train, test = (
            [self.groups[row] for row in rows] if self.groups else None
            for rows in (self.train, self.test)
        )
        few = slice(None, None, -(-y.train.shape[1] // CHANCE_TARGETS))
        some = Halves(y.train[:, few], y.test[:, few])
        mixed = [self._permuted(some, rng) for _ in range(self.permutations)]
        stacked = Halves(
            np.hstack([half.train for half in mixed]), np.hstack([half.test for half in mixed])
        )
        whole = ((y.test - y.test.mean(0)) ** 2).sum(1)  # (m,)
        varies = np.ptp(y.test, axis=0).any()
        # without an interval: what does not vary neither tells nor can be told
        true = Interval(0.0 if varies else float("nan"))
        if varies and x.train.shape[1]:
            missed = ((y.test - guessed(x, y, train)) ** 2).sum(1)
            true = ratio_interval(whole - missed, whole, test, LEVEL / _ANSWERS)
        mixed_up = predicted(x, stacked, train, targets=self.permutations)
        return true, mixed_up if self._chance_is_known else np.full_like(mixed_up, np.nan)

    @property
    def _chance_is_known(self) -> bool:
        """Whether there are enough pairings of groups to know what chance gives."""
        return pairings(self.train, self.test, self.groups) >= PAIRINGS

    def _permuted(self, y: Halves, rng: np.random.Generator) -> Halves:
        """Return other pairings, within the training and within the test samples."""
        train, test = at_random(self.train, self.test, self.groups, rng)
        return Halves(y.train[train], y.test[test])

    def _canonical(self, part: str, sides: list[Halves], rng: np.random.Generator) -> Arrays:
        count = self._components
        x, y = (Halves(side.train[:, :count], side.test[:, :count]) for side in sides)
        if not x.train.shape[1] or not y.train.shape[1]:
            nothing = np.zeros(0)
            return {
                f"canonical/{part}": nothing,
                f"canonical-chance/{part}": np.zeros(1),
                f"kept/{part}": np.zeros(2),
            }
        known = self._chance_is_known
        chance = [
            canonical(x, self._permuted(y, rng), count).max(initial=0) if known else np.nan
            for _ in range(_CANONICAL_DRAWS)
        ]
        kept = [
            (few.train**2).sum() / (side.train**2).sum()
            for few, side in zip((x, y), sides, strict=True)
        ]
        return {
            f"canonical/{part}": canonical(x, y, count),
            f"canonical-chance/{part}": np.array(chance),
            f"kept/{part}": np.array(kept),
        }


def plot_shared(arrays: Arrays) -> Figure:
    """Draw a row a pair: what the other sensor predicts of each part, retrieval, chance."""
    pairs = arrays["pairs"].tolist()
    figure, axes = subplots(len(pairs), 3, width=2.95, height=2.9 if len(pairs) == 1 else 2.3)
    for row, pair in enumerate(pairs):
        parts = arrays[f"{pair}/parts"].tolist()
        for axis, key, title in (
            (axes[row, 0], "same", "from the same part"),
            (axes[row, 1], "features", "from the encoder"),
        ):
            bars = {part: arrays[f"{pair}/{key}/{part}"] for part in parts}
            chance = {part: arrays[f"{pair}/{key}-chance/{part}"].max(1) for part in parts}
            _bars(axis, arrays, pair, bars, chance)
            axis.set_ylim(float(np.nanmin([-0.05, *np.concatenate(list(bars.values()))])), 1)
            if not row:
                axis.set_title(f"held-out R2 {title}", fontsize=9)
        names = [*parts, "all"] if len(parts) > 1 else parts
        n = arrays[f"{pair}/samples"][0]
        recall = {name: arrays[f"{pair}/recall/{name}"][:, 1] for name in names}
        _bars(axes[row, 2], arrays, pair, recall, dict.fromkeys(names, np.full(2, 5 / n)))
        top = max(float(values.max()) for values in recall.values())
        axes[row, 2].set_ylim(0, min(1, 1.6 * max(top, 5 / n)))
        if not row:
            axes[row, 2].set_title("partner among the 5 nearest", fontsize=9)
        axes[row, 2].legend(fontsize=8, loc="upper right", frameon=False)
    return figure


def plot_canonical(arrays: Arrays) -> Figure:
    """Draw canonical correlations of held-out samples by part, and the largest by chance."""
    pairs = arrays["pairs"].tolist()
    columns = min(3, len(pairs))
    width = 5.5 if columns == 1 else 8.8 / columns
    figure, axes = subplots(-(-len(pairs) // columns), columns, width=width, height=2.9)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        for part in arrays[f"{pair}/parts"].tolist():
            values = arrays[f"{pair}/canonical/{part}"]
            colour = part_colour(part, arrays[f"{pair}/parts"].tolist())
            order = np.arange(1, len(values) + 1)
            axis.plot(order, values, part_line(part), color=colour, label=part)
            level = arrays[f"{pair}/canonical-chance/{part}"].max()
            if np.isfinite(level):
                name = f"{part}, chance"
                axis.axhline(level, color=colour, linestyle=":", linewidth=1, label=name)
        axis.set_title(plain(pair), fontsize=9)
        axis.set_ylim(top=1)
        axis.set_xlabel("component", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("correlation, held out", fontsize=9)
    return figure


def _bars(axis: Any, arrays: Arrays, pair: str, bars: dict[str, Any], chance: Any) -> None:
    a, b = map(plain, arrays[f"{pair}/sensors"].tolist())
    width = 0.8 / len(bars)
    places = []
    for place, (name, values) in enumerate(bars.items()):
        x = np.arange(2) + (place - (len(bars) - 1) / 2) * width
        axis.bar(
            x,
            values,
            0.9 * width,
            color=part_colour(name, arrays[f"{pair}/parts"].tolist()),
            hatch=_HATCH.get(name),
            edgecolor="white",
            linewidth=0,
            label=name,
        )
        places.append(x)
    at, levels = np.concatenate(places), np.concatenate([chance[name] for name in bars])
    reach = 0.45 * width
    axis.hlines(levels, at - reach, at + reach, color="black", linewidth=1.5, label="chance")
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_xticks([0, 1], [f"{a}\nto {b}", f"{b}\nto {a}"], fontsize=8)
    axis.tick_params(axis="y", labelsize=8)


def findings(arrays: Arrays) -> str:
    """Write the answer for each pair in a sentence or two, and a table of what it rests on."""
    rows: list[list[object]] = []
    sentences = []
    for pair in arrays["pairs"].tolist():
        a, b = arrays[f"{pair}/sensors"].tolist()
        n, train, test = arrays[f"{pair}/samples"]
        how = "whole groups apart" if arrays[f"{pair}/grouped"] else "drawn at random"
        advise = advice_on_blocks if has_blocks(arrays, pair) else advice
        sentences.append(paragraph(f"{a} and {b}: " + " ".join(advise(arrays, pair))))
        sentences.append(
            paragraph(
                f"{n} samples have both: {train} fit what predicts, {test} are held out from that, "
                f"{how}."
            )
        )
        widths = dict(zip(arrays[f"{pair}/parts"].tolist(), arrays[f"{pair}/widths"], strict=True))
        for part, width in widths.items():
            ranks = arrays[f"{pair}/rank/{part}"]
            values = arrays[f"{pair}/canonical/{part}"]
            level = arrays[f"{pair}/canonical-chance/{part}"].max()
            recall = arrays[f"{pair}/recall/{part}"]
            row = [pair, part, width, " / ".join(f"{rank:.0f}" for rank in ranks)]
            row.append(_score(arrays[f"{pair}/aligned/{part}"][0]))
            for key in ("same", "features"):
                scores = arrays[f"{pair}/{key}/{part}"]
                chance = f"{by_chance(arrays[f'{pair}/{key}-chance/{part}']):.2f}"
                chance = chance.replace("nan", "unknown")
                row.append(" / ".join(map(_score, scores)) + f" ({chance})")
            above = f"{(values > level).sum()} of {len(values)}"
            row.append("cannot be told" if np.isnan(level) else above)
            row.append(f"{values.max(initial=0):.2f} ({level:.2f})".replace("(nan)", "(unknown)"))
            row.append(" / ".join(f"{r:.1%}" for r in recall[:, 0]) + f" ({1 / n:.1%})")
            row.append(" / ".join(f"{r:.1%}" for r in recall[:, 1]) + f" ({5 / n:.1%})")
            rows.append(row)
        recall = arrays[f"{pair}/recall/all"]
        if len(widths) > 1:
            ends = [
                " / ".join(f"{r:.1%}" for r in recall[:, i]) + f" ({k / n:.1%})"
                for i, k in enumerate(RECALL)
            ]
            rows.append([pair, "all", int(sum(widths.values())), *[""] * 6, *ends])
    head = ["sensors", "part", "width", "effective rank", "mean C_ii"]
    head += ["R2 from the same part", "R2 from the encoder", "canonical above chance"]
    head += ["largest canonical", "R@1", "R@5"]
    reading = (
        "All of it is about linear maps of these embeddings: what the sensors share otherwise does "
        "not show. Two numbers are the two sensors, or the directions from the first to the second "
        "and back; in brackets what chance gives, by pairing samples (whole groups where there are "
        "groups) at random. R2 is the share of a part's variance that a ridge predicts of held-out "
        "samples from the same part of the other sensor, or from the vector of its encoder; a part "
        "that does not vary has none (–). "
        "Canonical correlations are held out too, among the first principal components. R@1 and "
        "R@5: how often a picture's partner is the nearest, or among the five nearest, by cosine "
        "of the standardised embeddings."
    )
    return "".join(sentences) + table(head, rows) + paragraph(reading)


def _aligned(c: Float) -> Float:
    """Return the mean C_ii and the share that is misaligned, NaN where no dimension varies."""
    if not len(c):
        return np.full(2, np.nan)
    return np.array([c.mean(), (losses(c) > MISALIGNED).mean()])


def _score(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


register(
    Analysis(
        name="shared",
        title="How much is shared",
        about=(
            "Do common and unique dimensions hold what their names say? Bars show how much one "
            "sensor tells of the other, by the common and by the unique dimensions, on samples "
            "held out from the fit; black lines are chance. Common dimensions should tell much, "
            "unique ones nothing. Which share of common dimensions is the right one, this cannot "
            "tell: any number of them can be filled with copies."
        ),
        arrays=shared,
        plots={"bars": plot_shared, "canonical": plot_canonical},
        findings=findings,
        order=60,
    )
)
