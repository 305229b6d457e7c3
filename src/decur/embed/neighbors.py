"""Nearest neighbours of embeddings, also across sensors, and a picture of them."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decur import plotting
from decur.agreement import ranks, unit_rows
from decur.embed.parquet import WHOLE, read_folder_header, require_pyarrow
from decur.errors import ConfigError, DataError, did_you_mean, needing
from decur.features.rows import refuse_rows_not_finite
from decur.objectives.blocks import PREFIX, find_part, is_shared

MOST_NEIGHBOURS = 10_000  # most neighbours of each query
_LABELS = 3  # labels below a picture, at most
_LETTERS = 24  # letters of a line below a picture

if TYPE_CHECKING:
    from decur.data import PairedDataset
    from decur.data.sample import Sample
    from decur.plotting import Figure


Part = str  # "common", "unique", "embedding", "features", or a block: "optical+sar"


@dataclass(frozen=True)
class Vectors:
    """Vectors of one sensor.

    Args:
        ids: of the samples.
        values: (N, D) float32.
    """

    ids: list[str]
    values: NDArray[np.float32]


def default_part(folder: str | Path) -> Part:
    """Return what is comparable across all sensors.

    That is the common part or the block of all sensors, else the embedding, else the features.
    """
    header = read_folder_header(Path(folder))
    shared = [part for part in header["parts"] if is_shared(part, *header["modalities"])]
    return shared[0] if shared else "embedding" if len(header["widths"]) > 1 else "features"


def is_comparable(part: Part, *sensors: str) -> bool:
    """Return whether a part of an embedding means the same for sensors."""
    return part == WHOLE or len(set(sensors)) == 1 or is_shared(part.removeprefix(PREFIX), *sensors)


def read_vectors(folder: str | Path, modality: str, *, part: Part = "features") -> Vectors:
    """Return vectors of one sensor from a folder that `embed` wrote, complete or not yet.

    Args:
        folder: of embeddings.
        modality: which sensor.
        part: which columns; "embedding" is all parts of it together.

    Raises:
        ConfigError: if there is no such sensor or part.
        DataError: if it holds no embeddings, or a file of it cannot be read.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    header = read_folder_header(folder)
    if modality not in header["modalities"]:
        raise ConfigError(
            f"{folder}: has no {modality!r}; choose from {', '.join(header['modalities'])}"
        )
    parts = list(header["parts"])
    known = ["features", *([WHOLE] if parts else []), *(p for p in parts if p != WHOLE)]
    found = find_part(part, known)
    if found is None:
        raise ConfigError(f"--part {part}: {folder} has {', '.join(known)}; choose one of them")
    columns = parts if found == WHOLE else [found]
    ids: list[str] = []
    values: list[NDArray[np.float32]] = []
    width = sum(header["widths"][column][modality] for column in columns)
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            table = pq.read_table(
                path,
                columns=["id", *columns],
                filters=[("modality", "=", modality)],
                page_checksum_verification=True,
            )
        except (OSError, pa.ArrowInvalid) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: {reason}; delete it and embed again") from error
        for batch in table.to_batches():
            ids += batch["id"].to_pylist()
            values += [
                np.concatenate(
                    [batch[c].flatten().to_numpy().reshape(len(batch), -1) for c in columns],
                    axis=1,
                )
            ]
    if not ids:
        raise DataError(f"{folder}: has no rows of {modality!r}; run `decur embed` to its end")
    whole = np.concatenate(values).reshape(len(ids), width)
    refuse_rows_not_finite(whole, ids, f"{folder}: {part} of {modality!r}")
    return Vectors(ids, np.ascontiguousarray(whole, dtype=np.float32))


@dataclass(frozen=True)
class Hits:
    """The nearest neighbours of each query, the nearest first.

    Args:
        ids: k of them for each query; fewer where there are no more.
        similarity: cosines, in the same order.
    """

    ids: list[list[str]]
    similarity: list[list[float]]


def nearest(
    queries: Vectors, base: Vectors, *, k: int = 8, index: str = "Flat", same: bool = False
) -> Hits:
    """Return the k vectors of `base` with the highest cosine, for each query.

    Args:
        queries: what to look for.
        base: where to look.
        k: how many.
        index: as faiss' `index_factory` takes it: "Flat" is exact, others ("HNSW32", "IVF256,Flat")
            are faster on millions and approximate.
        same: whether both are of one sensor: a query is then no hit of its own.

    Raises:
        ConfigError: if k is out of range, faiss is not installed or knows no such index.
        DataError: if the vectors differ in width.
    """
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells that it was loaded
    with needing("neighbors", "embed"):
        import faiss
    if not 1 <= k <= MOST_NEIGHBOURS:
        raise ConfigError(f"--k: must be from 1 to {MOST_NEIGHBOURS:,}, is {k:,}")
    dim = base.values.shape[1]
    if queries.values.shape[1] != dim:
        raise DataError(
            f"queries are {queries.values.shape[1]} wide and what is searched {dim}: features of "
            "different encoders; take --part common of a run with projectors"
        )
    wanted = min(k + same, len(base.ids))
    looked_for, searched = unit_rows(queries.values), unit_rows(base.values)
    try:
        made = faiss.index_factory(dim, index, faiss.METRIC_INNER_PRODUCT)
        if not made.is_trained:
            made.train(searched)
        made.add(searched)
    except RuntimeError as error:
        reason = re.split(r"\.(?:cpp|h):\d+: (?:Error: )?", str(error))[-1].strip()[:150]
        raise ConfigError(f"--index {index}: faiss refuses it ({reason}); Flat is exact") from error
    cosines, rows = made.search(looked_for, wanted)
    ids, similarity = [], []
    for query, found, scores in zip(queries.ids, rows, cosines, strict=True):
        kept = [
            (base.ids[row], float(score))
            for row, score in zip(found, scores, strict=True)
            if row >= 0 and not (same and base.ids[row] == query)
        ][:k]
        ids.append([name for name, _ in kept])
        similarity.append([score for _, score in kept])
    return Hits(ids, similarity)


def choose(vectors: Vectors, ids: Sequence[str]) -> Vectors:
    """Return some vectors by their ids.

    Raises:
        DataError: naming one that is not there.
    """
    rows = {name: row for row, name in enumerate(vectors.ids)}
    for name in ids:
        if name not in rows:
            hint = did_you_mean(name, rows, f"there are {vectors.ids[0]}, ...")
            raise DataError(f"--query {name}: no such id among those of its sensor; {hint}")
    return Vectors(list(ids), vectors.values[[rows[name] for name in ids]])


def recall(queries: Vectors, hits: Hits, *, k: int, searched: Collection[str]) -> float:
    """Return the share of the queries whose own place is among the first k hits.

    Args:
        queries: what was looked for.
        hits: what was found.
        k: how many of them count.
        searched: ids that could be found; queries without their own place there do not count.

    Returns:
        The share; NaN where no query counts.
    """
    found = [
        name in ids[:k] for name, ids in zip(queries.ids, hits.ids, strict=True) if name in searched
    ]
    return sum(found) / len(found) if found else float("nan")


@dataclass(frozen=True)
class Partner:
    """The place of a query's own sample among the vectors of another sensor.

    Args:
        rank: 1 where it is the nearest of all; ties count against it.
        cosine: of the two vectors.
        searched: how many vectors there are.
    """

    rank: int
    cosine: float
    searched: int

    def __str__(self) -> str:
        return f"rank {self.rank:,} of {self.searched:,}, {self.cosine:.3f}"


def find_partners(queries: Vectors, base: Vectors) -> dict[str, Partner]:
    """Return the place of each query's own sample, however far it is; none where it is not there.

    Args:
        queries: a few, whose cosines with all of `base` are computed.
        base: where to look.
    """
    rows = {name: row for row, name in enumerate(base.ids)}
    units, found = unit_rows(base.values), {}
    for name, query in zip(queries.ids, unit_rows(queries.values), strict=True):
        if name in rows:
            cosines, own = units @ query, np.array([rows[name]])  # (N,)
            rank = int(ranks(cosines[None], own)[0])
            found[name] = Partner(rank, float(cosines[own[0]]), len(base.ids))
    return found


def neighbors_sheet(
    data: PairedDataset,
    queries: Sequence[str],
    *,
    hits: Hits,
    source: str,
    target: str,
    partners: Mapping[str, Partner] | None = None,
) -> Figure:
    """Draw a row for each query: its picture, its true partner's, and those of its hits.

    Below each picture are its labels, above it its id, and its rank and cosine. The partner has a
    frame wherever it is found.

    Args:
        data: where the pictures are.
        queries: ids.
        hits: of each query.
        source: the sensor of the queries.
        target: the sensor of the hits.
        partners: of the queries, as `find_partners` gives them; None to show none.

    Raises:
        DataError: if the data lacks one of the samples, or its picture.
    """
    places = {name: index for index, name in enumerate(data.ids)}

    def draw(axis: Any, name: str, sensor: str, title: str, own: bool) -> None:
        if name not in places or sensor not in data.modalities:
            raise DataError(f"--data: has no {sensor} picture of {name!r}; give what was embedded")
        sample = data[places[name]]
        if sensor not in sample["images"]:
            raise DataError(f"--data: {name!r} lacks {sensor}; give what was embedded")
        modality = data.modalities[sensor]
        picture = modality.scale(sample["images"][sensor][None])[0]
        axis.imshow(plotting.render(picture, modality))
        axis.set_title(plotting.plain(title), fontsize=7, fontweight="bold" if own else "normal")
        axis.set_xlabel(plotting.plain(_labels_of(sample, data)), fontsize=6)
        axis.spines[:].set(visible=own, color=plotting.COMMON, linewidth=2.5)

    first = 1 if partners is None else 2  # column of the first hit
    columns = first + max(map(len, hits.ids))
    figure, axes = plotting.subplots(len(queries), columns, width=1.5, height=1.9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, query in enumerate(queries):
        draw(axes[row, 0], query, source, f"query, {source}\n{_cut(query)}", False)
        if partners is not None and query in partners:
            title = f"its partner, {target}\n{partners[query]}"
            draw(axes[row, 1], query, target, title, True)
        elif partners is not None:
            axes[row, 1].set_title(f"no partner:\nit lacks {plotting.plain(target)}", fontsize=7)
        found = zip(hits.ids[row], hits.similarity[row], strict=True)
        for place, (name, cosine) in enumerate(found, start=1):
            axis = axes[row, first + place - 1]
            draw(axis, name, target, f"{place}: {_cut(name)}\n{cosine:.3f}", name == query)
    return figure


def _labels_of(sample: Sample, data: PairedDataset) -> str:
    """Return the first labels of a sample, a line or two each."""
    given = sample.get("target", {})
    several = len(given) > 1
    lines = []
    for name, target in data.targets.items():
        if name in given and (told := target.in_words(given[name])):
            text = f"{name}: {told}" if several else told
            lines += textwrap.wrap(text, _LETTERS, max_lines=2, placeholder=" …")
    return "\n".join(lines[: 2 * _LABELS])


def _cut(name: str) -> str:
    """Return an id that fits over a picture, by its end, which tells samples apart."""
    return name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
