"""Labels of scenes: rasters of classes, and vectors with a class column, as masks of windows."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.data import rasters as gdal_rasters
from decur.data.grid import LONGITUDE_LATITUDE, Grid
from decur.data.map_rasters import RASTERS, Raster, open_briefly, read_raster_header
from decur.data.masks import CLASSES_FILE, EMPTY, MaskCodes, read_class_list
from decur.data.sample import VOID, Target
from decur.data.scene_layout import Nearby, degrees_box
from decur.data.window_reader import WindowReader
from decur.errors import BadSampleError, ConfigError, DataError, needing

log = logging.getLogger(__name__)

VECTORS = (".geojson", ".json", ".gpkg")
OTHER = "other"  # the class of what lies outside of all shapes, where they are of one class
_MOST_CLASSES = 50  # distinct values of a column that are still classes
_LOOKED_AT = 512  # rows and columns of a label raster that are looked at to check its classes
_FARTHEST = 1e300  # a coordinate that no map reaches to
_PIXELS = 2**24  # of a label raster that are read at once

Geometry = Mapping[str, Any]  # as GeoJSON has it
Boxes = NDArray[np.float64]  # (N, 4), as `Bounds`


class RasterLabels:
    """Rasters of class indices.

    Args:
        rasters: of one band.
        listed: what `classes.txt` says of their values; without classes the numbers from 0 on are
            names.

    Attributes:
        target: what the labels are.
        path: of the first.

    Raises:
        DataError: if a raster has more bands, or holds classes that the list does not name.
    """

    def __init__(self, rasters: Sequence[Raster], listed: MaskCodes) -> None:
        self.rasters, names = list(rasters), listed.classes
        self.path = self.rasters[0].path
        self._index = Nearby(self.rasters)
        self._readers: dict[Grid, WindowReader] = {}
        highest = -1
        for raster in self.rasters:
            if raster.bands != 1:
                raise DataError(
                    f"{raster.path}: labels are one band of class indices, this has {raster.bands}"
                )
            highest = max(highest, _highest_class(raster, coarsely=bool(names)))
        if highest < 0:
            raise DataError(f"{self.rasters[0].path}: holds no class; are these the labels?")
        if names and listed.table is None and highest >= len(names):
            raise DataError(
                f"{self.rasters[0].path}: holds class {highest}, and classes.txt names "
                f"{len(names)}; name all classes, one a line"
            )
        classes = names or tuple(map(str, range(highest + 1)))
        self.codes = replace(listed, classes=classes)
        if listed.table is None and len(classes) > VOID:  # 255 is one of them
            self.codes = replace(self.codes, nodata=())
        self.target = self.codes.target

    def files(self, grid: Grid) -> list[str]:
        """Return the files that hold labels of a scene."""
        return [raster.path for raster in self._reader(grid).rasters]

    def read(self, grid: Grid, row: int, column: int, size: int) -> Tensor | None:
        """Return the classes of a window: (size, size) int64; None where there are none.

        Raises:
            BadSampleError: for a class that has no name.
        """
        reader = self._reader(grid)
        if not reader.rasters:
            return None
        x = reader.read(row, column, size, size)[0]  # (H, W)
        x = x.float()
        empty = x.isnan() if self.codes.table is not None else ~(x >= 0)  # or below 0
        if bool(x.isnan().all()):
            return None
        raw = x.nan_to_num(0).long().masked_fill(empty, EMPTY)
        labels, stray = self.codes.decode(raw)
        if bool(stray.any()):
            known = (
                f"known are 0 to {len(self.target.classes) - 1}"
                if self.codes.table is None
                else f"known are {', '.join(map(str, self.codes.table))}"
            )
            raise BadSampleError(
                reader.rasters[0].path,
                f"has class {int(raw[stray][0])}, {known}; list all in {CLASSES_FILE}",
            )
        return labels

    def covered(self, grid: Grid, boxes: Boxes) -> NDArray[np.bool_]:
        """Return which boxes on a grid's map a label raster reaches into: (N,)."""
        near = [raster.grid.bounds_in(grid.crs) for raster in self._reader(grid).rasters]
        return _meet(np.array(near).reshape(-1, 4), boxes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def _reader(self, grid: Grid) -> WindowReader:
        """Return the reader of the labels of a scene, which is kept for the next window."""
        if grid not in self._readers:
            near = [self.rasters[row] for row in self._index.overlapping(grid)]
            self._readers[grid] = WindowReader(grid, near, nearest=True)
        return self._readers[grid]


def _highest_class(raster: Raster, *, coarsely: bool) -> int:
    """Return the highest class of a raster; -1 where it shows none.

    Args:
        raster: of labels.
        coarsely: look at a few hundred rows and columns only, for a check of names.
    """
    highest = -1
    with open_briefly(raster.path) as source:
        step = source.height if coarsely else max(1, _PIXELS // source.width)
        for first in range(0, source.height, step):
            rows = min(step, source.height - first)
            shape = (min(rows, _LOOKED_AT), min(source.width, _LOOKED_AT)) if coarsely else None
            options = {"window": ((first, first + rows), (0, source.width)), "out_shape": shape}
            values = source.read(1, **options)
            values = values[source.read_masks(1, **options) > 0]
            if values.dtype.kind == "f":
                values = values[np.isfinite(values)]
                if (values != np.round(values)).any():
                    raise DataError(
                        f"{raster.path}: labels are whole numbers, this has fractions; convert it"
                    )
            values = values[values != 255]
            highest = max(highest, int(values.max()) if len(values) else -1)
    return highest


class VectorLabels:
    """Shapes with a class column, which are burnt into the grid of a scene.

    A later shape lies over an earlier one. Outside of all shapes nothing is known, unless all are
    of one class: then what is outside is the class `other`.

    Args:
        path: a GeoJSON file or a GeoPackage.
        column: whose values are the classes; None: the only one that can be.

    Attributes:
        target: what the labels are.

    Raises:
        DataError: if the file cannot be read or has no such column.
        ConfigError: if several columns could be the class.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        self.path = path
        features, self.crs = read_features(path)
        column = column or _class_column(path, features)
        known = [
            (feature["geometry"], _class_of(path, number, feature["properties"][column]))
            for number, feature in enumerate(features, start=1)
            if feature["geometry"] and feature["properties"].get(column) is not None
        ]
        if not known:
            columns = ", ".join(sorted({key for f in features for key in f["properties"]}))
            raise DataError(f"{path}: has no column {column!r} with a value; it has {columns}")
        values = sorted({value for _, value in known}, key=lambda v: (isinstance(v, str), v))
        names = list(dict.fromkeys(map(_text, values)))
        self.outside = len(names) == 1
        classes = (OTHER, *names) if self.outside else tuple(names)
        self.target = Target("mask", classes)
        self.geometries = [geometry for geometry, _ in known]
        self.classes = [classes.index(_text(value)) for _, value in known]
        self._refuse_invalid()
        self._placed: dict[Grid, tuple[list[Geometry], list[int], Boxes]] = {}
        self._degrees = self._moved(range(len(known)), LONGITUDE_LATITUDE)[1]  # (N, 4)
        log.info(
            "%s: %d shapes, classes %s from column %r; what is outside is %s",
            path,
            len(known),
            ", ".join(classes),
            column,
            repr(OTHER) + ", in scenes with a shape" if self.outside else "unknown",
        )

    def files(self, grid: Grid) -> list[str]:
        """Return the file of the shapes."""
        return [str(self.path)]

    def read(self, grid: Grid, row: int, column: int, size: int) -> Tensor | None:
        """Return the classes of a window: (size, size) int64; None where no shape is near."""
        from rasterio.features import rasterize

        part = grid.window(row, column, size, size)
        shapes, classes, boxes = self._shapes(grid)
        near = np.flatnonzero(_meet(np.array([part.bounds]), boxes)).tolist()
        if not near and not self.outside:
            return None
        fill = 0 if self.outside else self.target.void
        if not near:
            return torch.full((size, size), fill, dtype=torch.int64)
        burnt = rasterize(
            [(shapes[i], classes[i]) for i in near],
            out_shape=(size, size),
            fill=fill,
            transform=part.affine,
            dtype="int32",
        )
        return torch.from_numpy(burnt).long()  # (H, W)

    def covered(self, grid: Grid, boxes: Boxes) -> NDArray[np.bool_]:
        """Return which boxes on a grid's map have labels: (N,)."""
        shapes = self._shapes(grid)[2]
        if self.outside:
            there = bool(_meet(np.array([grid.bounds]), shapes).any())
            return np.full(len(boxes), there)
        return _meet(shapes, boxes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed": {}}

    def _refuse_invalid(self) -> None:
        from rasterio.features import is_valid_geom

        for number, geometry in enumerate(self.geometries, start=1):
            try:
                valid = is_valid_geom(geometry)
            except TypeError:  # lists are not nested as its type needs it
                valid = False
            if not valid:
                raise DataError(
                    f"{self.path}: shape {number} with a class is no valid geometry; mend it: "
                    f"ogr2ogr -makevalid mended{self.path.suffix} {self.path}"
                )

    def _shapes(self, grid: Grid) -> tuple[list[Geometry], list[int], Boxes]:
        """Return the shapes near a scene in its CRS, with classes and boxes.

        Others are left where they are: the CRS of a scene need not reach to them.
        """
        if grid not in self._placed:
            near = np.flatnonzero(_meet(np.array([degrees_box(grid)]), self._degrees)).tolist()
            moved, boxes = self._moved(near, grid.crs)
            self._placed[grid] = moved, [self.classes[row] for row in near], boxes
        return self._placed[grid]

    def _moved(self, rows: Iterable[int], crs: str) -> tuple[list[Geometry], Boxes]:
        """Return some shapes in another CRS, and their boxes."""
        rasterio = gdal_rasters.import_rasterio(".tif")
        from rasterio._err import CPLE_BaseError
        from rasterio.features import bounds
        from rasterio.warp import transform_geom

        errors = (rasterio.errors.RasterioError, rasterio.errors.CRSError, CPLE_BaseError)
        try:
            moved = transform_geom(self.crs, crs, [self.geometries[row] for row in rows])
        except errors as error:
            raise DataError(
                f"{self.path}: its shapes cannot be placed in {crs[:40]} ({error}); correct its CRS"
            ) from error
        return moved, np.array([bounds(shape) for shape in moved]).reshape(-1, 4)


def _meet(first: Boxes, second: Boxes) -> NDArray[np.bool_]:
    """Return which of the second boxes meet any of the first: (N,).

    The box of a point or of a straight line has no area, and meets others all the same.
    """
    met = np.zeros(len(second), dtype=bool)
    few, many = (first, second) if len(first) <= len(second) else (second, first)
    for number, (west, south, east, north) in enumerate(few):
        across = (many[:, 0] <= east) & (many[:, 2] >= west)
        along = (many[:, 1] <= north) & (many[:, 3] >= south)
        if many is second:
            met |= across & along
        else:
            met[number] = (across & along).any()
    return met


def _class_of(path: Path, number: int, value: Any) -> str | int | float:
    """Return the value of a feature in the column of classes, if it can be a class."""
    if not isinstance(value, str | int | float) or value in (math.inf, -math.inf) or value != value:
        raise DataError(
            f"{path}: feature {number} has the class {str(value)[:40]}; a class is a text or a "
            "finite number: correct it, or leave it out (null)"
        )
    return value


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def read_features(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Read the features of a GeoJSON file or a GeoPackage.

    Returns:
        Features as GeoJSON has them, and their CRS.

    Raises:
        DataError: if it cannot be read, or nothing is installed that reads it.
    """
    features, crs = (_read_package if path.suffix.lower() == ".gpkg" else _read_geojson)(path)
    if not features:
        raise DataError(f"{path}: holds no shape; export it anew")
    for number, feature in enumerate(features, start=1):
        reason = None
        if not isinstance(feature["properties"], dict):
            reason = "properties that are no mapping of columns to values"
        elif not isinstance(feature["geometry"], dict | None):
            reason = "a geometry that is no mapping"
        elif feature["geometry"] and not _is_finite(feature["geometry"]):
            reason = "a coordinate that is no finite number"
        if reason:
            raise DataError(f"{path}: feature {number} has {reason}; correct it or leave it out")
    return features, crs


def _is_finite(part: Any) -> bool:
    """Return whether all coordinates of a geometry, or of a part of it, are finite numbers."""
    if isinstance(part, dict):
        return all(_is_finite(part[key]) for key in ("coordinates", "geometries") if key in part)
    if isinstance(part, list):
        return all(map(_is_finite, part))
    return isinstance(part, int | float) and -_FARTHEST < part < _FARTHEST


def _read_geojson(path: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        features = [
            {"geometry": f.get("geometry"), "properties": f.get("properties") or {}}
            for f in found["features"]
        ]
        named = (found.get("crs") or {}).get("properties") or {}
        crs = str(named.get("name") or LONGITUDE_LATITUDE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no GeoJSON of features ({error}); export it anew") from error
    return features, crs


def _read_package(path: Path) -> tuple[list[dict[str, Any]], str]:
    with needing(f"{path}: a GeoPackage, unlike GeoJSON,", "vector", DataError):
        import geopandas
    try:
        layers = geopandas.list_layers(path)
        names = layers["name"][layers["geometry_type"].notna()].tolist()  # QGIS keeps styles, too
        if len(names) > 1:
            raise DataError(
                f"{path}: has several layers ({', '.join(names)}); write one to a file: "
                f"ogr2ogr labels.gpkg {path} {shlex.quote(names[0])}"
            )
        table = geopandas.read_file(path, layer=names[0] if names else None)
    except DataError:
        raise
    except Exception as error:  # of several libraries below it
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if table.crs is None:
        raise DataError(f"{path}: its layer has no CRS; set it in the file")
    features = json.loads(table.to_json(to_wgs84=False, drop_id=True))["features"]
    return [dict(feature) for feature in features], str(table.crs.to_wkt())


def _class_column(path: Path, features: Sequence[Mapping[str, Any]]) -> str:
    """Return the only column that can be a class.

    Raises:
        ConfigError: naming the columns, if there is none or several.
    """
    values: dict[str, Counter[Any]] = {}
    for feature in features:
        for key, value in feature["properties"].items():
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                values.setdefault(key, Counter())[value] += 1
    may_be = [
        key
        for key, counts in values.items()
        if len(counts) <= _MOST_CLASSES and (len(counts) < len(features) or len(features) < 3)
    ]
    if len(may_be) != 1:
        known = ", ".join(values) or "none"
        raise ConfigError(f"{path}: which column is the class? Set --data.column to one of {known}")
    return may_be[0]


def find_labels(root: Path, labels: str | Path | None, column: str | None) -> Any:
    """Return the labels of a folder of scenes; None where it has none.

    Args:
        root: with a folder `mask` of rasters, or a file `labels.geojson` or `labels.gpkg`.
        labels: a file of shapes that lies elsewhere, or a folder of rasters.
        column: of the shapes' class.

    Raises:
        DataError: if there is no such file, or it cannot be read.
    """
    if labels is None:
        vectors = [root / f"labels{suffix}" for suffix in VECTORS]
        there = [file for file in (*vectors, root / "mask") if file.exists()]
        if not there:
            return None
        labels = there[0]
    path = Path(labels)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in RASTERS)
        if not files:
            raise DataError(f"{path}: holds no label raster ({', '.join(RASTERS)}); fill it")
        listed = read_class_list(path)
        if listed.colours:
            raise DataError(
                f"{path / CLASSES_FILE}: gives colours, and rasters of labels hold one value a "
                "pixel; write each line as `name, value`"
            )
        return RasterLabels([read_raster_header(file) for file in files], listed)
    if path.suffix.lower() not in VECTORS:
        raise DataError(f"{path}: labels are a folder of rasters, or {', '.join(VECTORS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file of labels")
    gdal_rasters.import_rasterio(".tif")
    return VectorLabels(path, column)
