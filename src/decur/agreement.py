"""What the vectors of one sensor tell of another's: a ridge, correlations, places of partners."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from decur.scores import Float, Rows

Real = TypeVar("Real", np.float32, np.float64)

# Penalties of the ridge to choose from; rows are scaled to unit norm on average.
STRENGTHS = np.logspace(-3, 3, 7)
FOLDS = 3  # folds of groups that choose the penalty
NEGLIGIBLE = 1e-10  # eigenvalues below this share of the largest count as zero
PAIRINGS = 20  # ways to pair groups at random of which it takes as many to know what chance gives


@dataclass(frozen=True)
class Halves:
    """Vectors of the samples that train and of those that test: (n, r) and (m, r)."""

    train: Float
    test: Float


def coordinates(x: NDArray[np.float32], train: Rows, test: Rows) -> Halves:
    """Return the rows in the principal axes of the training rows, the largest axis first.

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
    kept = np.flatnonzero(values > NEGLIGIBLE * max(values[-1], np.finfo(float).tiny))[::-1]
    axes = vectors[:, kept]  # (n, r), or (K, r)
    if wide:
        roots = np.sqrt(values[kept])
        return Halves(axes * roots, (b @ a.T) @ (axes / roots))
    return Halves(a @ axes, b @ axes)


def predicted(x: Halves, y: Halves, groups: Sequence[str] | None = None, targets: int = 1) -> Float:
    """Return the share of the variance of y that a ridge on x predicts for held-out samples (R2).

    Args:
        x: what predicts.
        y: what is predicted, its columns weighted by their variance.
        groups: of the training samples, None for none.
        targets: into how many targets of equally many columns y falls, each with a share of its
            own.

    Returns:
        (targets,); about 0 where x tells nothing, 0 where x does not vary, NaN where y does not.
    """
    from sklearn.metrics import r2_score

    guess = guessed(x, y, groups) if x.train.shape[1] else None
    found = np.zeros(targets)
    for target, true in enumerate(np.split(y.test, targets, 1)):
        if not np.ptp(true, axis=0).any():
            found[target] = np.nan
        elif guess is not None:
            told = np.split(guess, targets, 1)[target]
            found[target] = r2_score(true, told, multioutput="variance_weighted")
    return found


def guessed(x: Halves, y: Halves, groups: Sequence[str] | None = None) -> Float:
    """Return what a ridge on x makes of y for the held-out samples: (m, r), as `y.test`.

    Its strength is chosen within the training samples: by leaving one out, or by three folds of
    groups.

    Args:
        x: what predicts, of one column or more.
        y: what is predicted.
        groups: of the training samples, None for none.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    scale = np.sqrt((x.train**2).sum(1).mean())
    # With more columns than rows scikit-learn works on the N x N Gram matrix, which takes half the
    # time where there are nearly as many: columns of zeros change nothing.
    n, columns = x.train.shape
    empty = max(n + 1 - columns, 0) if 2 * columns > n else 0
    train, test = (np.pad(half, ((0, 0), (0, empty))) / scale for half in (x.train, x.test))
    folds = None
    if groups is not None and len(set(groups)) >= FOLDS:
        folds = list(GroupKFold(FOLDS).split(train, groups=groups))
    ridge = RidgeCV(STRENGTHS, cv=folds, scoring="neg_mean_squared_error" if folds else None)
    found: Float = ridge.fit(train, y.train).predict(test).reshape(y.test.shape)
    return found


def canonical(x: Halves, y: Halves, components: int) -> Float:
    """Return the canonical correlations of held-out samples, fitted on training samples.

    They are those of Hotelling (1936), within the first principal components of either side: with
    as many of them as samples, any two sets of vectors would correlate perfectly.

    Args:
        x: principal coordinates.
        y: principal coordinates.
        components: how many of each side count, at most.

    Returns:
        As many as the side that has fewer, in the order of the training samples' correlations,
        largest first; they may be negative.
    """
    # Each side keeps its own number of components: cut to the other side's rank, it could lose
    # what the two have in common.
    a, b = (_whitened(half, components) for half in (x, y))
    left, _, right = np.linalg.svd(a.train.T @ b.train, full_matrices=False)
    return _correlations(a.test @ left, b.test @ right.T)


def _whitened(half: Halves, components: int) -> Halves:
    """Return components of unit variance, in float32, which takes half the time and is enough."""
    spread = half.train[:, :components].std(0)
    train, test = (x[:, :components] / spread for x in (half.train, half.test))
    return Halves(train.astype(np.float32), test.astype(np.float32))


def _correlations(a: Float, b: Float) -> Float:
    """Return the correlation of each column of a with the same column of b."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    found: Float = np.divide((a * b).sum(0), scale, out=np.zeros(a.shape[1]), where=scale > 0)
    return found


def at_random(
    train: Rows, test: Rows, groups: Sequence[str] | None, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Pair the rows of two sensors at random, as the null hypothesis of no relation has them.

    Samples of one group (a scene, a place) are alike, so that whole groups change partners:
    pairing single samples would break a likeness that has nothing to do with the other sensor,
    and chance would come out too low. A group's rows are repeated or cut to the other's number.
    No group keeps its partner: among few groups that would often be the true pairs. With too few
    groups all draws are alike, so that chance is not known: see `pairings`.

    Args:
        train: rows that train.
        test: rows that test; where they are of other groups, these change among themselves.
        groups: of all samples, by row; None: each sample is one of its own, of which so few keep
            their partner that it does not matter.
        rng: of the pairing.

    Returns:
        For each row of `train` the place in it of its new partner, and likewise for `test`. A group
        whose partner has no rows in a part has rows of all other groups; the only group of a part
        has its own rows in another order.
    """
    if groups is None:
        return rng.permutation(len(train)), rng.permutation(len(test))
    names = np.asarray(groups)
    own = [names[rows] for rows in (train, test)]
    labels = [np.unique(x) for x in own]
    if np.isin(
        labels[0], labels[1]
    ).any():  # not held out whole: a group has the same partner in both parts
        every = np.unique(np.concatenate(labels))
        swaps = [dict(zip(every, _others(every, rng), strict=True))] * 2
    else:
        swaps = [dict(zip(x, _others(x, rng), strict=True)) for x in labels]
    found = []
    for of_rows, swap in zip(own, swaps, strict=True):
        chosen = np.arange(len(of_rows))
        for group in np.unique(of_rows):
            mine, theirs = (np.flatnonzero(of_rows == name) for name in (group, swap[group]))
            if not len(theirs) or swap[group] == group:
                theirs = rng.permutation(np.flatnonzero(of_rows != group))
            chosen[mine] = np.resize(theirs if len(theirs) else rng.permutation(mine), len(mine))
        found.append(chosen)
    return found[0], found[1]


def _others(labels: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return labels in an order at random in which none keeps its place, unless it is alone."""
    places = np.arange(len(labels))
    order = rng.permutation(places)
    kept = np.flatnonzero(order == places)
    if len(kept) == 1:
        kept = np.append(kept, (kept + 1) % len(labels))
    order[kept] = np.roll(order[kept], 1)  # which change places among themselves
    shuffled: NDArray[Any] = labels[order]
    return shuffled


def pairings(train: Rows, test: Rows, groups: Sequence[str] | None) -> int:
    """Return in how many ways `at_random` can pair groups, or samples where there are no groups.

    Chance is not known where these are fewer than `PAIRINGS`.

    Args:
        train: rows that train.
        test: rows that test.
        groups: of all samples, by row; None: each sample is one of its own.
    """
    labels = [
        set(rows.tolist() if groups is None else (groups[row] for row in rows.tolist()))
        for rows in (train, test)
    ]
    apart = labels if labels[0].isdisjoint(labels[1]) else [labels[0] | labels[1]]
    # orders in which nothing keeps its place, of which there are n! / e to the next integer
    return math.prod(round(math.factorial(min(len(of), 10)) / math.e) for of in apart)


# -- nearest neighbours, and the rank of a sample's own vector among all of another sensor ---------

TIED = 1e-6  # cosines that differ by less are equal: float32 tells no more


def unit_rows(values: NDArray[Real]) -> NDArray[Real]:
    """Return vectors of length 1, (N, D); those of length 0, and NaN, as they are."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[Real] = values / np.maximum(norms, np.finfo(values.dtype).tiny)
    return unit


def no_lower(cosines: NDArray[Any], own: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which cosines count against the one of a sample's own vector: ties do.

    Vectors that are all alike, as those of a collapsed embedding, so find nothing.

    Args:
        cosines: of any shape.
        own: of the own vectors, broadcast over `cosines`.
    """
    return np.asarray(cosines >= own - TIED)


def ranks(cosines: NDArray[Any], own: Rows) -> Rows:
    """Return the rank of one vector for each query, from 1; ties count against it.

    Args:
        cosines: (c, N) of queries with vectors.
        own: (c,) index of the vector that is ranked for each query.
    """
    found: Rows = no_lower(cosines, np.take_along_axis(cosines, own[:, None], 1)).sum(1)
    return found


def nearest_rows(
    queries: NDArray[Real],
    chunks: Iterable[tuple[int, NDArray[Real]]],
    k: int,
    *,
    own: Rows,
    mine: NDArray[Real],
    itself: bool,
) -> tuple[Rows, NDArray[Real], Rows]:
    """Return the k rows of the highest cosine, and the rank of the own one; exact.

    Args:
        queries: (n, D) of length 1; NaN for none.
        chunks: the rows that are searched, of length 1, NaN for those that are not there, piece by
            piece, each after the number of its first row.
        k: how many.
        own: (n,) the row of each query's own vector.
        mine: (n, D) these vectors; NaN for none.
        itself: whether a query may find its own row.

    Returns:
        Rows (n, k), the nearest first, -1 for none; their cosines (n, k), -inf for none; and the
        rank (n,) of the own row, from 1, 0 for none. Ties count against it.
    """
    best = np.full((len(queries), k), -np.inf, queries.dtype)
    rows = np.full((len(queries), k), -1, np.int64)
    to_own = (queries * mine).sum(1)  # (n,)
    rank = np.isfinite(to_own).astype(np.int64)
    for start, chunk in chunks:
        cosine = queries @ chunk.T  # (n, c)
        cosine[np.isnan(cosine)] = -np.inf
        places = np.arange(start, start + len(chunk))
        others = places != own[:, None]  # (n, c)
        rank += (others & no_lower(cosine, to_own[:, None])).sum(1)
        if not itself:
            cosine[~others] = -np.inf
        if 0 < k < len(chunk):
            some = np.sort(np.argpartition(-cosine, k - 1, axis=1)[:, :k])
            cosine, found = np.take_along_axis(cosine, some, 1), places[some]
        else:
            found = np.broadcast_to(places, cosine.shape)
        cosines, candidates = np.hstack([best, cosine]), np.hstack([rows, found])
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(cosines, order, 1)
        rows = np.take_along_axis(candidates, order, 1)
    return np.where(np.isfinite(best), rows, -1), best, rank


def places(
    a: NDArray[np.float32], b: NDArray[np.float32], parts: dict[str, slice], chunk: int = 512
) -> dict[str, tuple[Rows, Rows]]:
    """Return the rank of each row's partner among all rows of the other sensor, by cosine.

    Both directions are ranked; ties count against the partner, see `no_lower`.

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
            found[name][0][rows] = no_lower(scores, cosine[rows, None]).sum(1) - 1
            found[name][1][:] += no_lower(scores, cosine).sum(0)
    for _, backwards in found.values():
        backwards -= 1
    return found
