"""Sample map: t-SNE in which each point is one picture, coloured by sensor and by label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decur.charts import Chart, Group, Points, Thumbnails, map_of
from decur.data import Target
from decur.data.selection import evenly_spaced
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
from decur.explain.model import Checkpoint, encoded, pictures_of
from decur.explain.tsne import lay_out, reduced
from decur.features import SampleLoader
from decur.plotting import (
    ABSENT,
    MARKERS,
    Figure,
    legend,
    modality_colours,
    plain,
    subplots,
)
from decur.probes import score_of_neighbours
from decur.report import paragraph, sheet, table
from decur.scores import METRICS, chance, standardised

PANELS = 4  # labels that get a panel
NEIGHBOURS = 10  # neighbours on the map whose labels are compared
PICTURES, SIDE = 400, 48  # pictures kept over all sensors, and the side of each in pixels
_COLUMNS = 20  # pictures in a row of a sheet
COMPONENTS = 50  # principal components that t-SNE starts from, as is usual
# Paul Tol's "muted": colours that the colour-blind can tell apart.
CLASSES = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933")


def samples(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    samples: int = 1000,
    vectors: Literal["embedding", "features"] = "embedding",
    perplexity: float = 30,
    seed: int = 0,
) -> Arrays:
    """Map the samples: each picture is a point.

    Vectors are standardised for each sensor and reduced to their first 50 principal components.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        samples: Largest number of samples, evenly spaced.
        vectors: Vectors that are mapped: "embedding" puts all sensors on one map; "features", those
            of the encoder, which no two sensors have in common, makes a map for each sensor.
        perplexity: Perplexity of t-SNE.
        seed: Seed of t-SNE.

    Returns:
        "modalities" and "maps", names; for each point "xy" (P, 2), its "map" and "modality" by
        number and its "sample" (P,); "ids" (samples,); "labels", names of panels, "label/NAME"
        (samples,) with NaN unknown, "classes/NAME" (none for numbers); "hidden", labels for which
        there is no room; "pictured" (t,), samples by number, and "thumbnail/M" (t, s, s, 3) uint8
        of each sensor M, black where the sample lacks it.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if no map has enough samples, or any that differ.
    """
    check_option("samples.samples", samples, 1)
    check_option("samples.perplexity", perplexity, 1)
    check_option("samples.seed", seed, *SEEDS)
    names = list(checkpoint.modalities)
    whole = encoded(checkpoint, loader, watch=watch)
    rows = evenly_spaced(len(loader.indices), samples)
    source = whole.embeddings if vectors == "embedding" else whole.features
    points, modality, sample = [], [], []
    for number, name in enumerate(names):
        there = np.flatnonzero(whole.present(name)[rows])
        points.append(standardised(source[name][rows[there]]))
        modality.append(np.full(len(there), number))
        sample.append(there)
    maps = {name: [number] for number, name in enumerate(names)}
    if vectors == "embedding":
        maps = {"all sensors": list(range(len(names)))}
    laid: dict[str, tuple[NDArray[Any], ...]] = {}
    reasons: list[str] = []
    for title, which in maps.items():
        vector, sensor, row = (
            np.concatenate([of[i] for i in which]) for of in (points, modality, sample)
        )
        try:
            xy, _ = lay_out(reduced(vector, COMPONENTS, seed), perplexity, seed, watch)
        except DoesNotApply as reason:  # the other sensors have theirs
            reasons.append(str(reason))
        else:
            laid[title] = xy, sensor, row
    if not laid:
        raise DoesNotApply(" ".join(dict.fromkeys(reasons)))
    arrays: Arrays = {
        "modalities": text(*names),
        "maps": text(*laid),
        "map": np.concatenate([np.full(len(of[0]), i) for i, of in enumerate(laid.values())]),
    }
    for key, place in (("xy", 0), ("modality", 1), ("sample", 2)):
        arrays[key] = np.concatenate([of[place] for of in laid.values()])
    labels = _labels({k: v[rows] for k, v in whole.labels.items()}, loader.data.targets)
    arrays["labels"], arrays["hidden"] = text(*list(labels)[:PANELS]), text(*list(labels)[PANELS:])
    for label in arrays["labels"].tolist():
        arrays[f"label/{label}"], arrays[f"classes/{label}"] = labels[label]
    arrays["ids"] = text(*(loader.ids[row] for row in rows))
    arrays["pictured"] = evenly_spaced(len(rows), max(1, PICTURES // len(names)))
    pictures = pictures_of(checkpoint, loader, rows[arrays["pictured"]], SIDE, watch)
    return arrays | {f"thumbnail/{name}": of for name, of in pictures.items()}


def plot_map(arrays: Arrays) -> Figure:
    """Draw the map coloured by sensor, and by each label; a row for each map."""
    maps, looks = arrays["maps"].tolist(), _looks(arrays)
    columns = len(looks) // len(maps) if len(maps) > 1 else min(3, len(looks))
    width = min(4.4, 8.8 / columns)
    figure, axes = subplots(-(-len(looks) // columns), columns, width=width, height=width * 1.1)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
    for axis in axes.flat[len(looks) :]:
        axis.axis("off")
    for axis, (title, groups) in zip(axes.flat, looks, strict=False):
        _draw(axis, arrays["xy"], groups)
        axis.set_title(plain(title), fontsize=9)
    return figure


def chart_map(arrays: Arrays) -> Chart | None:
    """Return the map, of which each point tells its sample, the labels and the pictures."""
    if "ids" not in arrays:  # of a version before 0.2
        return None
    ids, sensors = arrays["ids"].tolist(), arrays["modalities"].tolist()
    about = []
    for sensor, sample in zip(arrays["modality"], arrays["sample"], strict=True):
        lines = [f"{ids[sample]}: {sensors[sensor]}"]
        for label in arrays["labels"].tolist():
            value, classes = arrays[f"label/{label}"][sample], arrays[f"classes/{label}"]
            if not np.isnan(value):
                lines.append(f"{label}: {classes[int(value)] if len(classes) else f'{value:.4g}'}")
        about.append("\n".join(lines))
    place = {int(sample): at for at, sample in enumerate(arrays["pictured"])}
    shown = {name: arrays[f"thumbnail/{name}"] for name in sensors}
    thumbnails = Thumbnails(
        sheets={name: sheet(pictures, _COLUMNS) for name, pictures in shown.items()},
        columns=_COLUMNS,
        count=len(arrays["pictured"]),
        places=[place.get(int(sample), -1) for sample in arrays["sample"]],
        absent={k: np.flatnonzero(~x.any(axis=(1, 2, 3))).tolist() for k, x in shown.items()},
    )
    points = Points([ids[sample] for sample in arrays["sample"]], about, "samples", thumbnails)
    return map_of(arrays["xy"], _looks(arrays), points)


def _looks(arrays: Arrays) -> list[tuple[str, list[Group]]]:
    """Return what each map is coloured by, in turn, and the groups of its points."""
    maps, labels = arrays["maps"].tolist(), arrays["labels"].tolist()
    together = maps == ["all sensors"]
    found = []
    for number, title in enumerate(maps):
        chosen = arrays["map"] == number
        for label in [None, *labels] if together or not labels else labels:
            groups = (
                _by_sensor(arrays, chosen) if label is None else _by_label(arrays, chosen, label)
            )
            found.append(
                ((label or "sensor") if together else f"{title}: {label or 'sensor'}", groups)
            )
    return found


def findings(arrays: Arrays) -> str:
    """Write what came out: how much of each label neighbours on the map tell, by sensor."""
    names, labels = arrays["modalities"].tolist(), arrays["labels"].tolist()
    about = f"{len(arrays['xy'])} pictures of {len(np.unique(arrays['sample']))} samples."
    if not labels:
        return paragraph(about + " The data has no labels: colours are the sensors.")
    if len(arrays["hidden"]):
        about += f" Not shown for want of room: {', '.join(arrays['hidden'].tolist())}."
    rows: list[list[object]] = []
    for label in labels:
        scores = [told(arrays, label, number) for number in range(len(names))]
        # a sensor's chance is that of the samples it has
        seen = [_known(arrays, label, number)[1] for number in range(len(names))]
        seen = [y for y in seen if len(y)]
        if not seen:
            continue
        classes = arrays[f"classes/{label}"].tolist()
        target = Target("class", tuple(classes)) if classes else Target("scalar")
        by_chance = [f"{chance(y, target):.2f}" for y in seen]
        by_chance = by_chance[:1] if len(set(by_chance)) == 1 else by_chance
        measure = METRICS[target.kind] if classes else "R2 over random neighbours"
        rows.append([label, *(f"{s:.2f}" for s in scores), ", ".join(by_chance), measure])
    reading = (
        f"How well the {NEIGHBOURS} nearest points of the same sensor on the map tell the label of "
        "a point: what two dimensions have kept of the vectors. Neighbours of one scene or "
        "place may share its labels for that reason alone. A label "
        "that only one sensor can see should stand out in that sensor's column alone."
    )
    head = ["label", *names, "by chance", "measure"]
    return paragraph(about) + table(head, rows) + paragraph(reading)


def told(arrays: Arrays, label: str, modality: int) -> float:
    """Return how well neighbours on the map tell a label: see `score_of_neighbours`.

    Args:
        arrays: of `samples`.
        label: which.
        modality: number of the sensor, to whose points the neighbours belong, too.

    Returns:
        The score; NaN where too few points are labelled.
    """
    xy, y = _known(arrays, label, modality)
    return score_of_neighbours(xy, y, len(arrays[f"classes/{label}"]), NEIGHBOURS)


def _known(arrays: Arrays, label: str, modality: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the places of a sensor's labelled points, (n, 2), and their labels, (n,)."""
    chosen = arrays["modality"] == modality
    y = arrays[f"label/{label}"][arrays["sample"][chosen]]
    return arrays["xy"][chosen][~np.isnan(y)], y[~np.isnan(y)]


def _labels(
    values: dict[str, NDArray[Any]], targets: dict[str, Target]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.str_]]]:
    """Return each label's values, NaN for unknown, and its classes.

    Each class of a multilabel is a label of its own, with the classes "absent" and "present".
    Those labels come last, the most evenly split ones first.
    """
    found, several = {}, {}
    for name, y in values.items():
        target = targets[name]
        if target.kind == "multilabel":
            for number, title in enumerate(target.classes):
                column = y[:, number].astype(np.float64)
                if np.nanmin(column, initial=np.inf) < np.nanmax(column, initial=-np.inf):
                    several[f"{name}: {title}"] = column, text("absent", "present")
        else:
            unknown = y < 0 if target.kind == "class" else np.isnan(y)
            known = np.where(unknown, np.nan, y.astype(np.float64))
            if not np.isnan(known).all():
                found[name] = known, text(*target.classes) if target.kind == "class" else text()
    evenly = sorted(several, key=lambda name: abs(np.nanmean(several[name][0]) - 0.5))
    return found | {name: several[name] for name in evenly}


def _by_sensor(arrays: Arrays, chosen: NDArray[np.bool_]) -> list[Group]:
    """Return a group a sensor, of some points."""
    names = arrays["modalities"].tolist()
    colours, groups = modality_colours(names), []
    for number, name in enumerate(names):
        rows = np.flatnonzero(chosen & (arrays["modality"] == number))
        if len(rows):
            groups.append(Group(name, rows, colours[name], MARKERS[number % len(MARKERS)]))
    return groups


def _by_label(arrays: Arrays, chosen: NDArray[np.bool_], label: str) -> list[Group]:
    """Return a group a class of some points, or all of them with their numbers."""
    values = arrays[f"label/{label}"][arrays["sample"]]
    classes = arrays[f"classes/{label}"].tolist()
    unknown = np.isnan(values)
    counts = [int((chosen & (values == number)).sum()) for number in range(len(classes))]
    order = sorted(range(len(classes)), key=lambda number: -counts[number])
    shown = sorted(number for number in order[: len(CLASSES)] if counts[number])
    palette = CLASSES if len(classes) > 2 else ("#999999", CLASSES[1])
    kinds = [("unknown", chosen & unknown, ABSENT)]
    if classes:
        kinds.append(("others", chosen & ~unknown & ~np.isin(values, shown), "#777777"))
    kinds += [
        (classes[number], chosen & (values == number), palette[place])
        for place, number in enumerate(shown)
    ]
    groups = [Group(name, np.flatnonzero(of), colour) for name, of, colour in kinds if of.any()]
    known = np.flatnonzero(chosen & ~unknown)
    return groups if classes else [*groups, Group("", known, values[known])]


def _draw(axis: Any, xy: NDArray[np.float32], groups: Sequence[Group]) -> None:
    """Draw groups of points, with a legend of their names or a bar of their numbers."""
    named = []
    for group in groups:
        coloured = isinstance(group.colour, str)
        points = axis.scatter(
            *xy[group.rows].T,
            s=float(np.clip(12000 / max(len(group.rows), 1), 4, 30)),
            marker=group.marker,
            linewidths=0,
            alpha=0.75,
            **({"color": group.colour} if coloured else {"c": group.colour, "cmap": "viridis"}),
        )
        named.append((group.name, points))
        if not coloured:
            how = {"location": "bottom", "fraction": 0.05, "pad": 0.02}
            axis.figure.colorbar(points, ax=axis, **how).ax.tick_params(labelsize=8)
    if all(isinstance(group.colour, str) for group in groups):
        _legend(axis, named)


def _legend(axis: Any, shown: list[tuple[str, Any]]) -> None:
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 3, "frameon": False}
    close = {"markerscale": 1.5, "handletextpad": 0.1, "columnspacing": 0.8}
    names, handles = [name for name, _ in shown], [handle for _, handle in shown]
    legend(axis, handles, names, fontsize=8, **below, **close)


register(
    Analysis(
        name="samples",
        title="Map of the samples",
        about=(
            "Each point is one picture; pictures that the run finds alike lie together (t-SNE of "
            "the standardised embeddings, all sensors on one map). Colours are the sensors and, "
            "where the data has them, labels."
        ),
        arrays=samples,
        plots={"map": plot_map},
        charts={"map": chart_map},
        findings=findings,
        order=25,
        needs=("openTSNE",),
    )
)
