"""How often the 95 % intervals of `decur transfer` hold the truth, where the truth is known.

    python benchmarks/coverage.py                # 200 test parts for each number of groups
    python benchmarks/coverage.py --parts 1000

Test parts are drawn from worlds whose groups differ: in how many samples they have (5 to 50; where
they are uneven mostly 4 to 90, some hundreds), in how hard they are and in what they show. The
truth is the metric of 2,000 groups of the same world.
Prints, for each metric and number of groups, how many test parts get an interval, the share of
intervals that hold the truth (95 % are claimed) and their median width; and the same for samples
without groups. In two worlds a class is rare: one sample in ten, one group in five.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from decur.data import Target
from decur.transfer.intervals import measure_intervals
from decur.transfer.tasks import Kept, make_task

Generator = np.random.Generator
CLASSES = ("a", "b", "c")
WORLD = 2000  # groups that stand for the truth


def classes(rng: Generator, sizes: np.ndarray) -> Kept:
    """Draw samples of two classes, of which a group has its own share right, 0.8 on average."""
    right = rng.random(sizes.sum()) < np.repeat(rng.beta(6.4, 1.6, len(sizes)), sizes)
    truth = rng.integers(0, 2, sizes.sum())
    return {"truth": truth, "output": np.eye(2)[np.where(right, truth, 1 - truth)]}


def rare_class(rng: Generator, sizes: np.ndarray) -> Kept:
    """Draw samples of two classes as `classes` does, one of them a tenth of the samples."""
    drawn = classes(rng, sizes)
    right = drawn["output"].argmax(axis=1) == drawn["truth"]
    truth = (rng.random(sizes.sum()) < 0.1).astype(np.int64)
    return {"truth": truth, "output": np.eye(2)[np.where(right, truth, 1 - truth)]}


def labels(rng: Generator, sizes: np.ndarray) -> Kept:
    """Draw three labels a sample; groups differ in how often and how clearly they show them."""
    share = np.clip([0.3, 0.5, 0.15] + 0.1 * rng.normal(size=(len(sizes), 3)), 0.02, 0.98)
    truth = rng.random((sizes.sum(), 3)) < np.repeat(share, sizes, axis=0)
    clear = np.repeat(1.2 + 0.4 * rng.normal(size=(len(sizes), 1)), sizes, axis=0)
    shift = np.repeat(0.3 * rng.normal(size=(len(sizes), 3)), sizes, axis=0)
    return {
        "truth": truth.astype(np.float32),
        "output": truth * clear + shift + rng.normal(size=truth.shape),
    }


def numbers(rng: Generator, sizes: np.ndarray) -> Kept:
    """Draw numbers with a level of each group, and guesses with an error of each group."""
    level, error = (np.repeat(s * rng.normal(size=len(sizes)), sizes) for s in (0.7, 0.3))
    truth = level + rng.normal(size=sizes.sum())
    return {"truth": truth, "output": 0.8 * truth + error + 0.5 * rng.normal(size=sizes.sum())}


def masks(rng: Generator, sizes: np.ndarray) -> Kept:
    """Draw confusion matrices of three classes; groups differ in what they show and how well."""
    shown = rng.dirichlet([6.0, 3.0, 1.0], len(sizes))  # (G, 3)
    sure = rng.beta(8, 2, len(sizes))[:, None, None]
    wrong = rng.dirichlet([2.0, 2.0, 2.0], (len(sizes), 3))
    matrix = shown[:, :, None] * ((1 - sure) * wrong + sure * np.eye(3))  # (G, 3, 3)
    return {"confusion": np.repeat((4096 * matrix).astype(np.int64), sizes, axis=0)}


def rare_masks(rng: Generator, sizes: np.ndarray) -> Kept:
    """Draw confusion matrices as `masks` does; four groups in five do not show the third class."""
    drawn = masks(rng, sizes)
    absent = np.repeat(rng.random(len(sizes)) < 0.8, sizes)
    drawn["confusion"][absent, 2] = 0
    return drawn


WORLDS: dict[str, tuple[str, Target, Callable[[Generator, np.ndarray], Kept]]] = {
    "accuracy": ("accuracy", Target("class", ("a", "b")), classes),
    "balanced": ("balanced_accuracy", Target("class", ("a", "b")), rare_class),
    "mAP": ("mAP_micro", Target("multilabel", CLASSES), labels),
    "mIoU": ("mIoU", Target("mask", CLASSES), masks),
    "mIoU, rare": ("mIoU", Target("mask", CLASSES), rare_masks),
    "R2": ("R2", Target("scalar"), numbers),
}


def even(rng: Generator, count: int) -> np.ndarray:
    """Draw the sizes of groups of 5 to 49 samples."""
    return rng.integers(5, 50, count)


def uneven(rng: Generator, count: int) -> np.ndarray:
    """Draw the sizes of groups of which a few have most of the samples."""
    sizes: np.ndarray = np.maximum(1, rng.lognormal(3, 1.5, count).astype(int))
    return sizes


def single(rng: Generator, count: int) -> np.ndarray:
    """Return the sizes of groups of one sample each."""
    return np.ones(count, int)


def coverage(
    name: str, groups: int, parts: int, sizes: Callable[[Generator, int], np.ndarray] = even
) -> tuple[float, float, float]:
    """Return the share of parts with an interval, of these that hold the truth, and their width.

    Args:
        name: of the metric.
        groups: how many a test part has.
        parts: how many test parts are drawn.
        sizes: draws the sizes of groups; those of `single` are told as samples.
    """
    metric, target, draw = WORLDS[name]
    task, rng = make_task("label", target), np.random.default_rng(0)

    def drawn(counts: np.ndarray) -> tuple[Kept, list[str]]:
        names = np.repeat(np.arange(len(counts)), counts).astype(str).tolist()
        return draw(rng, counts), names

    # no metric depends on the sizes, and of uneven groups a few would make up the truth
    truth = task.metrics(drawn((even if sizes is uneven else sizes)(rng, WORLD))[0])[metric]
    limits = []
    for _ in range(parts):
        kept, names = drawn(sizes(rng, groups))
        found = measure_intervals(task, kept, None if sizes is single else names).limits
        limits.append(found.get(metric, (np.nan, np.nan)))
    low, high = np.array(limits).T
    given = np.isfinite(low)
    if not given.any():
        return 0.0, np.nan, np.nan
    held = (low <= truth) & (truth <= high)
    return float(given.mean()), float(held[given].mean()), float(np.nanmedian(high - low))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=200, help="test parts of each kind")
    parts = parser.parse_args().parts
    print(f"{'metric':<12}{'test part':<18}{'given':>7}{'held':>9}{'width':>8}")
    kinds = {even: "groups", uneven: "uneven groups", single: "samples"}
    counts = [(count, sizes) for sizes in (even, uneven) for count in (3, 5, 10, 20)]
    for name in WORLDS:
        for count, sizes in [*counts, (20, single), (60, single)]:
            given, held, width = coverage(name, count, parts, sizes)
            part = f"{count} {kinds[sizes]}"
            print(
                f"{name:<12}{part:<18}{100 * given:>5.0f} %{100 * held:>7.1f} %{width:>8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
