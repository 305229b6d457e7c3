"""How much sensors share: what either tells of the other, beside chance, and advice on the split.

All is measured on the embeddings of a checkpoint, which it takes as they are: an answer about this
run on this data, not about the sensors as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from decur.data.selection import evenly_spaced
from decur.explain.alignment import MISALIGNED, diagonal, losses
from decur.explain.base import (
    SEEDS,
    Analysis,
    Arrays,
    DoesNotApply,
    Watch,
    check_option,
    register,
    text,
    unwatched,
)
from decur.explain.held_out import (
    FEWEST_GROUPS,
    Float,
    Halves,
    canonical,
    coordinates,
    places,
    predicted,
    split,
    standardised,
)
from decur.explain.loading import Encoded, SampleLoader, encoded
from decur.explain.model import Checkpoint
from decur.explain.shared_advice import advice
from decur.explain.shared_figures import plot_canonical, plot_shared
from decur.objectives.alignment import effective_rank
from decur.report import paragraph, table

FEWEST = 40  # samples that both sensors see
TARGETS, CHANCE_TARGETS = 512, 128  # dimensions that stand for a part when it is predicted
RECALL = (1, 5)
_CANONICAL_DRAWS = 20  # permutations are cheap there
_SAMPLES_A_COMPONENT = 10
_COMPONENTS = 128


def shared(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    watch: Watch = unwatched,
    samples: int = 2000,
    permutations: int = 3,
    seed: int = 0,
) -> Arrays:
    """What each two sensors tell of each other, by the common and by the unique dimensions.

    Two thirds of the samples train and one third tests, by group where the data names groups.
    Chance is the same on samples paired at random. A ridge sees whole parts, by way of the N x N
    Gram matrix; up to 512 evenly spaced dimensions of what it predicts stand for all of them, 128
    for chance.
    Canonical correlations are among the first principal components, one for ten training samples
    and 128 at most.

    Args:
        checkpoint: the run.
        loader: the samples.
        watch: shows how far it is.
        samples: at most how many for each pair, evenly spaced.
        permutations: how many times predictions are tried by chance.
        seed: of the split and of chance.

    Returns:
        "pairs"; for each "PAIR/sensors", "PAIR/parts", "PAIR/widths" of parts, "PAIR/samples" (all,
        training, test), "PAIR/grouped"; and for each part P, directions A to B and B to A first:
        "PAIR/aligned/P" (mean C_ii, share misaligned); "PAIR/same/P" (2,), held-out R2 of P of one
        from P of the other, "PAIR/features/P" (2,), from the other's encoder, each with
        "PAIR/same-chance/P" (2, permutations); "PAIR/canonical/P" (r,), with the largest of each
        permutation "PAIR/canonical-chance/P", "PAIR/kept/P" (2,), variance among the components;
        "PAIR/rank/P" (2,) effective rank of A and of B; "PAIR/recall/P" (2, 2) at 1 and 5, also
        of "all".

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if there are no two sensors with enough samples.
    """
    check_option("shared.samples", samples, FEWEST)
    check_option("shared.permutations", permutations, 1)
    check_option("shared.seed", seed, *SEEDS)
    if len(checkpoint.modalities) < 2:
        raise DoesNotApply("It compares sensors, and the run has one.")
    whole = encoded(checkpoint, loader, watch)
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
    whole: Encoded
    sensors: tuple[str, str]
    rows: NDArray[np.int64]
    groups: list[str] | None
    permutations: int
    seed: int

    def steps(self) -> Iterator[Arrays]:
        """Keys of `shared` without the pair's name; one step, then three for each part."""
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
        yield {
            "sensors": text(*self.sensors),
            "parts": text(*parts),
            "widths": np.array([dims.stop - dims.start for dims in parts.values()]),
            "samples": np.array([len(self.rows), len(self.train), len(self.test)]),
            "grouped": np.array(grouped),
            **{
                f"recall/{part}": np.array([[(way < k).mean() for k in RECALL] for way in both])
                for part, both in found.items()
            },
        }
        correlation = diagonal([(raw[0], raw[1])])
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
                f"aligned/{part}": np.array([c.mean(), (losses(c) > MISALIGNED).mean()]),
                **self._canonical(part, own, rng),
            }
            for key, sources in (("same", own), ("features", vectors)):
                # from A to B, and from B to A
                scores = [self._predicted(sources[i], targets[1 - i], rng) for i in (0, 1)]
                yield {
                    f"{key}/{part}": np.array([true for true, _ in scores]),
                    f"{key}-chance/{part}": np.array([chance for _, chance in scores]),
                }

    def _coordinates(self, x: NDArray[np.float32]) -> Halves:
        return coordinates(x, self.train, self.test)

    def _predicted(self, x: Halves, y: Halves, rng: np.random.Generator) -> tuple[float, Float]:
        groups = [self.groups[row] for row in self.train] if self.groups else None
        few = slice(None, None, -(-y.train.shape[1] // CHANCE_TARGETS))
        some = Halves(y.train[:, few], y.test[:, few])
        mixed = [_permuted(some, rng) for _ in range(self.permutations)]
        stacked = Halves(
            np.hstack([half.train for half in mixed]), np.hstack([half.test for half in mixed])
        )
        true = predicted(x, y, groups)[0]
        return float(true), predicted(x, stacked, groups, blocks=self.permutations)

    def _canonical(self, part: str, sides: list[Halves], rng: np.random.Generator) -> Arrays:
        count = min(_COMPONENTS, len(self.train) // _SAMPLES_A_COMPONENT)
        x, y = (Halves(side.train[:, :count], side.test[:, :count]) for side in sides)
        if not x.train.shape[1] or not y.train.shape[1]:
            nothing = np.zeros(0)
            return {
                f"canonical/{part}": nothing,
                f"canonical-chance/{part}": np.zeros(1),
                f"kept/{part}": np.zeros(2),
            }
        chance = [
            canonical(x, _permuted(y, rng), count).max(initial=0) for _ in range(_CANONICAL_DRAWS)
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


def _permuted(y: Halves, rng: np.random.Generator) -> Halves:
    """Other pairings, within the training and within the test samples."""
    return Halves(rng.permutation(y.train), rng.permutation(y.test))


def findings(arrays: Arrays) -> str:
    """The answer for each pair in a sentence or two, and one table of what it rests on."""
    rows: list[list[object]] = []
    sentences = []
    for pair in arrays["pairs"].tolist():
        a, b = arrays[f"{pair}/sensors"].tolist()
        n, train, test = arrays[f"{pair}/samples"]
        how = "whole groups apart" if arrays[f"{pair}/grouped"] else "drawn at random"
        sentences.append(paragraph(f"{a} and {b}: " + " ".join(advice(arrays, pair))))
        sentences.append(
            paragraph(f"{n} samples have both: {train} train, {test} are held out, {how}.")
        )
        widths = dict(zip(arrays[f"{pair}/parts"].tolist(), arrays[f"{pair}/widths"], strict=True))
        for part, width in widths.items():
            ranks = arrays[f"{pair}/rank/{part}"]
            values = arrays[f"{pair}/canonical/{part}"]
            level = arrays[f"{pair}/canonical-chance/{part}"].max()
            recall = arrays[f"{pair}/recall/{part}"]
            row = [pair, part, width, " / ".join(f"{rank:.0f}" for rank in ranks)]
            row.append(f"{arrays[f'{pair}/aligned/{part}'][0]:.2f}")
            for key in ("same", "features"):
                scores = arrays[f"{pair}/{key}/{part}"]
                chance = arrays[f"{pair}/{key}-chance/{part}"].max(initial=0)
                row.append(" / ".join(f"{score:.2f}" for score in scores) + f" ({chance:.2f})")
            row.append(f"{(values > level).sum()} of {len(values)}")
            row.append(f"{values.max(initial=0):.2f} ({level:.2f})")
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
        "Two numbers are the two sensors, or the directions from the first to the second and back; "
        "in brackets what chance gives. R2 is the share of a part's variance that a ridge predicts "
        "of held-out samples from the same part of the other sensor, or from the vector of its "
        "encoder. Canonical correlations are held out too, among the first principal components. "
        "R@1 and R@5: how often a picture's partner is the nearest, or among the five nearest, by "
        "cosine of the standardised embeddings."
    )
    return "".join(sentences) + table(head, rows) + paragraph(reading)


register(
    Analysis(
        name="shared",
        title="How much is shared",
        about=(
            "Is the split between common and unique dimensions right? Bars show how much one "
            "sensor tells of the other, by the common and by the unique dimensions, on samples "
            "held out; black lines are chance. Common dimensions should tell much, unique ones "
            "nothing."
        ),
        arrays=shared,
        plots={"bars": plot_shared, "canonical": plot_canonical},
        findings=findings,
        order=60,
    )
)
