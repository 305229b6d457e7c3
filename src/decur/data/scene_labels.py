"""Labels of scenes: rasters of classes, and vectors with a class column, as masks of windows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.data import rasters as gdal_rasters
from decur.data.grid import LONGITUDE_LATITUDE, Grid
from decur.data.label_overlaps import (
    Boxes,
    ShapesOver,
    boxes_meeting,
    boxes_touched,
    warn_rasters_apart,
)
from decur.data.labels import warn_alike
from decur.data.map_rasters import RASTERS, Raster, open_briefly, read_raster_header
from decur.data.masks import CLASSES_FILE, EMPTY, MaskCodes, number_classes, read_class_list
from decur.data.sample import VOID, Target
from decur.data.scene_layout import Nearby, degrees_box
from decur.data.vectors import (
    VECTORS,
    Geometry,
    class_column,
    class_of,
    is_empty,
    read_features,
    text_of,
)
from decur.data.window_reader import WindowReader
from decur.errors import BadSampleError, DataError, listed

log = logging.getLogger(__name__)

OTHER = "other"  # the class of what lies outside of all shapes, where they are of one class
_LOOKED_AT = 512  # rows and columns of a label raster that are looked at to check its classes
_PIXELS = 2**24  # pixels of a label raster that are read at once


class RasterLabels:
    """Rasters of class indices.

    Args:
        rasters: of one band.
        codes: what `classes.txt` says of their values; without classes the numbers from 0 on are
            names.

    Attributes:
        target: what the labels are.
        path: of the first.

    Raises:
        DataError: if a raster has more bands, or holds classes that the list does not name.
    """

    def __init__(self, rasters: Sequence[Raster], codes: MaskCodes) -> None:
        self.rasters, names = list(rasters), codes.classes
        self.path = self.rasters[0].path
        self._index = Nearby([raster.grid for raster in self.rasters])
        self._readers: dict[tuple[Grid, tuple[float, ...]], WindowReader] = {}
        values: set[int] = set()
        for raster in self.rasters:
            if raster.bands != 1:
                raise DataError(
                    f"{raster.path}: labels are one band of class indices, this has {raster.bands}"
                )
            values |= _classes_of(raster, coarsely=bool(names))
        if not values:
            raise DataError(f"{self.path}: holds no class; are these the labels?")
        highest = max(values)
        if names and codes.table is None and highest >= len(names):
            raise DataError(
                f"{self.path}: holds class {highest}, and classes.txt names "
                f"{len(names)}; name all classes, one a line"
            )
        remedy = f"make {highest} its nodata if that is unknown: rio edit-info --nodata {highest}"
        classes = names or number_classes(codes.folder, values, f"{remedy} {quote(self.path)}")
        self.codes = replace(codes, classes=classes)
        if codes.table is None and len(classes) > VOID:  # 255 is one of them
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
        if bool(x.isnan().all()):
            return None
        if len(reader.rasters) > 1:  # what one calls unknown another may know
            filled = self._reader(grid, self._unknown).read(row, column, size, size)[0]
            x = torch.where(filled.isnan(), x.float(), filled.float())
        raw, labels, stray = self._decoded(x)
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

    def _decoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return raw values (H, W) as whole numbers, their classes, and which have none."""
        x = x.float()
        empty = x.isnan() if self.codes.table is not None else ~(x >= 0)  # or below 0
        raw = x.nan_to_num(0).long().masked_fill(empty, EMPTY)
        return raw, *self.codes.decode(raw)

    def _known(self, x: Tensor) -> Tensor:
        """Return the classes of raw values (H, W), -1 where they are unknown or none."""
        _, labels, stray = self._decoded(x)
        return labels.masked_fill(stray | (labels == self.target.void), -1)

    def covered(self, grid: Grid, boxes: Boxes) -> NDArray[np.bool_]:
        """Return which boxes on a grid's map a label raster reaches into: (N,)."""
        near = [raster.grid.bounds_on(grid) for raster in self._reader(grid).rasters]
        return boxes_meeting(np.array(near).reshape(-1, 4), boxes)

    @property
    def corner(self) -> tuple[float, float]:
        """Return longitude and latitude of a corner of the first raster."""
        return self.rasters[0].grid.footprint()[0]

    def warn_over(self) -> None:
        """Say how many pixels of rasters that overlap have two classes."""
        warn_rasters_apart(self.rasters, self._known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    @property
    def _unknown(self) -> tuple[float, ...]:
        """Return the values that stand for no class."""
        table = {-1: None} if self.codes.table is None else self.codes.table
        named = [value for value, index in table.items() if index is None]
        return tuple(map(float, (*self.codes.nodata, *named)))

    def _reader(self, grid: Grid, unknown: tuple[float, ...] = ()) -> WindowReader:
        """Return the reader of the labels of a scene, which is kept for the next window."""
        key = (grid, unknown)
        if key not in self._readers:
            near = [self.rasters[row] for row in self._index.overlapping(grid)]
            self._readers[key] = WindowReader(grid, near, nodata=unknown, nearest=True)
        return self._readers[key]


def _classes_of(raster: Raster, *, coarsely: bool) -> set[int]:
    """Return the classes that a raster shows.

    Args:
        raster: of labels.
        coarsely: look at a few hundred rows and columns only, for a check of names.
    """
    import pandas as pd  # whose `unique` needs no sorting

    found: set[int] = set()
    with open_briefly(raster.path) as source:
        step = source.height if coarsely else max(1, _PIXELS // source.width)
        for first in range(0, source.height, step):
            rows = min(step, source.height - first)
            shape = (min(rows, _LOOKED_AT), min(source.width, _LOOKED_AT)) if coarsely else None
            options = {"window": ((first, first + rows), (0, source.width)), "out_shape": shape}
            values = source.read(1, **options)
            values = values[source.read_masks(1, **options) > 0]
            values = pd.unique(values)
            if values.dtype.kind == "f":
                values = values[np.isfinite(values)]
                if (values != np.round(values)).any():
                    raise DataError(
                        f"{raster.path}: labels are whole numbers, this has fractions; convert it"
                    )
            found.update(values.astype(np.int64).tolist())
    return {value for value in found if value >= 0 and value != VOID}


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
        column = column or class_column(path, features)
        known = [
            (feature["geometry"], value)
            for number, feature in enumerate(features, start=1)
            if not is_empty(feature["geometry"])
            and (value := class_of(path, number, feature["properties"].get(column))) is not None
        ]
        if not known:
            columns = ", ".join(sorted({key for f in features for key in f["properties"]}))
            raise DataError(f"{path}: has no column {column!r} with a value; it has {columns}")
        values = sorted({value for _, value in known}, key=lambda v: (isinstance(v, str), v))
        names = list(dict.fromkeys(map(text_of, values)))
        warn_alike(path, column, {name: name.casefold() for name in names})
        self.outside = len(names) == 1
        classes = (OTHER, *names) if self.outside else tuple(names)
        self.target = Target("mask", classes)
        self.geometries = [geometry for geometry, _ in known]
        self.classes = [classes.index(text_of(value)) for _, value in known]
        self._refuse_invalid()
        self._placed: dict[Grid, tuple[list[Geometry], list[int], Boxes]] = {}
        self._degrees = self._moved(range(len(known)), LONGITUDE_LATITUDE)[1]  # (N, 4)
        self._over = ShapesOver(path)
        thin = sum("Point" in shape["type"] or "Line" in shape["type"] for shape in self.geometries)
        log.info(
            "%s: %d of %d shapes%s, classes %s from column %r; what is outside is %s",
            path,
            len(known),
            len(features),
            f" (lines and points among them, {thin}, label the pixels they touch)" if thin else "",
            listed(classes),
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
        near = np.flatnonzero(boxes_meeting(np.array([part.bounds]), boxes)).tolist()
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
        """Return which windows of a grid, all of one size, a shape reaches into: (N,).

        Shapes are told from the boxes around them to a sixteenth of a window.
        """
        shapes, classes, around = self._shapes(grid)
        self._over.count(shapes, classes, grid)
        if self.outside:
            there = bool(boxes_meeting(np.array([grid.bounds]), around).any())
            return np.full(len(boxes), there)
        near = boxes_meeting(around, boxes)
        return near & boxes_touched(shapes, grid, boxes) if near.any() else near

    @property
    def corner(self) -> tuple[float, float]:
        """Return longitude and latitude of a corner of the first shape."""
        west, south, _, _ = self._degrees[0].tolist()
        return west, south

    def warn_over(self) -> None:
        """Say how much of the scenes that were looked at has two classes, and which are nowhere."""
        names = dict(enumerate(self.target.classes))
        self._over.warn({number: names[number] for number in set(self.classes)})

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
                    f"ogr2ogr -makevalid mended{self.path.suffix} {quote(str(self.path))}"
                )

    def _shapes(self, grid: Grid) -> tuple[list[Geometry], list[int], Boxes]:
        """Return the shapes near a scene in its CRS, with classes and boxes.

        Others are left where they are: the CRS of a scene need not reach to them.
        """
        if grid not in self._placed:
            near = np.flatnonzero(
                boxes_meeting(np.array([degrees_box(grid)]), self._degrees)
            ).tolist()
            moved, boxes = self._moved(near, grid.crs)
            self._placed[grid] = moved, [self.classes[row] for row in near], boxes
        return self._placed[grid]

    def _moved(self, rows: Iterable[int], crs: str) -> tuple[list[Geometry], Boxes]:
        """Return some shapes in another CRS, and their boxes."""
        errors = gdal_rasters.place_errors()
        from rasterio.features import bounds
        from rasterio.warp import transform_geom

        try:
            moved = transform_geom(self.crs, crs, [self.geometries[row] for row in rows])
        except errors as error:
            raise DataError(
                f"{self.path}: its shapes cannot be placed in {crs[:40]} ({error}); correct its CRS"
            ) from error
        return moved, np.array([bounds(shape) for shape in moved]).reshape(-1, 4)


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
        if len(there) > 1:
            log.warning(
                "%s: labels are read from it, and not from %s; --data.labels names another",
                labels,
                " and ".join(file.name for file in there[1:]),
            )
    path = Path(labels)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in RASTERS)
        if not files:
            raise DataError(f"{path}: holds no label raster ({', '.join(RASTERS)}); fill it")
        codes = read_class_list(path)
        if codes.colours:
            raise DataError(
                f"{path / CLASSES_FILE}: gives colours, and rasters of labels hold one value a "
                "pixel; write each line as `name, value`"
            )
        return RasterLabels([read_raster_header(file) for file in files], codes)
    if path.suffix.lower() not in VECTORS:
        raise DataError(
            f"{path}: labels are a folder of rasters, or {', '.join(VECTORS)}; shapes of another "
            f"format become that by ogr2ogr labels.gpkg {quote(str(path))}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file of labels")
    gdal_rasters.import_rasterio(".tif")
    return VectorLabels(path, column)
