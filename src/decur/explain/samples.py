"""Sample map: t-SNE in which each point is one picture, coloured by sensor and by label."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decur.data import Target
from decur.data.selection import evenly_spaced
from decur.explain.base import (
    SEEDS,
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
from decur.features import SampleLoader
from decur.plotting import ABSENT, MARKERS, Figure, legend, modality_colours, plain, subplots
from decur.probes import score_of_neighbours
from decur.report import paragraph, table
from decur.scores import METRICS, chance, standardised

PANELS = 4  # labels shown
NEIGHBOURS = 10  # on the map, that tell a label
COMPONENTS = 50  # principal ones that t-SNE sees, as is usual
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
    """A map on which each picture is a point.

    Vectors are standardised for each sensor and reduced to their first 50 principal components.

    Args:
        checkpoint: the run.
        loader: the samples.
        watch: shows how far it is.
        samples: at most how many, evenly spaced.
        vectors: "embedding" puts all sensors on one map; "features", those of the encoder, which
            no two sensors have in common, makes a map a sensor.
        perplexity: of t-SNE.
        seed: of t-SNE.

    Returns:
        "modalities" and "maps", names; for each point "xy" (P, 2), its "map" and "modality" by
        number and its "sample" (P,); "labels", names of panels, "label/NAME" (samples,) with NaN
        unknown, "classes/NAME" (none for numbers); "hidden", labels for which there is no room.

    Raises:
        ConfigError: for numbers out of range.
        DoesNotApply: if no map has enough samples, or any that differ.
    """
    check_option("samples.samples", samples, 1)
    check_option("samples.perplexity", perplexity, 1)
    check_option("samples.seed", seed, *SEEDS)
    names = list(checkpoint.modalities)
    whole = encoded(checkpoint, loader, watch)
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
            xy, _ = lay_out(_reduced(vector, seed), perplexity, seed, watch)
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
    return arrays


def plot_map(arrays: Arrays) -> Figure:
    """A row for each map: coloured by sensor, and by each label."""
    maps, labels = arrays["maps"].tolist(), arrays["labels"].tolist()
    together = maps == ["all sensors"]
    shown = [None, *labels] if together or not labels else labels
    panels = [(number, label) for number in range(len(maps)) for label in shown]
    columns = len(shown) if len(maps) > 1 else min(3, len(panels))
    width = min(4.4, 8.8 / columns)
    figure, axes = subplots(-(-len(panels) // columns), columns, width=width, height=width * 1.1)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (number, label) in zip(axes.flat, panels, strict=False):
        chosen = arrays["map"] == number
        (_by_sensor if label is None else _by_label)(axis, arrays, chosen, label)
        title = label or "sensor"
        title = title if together else f"{maps[number]}: {title}"
        axis.set_title(plain(title), fontsize=9)
    return figure


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


def _reduced(x: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA

    if not x.any():  # none, or all alike: there are no axes
        return x
    count = min(COMPONENTS, *x.shape)
    reduced: NDArray[np.float32] = PCA(count, random_state=seed).fit_transform(x)
    return reduced


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


def _by_sensor(axis: Any, arrays: Arrays, chosen: NDArray[np.bool_], label: None) -> None:
    names = arrays["modalities"].tolist()
    colours = modality_colours(names)
    shown: list[tuple[str, Any]] = []
    for number, name in enumerate(names):
        some = chosen & (arrays["modality"] == number)
        if some.any():
            marker = MARKERS[number % len(MARKERS)]
            shown.append((name, _points(axis, arrays["xy"][some], marker, color=colours[name])))
    _legend(axis, shown)


def _by_label(axis: Any, arrays: Arrays, chosen: NDArray[np.bool_], label: str) -> None:
    values = arrays[f"label/{label}"][arrays["sample"]]
    classes = arrays[f"classes/{label}"].tolist()
    xy, unknown = arrays["xy"], np.isnan(values)
    named: list[tuple[str, Any]] = []
    if (chosen & unknown).any():
        named.append(("unknown", _points(axis, xy[chosen & unknown], "o", color=ABSENT)))
    counts = [int((chosen & (values == number)).sum()) for number in range(len(classes))]
    order = sorted(range(len(classes)), key=lambda number: -counts[number])
    shown = sorted(number for number in order[: len(CLASSES)] if counts[number])
    palette = CLASSES if len(classes) > 2 else ("#999999", CLASSES[1])
    rest = chosen & ~unknown & ~np.isin(values, shown)
    if classes and rest.any():
        named.append(("others", _points(axis, xy[rest], "o", color="#777777")))
    for place, number in enumerate(shown):
        some = chosen & (values == number)
        named.append((classes[number], _points(axis, xy[some], "o", color=palette[place])))
    if classes:
        _legend(axis, named)
        return
    known = chosen & ~unknown
    points = _points(axis, xy[known], "o", c=values[known], cmap="viridis")
    bar = axis.figure.colorbar(points, ax=axis, location="bottom", fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=8)


def _points(axis: Any, xy: NDArray[np.float32], marker: str, **how: Any) -> Any:
    size = float(np.clip(12000 / max(len(xy), 1), 4, 30))
    return axis.scatter(*xy.T, s=size, marker=marker, linewidths=0, alpha=0.75, **how)


def _legend(axis: Any, shown: list[tuple[str, Any]]) -> None:
    legend(
        axis,
        [handle for _, handle in shown],
        [name for name, _ in shown],
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=3,
        frameon=False,
        markerscale=1.5,
        handletextpad=0.1,
        columnspacing=0.8,
    )


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
        findings=findings,
        order=25,
        needs=("openTSNE",),
    )
)
