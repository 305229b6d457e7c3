"""GeoNRW: aerial photographs, elevation and land cover of North Rhine-Westphalia at 1 m."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, check_choices
from decur.data.files import read_header, read_image, read_mask
from decur.data.sample import Sample, Target
from decur.errors import BadSampleError, ConfigError, DataError
from decur.modality import Modality

SPLITS = ("train", "test")
TEST_CITIES = ("duesseldorf", "herne", "neuss")  # Baier et al. 2021; all other cities train
CLASSES = (
    *("background", "forest", "water", "agricultural", "residential, commercial, industrial"),
    *("grassland, swamp, shrubbery", "railway, station", "highway, square", "airport, shipyard"),
    *("roads", "buildings"),
)

UNKNOWN = 255  # in masks

_FILE = re.compile(r"(\d+_\d+)_(rgb|dem|seg)\.(?:jp2|tif)")
_MASK = "seg"
_LAYOUT = (
    "expected ROOT/<city>/<E>_<N>_rgb.jp2, <E>_<N>_dem.tif, <E>_<N>_seg.tif; unpack "
    "nrw_dataset.tar.gz from ieee-dataport.org/open-access/geonrw or "
    "huggingface.co/datasets/torchgeo/geonrw"
)


@DATASETS.register("GeoNRW")
class GeoNRW(PairedDataset):
    """GeoNRW: about 7,800 scenes of 1000 x 1000 m, each cut into 4 x 4 tiles of 250 x 250 pixels.

    Aerial photographs (8-bit RGB), elevation from LiDAR in metres (DEM), and as the mask `cover`
    land cover in 10 classes; what the files call background is unknown, as the DeCUR paper counts
    10 and its public code leaves index 0 out of loss and scores. The photographs' files have near
    infrared as a fourth band, which is left out, as in the authors' reader and in torchgeo's.
    Published by Baier et al. (https://ieee-dataport.org/open-access/geonrw, mirrored by torchgeo on
    Hugging Face):

        ROOT/<city>/<E>_<N>_rgb.jp2, <E>_<N>_dem.tif, <E>_<N>_seg.tif    (UTM kilometres)

    A tile is named `<city>_<E>_<N>_<row>_<column>`; its group is the scene. A scene without a DEM
    or photograph is kept and marked absent. Each DEM tile is scaled from its own percentile 1 to
    its percentile 99, as the DeCUR authors do.

    A JPEG 2000 file is one block: reading a tile decodes the whole scene (0.2 s). The last scene is
    kept, so that reading in order decodes each once; for shuffled training convert the photographs
    to GeoTIFF (`<E>_<N>_rgb.tif` in their place is read as well), or pack the data. The reading is
    our own: torchgeo's class gives whole scenes, and brings dependencies that nothing else here
    needs.

    Args:
        root: Folder of the cities.
        split: Split: "train" or "test" (Duesseldorf, Herne and Neuss); None for all cities.
        dem_channels: Number of channels of elevation: 1, or 3 equal ones for encoders of pictures,
            as the authors have.
        grid: Number of tiles along a scene's side, which must be its multiple; 1 gives whole
            scenes.
        background: Meaning of the background: "ignore", or "class", which makes it the first of 11,
            as version 0.1 did.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found.
        ConfigError: for wrong options.

    Source: Baier et al. 2021, "Synthesizing Optical and SAR Imagery From Land Cover Maps and
    Auxiliary Raster Data"; tiles and DEM scaling: DeCUR paper, section 4.

    Examples:
        >>> data = GeoNRW("geonrw", split="train")
        >>> data[0]["images"]["rgb"].shape
        torch.Size([3, 250, 250])
    """

    groups: list[str]

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        dem_channels: Literal[1, 3] = 1,
        grid: int = 4,
        background: Literal["ignore", "class"] = "ignore",
    ) -> None:
        check_choices(
            "GeoNRW",
            split=(split, (*SPLITS, None)),
            dem_channels=(dem_channels, (1, 3)),
            background=(background, ("ignore", "class")),
        )
        if grid < 1:
            raise ConfigError(f"GeoNRW: grid is the tiles along a side, at least 1, is {grid}")
        self.root, self.grid = Path(root), grid
        self._scenes = _scan(self.root, split)
        self._size = _scene_size(self._scenes)
        if self._size[0] % grid or self._size[1] % grid:
            raise ConfigError(
                f"GeoNRW: grid is {grid}, which does not divide scenes of {_pixels(self._size)}"
            )
        tile = (self._size[0] // grid, self._size[1] // grid)
        dem = Modality.preset("dem").with_(size=tile)
        if dem_channels == 3:
            dem = dem.with_(bands=("height1", "height2", "height3"))
        self.modalities = {"rgb": Modality.preset("rgb").with_(size=tile), "dem": dem}
        self._first = 1 if background == "ignore" else 0  # of the files' classes that counts
        self.targets = {"cover": Target("mask", CLASSES[self._first :])}
        self.groups = [scene for scene in self._scenes for _ in range(grid**2)]
        self.ids = [
            f"{scene}_{row}_{column}"
            for scene in self._scenes
            for row in range(grid)
            for column in range(grid)
        ]
        self.present = {
            name: np.repeat([name in files for files in self._scenes.values()], grid**2)
            for name in self.modalities
        }
        self._last: tuple[str, dict[str, Tensor]] | None = None

    def read(self, index: int) -> Sample:
        """Read one tile.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        scene, (row, column) = self.groups[index], divmod(index % self.grid**2, self.grid)
        if self._last is None or self._last[0] != scene:
            self._last = (scene, self._decode(self._wanted(scene)))
        height, width = (side // self.grid for side in self._size)
        down, right = (slice(i * n, (i + 1) * n) for i, n in ((row, height), (column, width)))
        tiles = {name: whole[..., down, right] for name, whole in self._last[1].items()}
        sample: Sample = {"id": self.ids[index], "images": {}, "target": {}}
        for name, tile in tiles.items():
            if name == _MASK:
                known = (tile >= self._first) & (tile != UNKNOWN)
                sample["target"]["cover"] = (tile - self._first).where(known, UNKNOWN)
            else:
                sample["images"][name] = tile.expand(self.modalities[name].channels, -1, -1).clone()
        return sample

    def files(self, index: int) -> list[str]:
        """Return the files of a tile's scene, which are decoded whole, once for tiles in a row."""
        return list(self._wanted(self.groups[index]).values())

    def _wanted(self, scene: str) -> dict[str, str]:
        wanted = {*(self.modalities if self.wanted is None else self.wanted)}
        wanted |= {_MASK} if self.targets else set()
        return {name: file for name, file in self._scenes[scene].items() if name in wanted}

    def _decode(self, files: dict[str, str]) -> dict[str, Tensor]:
        readers: dict[str, Callable[[str], Tensor]] = {
            "rgb": lambda file: read_image(file, pick=(1, 2, 3)),  # without near infrared
            "dem": lambda file: read_image(file, bands=1),
            _MASK: _read_cover,
        }
        decoded = {name: readers[name](file) for name, file in files.items()}
        for name, whole in decoded.items():
            if whole.shape[-2:] != self._size:
                raise BadSampleError(
                    files[name],
                    f"has {_pixels(whole.shape[-2:])}, other scenes {_pixels(self._size)}; "
                    "copy the file anew, or delete it",
                )
        return decoded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # no pictures to worker processes


def _scan(root: Path, split: str | None) -> dict[str, dict[str, str]]:
    """Return `{scene: {"rgb", "dem", "seg": file}}` in the order of cities and coordinates."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {_LAYOUT}")
    cities = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    wanted = [c for c in cities if split is None or (c in TEST_CITIES) == (split == "test")]
    scenes: dict[str, dict[str, str]] = {}
    for city in wanted:
        for entry in sorted(os.scandir(root / city), key=lambda entry: entry.name):
            if found := _FILE.fullmatch(entry.name):
                files = scenes.setdefault(f"{city}_{found[1]}", {})
                if other := files.get(found[2]):
                    raise DataError(f"{entry.path} and {other} are the same scene's; keep one")
                files[found[2]] = entry.path
    scenes = {name: files for name, files in scenes.items() if "rgb" in files or "dem" in files}
    if not scenes:
        there = ", ".join(cities[:5]) or "no folder"
        what = f"of split {split!r} " if split else ""
        raise DataError(f"{root}: no scene {what}in what is there ({there}); {_LAYOUT}")
    return scenes


def _scene_size(scenes: dict[str, dict[str, str]]) -> tuple[int, int]:
    """Return the size of the first scene with a readable header; all scenes must have it."""
    error: BadSampleError | None = None
    for files in scenes.values():
        try:
            return read_header(next(iter(files.values()))).size
        except BadSampleError as bad:
            error = error or bad
    assert error is not None
    raise DataError(f"no scene can be read, the first because: {error}") from error


def _read_cover(file: str) -> Tensor:
    mask = read_mask(file)
    unknown = (mask >= len(CLASSES)) & (mask != UNKNOWN)
    if unknown.any():
        raise BadSampleError(
            file,
            f"has class {int(mask[unknown][0])}, known are 0 to {len(CLASSES) - 1}; copy it anew",
        )
    return mask


def _pixels(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]} pixels"
