"""Sample browser: a card for each sample, with pictures, saliency and nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from decur.agreement import nearest_rows, unit_rows
from decur.data.selection import evenly_spaced
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
from decur.explain.model import Checkpoint, encoded, pictures_of
from decur.explain.saliency import saliency_maps
from decur.features import Features, SampleLoader
from decur.objectives.blocks import is_shared
from decur.plotting import batch_pictures, part_colour, rgb
from decur.report import cards, columns, label, paragraph, strip, thumbnail

Float = NDArray[np.float64]

SIDE, SMALL = 128, 72  # pixels of a sample's picture, and of a neighbour's
MOST = 200  # samples: the page is to stay one that can be mailed
_CHUNK = 1024  # rows read at a time


def browser(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    shown: int = 24,
    neighbors: int = 4,
) -> Arrays:
    """Collect pictures, saliency and nearest neighbours of some samples, evenly spaced.

    Neighbours have the highest cosine among all samples: of the common dimensions where the run
    has such, else of all. Dimensions are standardised over the samples, sensor by sensor, as the
    loss sees them.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        shown: Number of samples.
        neighbors: Number of neighbours of each sample, in each sensor.

    Returns:
        "ids", "modalities", "parts" and "part" (which is compared), names. For each sensor M:
        "M/present" (n,), "M/picture" (n, s, s, 3) uint8, "M/P/saliency" (n, s, s) uint8 for each
        part P, relative to the picture's highest; "M/neighbor" (t, s, s, 3) uint8 pictures of
        neighbours, "M/neighbor_ids" (t,). From sensor A to B: "A-B/nearest" (n, k), rows of
        "B/neighbor", -1 for none, "A-B/cosine" (n, k), and "A-B/rank" (n,), that of the sample's
        own picture among all, from 1; 0 where it has none. "searched" (M,), the number of samples
        of each sensor.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if no sample can be read.
    """
    check_option("browser.shown", shown, 1, MOST)
    check_option("browser.neighbors", neighbors, 1, 16)
    whole = encoded(checkpoint, loader, watch=watch)
    names = list(checkpoint.modalities)
    has = {name: whole.present(name) for name in names}
    there = np.flatnonzero(np.logical_or.reduce(list(has.values())))
    if not len(there):
        raise DoesNotApply("None of the samples can be read.")
    rows = there[evenly_spaced(len(there), shown)]
    part = next((part for part in checkpoint.parts if is_shared(part, *names)), "")
    dims = checkpoint.parts.get(part, slice(None))
    arrays: Arrays = {
        "ids": text(*(loader.ids[row] for row in rows)),
        "modalities": text(*names),
        "parts": text(*checkpoint.parts),
        "part": text(part),
        "searched": np.array([has[name].sum() for name in names]),
    }
    arrays |= _pictures(checkpoint, loader, whole, rows, watch)
    standards = {name: _statistics(whole, name, dims, has[name]) for name in names}
    wanted: dict[str, NDArray[np.int64]] = {}
    for b in names:
        found: dict[str, tuple[NDArray[np.int64], Float, NDArray[np.int64]]] = {}
        for a in names:
            queries = _unit(whole.embeddings[a][rows][:, dims], standards[a])
            mine = _unit(whole.embeddings[b][rows][:, dims], standards[b])
            chunks = _units(whole, b, dims, standards[b])
            found[a] = nearest_rows(queries, chunks, neighbors, own=rows, mine=mine, itself=a != b)
        used = np.unique(np.concatenate([nearest.ravel() for nearest, _, _ in found.values()]))
        wanted[b] = used[used >= 0]
        for a, (nearest, cosine, rank) in found.items():
            place = np.searchsorted(wanted[b], nearest)
            arrays[f"{a}-{b}/nearest"] = np.where(nearest < 0, -1, place)
            arrays[f"{a}-{b}/cosine"] = cosine.astype(np.float32)
            if a != b:
                arrays[f"{a}-{b}/rank"] = np.where(has[b][rows], rank, 0)
    for name, used in wanted.items():
        arrays[f"{name}/neighbor"] = pictures_of(checkpoint, loader, used, SMALL, watch, [name])[
            name
        ]
        arrays[f"{name}/neighbor_ids"] = text(*(loader.ids[row] for row in used))
    return arrays


def _pictures(
    checkpoint: Checkpoint, loader: SampleLoader, whole: Features, rows: NDArray[Any], watch: Watch
) -> Arrays:
    """Return pictures and saliency of some rows."""
    few = SampleLoader(
        loader.data, settings=loader.settings, among=[loader.indices[row] for row in rows]
    )
    statistics = {name: whole.statistics(name) for name in checkpoint.modalities}
    parts: list[Arrays] = []
    for batch in watch(few, len(few)):
        try:
            # with the paper's mean, a third of the pictures are salient for nothing
            salient = saliency_maps(checkpoint, batch, statistics=statistics, score="energy")
        except DoesNotApply:
            salient = {}
        found: Arrays = {}
        for name, pictures in batch_pictures(batch, checkpoint.modalities, SIDE).items():
            has = batch["present"][name].numpy()
            found[f"{name}/present"] = has
            found[f"{name}/picture"] = pictures
            for part in checkpoint.parts if salient else ():
                maps = np.zeros((len(has), SIDE, SIDE), np.uint8)
                if has.any():
                    x = salient[name][part][:, None]
                    x = interpolate(x, (SIDE, SIDE), mode="bilinear")[:, 0]
                    highest = x.amax((1, 2), keepdim=True).clamp_min(1e-12)
                    maps[has] = (255 * x / highest).round().byte().numpy()
                found[f"{name}/{part}/saliency"] = maps
        parts.append(found)
    # A batch that lacks the sensor whose encoder has no places gives saliency, others give none.
    keys = [key for key in parts[0] if all(key in part for part in parts)]
    return {key: np.concatenate([part[key] for part in parts]) for key in keys}


def _statistics(
    whole: Features, name: str, dims: slice, has: NDArray[np.bool_]
) -> tuple[Float, Float]:
    """Return mean and standard deviation of each dimension, over the samples with the sensor."""
    mean, std = (x.double().cpu().numpy()[dims] for x in whole.statistics(name))
    return mean, np.maximum(std, 1e-5)


def _unit(rows: NDArray[Any], standard: tuple[Float, Float]) -> Float:
    z: Float = (rows - standard[0]) / standard[1]
    return unit_rows(z)


def _units(
    whole: Features, name: str, dims: slice, standard: tuple[Float, Float]
) -> Iterator[tuple[int, Float]]:
    """Yield standardised embeddings of length 1 chunk by chunk, each after its first row."""
    every = whole.embeddings[name]
    for start in range(0, len(every), _CHUNK):
        yield start, _unit(every[start : start + _CHUNK, dims], standard)


def overlay(
    picture: NDArray[np.uint8], saliency: NDArray[np.uint8], colour: str
) -> NDArray[np.uint8]:
    """Return a picture in dim grey, coloured where it is salient.

    Args:
        picture: (H, W, 3).
        saliency: (H, W), 255 where it is highest.
        colour: as "#0072B2".
    """
    grey = picture.mean(-1, keepdims=True) * 0.7  # (H, W, 1)
    tint = rgb(colour)
    share = saliency[..., None] / 255 * 0.85
    bright = 0.55 * tint + 0.45 * 255 * (tint / tint.max())
    mixed: NDArray[np.uint8] = (grey * (1 - share) + bright * share).clip(0, 255).astype(np.uint8)
    return mixed


def findings(arrays: Arrays) -> str:
    """Write the cards, and how often a sample's own picture is the nearest of the other sensor."""
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
                        f"{np.median(rank):.0f} (by chance {len(rank) / searched:.2g} of "
                        f"{len(rank)}, and {(searched + 1) / 2:g})"
                    )
    which = f"{arrays['part'][0]} dimensions" if arrays["part"][0] else "the whole embedding"
    text = f"Neighbours by the cosine of {which}. Open a card to see them."
    return text if not told else f"{text} Of the samples below, {'; '.join(told)}."


def _short(arrays: Arrays, row: int, names: Sequence[str]) -> str:
    pictures = [
        thumbnail(arrays[f"{name}/picture"][row], name, side=4 if len(names) > 1 else 8)
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
        of = [thumbnail(picture, "as it is", side=7.5)]
        for part in parts:
            if f"{name}/{part}/saliency" in arrays:
                salient = overlay(
                    picture, arrays[f"{name}/{part}/saliency"][row], part_colour(part, parts)
                )
                nothing = "" if arrays[f"{name}/{part}/saliency"][row].any() else ": nothing"
                of.append(thumbnail(salient, f"salient for {part}{nothing}", side=7.5))
        body.append([strip(name, of)])
        for other in names:
            key = f"{name}-{other}"
            near = [
                thumbnail(
                    arrays[f"{other}/neighbor"][place],
                    f"{arrays[f'{other}/neighbor_ids'][place]}: {cosine:.2f}"
                    + (", its own" if arrays[f"{other}/neighbor_ids"][place] == own else ""),
                    side=SMALL / 16,
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


register(
    Analysis(
        name="browser",
        title="Samples, one by one",
        about=(
            "Some samples, evenly spaced. Each card opens to what each sensor's picture is salient "
            "for (Grad-CAM of the part's energy, which does not hang on the sign of dimensions; a "
            "colour for each part, brightest at the picture's highest) and to its nearest "
            "neighbours in each sensor, with their cosine. Neighbours across sensors should show "
            "the same kind of place: what both of them see."
        ),
        arrays=browser,
        plots={},
        findings=findings,
        order=70,
        needs=("captum",),
    )
)
