"""Correlation of each dimension between two sensors (Eq. 1), with its standard error.

Embeddings may lie on disk: rows are read some at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

CHUNK = 256  # rows read at a time


def diagonal(chunks: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Float:
    """Return the correlation of each column of A with that of B, in one pass over rows (Eq. 1).

    Args:
        chunks: rows of A and B, (n, K) each.

    Returns:
        (K,); NaN where a column is constant to the precision of what came in.
    """
    return _Moments.of(chunks).correlation


def diagonal_with_error(
    a: NDArray[Any],
    b: NDArray[Any],
    rows: NDArray[Any],
    groups: Sequence[Any] | NDArray[Any] | None = None,
) -> Float:
    """Return the correlation of each column of A with that of B, and its standard error.

    The error is that of `decur.verdicts.standard_error`, from the influence of each sample on a
    correlation (Devlin et al. 1975), in a second pass over rows.

    Args:
        a: (N, K), in memory or on disk.
        b: (N, K), likewise.
        rows: (n,) which rows count.
        groups: (n,) of these rows; None: each is one of its own.

    Returns:
        (2, K), NaN where a column is constant; errors are infinite where there is one group alone.
    """
    codes = np.arange(len(rows))
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
        order = np.argsort(codes, kind="stable")  # so that a group is summed in one go
        rows, codes = rows[order], codes[order]
    found = _Moments.of(chunked(a, b, rows))
    c, scale = found.correlation, found.scale
    squares = np.zeros_like(c)
    last, open_sum = -1, np.zeros_like(c)  # of the group that the next chunk may go on with
    for start, (part_a, part_b) in zip(
        range(0, len(rows), CHUNK), chunked(a, b, rows), strict=True
    ):
        x = (part_a.astype(np.float64) - found.mean_a) * scale[0]  # (m, K)
        y = (part_b.astype(np.float64) - found.mean_b) * scale[1]
        influence = x * y - c * (x**2 + y**2) / 2
        own = codes[start : start + CHUNK]
        firsts = np.flatnonzero(np.diff(own, prepend=-1))
        sums = np.add.reduceat(influence, firsts)  # (groups, K)
        if own[0] == last:
            sums[0] += open_sum
        else:
            squares += open_sum**2
        squares += (sums[:-1] ** 2).sum(0)
        last, open_sum = int(own[-1]), sums[-1]
    squares += open_sum**2
    independent = last + 1
    if independent < 2:
        return np.stack([c, np.full_like(c, np.inf)])
    return np.stack([c, np.sqrt(squares * independent / (independent - 1)) / len(rows)])


@dataclass(frozen=True)
class _Moments:
    """Means, sums of squares about them and sums of products of the columns of A and B, (K,)."""

    seen: int
    mean_a: Float
    mean_b: Float
    squares_a: Float
    squares_b: Float
    product: Float
    rounding: float

    @classmethod
    def of(cls, chunks: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> _Moments:
        """Take them in one pass over rows.

        Sums of squares about the running means are merged chunk by chunk (Chan, Golub and LeVeque
        1983), in float64: the result is exact whatever the means and the chunks.
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
        return cls(seen, mean_a, mean_b, squares_a, squares_b, product, rounding)

    @property
    def scale(self) -> tuple[Float, Float]:
        """Return 1 / standard deviation of the columns of A and B, 0 where either is constant."""
        varies = (self.squares_a > self.seen * (self.rounding * self.mean_a) ** 2) & (
            self.squares_b > self.seen * (self.rounding * self.mean_b) ** 2
        )
        varies &= np.sqrt(self.squares_a) * np.sqrt(self.squares_b) > 0
        spreads = (np.sqrt(squares / self.seen) for squares in (self.squares_a, self.squares_b))
        one, two = (
            np.divide(1, spread, out=np.zeros_like(spread), where=varies) for spread in spreads
        )
        return one, two

    @property
    def correlation(self) -> Float:
        """Return the correlation of each column of A with that of B, NaN where one is constant."""
        one, two = self.scale
        return np.where(one > 0, self.product / self.seen * one * two, np.nan)


def chunked(
    a: NDArray[Any], b: NDArray[Any], rows: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Read the rows of A and B that are named, some at a time: (n, K) each."""
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        yield a[some], b[some]
