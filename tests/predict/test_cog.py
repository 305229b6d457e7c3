"""The rasters of a map are valid Cloud Optimized GeoTIFFs, by tifffile and by rio-cogeo."""

from itertools import pairwise

import numpy as np
import pytest
import tifffile
from make_raster import NORTH, WEST

from decur.data.grid import Grid
from decur.predict.raster_files import MapLayout, write_optimised, write_tile, write_virtual

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
LAYOUTS = {
    "classes": MapLayout("uint8", 255, ("class",), ("dry", "wet", "wood"), COLOURS),
    "many classes": MapLayout("uint16", 65535, ("class",), tuple(map(str, range(300)))),
    "flags": MapLayout("uint8", 255, ("a", "b", "c")),
    "numbers": MapLayout("float32", np.nan, ("depth",)),
    "probabilities": MapLayout("float32", np.nan, ("dry", "wet", "wood")),
    "features": MapLayout("float32", np.nan, tuple(map(str, range(70)))),
}
SHAPES = {  # in blocks: less than one, one, several
    "small": (0.02, 0.6),
    "even": (1, 1),
    "large": (1.4, 2.2),
}


def shape_of(layout, size):
    """Return height and width; the many bands of features have small blocks."""
    return tuple(int(layout.block * share) for share in SHAPES[size])


def write_map(path, layout, shape):
    """Write tiles and what joins them, as `predict` does."""
    whole, (height, width) = Grid("EPSG:32632", WEST, NORTH, (10.0, 10.0), *shape), shape
    rng, parts = np.random.default_rng(0), []
    for number, top in enumerate(range(0, height, layout.block)):
        grid = whole.window(top, 0, min(layout.block, height - top), width)
        pixels = rng.integers(0, 3, (len(layout.bands), grid.height, width))
        name = f"{path.stem}-{number}.tif"
        write_tile(path.with_name(name), pixels.astype(layout.dtype), grid, layout)
        parts.append((name, grid))
    write_virtual(path.with_suffix(".vrt"), whole, layout, parts)
    write_optimised(path.with_suffix(".vrt"), path, layout)
    return path


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_map_is_laid_out_for_reading_by_ranges(kind, size, tmp_path):
    layout = LAYOUTS[kind]
    shape = shape_of(layout, size)
    path = write_map(tmp_path / "map.tif", layout, shape)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        pages = list(tiff.pages)
        assert all(page.is_tiled and page.tilelength == page.tilewidth for page in pages)
        assert all(page.tilewidth == layout.block for page in pages)
        # the map itself first, then overviews, each half of the one before
        assert pages[0].shape[:2] == shape
        assert all(page.is_reduced for page in pages[1:])
        for finer, coarser in pairwise(pages):
            assert coarser.shape[:2] == tuple(max(1, side // 2) for side in finer.shape[:2])
        assert max(pages[-1].shape[:2]) <= layout.block
        # all headers stand before the pixels; of the pixels the coarsest stand first
        assert [page.offset for page in pages] == sorted(page.offset for page in pages)
        first = [min(offset for offset in page.dataoffsets if offset) for page in pages]
        assert first == sorted(first, reverse=True)
        assert pages[-1].offset < min(first)
        assert data[:400].find(b"GDAL_STRUCTURAL_METADATA_SIZE=") in (8, 16)
        assert b"LAYOUT=IFDS_BEFORE_DATA" in data[:400]
        for page in pages:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                # the leader of a block tells its size, and its trailer repeats the last bytes
                assert int.from_bytes(data[offset - 4 : offset], "little") == size
                assert data[offset + size : offset + size + 4] == data[offset + size - 4 :][:4]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_rio_cogeo_finds_a_map_valid(kind, size, tmp_path):
    cogeo = pytest.importorskip("rio_cogeo.cogeo", reason="needs `pip install rio-cogeo`")
    path = write_map(tmp_path / "map.tif", LAYOUTS[kind], shape_of(LAYOUTS[kind], size))
    assert cogeo.cog_validate(path, strict=True) == (True, [], [])
