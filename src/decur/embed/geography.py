"""Where embeddings lie: footprints as GeoParquet has them, and a STAC item of a folder."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from decur.data import PairedDataset
from decur.data.grid import LONGITUDE_LATITUDE, Grid
from decur.data.scene_layout import date_of
from decur.data.selection import evenly_spaced
from decur.errors import BadSampleError, DataError
from decur.runs import write_json

GEOMETRY = "geometry"  # column of the footprints
ITEM = "item.json"
_LOOKED_AT = 8  # samples that tell whether a data set knows where it lies
_EXTENSIONS = [
    # https://github.com/geo-embeddings/embeddings-stac-specification
    "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
]
# a polygon of one ring of 5 points, little-endian
_WKB = struct.Struct("<BIII10d")
_POLYGON = 3


def is_placed(data: PairedDataset) -> bool:
    """Return whether samples of a data set know where they lie, told by 8 of them."""
    for row in evenly_spaced(len(data), _LOOKED_AT).tolist():
        try:
            if footprint(data.place(row)) is not None:
                return True
        except BadSampleError:
            continue  # comes up again when it is read as a sample
    return False


def footprint(place: Grid | None) -> bytes | None:
    """Return the rectangle of a sample as well-known binary, in longitude and latitude.

    Its corners run counter-clockwise. Across 180 degrees longitudes go on beyond 180.
    """
    if place is None:
        return None
    try:
        points = np.array(place.footprint())  # (5, 2)
    except DataError:  # a plan of a site has coordinates and no place
        return None
    if np.ptp(points[:, 0]) > 180:
        points[:, 0] %= 360
    points[:, 0] -= 360 * np.floor((points[:, 0].min() + 180) / 360)  # rasters may count to 360
    return _WKB.pack(1, _POLYGON, 1, len(points), *points.ravel().tolist())


def geo_metadata() -> str:
    """Return what GeoParquet 1.1 wants to know of the column of footprints, as JSON."""
    from rasterio.crs import CRS

    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS.from_user_input(LONGITUDE_LATITUDE).to_dict(projjson=True),
        "orientation": "counterclockwise",
        "edges": "planar",
    }
    return json.dumps(
        {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
    )


def write_item(
    folder: Path, data: PairedDataset, about: Mapping[str, Any], footprints: Iterable[bytes]
) -> None:
    """Write a STAC item of a folder of embeddings.

    Its time is the range of the dates in the names of the data's files; where they have none, the
    time at which the item is written. Its place is the rectangle around all footprints.

    Args:
        folder: of the embeddings.
        data: that was embedded.
        about: its header.
        footprints: of the rows; without any, nothing is written.
    """
    there = set(footprints)
    if not there:
        return
    bbox, geometry = rectangle(there)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    files = sorted(path.name for path in folder.glob("part-*.parquet"))
    asset = {"type": "application/vnd.apache.parquet", "roles": ["data"]}
    item = {
        "stac_version": "1.0.0",
        "stac_extensions": _EXTENSIONS,
        "type": "Feature",
        "id": folder.resolve().name,
        "bbox": bbox,
        "geometry": geometry,
        "properties": {
            **_times(data, now),
            "data_type": "float32",
            "processing:datetime": now,
            "emb:runtime_parameters": {
                "type": "chip",
                "encoders": list(about["encoders"]),
                "bands": {n: list(m["bands"]) for n, m in about["modalities"].items()},
                "chip_size": {n: m["size"] for n, m in about["modalities"].items()},
                "dimensions": about["widths"],
                "precision": about["precision"],
            },
        },
        "links": [],
        # the extension wants one asset of this name
        "assets": {
            ("embeddings" if number == 0 else Path(file).stem): {"href": f"./{file}", **asset}
            for number, file in enumerate(files)
        },
    }
    write_json(folder / ITEM, item)


def rectangle(footprints: Collection[bytes]) -> tuple[list[float], dict[str, Any]]:
    """Return the rectangle around footprints, as GeoJSON wants it.

    Args:
        footprints: of samples, at least one, see `footprint`.

    Returns:
        Its west, south, east and north edge, the east below the west across 180 degrees (RFC 7946,
        5.2); and its geometry, which is cut there (3.1.9).
    """
    points = np.array([_WKB.unpack(one)[4:] for one in footprints]).reshape(-1, 2)  # (P, 2)
    longitudes, (south, north) = points[:, 0], (points[:, 1].min(), points[:, 1].max())
    ways = [(x.min(), x.max()) for x in (longitudes, longitudes % 360)]
    west, east = min(ways, key=lambda edges: edges[1] - edges[0])
    if east - west >= 360:
        west, east = -180.0, 180.0
    elif east > 180:
        west, east = ((edge + 180) % 360 - 180 for edge in (west, east))
    sides = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [
        [[[left, south], [right, south], [right, north], [left, north], [left, south]]]
        for left, right in sides
    ]
    bbox = list(map(float, (west, south, east, north)))
    if len(rings) == 1:
        return bbox, {"type": "Polygon", "coordinates": rings[0]}
    return bbox, {"type": "MultiPolygon", "coordinates": rings}


def _times(data: PairedDataset, now: str) -> dict[str, str | None]:
    """Return the time of an item: the first and last date in the names of files."""
    files: set[str] = set()
    for index in range(len(data)):
        try:
            files.update(map(str, data.files(index)))
        except BadSampleError:
            continue
    dates = sorted({date for file in files if (date := date_of(file))})
    if not dates:
        return {"datetime": now}
    first, last = (f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in (dates[0], dates[-1]))
    return {
        "datetime": None,
        "start_datetime": f"{first}T00:00:00Z",
        "end_datetime": f"{last}T23:59:59Z",
    }
