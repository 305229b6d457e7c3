"""Shapes on a map with their attributes: the features of a GeoJSON file or a GeoPackage."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decur.data.grid import LONGITUDE_LATITUDE
from decur.data.tables import is_known
from decur.errors import ConfigError, DataError, needing

VECTORS = (".geojson", ".json", ".gpkg")
_MOST_CLASSES = 50  # distinct values of a column that are still classes
_PARTS = ("coordinates", "geometries")  # what a geometry has one of
_FARTHEST = 1e300  # a coordinate that no map reaches to

Geometry = Mapping[str, Any]  # as GeoJSON has it


def class_of(path: Path, number: int, value: Any) -> str | int | float | None:
    """Return the class of a feature by its value in the column of classes; None without one.

    Raises:
        DataError: naming the feature, for a value that is no class.
    """
    if value is None or (isinstance(value, str) and not is_known(value.strip())):
        return None
    if not isinstance(value, str | int | float) or value in (math.inf, -math.inf) or value != value:
        raise DataError(
            f"{path}: feature {number} has the class {str(value)[:40]}; a class is a text or a "
            "finite number: correct it, or leave it out (null)"
        )
    return value.strip() if isinstance(value, str) else value


def text_of(value: object) -> str:
    """Return the name of a class that a value stands for."""
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


def is_empty(geometry: Geometry | None) -> bool:
    """Return whether a geometry has no point, as that of a row whose shape was deleted."""
    parts = [geometry[key] for key in _PARTS if key in geometry] if geometry else [None]
    return bool(parts) and not any(parts)


def _is_finite(part: Any) -> bool:
    """Return whether all coordinates of a geometry, or of a part of it, are finite numbers."""
    if isinstance(part, dict):
        return all(_is_finite(part[key]) for key in _PARTS if key in part)
    if isinstance(part, list):
        return all(map(_is_finite, part))
    return isinstance(part, int | float) and -_FARTHEST < part < _FARTHEST


def _read_geojson(path: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
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
                f"ogr2ogr labels.gpkg {shlex.quote(str(path))} {shlex.quote(names[0])}"
            )
        table = geopandas.read_file(path, layer=names[0] if names else None)
    except DataError:
        raise
    except Exception as error:  # of several libraries below it
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if table.crs is None:
        raise DataError(
            f"{path}: its layer has no CRS; give it one: "
            f"ogr2ogr -a_srs EPSG:CODE placed.gpkg {shlex.quote(str(path))}"
        )
    features = json.loads(table.to_json(to_wgs84=False, drop_id=True, default=str))["features"]
    return [dict(feature) for feature in features], str(table.crs.to_wkt())


def class_column(path: Path, features: Sequence[Mapping[str, Any]]) -> str:
    """Return the only column that can be a class.

    Raises:
        ConfigError: naming the columns, if there is none or several.
    """
    values: dict[str, Counter[Any]] = {}
    for feature in features:
        for key, value in feature["properties"].items():
            if isinstance(value, str | int | float):
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
