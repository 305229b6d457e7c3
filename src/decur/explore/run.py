"""`explore`: embeddings and the data that they are of, into one page."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur.agreement import nearest_rows, unit_rows
from decur.data import PairedDataset
from decur.data.loader import reporting_lost_workers
from decur.data.selection import spaced
from decur.embed.neighbors import Part, Vectors, default_part, is_comparable, read_vectors
from decur.embed.parquet import read_folder_header
from decur.errors import ConfigError, install, require
from decur.explain.base import Watch
from decur.explain.settings import was_trained_on
from decur.explain.tsne import FEWEST, lay_out, reduced
from decur.explore.page import Contents, Ranking, Seen, look_at, write_page
from decur.objectives.blocks import PREFIX
from decur.runs import writing
from decur.terminal import progress_bar, tell_result
from decur.transfer.settings import is_fresh
from decur.verdicts import Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")
PlotLayout = Literal["tsne", "pca"]

PAGE = "explore.html"
_TRAINED = {
    Verdict.YES: "The encoders were trained on these samples, or on some of them, so that partners "
    "may be learned by heart: those of new samples are found less easily.",
    Verdict.NO: "The encoders were not trained on these samples.",
    Verdict.UNTOLD: "Whether the encoders were trained on these samples cannot be told here; "
    "partners that they were trained on are found more easily.",
}
MOST = 20_000  # samples of a page that a browser still opens
_MOST_NEIGHBORS = 50
_QUICK = 5_000  # samples that t-SNE lays out in about a minute


def explore(
    embeddings: str | os.PathLike[str],
    data: PairedDataset | None = None,
    *,
    out: str | Path | None = None,
    part: Part | None = None,
    layout: PlotLayout | None = None,
    samples: int = MOST,
    neighbors: int = 8,
) -> Path:
    """Write one page to look through a data set by its embeddings, offline in any browser.

    The page has a map with a dot for each sample and sensor, and for the sample that is chosen the
    pictures of all sensors, its labels, its nearest neighbours in each sensor by the cosine, and
    the rank of its true partner, the other sensor's vector of the same sample. Sensors are compared
    with each other by dimensions that they share or by the whole embedding alone; by another part,
    each has a map and neighbours of its own.

    Args:
        embeddings: folder that `embed` wrote.
        data: what was embedded; without it the page shows neither pictures nor labels.
        out: the page; None: `explore.html` in the folder of embeddings.
        part: what is compared; None: the common dimensions, else the embedding, else features.
        layout: "tsne" (needs openTSNE) or "pca"; None: "tsne" where it is installed, up to 5,000
            samples.
        samples: at most so many, evenly spaced; up to 20,000.
        neighbors: how many in each sensor.

    Returns:
        The page.

    Raises:
        ConfigError: for numbers out of range, an unknown part, or a page that cannot be written.
        DataError: if the folder holds no embeddings, or the data is not what was embedded.
    """
    require(2 <= samples <= MOST, f"--samples: must be from 2 to {MOST:,}, is {samples:,}")
    require(
        1 <= neighbors <= _MOST_NEIGHBORS,
        f"--neighbors: must be from 1 to {_MOST_NEIGHBORS}, is {neighbors}",
    )
    folder = Path(embeddings)
    page = folder / PAGE if out is None else Path(out)
    if page.is_dir():
        raise ConfigError(f"--out {page}: is a folder; give a file in it")
    part = part or default_part(folder)
    header = read_folder_header(folder)
    sensors = list(header["modalities"])
    vectors = {name: read_vectors(folder, name, part=part) for name in sensors}
    every = sorted({id_ for each in vectors.values() for id_ in each.ids})
    ids = _choose(every, samples)
    console = Console(soft_wrap=True, markup=False, emoji=False)
    if data is None:
        log.info("without --data.root FOLDER the page shows neither pictures nor labels")
    with reporting_lost_workers("lower --samples"):
        seen = Seen({}, {}, {}) if data is None else look_at(data, ids, sensors, _watch(console))
    units = {name: _units(each, ids) for name, each in vectors.items()}
    together = is_comparable(part, *sensors)
    pairs = [(a, b) for a in sensors for b in sensors if is_comparable(part, a, b)]
    ranking = {(a, b): rank_rows(units[a], units[b], neighbors, itself=a != b) for a, b in pairs}
    places = lay_out_sensors(
        units, _chosen(layout, len(ids)), together=together, watch=_watch(console)
    )
    counted = _counted(ids, every)
    contents = Contents(
        title=f"{folder.resolve().name}: {counted} samples",
        ids=ids,
        total=len(every),
        trained=_TRAINED[_seen_in_training(header.get("encoders") or (), data, ids)],
        part=part.removeprefix(PREFIX),
        together=together,
        places=places,
        ranking=ranking,
        seen=seen,
    )
    with writing(page):
        write_page(page, contents)
    size = page.stat().st_size / 1e6
    console.print(f"samples     {counted}, {', '.join(sensors)}, {part}", highlight=False)
    tell_result("look at     ", page, f" ({size:.1f} MB)")
    return page


def _choose(every: list[str], samples: int) -> list[str]:
    """Return the ids of a page: all that any sensor has, or some of them evenly spaced."""
    if len(every) <= samples:
        return every
    log.info(
        "%s of %s samples, evenly spaced; neighbours and ranks are among these",
        f"{samples:,}",
        f"{len(every):,}",
    )
    return spaced(every, samples)


def _counted(ids: list[str], every: list[str]) -> str:
    """Return how many samples a page has, and of how many where these are more."""
    return f"{len(ids):,} of {len(every):,}" if len(ids) < len(every) else f"{len(ids):,}"


def _seen_in_training(
    encoders: Sequence[str], data: PairedDataset | None, ids: Sequence[str]
) -> Verdict:
    """Tell whether encoders were trained on samples: any of them on any.

    Args:
        encoders: where they came from, as the header of embeddings names them.
        data: that has the samples; None: it is not known.
        ids: of the samples.
    """
    fresh = [is_fresh(name) for name in encoders]
    if encoders and all(fresh):
        return Verdict.NO
    if data is None:
        return Verdict.UNTOLD
    place = {id_: index for index, id_ in enumerate(data.ids)}
    indices = [place[id_] for id_ in ids]
    trained = [name for name, made in zip(encoders, fresh, strict=True) if not made]
    told = {was_trained_on(name, data, indices) for name in trained}  # of what is no run: untold
    if Verdict.YES in told:
        return Verdict.YES
    return Verdict.NO if told == {Verdict.NO} else Verdict.UNTOLD


def _units(vectors: Vectors, ids: list[str]) -> NDArray[np.float32]:
    """Return vectors of length 1 in the order of some ids: (n, D), NaN where there is none."""
    rows = {id_: row for row, id_ in enumerate(vectors.ids)}
    there = [place for place, id_ in enumerate(ids) if id_ in rows]
    found = np.full((len(ids), vectors.values.shape[1]), np.nan, np.float32)
    found[there] = unit_rows(vectors.values[[rows[ids[place]] for place in there]])
    return found


def _chosen(layout: PlotLayout | None, samples: int) -> PlotLayout:
    """Return the layout that is wanted; without a wish t-SNE, where it is there and takes a minute.

    Args:
        layout: what was asked for.
        samples: how many there are.
    """
    installed = find_spec("openTSNE") is not None
    require(installed or layout != "tsne", f"--layout tsne needs openTSNE: {install('explain')}")
    if layout is not None:
        return layout
    if installed and samples <= _QUICK:
        return "tsne"
    remedy = "--layout tsne takes some minutes" if installed else install("explain")
    log.info("the map shows principal components; for t-SNE, which keeps neighbours, %s", remedy)
    return "pca"


def _watch(console: Console) -> Watch:
    """Return what shows a bar over the steps that it is given."""

    def watch(steps: Iterable[T], n: int) -> Iterator[T]:
        with progress_bar(console, "exploring", "", TimeRemainingColumn()) as bar:
            yield from bar.track(steps, total=n)

    return watch


# -- where the dots lie, and which samples are near to each other ----------------------------------

Float = NDArray[np.float32]

_CHUNK = 512  # queries at a time: their cosines to all are one array
_DIMS = 50  # principal components that t-SNE starts from; more cost time and change little
_GAP = 1.15  # between the maps of sensors that are not comparable, in widths of a map


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
    for start in range(0, len(asking) if k > 0 else 0, _CHUNK):
        some = asking[start : start + _CHUNK]
        rows[some], cosine[some], rank = nearest_rows(
            queries[some], [(0, base)], k, own=some, mine=base[some], itself=itself
        )
        if itself:
            partner[some] = rank
    return Ranking(rows, cosine, partner, len(there))


def lay_out_sensors(
    vectors: Mapping[str, Float], layout: PlotLayout, *, together: bool, watch: Watch
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


def _plane(points: Float, layout: PlotLayout, watch: Watch) -> Float:
    """Return the places of some points: (n, D) to (n, 2)."""
    varies = np.ptp(points, axis=0).any()
    neighbours = layout == "tsne" and len(points) >= FEWEST and varies
    placed = np.zeros((len(points), 2), np.float32)
    if varies:
        components = reduced(points, _DIMS if neighbours else 2, seed=0)
        if neighbours:
            return lay_out(np.ascontiguousarray(components), watch=watch)[0]
        placed[:, : components.shape[1]] = components
    return placed
