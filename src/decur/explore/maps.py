"""Where the dots of a page lie, and which samples are near to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decur.explain.base import Watch
from decur.explain.tsne import FEWEST, lay_out
from decur.explore.settings import Layout

Float = NDArray[np.float32]

_CHUNK = 512  # queries at a time: their cosines to all are one array
_ROUNDING = 1e-6  # of cosines: those that differ by less are equal
_DIMS = 50  # principal components that t-SNE starts from; more cost time and change little
_GAP = 1.15  # between the maps of sensors that are not comparable, in widths of a map


@dataclass(frozen=True)
class Ranking:
    """The nearest vectors of one sensor to each of another.

    Args:
        rows: (n, k), the nearest first; -1 for none.
        cosine: (n, k), 0 for none.
        partner: (n,) the rank of the sample's own vector, from 1; 0 where there is none.
        searched: how many vectors there are.
    """

    rows: NDArray[np.int32]
    cosine: Float
    partner: NDArray[np.int32]
    searched: int


def rank_rows(queries: Float, base: Float, k: int, itself: bool) -> Ranking:
    """Find the nearest vectors to each query, and the rank of its own.

    Args:
        queries: (n, D) of length 1; NaN where a sample lacks the sensor.
        base: (n, D), the vectors that are searched, of the same samples.
        k: how many.
        itself: whether the own vector may be found; it is then ranked, too. Ties count against it,
            as a collapsed embedding finds nothing.
    """
    there = np.flatnonzero(~np.isnan(base).any(axis=1))
    asking = np.flatnonzero(~np.isnan(queries).any(axis=1))
    k = min(k, len(there) - (not itself))
    rows = np.full((len(queries), max(k, 0)), -1, np.int32)
    cosine = np.zeros(rows.shape, np.float32)
    partner = np.zeros(len(queries), np.int32)
    place = np.full(len(base), -1)
    place[there] = np.arange(len(there))
    for start in range(0, len(asking) if k > 0 else 0, _CHUNK):
        some = asking[start : start + _CHUNK]
        found = queries[some] @ base[there].T  # (c, m)
        own, lines = place[some], np.arange(len(some))
        has = own >= 0
        if itself:
            to_own = found[lines[has], own[has]] - _ROUNDING
            partner[some[has]] = (found[has] >= to_own[:, None]).sum(1)  # its own among them
        else:
            found[lines[has], own[has]] = -np.inf
        best = np.argpartition(-found, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(found, best, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows[some] = there[np.take_along_axis(best, order, 1)]
        cosine[some] = np.take_along_axis(values, order, 1)
    return Ranking(rows, cosine, partner, len(there))


def lay_out_sensors(
    vectors: Mapping[str, Float], layout: Layout, *, together: bool, watch: Watch
) -> dict[str, Float]:
    """Lay out the vectors of sensors in a plane.

    Args:
        vectors: `{sensor: (n, D)}`, NaN where a sample lacks the sensor.
        layout: "tsne" or "pca".
        together: in one map; else each sensor has its own, side by side.
        watch: shows how far it is.

    Returns:
        `{sensor: (n, 2)}` from 0 to 1 downwards, NaN for none; several maps are wider.
    """
    there = {name: ~np.isnan(x).any(axis=1) for name, x in vectors.items()}
    found = {name: np.full((len(x), 2), np.nan, np.float32) for name, x in vectors.items()}
    groups = [list(vectors)] if together else [[name] for name in vectors]
    for number, names in enumerate(groups):
        # about its mean each: what is common to a sensor alone would part the sensors
        points = [vectors[n][there[n]] - vectors[n][there[n]].mean(0) for n in names]
        placed = _plane(np.concatenate(points), layout, watch)
        placed = (placed - placed.min(0)) / max(float(np.ptp(placed, axis=0).max()), 1e-12)
        placed[:, 0] += _GAP * number
        last = 0
        for name in names:
            first, last = last, last + int(there[name].sum())
            found[name][there[name]] = placed[first:last]
    return found


def _plane(points: Float, layout: Layout, watch: Watch) -> Float:
    """Return the places of some points: (n, D) to (n, 2)."""
    from sklearn.decomposition import PCA

    varies = np.ptp(points, axis=0).any()
    neighbours = layout == "tsne" and len(points) >= FEWEST and varies
    placed = np.zeros((len(points), 2), np.float32)
    if varies:
        dims = min(_DIMS if neighbours else 2, *points.shape)
        components = PCA(dims, random_state=0).fit_transform(points)
        if neighbours:
            return lay_out(np.ascontiguousarray(components), watch=watch)[0]
        placed[:, :dims] = components
    return placed
