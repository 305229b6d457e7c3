"""SSL4EO-S12 v1.0: Sentinel-1 and Sentinel-2 of 251,079 places in four seasons."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, change_modalities
from decur.data.sample import Sample
from decur.data.sentinel import (
    Offset,
    check_offset,
    offset_of,
    read_bands,
    some_scenes,
    without_offset,
)
from decur.errors import BadSampleError, ConfigError, DataError
from decur.modality import Modality

Product = Literal["s1", "s2c", "s2a"]
Seasons = Literal["all", "one"]

SIZE = (264, 264)  # of the 10 m bands; those of 20 m have 132 x 132 pixels, those of 60 m 44 x 44
SEASONS = 4

PRODUCTS: dict[Product, Modality] = {
    "s1": Modality.preset("sentinel1"),
    "s2c": Modality.preset("sentinel2-l1c"),
    # Statistics of the authors' SSL4EO-S12 repository, in DN.
    "s2a": Modality.preset("sentinel2-l2a").with_(
        mean=(752.401, 884.297, 1144.162, 1297.473, 1624.910, 2194.642, 2422.212)
        + (2517.761, 2581.647, 2645.519, 2368.512, 1805.068),
        std=(1108.028, 1155.152, 1183.629, 1368.114, 1370.265, 1355.554, 1416.515)
        + (1474.789, 1439.309, 1582.280, 1455.521, 1343.484),
    ),
}

_LAYOUT = (
    "expected ROOT/{s1,s2c,s2a}/<place, seven digits>/<product>/<band>.tif; unpack s1.tar.gz, "
    "s2_l1c.tar.gz and s2_l2a.tar.gz of SSL4EO-S12 v1.0, see github.com/zhu-xlab/SSL4EO-S12"
)


class PlacesInSeasons(PairedDataset):
    """Base of the releases of SSL4EO-S12: places that each sensor saw in some seasons.

    Args:
        root: the folder.
        sensors: what to read, `{name: product}`.
        seasons: "all" or "one" of a place's seasons.
        seed: of the seasons' order.
        offset: taken off Sentinel-2.
        modalities: changes of the modalities.
        products: the modality of each product.

    Raises:
        ConfigError: for wrong options.
    """

    groups: list[str]

    def __init__(
        self,
        root: str | Path,
        sensors: dict[str, Product] | None,
        *,
        seasons: Seasons,
        seed: int,
        offset: Offset,
        modalities: dict[str, Any] | None,
        products: Mapping[Product, Modality],
    ) -> None:
        reader = type(self).__name__
        sensors = {"s1": "s1", "s2": "s2c"} if sensors is None else sensors
        for option, value, known in (
            *(("sensors", product, get_args(Product)) for product in sensors.values()),
            ("seasons", seasons, get_args(Seasons)),
            ("offset", offset, get_args(Offset)),
        ):
            if value not in known:
                choices = ", ".join(str(choice) for choice in known)
                raise ConfigError(f"{reader}: {option} has {value!r}; choose from {choices}")
        if not sensors:
            raise ConfigError(f"{reader}: sensors is empty; name at least one")
        self.root, self.seed, self.offset, self.sensors = Path(root), seed, offset, sensors
        self.seasons = SEASONS if seasons == "all" else 1
        self.targets = {}
        known_modalities = {
            name: products[product].with_(name=name, size=SIZE) for name, product in sensors.items()
        }
        self.modalities = change_modalities(known_modalities, modalities)

    def _set_places(self, places: Sequence[str], there: Mapping[str, Sequence[bool]]) -> None:
        """Set ids, groups and presence; the samples of a place follow each other.

        Args:
            places: in order.
            there: for each sensor, which of the places it saw.
        """
        self.groups = [place for place in places for _ in range(self.seasons)]
        self.ids = [f"{place}_{k}" for place in places for k in range(self.seasons)]
        self.present = {
            name: np.repeat(np.array(has, bool), self.seasons) for name, has in there.items()
        }

    def read(self, index: int) -> Sample:
        """Read one place, a season of each sensor.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        images = {
            name: without_offset(*self._scene(name, index)) for name in self.sensors_of(index)
        }
        return {"id": self.ids[index], "images": images}

    @abstractmethod
    def _scene(self, name: str, index: int) -> tuple[Tensor, int]:
        """Return a sample's raw image of a sensor, and the offset to subtract from it."""

    def _season(self, name: str, index: int, seasons: int) -> int:
        """Return the number of the season that a sample takes of a sensor."""
        order = season_order(
            self.seed, self.sensors[name], place=self.groups[index], products=seasons
        )
        return int(order[index % self.seasons % seasons])


@DATASETS.register("SSL4EOS12")
class SSL4EOS12(PlacesInSeasons):
    """SSL4EO-S12, release 1.0, as GeoTIFF files: what the DeCUR paper pretrains on.

    Sentinel-1 GRD in dB (s1: VV, VH), Sentinel-2 L1C (s2c: 13 bands) and L2A (s2a: 12 bands) of
    251,079 places, 264 x 264 pixels at 10 m, each in four seasons. Published by Wang et al., TU
    Munich (https://github.com/zhu-xlab/SSL4EO-S12), 1.5 TB packed and 3.7 TB unpacked:

        ROOT/s1/0000000/<product>/VV.tif, VH.tif                     (four products a place)
        ROOT/s2c/0000000/<product>/B1.tif ... B12.tif
        ROOT/s2a/0000000/<product>/B1.tif ... B12.tif                (without B10)

    The paper draws one season for each image and sensor, independently. A data set here does not
    know the epoch, so each place is four samples: each sensor's seasons are put into an order that
    is a function of (seed, sensor, place), and sample k of a place takes the k-th of each. So the
    seasons of two sensors are paired at random, each is seen once in an epoch, and packing,
    workers and resuming change nothing. **An epoch is thus four of the paper's: its 100 are 25.**
    In training, `pairing: group` deals the seasons out anew in each epoch, also of packed data.
    With `seasons="one"` a place is one sample, the same season in every epoch. A place is named
    `<place>_<k>`; its group is the place. Where a sensor lacks a place, it is marked absent.

    The reading is our own: torchgeo's class reads one sensor at a time, draws seasons from a
    global random state, assumes places without the gaps there are, and brings dependencies that
    nothing else here needs. Fifteen files a sample is slow in any case; pack the data.

    Args:
        root: Folder of the data set.
        sensors: Sensors to read, `{name: "s1", "s2c" or "s2a"}`; by default s1, and L1C as s2. The
            names are those of the encoders that come of it: let other data sets' be the same.
        seasons: Whether "all" or "one" of a place's seasons are read.
        seed: Seed of the seasons' order.
        offset: Offset that is taken off Sentinel-2: 1000 for products since 25 January 2022; "auto"
            goes by the dates in the products' names. The release has none such.
        modalities: Changes of the modalities, `{name: preset or fields}`, as `{"s1": {"cut": 0}}`.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found.
        ConfigError: for wrong options.

    Source: Wang et al. 2023, "SSL4EO-S12: A Large-Scale Multi-Modal, Multi-Temporal Dataset for
    Self-Supervised Learning in Earth Observation"; season per image and sensor: DeCUR paper,
    section 4.

    Examples:
        >>> data = SSL4EOS12("ssl4eo-s12")
        >>> data[0]["images"]["s2"].shape
        torch.Size([13, 264, 264])
    """

    def __init__(
        self,
        root: str | Path,
        sensors: dict[str, Product] | None = None,
        *,
        seasons: Seasons = "all",
        seed: int = 0,
        offset: Offset = "auto",
        modalities: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            root,
            sensors,
            seasons=seasons,
            seed=seed,
            offset=offset,
            modalities=modalities,
            products=PRODUCTS,
        )
        there = {name: _places(self.root / product) for name, product in self.sensors.items()}
        places = sorted(set().union(*there.values()))
        if len(there) > 1 and not set.intersection(*there.values()):
            examples = ", ".join(
                f"{self.sensors[name]}/{min(found)}" for name, found in there.items()
            )
            both = " and ".join(self.sensors.values())
            raise DataError(f"{self.root}: {both} have no place in common ({examples}); {_LAYOUT}")
        self._set_places(
            places, {name: [place in found for place in places] for name, found in there.items()}
        )
        for name, product in self.sensors.items():
            if product != "s1":
                scenes = some_scenes(self.present[name], partial(self._scene, name))
                check_offset(scenes, self.root / product)

    def files(self, index: int) -> list[Path]:
        """Return the bands of a place, a season of each sensor.

        Raises:
            BadSampleError: naming the folder, if the seasons of a place cannot be listed.
        """
        products = {name: self._product(name, index) for name in self.sensors_of(index)}
        return [file for name, found in products.items() for file in self._bands(name, found)]

    def _scene(self, name: str, index: int) -> tuple[Tensor, int]:
        product = self._product(name, index)
        image = read_bands(self._bands(name, product), self.modalities[name].size)
        return image, self._offset(name, product)

    def _bands(self, name: str, product: Path) -> list[Path]:
        return [product / f"{band}.tif" for band in self.modalities[name].bands]

    def _product(self, name: str, index: int) -> Path:
        """Return the folder of the season that a sample takes of a sensor."""
        place = self.root / self.sensors[name] / self.groups[index]
        try:
            with os.scandir(place) as entries:
                products = sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise BadSampleError(place, f"cannot be listed ({error.strerror})") from error
        if not products:
            raise BadSampleError(place, "holds no product; unpack the archive anew")
        return place / products[self._season(name, index, len(products))]

    def _offset(self, name: str, product: Path) -> int:
        if self.sensors[name] == "s1":
            return 0
        return offset_of(product.name) if self.offset == "auto" else self.offset


def season_order(seed: int, sensor: str, *, place: str, products: int) -> np.ndarray:
    """Return the order in which samples of a place take its products, sorted by name."""
    stream = list(f"{seed}/{sensor}/{place}".encode())
    return np.random.default_rng(stream).permutation(products)


def _places(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_LAYOUT}")
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if entry.is_dir()}
    places = {name for name in names if len(name) == 7 and name.isdigit()}
    if not places:
        there = min(names, default="nothing")
        raise DataError(f"{folder}: no place in what is there ({there}); {_LAYOUT}")
    return places
