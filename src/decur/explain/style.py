"""Colours and markers that mean the same in every picture; the colour-blind can tell them apart."""

from __future__ import annotations

from collections.abc import Iterable

# Blue and orange of Okabe and Ito (2008).
COMMON, UNIQUE, OTHER = "#0072B2", "#E69F00", "#555555"
ABSENT = "#C8C8C8"  # what is not labelled
# Teal, wine, black and grey: apart from each other, and from the parts, in hue and in lightness.
MODALITIES = ("#44AA99", "#882255", "#000000", "#888888")
MARKERS = ("o", "^", "s", "D")


def part_colour(name: str) -> str:
    """Of a part of the embedding."""
    return {"common": COMMON, "unique": UNIQUE}.get(name, OTHER)


def part_line(name: str) -> str:
    """Line style of a part of the embedding."""
    return {"common": "-", "unique": "--"}.get(name, ":")


def modality_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each modality, in order."""
    return {name: MODALITIES[i % len(MODALITIES)] for i, name in enumerate(names)}
