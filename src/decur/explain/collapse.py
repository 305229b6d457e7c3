"""Dimensions and parts of an embedding that do not vary, or hardly: what is said of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from decur.errors import enumerated
from decur.explain.base import Arrays
from decur.scores import Float

LOW_RANK = 0.1  # least share of the rank that width and samples allow
COLLAPSED = 1.05  # effective rank below which all samples lie on a line or in a point
_ANEW = (
    "Nothing can be told from these; look at the loss, and train anew with a lower optimizer.lr or "
    "for longer."
)


def on_width(arrays: Arrays, pair: str) -> list[str]:
    """Say which parts use few of their dimensions: rule 6 of `decur.explain.advice.advice`."""
    collapsed = collapsed_parts(arrays, pair)
    low = [
        f"{part} ({rank:.0f} of {most})"
        for part, (rank, most) in _ranks(arrays, pair).items()
        if rank < LOW_RANK * most and part not in collapsed
    ]
    said = []
    if collapsed:
        said.append(f"Collapsed to a line or a point: {', '.join(collapsed)}. {_ANEW}")
    if low:
        said.append(
            f"The effective rank is low beside the width: {', '.join(low)}. A narrower embedding "
            "(projector.width) may hold as much; only a run tells."
        )
    return said


def on_constant(diagonals: Mapping[str, Float]) -> list[str]:
    """Say how many dimensions of each part do not vary, which no other sentence counts.

    Args:
        diagonals: C_ii by part, (k,) each, NaN where a dimension is the same for all samples of
            either sensor.
    """
    constant = [
        f"{len(c) - len(varying(c))} of {len(c)} {part} dimensions"
        for part, c in diagonals.items()
        if len(varying(c)) < len(c)
    ]
    if not constant:
        return []
    return [f"{enumerated(constant)} are the same for all samples of a sensor: collapsed. {_ANEW}"]


def varying(diagonal: Float) -> Float:
    """Return the columns of correlations, (..., k), without those of dimensions that do not vary.

    Args:
        diagonal: C_ii, or rows of which the first is C_ii; NaN where a dimension does not vary.
    """
    found: Float = diagonal[..., ~np.isnan(np.atleast_2d(diagonal)[0])]
    return found


def diagonals(arrays: Arrays, pair: str) -> dict[str, Float]:
    """Return C_ii of each part."""
    return {
        part: arrays[f"{pair}/diagonal/{part}"][0]
        for part in arrays[f"{pair}/parts"].tolist()
        if f"{pair}/diagonal/{part}" in arrays
    }


def collapsed_parts(arrays: Arrays, pair: str) -> list[str]:
    """Return parts of which all samples lie on a line or in a point, as "s1 common"."""
    ranks = _ranks(arrays, pair)
    flat = {
        f"{name} {part}"
        for part in arrays[f"{pair}/parts"].tolist()
        # the first direction is to the second sensor
        for name, score in zip(
            arrays[f"{pair}/sensors"].tolist()[::-1], arrays[f"{pair}/same/{part}"], strict=True
        )
        if np.isnan(score)
    }
    return [part for part, (rank, most) in ranks.items() if rank < COLLAPSED < most or part in flat]


def _ranks(arrays: Arrays, pair: str) -> dict[str, tuple[float, int]]:
    """Return the effective rank of each sensor's parts, and the most that it can be."""
    trained = arrays[f"{pair}/samples"][1]
    # samples of one group may be alike: as many directions as groups can be all there is
    trained = min(trained, arrays.get(f"{pair}/independent", [trained])[0])
    widths = zip(arrays[f"{pair}/parts"].tolist(), arrays[f"{pair}/widths"].tolist(), strict=True)
    return {
        f"{name} {part}": (float(rank), min(width, trained - 1))
        for part, width in widths
        for name, rank in zip(
            arrays[f"{pair}/sensors"].tolist(), arrays[f"{pair}/rank/{part}"], strict=True
        )
    }
