"""SSL4EO-S12 v1.1: Sentinel-1 and Sentinel-2 of 246,144 places in four seasons, as zipped Zarr."""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, check_choices
from decur.data.files import resize
from decur.data.sentinel import SHIFT, Offset, band_in_file, check_offset, some_scenes
from decur.data.ssl4eo import PRODUCTS, SIZE, PlacesInSeasons, Product, Seasons
from decur.errors import BadSampleError, DataError, needing
from decur.modality import Modality

SPLITS = ("train", "val")
FOLDERS: dict[Product, str] = {"s1": "S1GRD", "s2c": "S2L1C", "s2a": "S2L2A"}
_OPEN = 16  # files that a process keeps open

# Statistics of the authors' repository (README and ssl4eos12_dataset.py), S1 in dB, S2 in DN
# without the offset.
STATISTICS: dict[Product, Modality] = {
    "s1": PRODUCTS["s1"].with_(mean=(-12.577, -20.265), std=(5.179, 5.872)),
    "s2c": PRODUCTS["s2c"].with_(
        mean=(1607.345, 1393.068, 1320.225, 1373.963, 1562.536, 2110.071, 2392.832)
        + (2321.154, 2583.77, 838.712, 21.753, 2205.112, 1545.798),
        std=(786.523, 849.702, 875.318, 1143.578, 1126.248, 1161.98, 1273.505)
        + (1246.79, 1342.755, 576.795, 45.626, 1340.347, 1145.036),
    ),
    "s2a": PRODUCTS["s2a"].with_(
        mean=(793.243, 924.863, 1184.553, 1340.936, 1671.402, 2240.082, 2468.412)
        + (2563.244, 2627.704, 2711.071, 2416.714, 1849.625),
        std=(1160.144, 1201.092, 1219.943, 1397.225, 1400.035, 1373.136, 1429.17)
        + (1485.025, 1447.836, 1652.703, 1471.002, 1365.307),
    ),
}

_LAYOUT = (
    "expected ROOT/{train,val}/{S1GRD,S2L1C,S2L2A}/ssl4eos12_{train,val}_seasonal_data_"
    "<number>.zarr.zip; download embed2scale/SSL4EO-S12-v1.1-Zarr (the shards of "
    "embed2scale/SSL4EO-S12-v1.1 are another format), see github.com/DLR-MF-DAS/SSL4EO-S12-v1.1"
)
_NAME = re.compile(r"ssl4eos12_\w+_seasonal_data_\d+\.zarr\.zip")

# What zipfile, zarr and the decompressors raise for files that are cut short or of other content.
_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile)


@DATASETS.register("SSL4EOS12v11")
class SSL4EOS12v11(PlacesInSeasons):
    """SSL4EO-S12, release 1.1, as zipped Zarr files of 64 places each.

    Sentinel-1 GRD in dB (s1: VV, VH), Sentinel-2 L1C (s2c: 13 bands) and L2A (s2a: 12 bands) of
    246,144 places, 264 x 264 pixels at 10 m, each in four seasons. Published by Blumenstiel et al.,
    DLR and IBM (https://github.com/DLR-MF-DAS/SSL4EO-S12-v1.1), in 3,812 files a sensor for
    training and 34 for validation:

        ROOT/{train,val}/S1GRD/ssl4eos12_{train,val}_seasonal_data_000001.zarr.zip ...
        ROOT/{train,val}/S2L1C/...
        ROOT/{train,val}/S2L2A/...

    Of each file the arrays `bands` (sample, time, band, y, x), `sample` (names of the places) and
    `band` are read; S2RGB, made for viewing, is not.

    Samples, seasons and names are those of `SSL4EOS12`: each place is four samples, each sensor's
    seasons in an order that is a function of (seed, sensor, place), so that **an epoch is four of
    the DeCUR paper's**; with `seasons="one"` a place is one sample. Samples come in the order of
    the files, the places of a file in its own. Sensors are matched by the places' names.

    **What a read costs**: the files are chunked by season (the authors' README), and a chunk, which
    holds a season of all the file's places, is decompressed whole, for one place as for 64. So the
    chunks of one file a sensor are kept (up to its four seasons, decompressed, in each worker):
    reading in order decompresses each chunk once, reading in random order a whole chunk for every
    image. Pack the data before training on it. Each file of one sensor is opened once at the start,
    for the places' names; then files are opened when first read, and the last 16 stay open in each
    process.

    Args:
        root: Folder of the data set.
        split: Split: "train" or "val"; None for those that there are.
        sensors: Sensors to read, `{name: "s1", "s2c" or "s2a"}`; by default s1, and L1C as s2. The
            names are those of the encoders that come of it: let other data sets' be the same.
        seasons: Whether "all" or "one" of a place's seasons are read.
        seed: Seed of the seasons' order.
        offset: Offset that is taken off Sentinel-2. "auto" is 1000: the Zarr files hold all scenes
            as products since 25 January 2022 do, whatever their date (the authors'
            zarr_dataset.py). Set 0 for files that have it off already, as the authors' later shards
            have.
        modalities: Changes of the modalities, `{name: preset or fields}`; by default the statistics
            are the release's own, without the offset. `{"s1": "sentinel1", "s2": "sentinel2-l1c"}`
            scales as release 1.0, so that encoders serve both, and other data by the same presets.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found, or
            if zarr is not installed.
        ConfigError: for wrong options.

    Source: Blumenstiel et al. 2025, "SSL4EO-S12 v1.1: A Multimodal, Multiseasonal Dataset for
    Pretraining"; season per image and sensor: DeCUR paper, section 4.

    Examples:
        >>> data = SSL4EOS12v11("ssl4eo-s12-v1.1", split="train")
        >>> data[0]["images"]["s2"].shape
        torch.Size([13, 264, 264])
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        sensors: dict[str, Product] | None = None,
        seasons: Seasons = "all",
        seed: int = 0,
        offset: Offset = "auto",
        modalities: dict[str, Any] | None = None,
    ) -> None:
        check_choices("SSL4EOS12v11", split=(split, (*SPLITS, None)))
        super().__init__(
            root,
            sensors,
            seasons=seasons,
            seed=seed,
            offset=offset,
            modalities=modalities,
            products=STATISTICS,
        )
        there = [part for part in SPLITS if (self.root / part).is_dir()]
        splits = [split] if split else there or SPLITS
        files = {
            name: set().union(*(_files(self.root, part, FOLDERS[product]) for part in splits))
            for name, product in self.sensors.items()
        }
        if len(files) > 1 and not set.intersection(*files.values()):
            examples = ", ".join(
                f"{FOLDERS[self.sensors[name]]}/{min(found)[1]}" for name, found in files.items()
            )
            raise DataError(f"{self.root}: sensors have no file in common ({examples}); {_LAYOUT}")
        self._files = sorted(set().union(*files.values()))  # (split, name of the file)
        places = [self._places(number, files) for number in range(len(self._files))]
        self._file_of = np.repeat(np.arange(len(places)), [len(found) for found in places])
        self._set_places(
            [place for found in places for place in found],
            {
                name: [self._files[i] in found for i in self._file_of]
                for name, found in files.items()
            },
        )
        if len(set(self.ids)) < len(self.ids):
            raise DataError(f"{self.root}: some places are in two files; {_LAYOUT}")
        self._kept: dict[str, tuple[Path, dict[tuple[int, int], np.ndarray]]] = {}
        for name, product in self.sensors.items():
            if product != "s1":
                scenes = some_scenes(self._in_one_file(name), partial(self._scene, name))
                check_offset(scenes, self.root / "*" / FOLDERS[product])
        self._kept.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # pixels stay in their process

    def _path(self, name: str, number: int) -> Path:
        split, file = self._files[number]
        return self.root / split / FOLDERS[self.sensors[name]] / file

    def _places(self, number: int, files: Mapping[str, set[tuple[str, str]]]) -> list[str]:
        """Return the places of a file, by the first sensor whose file can be read."""
        broken: BadSampleError | None = None
        for name, found in files.items():
            if self._files[number] in found:
                try:
                    return list(_opened(self._path(name, number)).rows)
                except BadSampleError as error:
                    broken = error  # comes up again when it is read as a sample
        assert broken is not None
        raise broken

    def _in_one_file(self, name: str) -> np.ndarray:
        """Return which samples are in a sensor's first file, of places all over the world: (N,).

        Eight scenes of as many files would be eight times the wait.
        """
        numbers = np.repeat(self._file_of, self.seasons)
        chosen: np.ndarray = self.present[name] & (
            numbers == numbers[np.argmax(self.present[name])]
        )
        return chosen

    def _scene(self, name: str, index: int) -> tuple[Tensor, int]:
        path = self._path(name, int(self._file_of[index // self.seasons]))
        file, place, modality = _opened(path), self.groups[index], self.modalities[name]
        if place not in file.rows:
            raise BadSampleError(
                path, f"lacks place {place} of the other sensors' files; download it anew"
            )
        season = self._season(name, index, file.bands.shape[1])
        named = [band_in_file(band).lower() for band in modality.bands]
        if lacking := [band for band in named if band not in file.names]:
            raise BadSampleError(
                path, f"has no band {', '.join(lacking)} (it has {', '.join(file.names)})"
            )
        pixels = self._pixels(name, path, file, file.rows[place], season)
        image = pixels[[file.names.index(band) for band in named]].astype(np.float32)
        if np.isinf(image).any() or np.isnan(image).all():
            raise BadSampleError(
                path,
                f"has infinite or no values of place {place} at time {season}; download it anew",
            )
        off = 0 if self.sensors[name] == "s1" else SHIFT if self.offset == "auto" else self.offset
        return resize(torch.from_numpy(image), modality.size), off

    def read_bytes(self, index: int) -> np.ndarray:
        """Return the chunks that hold a place's seasons, as the files store them: (bytes,) uint8.

        Raises:
            BadSampleError: naming the file, if it cannot be read.
        """
        place, stored = self.groups[index], [np.empty(0, np.uint8)]
        for name in self.sensors_of(index):
            path = self._path(name, int(self._file_of[index // self.seasons]))
            file = _opened(path)
            season = self._season(name, index, file.bands.shape[1])
            stored.append(_chunks(path, file.bands, file.rows.get(place, 0), season))
        return np.concatenate(stored)

    def _pixels(self, name: str, path: Path, file: _File, row: int, season: int) -> np.ndarray:
        """Return (C, H, W) from its chunk, which is kept until another file is read."""
        step = file.bands.chunks[0]
        if self._kept.get(name, (None,))[0] != path:
            self._kept[name] = (path, {})
        chunks = self._kept[name][1]
        if (row // step, season) not in chunks:
            first = row // step * step
            try:
                chunks[row // step, season] = file.bands[first : first + step, season]
            except _ERRORS as error:
                raise BadSampleError(path, _unreadable(error)) from error
        pixels: np.ndarray = chunks[row // step, season][row % step]
        return pixels


@dataclass(frozen=True)
class _File:
    """An open file: its array (sample, time, band, y, x), rows of places, names of bands."""

    bands: Any
    rows: dict[str, int]
    names: list[str]


def _opened(path: Path) -> _File:
    return _open(path, os.getpid())


@lru_cache(maxsize=_OPEN)
def _open(path: Path, process: int) -> _File:
    """Open a file, in each process anew: forked ones would share its position in the file."""
    with needing(f"reading {path}", "eo", DataError):
        import zarr
        from zarr.storage import ZipStore
    try:
        group: Any = zarr.open_group(ZipStore(path, mode="r"), mode="r", zarr_format=2)
        if lacking := [key for key in ("bands", "sample", "band") if key not in group]:
            raise BadSampleError(path, f"has no array {', '.join(lacking)}; download it anew")
        bands: Any = group["bands"]
        places, names = ([str(name) for name in group[key][:]] for key in ("sample", "band"))
        fits = bands.shape == (len(places), *bands.shape[1:2], len(names), *SIZE)
    except _ERRORS as error:
        raise BadSampleError(path, _unreadable(error)) from error
    if not fits or len(set(places)) < len(places):
        raise BadSampleError(
            path,
            f"holds bands of shape {bands.shape} for {len(set(places))} places and {len(names)} "
            f"bands, not (places, times, bands, {SIZE[0]}, {SIZE[1]}); download it anew",
        )
    rows = {place: row for row, place in enumerate(places)}
    return _File(bands, rows, [name.lower() for name in names])


def _chunks(path: Path, bands: Any, row: int, season: int) -> np.ndarray:
    """Return the compressed chunks that hold a season of a place: (bytes,) uint8."""
    within = [range(-(-n // step)) for n, step in zip(bands.shape, bands.chunks, strict=True)][2:]
    corner = (row // bands.chunks[0], season // bands.chunks[1])
    keys = [
        f"{bands.path}/{bands.metadata.encode_chunk_key((*corner, *rest))}"
        for rest in itertools.product(*within)
    ]
    try:
        with zipfile.ZipFile(path) as archive:
            there = archive.NameToInfo  # a chunk of zeros alone need not be stored
            stored = b"".join(archive.read(key) for key in keys if key in there)
    except _ERRORS as error:
        raise BadSampleError(path, _unreadable(error)) from error
    return np.frombuffer(stored, np.uint8)


def _files(root: Path, split: str, folder: str) -> set[tuple[str, str]]:
    """Return `(split, name)` of the files of a product."""
    path = root / split / folder
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; {_LAYOUT}")
    with os.scandir(path) as entries:
        names = {entry.name for entry in entries}
    files = {(split, name) for name in names if _NAME.fullmatch(name)}
    if not files:
        raise DataError(f"{path}: no file in what is there ({min(names, default='')}); {_LAYOUT}")
    return files


def _unreadable(error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be read ({reason}); copy or download the file anew, or delete it"
