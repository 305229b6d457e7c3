"""Which bands of a data set a model takes, by their names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from decur.data.base import Derived, PairedDataset
from decur.data.sample import Sample
from decur.modality import UNNAMED, Modality, plain_band

log = logging.getLogger(__name__)


def with_bands(modality: Modality, bands: Sequence[str]) -> Modality | None:
    """Return a sensor with only these of its bands, in this order; None where it lacks one.

    Args:
        modality: of the data.
        bands: names, of which B4, b4 and B04 are one. Names that are only numbers tell nothing.
    """
    rows = _rows_of(modality, bands)
    if rows is None:
        return None
    kept = {
        field: tuple(values[row] for row in rows)
        for field in ("mean", "std")
        if (values := getattr(modality, field)) is not None
    }
    return modality.with_(bands=tuple(bands), picks=None, **kept)


def take_bands(data: PairedDataset, wanted: Mapping[str, Sequence[str]]) -> PairedDataset:
    """Return a data set of which only the bands that a model has are taken, by their names.

    Args:
        data: any data set.
        wanted: `{sensor: names of the model's bands}`.

    Returns:
        The data set itself where all its bands are the model's in their order, or where one that
        the model has is not there.
    """
    rows = {}
    for name, bands in wanted.items():
        found = _rows_of(data.modalities[name], bands)
        if found is not None and tuple(bands) != data.modalities[name].bands:
            rows[name] = found
            log.info(
                "%s: of the %d bands of the data, %s are taken by their names, as the model has "
                "them",
                name,
                data.modalities[name].channels,
                ", ".join(bands),
            )
    return _SomeBands(data, rows, wanted) if rows else data


def _rows_of(modality: Modality, bands: Sequence[str]) -> list[int] | None:
    there = [plain_band(band) for band in modality.bands]
    names = [plain_band(band) for band in bands]
    if len(set(there)) < len(there) or not set(names) <= set(there):
        return None
    if len(names) != len(there) and all(map(UNNAMED.fullmatch, names)):
        return None
    return [there.index(name) for name in names]


class _SomeBands(Derived):
    def __init__(
        self,
        data: PairedDataset,
        rows: Mapping[str, Sequence[int]],
        bands: Mapping[str, Sequence[str]],
    ) -> None:
        super().__init__(data)
        self.bands = {name: list(of_sensor) for name, of_sensor in rows.items()}
        changed = {name: with_bands(data.modalities[name], bands[name]) for name in rows}
        self.modalities = {n: changed.get(n) or m for n, m in data.modalities.items()}

    def read(self, index: int) -> Sample:
        """Read one sample, and of its pictures the bands that are wanted."""
        sample = super().read(index)
        images = {
            n: x[self.bands[n]] if n in self.bands else x for n, x in sample["images"].items()
        }
        return {**sample, "images": images}

    def digest_parts(self) -> object:
        """Return the data set, of which only what is wanted is read, and the bands."""
        return self.data, self.bands

    def describe(self) -> str:
        """Return that of the data set."""
        return self.data.describe()
