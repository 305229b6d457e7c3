"""Dimension map: t-SNE in which each dimension of the embedding is a point (Fig. 1 and 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.charts import Chart, Group, Points, map_of
from decur.data.selection import interleaved
from decur.errors import SEEDS
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
from decur.explain.model import Checkpoint, encoded
from decur.explain.tsne import lay_out
from decur.features import Features, SampleLoader
from decur.objectives.blocks import sensors_of
from decur.plotting import Figure, legend, modality_colours, part_colour, subplots
from decur.report import paragraph, table
from decur.scores import standardised

FEWEST = 8  # samples that make a dimension a point
_DEALS = 1000  # random divisions of the dimensions into parts
_OF_POINTS = ("xy", "modality", "part", "dimension", "nearest", "correlation", "partner")


def dimensions(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    samples: int = 512,
    perplexity: float = 30,
    seed: int = 0,
    batches: int = 1,
) -> Arrays:
    """Map the dimensions: each of a sensor's embedding is a point (Algorithm 2).

    A dimension's features are its standardised values on samples that all sensors see: two
    dimensions are near where they correlate. Those that do not vary are left out.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        samples: Number of samples, evenly spaced.
        perplexity: Perplexity of t-SNE.
        seed: Seed of t-SNE.
        batches: Number of maps that are drawn, each of other samples; Fig. 8 has 4.

    Returns:
        "modalities", "parts", names; for each point "xy" (P, 2), its "modality" and "part" (P,) by
        number, its "dimension" (P,), "nearest" (P,), the point that correlates with it best,
        "across" (P,), that among the other sensors, -1 where there is none, "correlation" (P,) with
        the nearest, and "partner" (P, M), that with the same dimension of each other sensor, NaN
        where there is none; "samples" and "constant", how many samples there are and dimensions
        left out. The same of further maps with the prefix "1/" and so on.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if too few samples have all sensors, or too few dimensions vary.
    """
    check_option("dimensions.samples", samples, FEWEST)
    check_option("dimensions.perplexity", perplexity, 1)
    check_option("dimensions.seed", seed, *SEEDS)
    check_option("dimensions.batches", batches, 1)
    names = list(checkpoint.modalities)
    whole = encoded(checkpoint, loader, watch=watch)
    rows = np.flatnonzero(whole.present(*names))
    if len(rows) < FEWEST:
        raise DoesNotApply(
            f"It needs {FEWEST} samples or more that all sensors see; there are {len(rows)}."
        )
    arrays: Arrays = {"modalities": text(*names), "parts": text(*checkpoint.parts)}
    for number, some in enumerate(interleaved(len(rows), samples, batches, FEWEST)):
        features, found = _points(checkpoint, whole, rows[some])
        xy, nearest = lay_out(features, perplexity, seed, watch)
        found |= {"xy": xy, "nearest": nearest, "across": _across(features, found["modality"])}
        found["correlation"] = (features * features[nearest]).mean(1)
        found["partner"] = _partners(features, found, len(names))
        arrays |= {f"{number}/{key}" if number else key: x for key, x in found.items()}
    return arrays


def _points(
    checkpoint: Checkpoint, whole: Features, rows: NDArray[Any]
) -> tuple[NDArray[np.float32], Arrays]:
    """Return the standardised values of each dimension on some samples, and what it is.

    Args:
        checkpoint: the run.
        whole: its features of all samples.
        rows: (n,) the samples.

    Returns:
        (P, n), and "modality", "part" and "dimension", (P,) each, "samples" and "constant".
    """
    names = list(checkpoint.modalities)
    part_of = np.full(checkpoint.dim, -1)
    for number, dims in enumerate(checkpoint.parts.values()):
        part_of[dims] = number
    points, modality, dimension = [], [], []
    for number, name in enumerate(names):
        z = standardised(whole.embeddings[name][rows]).T  # (K, n), zeros where it does not vary
        kept = np.flatnonzero(z.any(axis=1) & (part_of >= 0))
        points.append(z[kept])
        modality.append(np.full(len(kept), number))
        dimension.append(kept)
    where, sensor, features = (np.concatenate(each) for each in (dimension, modality, points))
    return features, {
        "modality": sensor,
        "part": part_of[where],
        "dimension": where,
        "samples": np.array(len(rows)),
        "constant": np.array(len(names) * checkpoint.dim - len(where)),
    }


def plot_map(arrays: Arrays) -> Figure:
    """Draw the map coloured by sensor, and by part; a map for each batch of samples."""
    maps = _maps(arrays)
    low, high = arrays["xy"].min(0), arrays["xy"].max(0)
    shape = float(np.clip((high - low)[1] / (high - low)[0], 0.5, 1))
    figure, axes = subplots(len(maps), 2, width=4.4, height=4.2 * shape + 0.6)
    for number, (row, prefix) in enumerate(zip(axes, maps, strict=True)):
        _draw(row, {**arrays, **{k: arrays[prefix + k] for k in ("xy", "modality", "part")}})
        if len(maps) > 1:
            row[0].set_ylabel(f"batch {number + 1}", fontsize=9)
    return figure


def _draw(axes: NDArray[Any], arrays: Arrays) -> None:
    """Draw one map on two axes."""
    xy, modality, part = arrays["xy"], arrays["modality"], arrays["part"]
    sensors, parts = arrays["modalities"].tolist(), arrays["parts"].tolist()
    colours = modality_colours(sensors)
    size = float(np.clip(6000 / len(xy), 1.5, 24))
    # Points are drawn in a mixed order, so that no kind covers the others.
    order = np.random.default_rng(0).permutation(len(xy))
    kinds: list[tuple[Any, list[str], list[str]]] = [
        (modality, sensors, [colours[name] for name in sensors]),
        (part, parts, [part_colour(name, parts) for name in parts]),
    ]
    for axis, (kind, names, palette) in zip(axes, kinds, strict=True):
        for number, name in enumerate(parts):
            chosen = order[part[order] == number]
            axis.scatter(
                *xy[chosen].T,
                s=size * (2.2 if name == "unique" else 1),
                c=[palette[i] for i in kind[chosen]],
                marker="x" if name == "unique" else "o",
                alpha=0.7,
                linewidths=0.8 if name == "unique" else 0,
            )
        marks = [
            axis.scatter([], [], s=30, color=colour, marker="x" if name == "unique" else "o")
            for name, colour in zip(names, palette, strict=True)
        ]
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01)}
        legend(axis, marks, names, fontsize=8, ncols=len(names), **below)
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
    axes[0].set_title("by sensor (x: unique)" if "unique" in parts else "by sensor", fontsize=9)
    axes[1].set_title("by part", fontsize=9)


def chart_map(arrays: Arrays) -> Chart | None:
    """Return the maps, of which each point tells what it correlates with."""
    if "correlation" not in arrays:  # of a version before 0.2
        return None
    looks: list[tuple[str, list[Group]]] = []
    about: list[str] = []
    places: list[NDArray[Any]] = []
    names: list[str] = []
    for number, prefix in enumerate(_maps(arrays)):
        of = {**arrays, **{k: arrays[prefix + k] for k in _OF_POINTS}}
        own = _names(of)
        batch = f", batch {number + 1}" if len(_maps(arrays)) > 1 else ""
        looks += [(kind + batch, groups) for kind, groups in _looks(of, start=len(names))]
        about += [_about(of, own, point) for point in range(len(own))]
        places.append(of["xy"])
        names += own
    return map_of(np.concatenate(places), looks, Points(names, about, "dimensions"))


def _maps(arrays: Arrays) -> list[str]:
    """Return the prefixes of the maps' arrays in order."""
    return ["", *sorted((k[:-2] for k in arrays if k.endswith("/xy")), key=lambda k: int(k[:-1]))]


def _names(arrays: Arrays) -> list[str]:
    """Return the names of the points of a map."""
    sensors = arrays["modalities"].tolist()
    which = zip(arrays["modality"].tolist(), arrays["dimension"].tolist(), strict=True)
    return [f"{sensors[sensor]} {dimension}" for sensor, dimension in which]


def _looks(arrays: Arrays, start: int) -> Iterator[tuple[str, list[Group]]]:
    """Yield what a map is coloured by, and its groups, whose rows are counted from a start."""
    sensors, parts = arrays["modalities"].tolist(), arrays["parts"].tolist()
    colours = modality_colours(sensors)
    found: dict[str, list[Group]] = {"by sensor": [], "by part": []}
    for number, part in enumerate(parts):
        chosen, marker = arrays["part"] == number, "x" if part == "unique" else "o"
        rows = start + np.flatnonzero(chosen)
        found["by part"].append(Group(part, rows, part_colour(part, parts), marker))
        for at, sensor in enumerate(sensors):
            rows = start + np.flatnonzero(chosen & (arrays["modality"] == at))
            found["by sensor"].append(Group(f"{sensor}, {part}", rows, colours[sensor], marker))
    yield from found.items()


def _about(arrays: Arrays, names: Sequence[str], point: int) -> str:
    """Return what is told of a point of a map."""
    part = arrays["parts"][arrays["part"][point]]
    lines = [f"{names[point]}, {part}"]
    for sensor, value in zip(arrays["modalities"], arrays["partner"][point], strict=True):
        if not np.isnan(value):
            lines.append(f"with its partner of {sensor}: {value:.2f}")
    lines.append(f"nearest: {names[arrays['nearest'][point]]}, {arrays['correlation'][point]:.2f}")
    return "\n".join(lines)


def findings(arrays: Arrays) -> str:
    """Write what came out: where the neighbours of each part's dimensions are."""
    sensors = len(arrays["modalities"])
    total = len(arrays["xy"])
    about = (
        f"{total} dimensions of {sensors} sensor{'s' if sensors > 1 else ''}, each a point with "
        f"its values on {arrays['samples']} samples"
    )
    about += f"; {arrays['constant']} do not vary and are left out." if arrays["constant"] else "."
    if sensors == 1:
        return paragraph(about)
    several = len(np.unique(arrays["part"])) > 1
    rows: list[list[object]] = []
    for name, chosen in _kinds(arrays):
        if chosen.any():
            shares = zip(neighbours(arrays, chosen), chances(arrays, chosen), strict=True)
            row = [f"{share:.0%} (by chance {chance:.1%})" for share, chance in shares]
            if several:
                low, high = dealt_parts(arrays, chosen)
                row.append(f"{low:.0%} to {high:.0%}")
            rows.append([name, int(chosen.sum()), *row])
    reading = (
        "Nearest is meant by correlation, before the points are laid out in a plane; by chance "
        "any other point is the nearest, so that each part has a chance of its own. Of all "
        "points of other sensors, a common dimension should have its own partner nearest, the "
        "same dimension there, and a unique one should find no partner, nor one of a block in a "
        "sensor that the block does not name. Two islands of one kind may be mirror images: "
        "dimensions that correlate negatively lie apart. Distances between islands mean little on "
        "such a map."
    )
    head = ["part", "points", "nearest in another sensor is its partner"]
    head += ["nearest of all is in another sensor", "in its own part"]
    if several:
        head.append("in its own part, if parts were dealt at random")
        reading += (
            " In the last column dimensions are dealt to the parts at random, and neighbours stay "
            "as they are: 95 % of deals lie in that range, and a share within it does not tell "
            "that the part keeps to itself, or does not."
        )
    return paragraph(about) + table(head, rows) + paragraph(reading)


def _kinds(arrays: Arrays) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each kind of points by its name: a part's, of a block inside and outside its sensors.

    Sensors that a block does not name are to agree with no other in its dimensions.
    """
    sensors = arrays["modalities"].tolist()
    for number, name in enumerate(arrays["parts"].tolist()):
        chosen = arrays["part"] == number
        members = sensors_of(name)
        inside = np.array([sensor in members for sensor in sensors])[arrays["modality"]]
        if not members:
            yield name, chosen
            continue
        yield name, chosen & inside
        others = ", ".join(sensor for sensor in sensors if sensor not in members)
        yield f"{name}, seen by {others}", chosen & ~inside


def neighbours(arrays: Arrays, chosen: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return where the neighbours of some points are.

    Args:
        arrays: of `dimensions`.
        chosen: (P,) which points.

    Returns:
        Three shares of the points: those whose best match in other sensors is their partner (the
        same dimension), those whose nearest point lies in another sensor, and those whose nearest
        point lies in their own part.
    """
    nearest, across = arrays["nearest"][chosen], arrays["across"][chosen]
    partner = (across >= 0) & (arrays["dimension"][across] == arrays["dimension"][chosen])
    other = arrays["modality"][nearest] != arrays["modality"][chosen]
    own = arrays["part"][nearest] == arrays["part"][chosen]
    return float(partner.mean()), float(other.mean()), float(own.mean())


def chances(arrays: Arrays, chosen: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return what `neighbours` is on average where any other point is as likely the nearest.

    Args:
        arrays: of `dimensions`, of several sensors.
        chosen: (P,) which points.
    """
    modality, part, dimension = (arrays[key] for key in ("modality", "part", "dimension"))
    total = len(modality)
    elsewhere = total - np.bincount(modality)[modality]  # (P,) points of other sensors
    partner = (np.bincount(dimension)[dimension] - 1) / np.maximum(elsewhere, 1)
    other = elsewhere / (total - 1)
    own = (np.bincount(part)[part] - 1) / (total - 1)
    return float(partner[chosen].mean()), float(other[chosen].mean()), float(own[chosen].mean())


def dealt_parts(arrays: Arrays, chosen: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share in the own part, 2.5th and 97.5th percentile, if parts were dealt at random.

    Dimensions change their parts, in all sensors alike, as points of one dimension may be partners;
    who is near to whom stays as it is.

    Args:
        arrays: of `dimensions`.
        chosen: (P,) points of one part, of some sensors.
    """
    names, place = np.unique(arrays["dimension"], return_inverse=True)  # (K,), (P,)
    parts = np.zeros(len(names), np.int64)
    parts[place] = arrays["part"]
    mine = parts == arrays["part"][chosen][0]
    asked = np.isin(arrays["modality"], arrays["modality"][chosen])  # (P,)
    asking, nearest = place[asked], place[arrays["nearest"][asked]]
    rng, shares = np.random.default_rng(0), np.empty(_DEALS)
    for deal in range(_DEALS):
        dealt = rng.permutation(mine)
        here = dealt[asking]
        shares[deal] = (here & dealt[nearest]).sum() / max(here.sum(), 1)
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)


def _across(features: NDArray[np.float32], sensor: NDArray[Any]) -> NDArray[np.int64]:
    """Return the best-correlated point of another sensor, for standardised features (P, n)."""
    found = np.full(len(sensor), -1)
    for number in np.unique(sensor):
        (others,) = np.nonzero(sensor != number)
        (own,) = np.nonzero(sensor == number)
        for some in np.array_split(own, -(-len(own) // 1024)) if len(others) else ():
            found[some] = others[(features[some] @ features[others].T).argmax(1)]
    return found


def _partners(features: NDArray[np.float32], points: Arrays, sensors: int) -> NDArray[np.float64]:
    """Return how each point correlates with the same dimension of each other sensor: (P, M)."""
    sensor, dimension = points["modality"], points["dimension"]
    place = np.full((sensors, int(dimension.max()) + 1), -1)
    place[sensor, dimension] = np.arange(len(dimension))
    found = np.full((len(dimension), sensors), np.nan)
    for other in range(sensors):
        partner = place[other, dimension]
        there = (partner >= 0) & (sensor != other)
        found[there, other] = (features[there] * features[partner[there]]).mean(1)
    return found


register(
    Analysis(
        name="dimensions",
        title="Map of the dimensions",
        about=(
            "Each point is one dimension of one sensor's embedding; dimensions that respond alike "
            "to the same samples lie together (t-SNE; Fig. 1 and 8 of the paper). Common "
            "dimensions of two sensors should overlap, unique ones lie apart, a sensor each."
        ),
        arrays=dimensions,
        plots={"map": plot_map},
        charts={"map": chart_map},
        findings=findings,
        order=20,
        needs=("openTSNE",),
    )
)
