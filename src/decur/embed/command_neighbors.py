"""`decur neighbors`: the command line."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from decur import plotting
from decur.config import Parser
from decur.data.base import PairedDataset, open_data
from decur.embed.neighbors import (
    Hits,
    Part,
    Vectors,
    choose,
    default_part,
    find_partners,
    is_comparable,
    nearest,
    neighbors_sheet,
    read_vectors,
    recall,
)
from decur.embed.parquet import read_folder_header
from decur.errors import ConfigError, install
from decur.runs import atomic, writing
from decur.terminal import make_table

log = logging.getLogger(__name__)

_ROWS = 6  # queries of a picture, where all are asked for
_ABOUT = (
    "The nearest neighbours of embeddings, also across sensors: decur neighbors embeddings --from "
    "s1 --to s2 --query ID. Without --query all are asked for, and how many find their own place."
)


def neighbors_parser() -> Parser:
    """Return the parser of `decur neighbors`."""
    parser = Parser("decur neighbors", _ABOUT)
    parser.usage = "decur neighbors EMBEDDINGS --from SENSOR --to SENSOR [--query ID ...]"
    parser.add_argument("embeddings", type=str, help="Folder that `decur embed` wrote.")
    parser.add_argument(
        "--from", type=str | None, help="Sensor of the queries, by default the first."
    )
    parser.add_argument(
        "--to", type=str | None, help="Sensor that is searched, by default the last."
    )
    parser.add_argument("--query", type=str, nargs="+", help="Ids of the queries, by default all.")
    parser.add_argument("--k", type=int, default=8, help="Number of neighbours.")
    parser.add_argument(
        "--part",
        type=Part | None,
        help="Part of the vectors that is compared, by default the common dimensions, where the "
        "run has them.",
    )
    parser.add_argument(
        "--index",
        type=str,
        default="Flat",
        help="Index of faiss: Flat is exact; HNSW32 and others are approximate.",
    )
    parser.add_argument("--out", type=str | None, help="CSV file for all hits.")
    parser.add_argument(
        "--picture",
        type=str | None,
        help="PNG of queries, their partners and hits, with labels; needs --data.",
    )
    parser.add_argument("--data", type=PairedDataset | None, help="Data set that has the pictures.")
    parser.show_first(
        {
            "what is searched": ("embeddings", "from", "to", "query", "k", "part", "index"),
            "what is written": ("out", "picture", "data"),
        }
    )
    return parser


def main(arguments: Sequence[str]) -> Hits:
    """Run `decur neighbors ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = neighbors_parser()
    if any(a.startswith("--data.") for a in arguments):
        parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    settings = parser.parse(arguments)
    if settings.picture and settings.data is None:
        raise ConfigError("--picture: needs the pictures; give --data.root FOLDER, or --data CLASS")
    if settings.picture and not plotting.available():
        raise ConfigError(f"--picture needs matplotlib: {install('explain')}")
    data = None
    if settings.picture:
        data = open_data("decur neighbors", settings.data.as_dict())
    elif settings.data is not None:
        log.warning("--data: without effect, as pictures alone are read from it; give --picture")
    folder = Path(settings.embeddings)
    names = list(read_folder_header(folder)["modalities"])
    source, target = settings["from"] or names[0], settings.to or names[-1]
    part = settings.part or default_part(folder)
    everything = read_vectors(folder, source, part=part)
    base = everything if source == target else read_vectors(folder, target, part=part)
    queries = choose(everything, settings.query) if settings.query else everything
    same = source == target
    hits = nearest(queries, base, k=settings.k, index=settings.index, same=same)
    console = Console(soft_wrap=True, markup=False, emoji=False)  # ids and folders are as they are
    console.print(f"{source} to {target}, {part}, {len(base.ids)} searched", highlight=False)
    _warn_unlike(part, source, target)
    if settings.query:
        _print_hits(console, queries, hits)
    elif source != target:
        _print_recall(console, queries, hits, settings.k, target, set(base.ids))
    if settings.out:
        _write_hits(Path(settings.out), queries, hits)
        console.print(f"written     {settings.out}", highlight=False)
    if settings.picture:
        assert data is not None
        shown = len(queries.ids) if settings.query else _ROWS
        few = Hits(hits.ids[:shown], hits.similarity[:shown])
        first = Vectors(queries.ids[:shown], queries.values[:shown])
        sheet = neighbors_sheet(
            data,
            first.ids,
            hits=few,
            source=source,
            target=target,
            partners=None if same else find_partners(first, base),
        )
        try:
            plotting.save(sheet, Path(settings.picture))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--picture {settings.picture}: {error}") from error
        console.print(f"look at     {settings.picture}", highlight=False)
    return hits


def _warn_unlike(part: Part, source: str, target: str) -> None:
    """Warn where nothing drives the compared dimensions of two sensors together."""
    if is_comparable(part, source, target):
        return
    log.warning(
        "%s: training does not align these numbers of %s with those of %s, so near vectors need "
        "not show the same place; leave --part out to compare the common dimensions, where the run "
        "has any",
        part,
        source,
        target,
    )


def _print_recall(
    console: Console, queries: Vectors, hits: Hits, most: int, target: str, searched: set[str]
) -> None:
    """Print how many find their own place, of those whose place has the other sensor, too."""
    count = sum(name in searched for name in queries.ids)
    left = len(queries.ids) - count
    note = f" ({left} more have no {target})" if left else ""
    for k in sorted({1, most}):
        found = f"{recall(queries, hits, k=k, searched=searched):.4f} of " if count else ""
        chance = f", by chance {min(1, k / len(searched)):.4f}" if count else ""
        console.print(
            f"own place among the first {k}: {found}{count} queries{chance}{note}", highlight=False
        )
    if count:
        console.print(
            "pairs that the encoders were trained on are found more easily; `decur explain RUN "
            "--data.root FOLDER` tells whether its run was trained on samples",
            highlight=False,
        )


def _print_hits(console: Console, queries: Vectors, hits: Hits) -> None:
    rows = [
        (query if rank == 1 else "", str(rank), name, f"{score:.4f}")
        for query, ids, scores in zip(queries.ids, hits.ids, hits.similarity, strict=True)
        for rank, (name, score) in enumerate(zip(ids, scores, strict=True), start=1)
    ]
    console.print(make_table(("query", "rank", "hit", "cosine"), rows, words=["hit"]))


def _write_hits(path: Path, queries: Vectors, hits: Hits) -> None:
    with writing(path), atomic(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["query", "rank", "hit", "cosine"])
        for query, ids, scores in zip(queries.ids, hits.ids, hits.similarity, strict=True):
            writer.writerows(
                (query, rank, name, f"{score:.6f}")
                for rank, (name, score) in enumerate(zip(ids, scores, strict=True), start=1)
            )
