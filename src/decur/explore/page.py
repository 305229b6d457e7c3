"""The page itself: numbers and pictures in base64, a stylesheet, and a script without libraries."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from decur.data import LoaderSettings, PairedDataset
from decur.data.sample import Target
from decur.errors import DataError
from decur.explain.base import Watch
from decur.features import SampleLoader
from decur.plotting import batch_pictures
from decur.report import sheet, whole_page
from decur.runs import write_text

_COLUMNS = 32  # pictures in a row of a sheet
_ROWS = 32  # rows of a sheet: one of 64 px is 2048 pixels wide, which every browser opens


@dataclass(frozen=True)
class Ranking:
    """The nearest vectors of one sensor to each of another.

    Args:
        rows: (n, k), the nearest first; -1 for none.
        cosine: (n, k), 0 for none.
        partner: (n,) the rank of the sample's own vector, from 1; 0 where there is none.
        searched: how many vectors there are.
    """

    rows: NDArray[np.int32]
    cosine: NDArray[np.float32]
    partner: NDArray[np.int32]
    searched: int


@dataclass(frozen=True)
class Contents:
    """What a page shows.

    Args:
        title: its heading.
        ids: of the samples.
        total: how many samples the embeddings have, of which these may be a selection.
        trained: a sentence on whether the encoders were trained on the samples.
        part: of the vectors, which is compared.
        together: whether all sensors are in one map, and compared with each other.
        places: `{sensor: (n, 2)}`, NaN where a sample lacks the sensor.
        ranking: by the sensors that are asked and searched.
        seen: pictures and labels.
    """

    title: str
    ids: list[str]
    total: int
    trained: str
    part: str
    together: bool
    places: Mapping[str, NDArray[np.float32]]
    ranking: Mapping[tuple[str, str], Ranking]
    seen: Seen


def write_page(path: Path, contents: Contents) -> Path:
    """Write the page: one file that needs nothing else."""
    seen = contents.seen
    about = {
        "ids": contents.ids,
        "total": contents.total,
        "trained": contents.trained,
        "part": contents.part,
        "together": contents.together,
        "sensors": list(contents.places),
        "places": {name: _packed(xy, "<f4") for name, xy in contents.places.items()},
        "ranking": {
            f"{a}>{b}": {
                "k": ranking.rows.shape[1],
                "rows": _packed(ranking.rows, "<i4"),
                "cosine": _packed((ranking.cosine * 100).round(), "i1"),
                "rank": _packed(ranking.partner, "<i4"),
                "searched": ranking.searched,
            }
            for (a, b), ranking in contents.ranking.items()
        },
        "labels": [
            _label(name, seen.labels[name], target) for name, target in seen.targets.items()
        ],
        "side": next((int(x.shape[1]) for x in seen.pictures.values()), 0),
        "columns": _COLUMNS,
        "perSheet": _COLUMNS * _ROWS,
        "pictured": list(seen.pictures),
    }
    parts = [_resource("page.html"), _script("about", json.dumps(about))]
    for sensor, pictures in seen.pictures.items():
        for number, packed in enumerate(_sheets(pictures)):
            parts.append(_script(f"sheet-{sensor}-{number}", packed))
    style = f"<style>{_resource('page.css')}</style>"
    page = whole_page(contents.title, style + "\n".join(parts), script=_resource("page.js"))
    return write_text(path, page)


def _label(name: str, values: NDArray[Any], target: Target) -> dict[str, Any]:
    """Return a label as the script takes it: int16 classes, float32 numbers, or uint8 flags."""
    about: dict[str, Any] = {"name": name, "kind": target.kind, "classes": list(target.classes)}
    if target.kind == "class":
        return about | {"values": _packed(values, "<i2")}
    if target.kind == "scalar":
        return about | {"values": _packed(values, "<f4")}
    return about | {"values": _packed(np.where(np.isnan(values), 2, values), "u1")}


def _sheets(pictures: NDArray[np.uint8]) -> list[str]:
    """Return pictures (n, s, s, 3) as JPEG sheets of many each, in base64."""
    most = _COLUMNS * _ROWS
    parts = (pictures[start : start + most] for start in range(0, len(pictures), most))
    return [sheet(part, _COLUMNS).partition(",")[2] for part in parts]


def _packed(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode()


def _script(name: str, text: str) -> str:
    """Return text that the script of the page finds by a name; no text can end it early."""
    plain = text.replace("<", "\\u003c")  # in JSON; base64 has none
    return Markup('<script type="text/plain" id="{}">').format(name) + Markup(plain + "</script>")


def _resource(name: str) -> str:
    return files("decur.explore").joinpath(name).read_text(encoding="utf-8")


# -- the pictures and labels of some samples -------------------------------------------------------

_SIDES = {2_000: 64, 6_000: 48, 20_000: 32}  # pixels of a picture, by the number of samples
_SHOWN = ("class", "multilabel", "scalar")  # kinds of labels


@dataclass(frozen=True)
class Seen:
    """What a page shows of the data.

    Args:
        pictures: `{sensor: (n, side, side, 3) uint8}`, black where a sample lacks the sensor.
        labels: `{label: (n,) or (n, classes)}`, as `Target` has them.
        targets: `{label: its kind and classes}`.
    """

    pictures: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[Any]]
    targets: dict[str, Target]


def look_at(data: PairedDataset, ids: Sequence[str], sensors: Sequence[str], watch: Watch) -> Seen:
    """Read the pictures and labels of some samples.

    Args:
        data: that has the samples; others of it are not read.
        ids: of the samples.
        sensors: whose pictures are wanted; those that the data lacks are left out.
        watch: shows how far it is.

    Raises:
        DataError: if the data lacks a sample.
    """
    places = {id_: place for place, id_ in enumerate(data.ids)}
    if lacking := [id_ for id_ in ids if id_ not in places]:
        raise DataError(
            f"--data: lacks {len(lacking)} of {len(ids)} samples, the first {lacking[0]!r}; give "
            "what was embedded"
        )
    sensors = [name for name in sensors if name in data.modalities]
    targets = {name: target for name, target in data.targets.items() if target.kind in _SHOWN}
    wanted = data.only(sensors, targets=list(targets))
    loader = SampleLoader(
        wanted, settings=LoaderSettings(batch_size=64), among=[places[id_] for id_ in ids]
    )
    side = next(side for most, side in _SIDES.items() if len(ids) <= most)
    shown = {name: data.modalities[name] for name in sensors}
    pictures = {name: np.zeros((len(ids), side, side, 3), np.uint8) for name in sensors}
    labels: dict[str, list[NDArray[Any]]] = {name: [] for name in targets}
    row = 0
    for batch in watch(loader, len(loader)):
        last = row + len(batch["ids"])
        for name, some in batch_pictures(batch, shown, side).items():
            pictures[name][row:last] = some
        for name in targets:
            labels[name].append(batch["target"][name].numpy())
        row = last
    return Seen(pictures, {name: np.concatenate(each) for name, each in labels.items()}, targets)
