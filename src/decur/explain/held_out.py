"""How much of one set of vectors another can tell, on samples that took no part in fitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, ShuffleSplit

Float = NDArray[np.float64]
Rows = NDArray[np.int64]

STRENGTHS = np.logspace(-3, 3, 7)  # of the ridge, where rows have unit norm on average
TEST_SHARE = 1 / 3
FEWEST_GROUPS = 6
_FOLDS = 3
_NEGLIGIBLE = 1e-10  # of an eigenvalue, beside the largest


@dataclass(frozen=True)
class Halves:
    """Vectors of the samples that train and of those that test: (n, r) and (m, r)."""

    train: Float
    test: Float


def split(count: int, groups: Sequence[str] | None, seed: int) -> tuple[Rows, Rows]:
    """Two thirds of the samples train and the rest test.

    Args:
        count: of the samples.
        groups: of each, which stay whole; None, or fewer than six, for a split at random.
        seed: of the split.
    """
    grouped = groups is not None and len(set(groups)) >= FEWEST_GROUPS
    kind = GroupShuffleSplit if grouped else ShuffleSplit
    splitter = kind(n_splits=1, test_size=TEST_SHARE, random_state=seed)
    train, test = next(splitter.split(np.empty((count, 0)), groups=groups if grouped else None))
    return train, test


def standardised(x: NDArray[np.float32], train: Rows) -> NDArray[np.float32]:
    """Columns to mean 0 and variance 1 over the training rows; those that do not vary to 0."""
    mean, spread = x[train].mean(0, dtype=np.float64), x[train].std(0, dtype=np.float64)
    varies = spread > np.finfo(np.float32).eps * np.abs(mean)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=varies)
    return ((x - mean) * scale).astype(np.float32)


def coordinates(x: NDArray[np.float32], train: Rows, test: Rows) -> Halves:
    """Rows in the principal axes of the training rows, largest first.

    All axes are kept, so that nothing linear is lost: a ridge on them is the ridge on x. With
    fewer samples than columns they come from the N x N Gram matrix, and no K x K one is made.

    Args:
        x: (N, K) with columns centred over the training rows.
        train: rows.
        test: rows.
    """
    a, b = x[train].astype(np.float64), x[test].astype(np.float64)
    wide = a.shape[1] > a.shape[0]
    values, vectors = np.linalg.eigh(a @ a.T if wide else a.T @ a)
    kept = np.flatnonzero(values > _NEGLIGIBLE * max(values[-1], np.finfo(float).tiny))[::-1]
    axes = vectors[:, kept]  # (n, r), or (K, r)
    if wide:
        roots = np.sqrt(values[kept])
        return Halves(axes * roots, (b @ a.T) @ (axes / roots))
    return Halves(a @ axes, b @ axes)


def predicted(x: Halves, y: Halves, groups: Sequence[str] | None = None, blocks: int = 1) -> Float:
    """Share of the variance of y that a ridge on x predicts of the held-out samples (R2).

    Its strength is chosen within the training samples: by leaving one out, or by three folds of
    groups.

    Args:
        x: what predicts.
        y: what is predicted, its columns weighted by their variance.
        groups: of the training samples, None for none.
        blocks: into how many equal blocks of columns y falls, each with a share of its own.

    Returns:
        (blocks,); about 0 where x tells nothing, 0 where there is nothing to tell.
    """
    if not x.train.shape[1]:
        return np.zeros(blocks)
    scale = np.sqrt((x.train**2).sum(1).mean())
    # With more columns than rows scikit-learn works on the N x N Gram matrix, which takes half the
    # time where there are nearly as many: columns of zeros change nothing.
    n, columns = x.train.shape
    empty = max(n + 1 - columns, 0) if 2 * columns > n else 0
    train, test = (np.pad(half, ((0, 0), (0, empty))) / scale for half in (x.train, x.test))
    folds = None
    if groups is not None and len(set(groups)) >= _FOLDS:
        folds = list(GroupKFold(_FOLDS).split(train, groups=groups))
    ridge = RidgeCV(STRENGTHS, cv=folds, scoring="neg_mean_squared_error" if folds else None)
    guess = ridge.fit(train, y.train).predict(test).reshape(y.test.shape)
    pairs = zip(np.split(y.test, blocks, 1), np.split(guess, blocks, 1), strict=True)
    return np.array(
        [
            r2_score(true, told, multioutput="variance_weighted") if true.any() else 0.0
            for true, told in pairs
        ]
    )


def canonical(x: Halves, y: Halves, components: int) -> Float:
    """Canonical correlations (Hotelling 1936), fitted on training samples, of held-out ones.

    Within the first principal components of either side: with as many of them as samples, any two
    sets of vectors would correlate perfectly.

    Args:
        x: principal coordinates.
        y: principal coordinates.
        components: how many of each side count, at most.

    Returns:
        As many as the side that has fewer, in the order of the training samples' correlations,
        largest first; they may be negative.
    """
    # each side keeps its own: cut to the other's rank, it could lose what they have in common
    a, b = (_whitened(half, components) for half in (x, y))
    left, _, right = np.linalg.svd(a.train.T @ b.train, full_matrices=False)
    return _correlations(a.test @ left, b.test @ right.T)


def _whitened(half: Halves, components: int) -> Halves:
    spread = half.train[:, :components].std(0)
    return Halves(half.train[:, :components] / spread, half.test[:, :components] / spread)


def _correlations(a: Float, b: Float) -> Float:
    """Of each column of a with that of b."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    found: Float = np.divide((a * b).sum(0), scale, out=np.zeros(a.shape[1]), where=scale > 0)
    return found


def places(
    a: NDArray[np.float32], b: NDArray[np.float32], parts: dict[str, slice], chunk: int = 512
) -> dict[str, tuple[Rows, Rows]]:
    """At which place the partner of each row comes, by cosine, in either direction.

    Ties count against the partner: vectors that are all alike find nothing.

    Args:
        a: (N, K) of one sensor.
        b: (N, K) of the other, row for row.
        parts: columns by name.
        chunk: rows compared at a time.

    Returns:
        For each part, and for "all" of them, places from 0 of b's rows among b for each row of a,
        and of a's among a for each of b: (N,) each.
    """
    sides = {name: (a[:, part], b[:, part]) for name, part in parts.items()}
    squares = {name: tuple((x**2).sum(1) for x in side) for name, side in sides.items()}
    squares["all"] = tuple(sum(s[i] for s in squares.values()) for i in (0, 1))
    own = {name: (x * y).sum(1) for name, (x, y) in sides.items()}
    own["all"] = np.sum(list(own.values()), axis=0)
    inverse = {
        name: tuple(np.divide(1, np.sqrt(s), out=np.zeros_like(s), where=s > 0) for s in pair)
        for name, pair in squares.items()
    }
    found = {name: (np.zeros(len(a), int), np.zeros(len(a), int)) for name in inverse}
    for start in range(0, len(a), chunk):
        rows = np.arange(start, min(start + chunk, len(a)))
        dots = {name: x[rows] @ y.T for name, (x, y) in sides.items()}  # (n, N)
        dots["all"] = np.sum(list(dots.values()), axis=0)
        for name, dot in dots.items():
            left, right = inverse[name]
            cosine = own[name] * left * right  # (N,), of partners
            scores = dot * left[rows, None] * right
            scores[rows - start, rows] = cosine[rows]
            found[name][0][rows] = (scores >= cosine[rows, None]).sum(1) - 1
            found[name][1][:] += (scores >= cosine).sum(0)
    for _, backwards in found.values():
        backwards -= 1
    return found
