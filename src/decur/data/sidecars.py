"""What files beside a picture say of it, which Pillow does not read: masks, nodata, place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from decur.data.decoding import Decoded, Header
from decur.data.rasters import (
    companions,
    has_place,
    header_of,
    import_rasterio,
    is_scaled,
    linear,
    measured_bands,
    north_up,
    open_raster,
    position_of,
)

# What GDAL may say of a picture in a file beside it; it also writes statistics there.
_SAID = (b"<NoDataValue", b"<Scale", b"<Offset", b"<Description", b"<UnitType", b"<GeoTransform")


def is_told_of(path: Path) -> bool:
    """Return whether a file beside a picture says what the picture itself does not."""
    beside = companions(path)
    return any(
        file.suffix == ".msk" or any(map(file.read_bytes().__contains__, _SAID)) for file in beside
    )


def add_told(decoded: Decoded, path: Path) -> Decoded:
    """Return a picture that Pillow has read with what the files beside it say.

    Args:
        decoded: as it lies in the file, not turned.
        path: of the picture.
    """
    with open_raster(path) as source:
        flags = import_rasterio("").enums.MaskFlags
        rows = measured_bands(source)
        if not any(flags.alpha in of for of in source.mask_flag_enums):  # which is read already
            holes = source.read_masks(rows) == 0  # (C, H, W)
            same = len(rows) == len(decoded.pixels)
            decoded.add_holes(holes if same else holes.any(0, keepdims=True))
        if len(rows) == len(decoded.pixels):
            decoded.names = tuple(source.descriptions[band - 1] for band in rows)
            if is_scaled(source) and not decoded.of_palette:
                scale, offset = linear(source)
                decoded.linear = scale[: len(rows)], offset[: len(rows)]
        decoded.position = position_of(source)
        return north_up(decoded, source.transform) if has_place(source.transform) else decoded


def header_told(header: Header, path: Path) -> Header:
    """Return the header of a picture with what the files beside it say."""
    with open_raster(path) as source:
        told = header_of(source)
        if told.bands != header.bands:
            return header
        return replace(
            header,
            names=told.names,
            units=told.units,
            is_byte=header.is_byte and not is_scaled(source),
            is_integer=header.is_integer and not is_scaled(source),
        )
