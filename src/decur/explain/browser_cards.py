"""The cards of the sample browser, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decur.explain.base import Arrays
from decur.plotting import part_colour
from decur.report import cards, columns, label, paragraph, strip, thumbnail

SMALL = 72  # pixels of a neighbour's picture


def overlay(
    picture: NDArray[np.uint8], saliency: NDArray[np.uint8], colour: str
) -> NDArray[np.uint8]:
    """A picture in dim grey, coloured where it is salient.

    Args:
        picture: (H, W, 3).
        saliency: (H, W), 255 where it is highest.
        colour: as "#0072B2".
    """
    grey = picture.mean(-1, keepdims=True) * 0.7  # (H, W, 1)
    tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    share = saliency[..., None] / 255 * 0.85
    mixed = grey * (1 - share) + (0.55 * tint + 0.45 * 255 * (tint / tint.max())) * share
    return mixed.clip(0, 255).astype(np.uint8)


def findings(arrays: Arrays) -> str:
    """The cards, and how often a sample's own picture is the nearest of the other sensor."""
    names, parts = arrays["modalities"].tolist(), arrays["parts"].tolist()
    items = [
        (_short(arrays, row, names), _long(arrays, row, names, parts))
        for row in range(len(arrays["ids"]))
    ]
    return paragraph(_sentence(arrays, names)) + cards(items)


def _sentence(arrays: Arrays, names: Sequence[str]) -> str:
    told = []
    for a in names:
        for b in names:
            if a != b:
                rank = arrays[f"{a}-{b}/rank"]
                rank = rank[(rank > 0) & arrays[f"{a}/present"]]
                if len(rank):
                    searched = arrays["searched"][names.index(b)]
                    told.append(
                        f"from {a} to {b} the sample's own picture is the nearest of {searched} "
                        f"for {(rank == 1).sum()} of {len(rank)}, its median rank "
                        f"{np.median(rank):.0f}"
                    )
    which = f"{arrays['part'][0]} dimensions" if arrays["part"][0] else "the whole embedding"
    text = f"Neighbours by the cosine of {which}. Open a card to see them."
    return text if not told else f"{text} Of the samples below, {'; '.join(told)}."


def _short(arrays: Arrays, row: int, names: Sequence[str]) -> str:
    pictures = [
        thumbnail(arrays[f"{name}/picture"][row], name, 4 if len(names) > 1 else 8)
        for name in names
        if arrays[f"{name}/present"][row]
    ]
    return label(str(arrays["ids"][row])) + strip("", pictures)


def _long(arrays: Arrays, row: int, names: Sequence[str], parts: Sequence[str]) -> str:
    body = []
    for name in names:
        if not arrays[f"{name}/present"][row]:
            body.append([paragraph(f"This sample has no {name} picture.")])
            continue
        picture = arrays[f"{name}/picture"][row]
        of = [thumbnail(picture, "as it is", 7.5)]
        for part in parts:
            if f"{name}/{part}/saliency" in arrays:
                salient = overlay(
                    picture, arrays[f"{name}/{part}/saliency"][row], part_colour(part)
                )
                nothing = "" if arrays[f"{name}/{part}/saliency"][row].any() else ": nothing"
                of.append(thumbnail(salient, f"salient for {part}{nothing}", 7.5))
        body.append([strip(name, of)])
        for other in names:
            key = f"{name}-{other}"
            near = [
                thumbnail(
                    arrays[f"{other}/neighbor"][place],
                    f"{arrays[f'{other}/neighbor_ids'][place]}: {cosine:.2f}"
                    + (", its own" if arrays[f"{other}/neighbor_ids"][place] == own else ""),
                    SMALL / 16,
                )
                for own in [arrays["ids"][row]]
                for place, cosine in zip(
                    arrays[f"{key}/nearest"][row], arrays[f"{key}/cosine"][row], strict=True
                )
                if place >= 0
            ]
            title = f"nearest in {other}"
            if name != other and (rank := int(arrays[f"{key}/rank"][row])):
                searched = arrays["searched"][list(names).index(other)]
                title += f" (its own place: rank {rank} of {searched})"
            body[-1].append(strip(title, near))
    return columns(["".join(column) for column in body])
