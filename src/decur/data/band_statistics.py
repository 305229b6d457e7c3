"""Statistics of the bands of a sensor: of one image, or of many, as two of them merge exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from decur.data.mixtures import levels
from decur.errors import ConfigError, DataError
from decur.modality import Modality, guess_augmentation

PERCENTS = (1, 2, 50, 98, 99)
SUSPECTS = (0.0, -9999.0)  # raw values that often stand for "no measurement"

_BYTE = 256


@dataclass
class BandStatistics:
    """Statistics of each band of one modality; two of them merge exactly.

    Means and variances merge by Chan, Golub and LeVeque (1979), in float64. Pixels that are NaN
    (no measurement) count nowhere.

    Args:
        count: measured pixels of each band, (C,).
        mean: (C,).
        m2: sum of the squared differences from the mean, (C,).
        minimum: (C,).
        maximum: (C,).
        suspects: pixels of each band with each value of `SUSPECTS`, (C, len(SUSPECTS)).
        histogram: of 8-bit data, (C, 256); None for other data.
        pixels: those drawn for the percentiles, (C, any number); NaN where not measured.
        images: how many were read.
        bad: file and reason of each image that could not be.
        names: of the bands, where known.
        levels: what tells the unit of each image, (images, 4), see `mixtures`.
        warnings: lines on what the files together hold that no sensor does.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    suspects: np.ndarray
    histogram: np.ndarray | None
    pixels: np.ndarray
    images: int = 1
    bad: list[tuple[str, str]] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    levels: np.ndarray = field(default_factory=lambda: np.empty((0, 4), np.float32))
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of_image(
        cls, image: np.ndarray, draw: int = 1024, *, seed: int = 0, is_byte: bool | None = None
    ) -> BandStatistics:
        """Compute the statistics of one image.

        Args:
            image: (C, ...), uint8 or float; NaN is no measurement.
            draw: pixels to draw from each band for the percentiles.
            seed: of the draw.
            is_byte: whether the data is 8-bit; None goes by the type.
        """
        flat = image.reshape(len(image), -1)  # (C, P)
        x = flat.astype(np.float64)
        measured = ~np.isnan(x)
        count = measured.sum(1)
        mean = np.where(measured, x, 0).sum(1) / np.maximum(count, 1)
        histogram = None
        if flat.dtype == np.uint8 if is_byte is None else is_byte:
            histogram = np.stack(
                [
                    np.bincount(band[valid].astype(np.int64), minlength=_BYTE)
                    for band, valid in zip(flat, measured, strict=True)
                ]
            )
        drawn = np.random.default_rng(seed).integers(0, flat.shape[1], draw)
        return cls(
            count=count,
            mean=mean,
            m2=(np.where(measured, x - mean[:, None], 0) ** 2).sum(1),
            minimum=np.where(measured, x, np.inf).min(1),
            maximum=np.where(measured, x, -np.inf).max(1),
            suspects=np.stack([(x == value).sum(1) for value in SUSPECTS], 1),
            histogram=histogram,
            pixels=flat[:, drawn].astype(np.float32),
            levels=levels(flat)[None],
        )

    def merge(self, other: BandStatistics) -> BandStatistics:
        """Return the statistics of both sets of pixels together.

        Raises:
            DataError: if the numbers of bands differ.
        """
        if len(self.count) != len(other.count):
            raise DataError(
                f"some images have {len(self.count)} bands, others {len(other.count)}; "
                "put them into different folders"
            )
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        step = other.mean - self.mean
        histogram = None
        if self.histogram is not None and other.histogram is not None:
            histogram = self.histogram + other.histogram
        return BandStatistics(
            count=count,
            mean=self.mean + step * share,
            m2=self.m2 + other.m2 + step**2 * self.count * share,
            minimum=np.minimum(self.minimum, other.minimum),
            maximum=np.maximum(self.maximum, other.maximum),
            suspects=self.suspects + other.suspects,
            histogram=histogram,
            pixels=np.concatenate([self.pixels, other.pixels], axis=1),
            images=self.images + other.images,
            bad=self.bad + other.bad,
            names=self.names or other.names,
            levels=np.concatenate([self.levels, other.levels]),
        )

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each band over all its pixels, (C,)."""
        std: np.ndarray = np.sqrt(self.m2 / np.maximum(self.count, 1))
        return std

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands, or their numbers."""
        return self.names or tuple(f"band{i + 1}" for i in range(len(self.count)))

    @property
    def is_byte(self) -> bool:
        """Whether all images are 8-bit."""
        return self.histogram is not None

    def percentiles(self, percents: Sequence[float] = PERCENTS) -> np.ndarray:
        """Return percentiles of each band, (len(percents), C).

        By nearest rank. Exact for 8-bit data. For other data taken from pixels drawn at random,
        about 500,000 a band and the same ones at each run: the rank of percentile p is then off
        by sqrt(p (100 - p) / n) points for n independent pixels (0.02 points for p = 98). Pixels
        of one image resemble each other, so with few images n is nearer to their number.
        """
        wanted = np.array(percents) / 100
        columns = []
        for band, count in enumerate(self.count):
            if self.histogram is not None:
                rank = np.round(wanted * (count - 1)) + 1  # the how-manieth pixel from below
                columns.append(np.searchsorted(self.histogram[band].cumsum(), rank))
            else:
                drawn = np.sort(self.pixels[band])  # NaN last
                last = np.count_nonzero(~np.isnan(drawn)) - 1
                columns.append(drawn[np.maximum(np.round(wanted * last), 0).astype(int)])
        return np.stack(columns, 1).astype(np.float64)

    def report(self) -> list[str]:
        """Return lines for a person: counts, ranges, percentiles, suspected missing data."""
        lines = [f"{self.images} images, {int(self.count.max(initial=0))} measured pixels a band"]
        if self.bad:
            lines.append(f"{len(self.bad)} bad files left out, the first {self.bad[0][0]}")
        rows = dict(zip(PERCENTS, self.percentiles(), strict=True))
        lines.append(f"minimum: {_plain(self.minimum)}")
        lines += [f"percentile {percent}: {_plain(row)}" for percent, row in rows.items()]
        lines.append(f"maximum: {_plain(self.maximum)}")
        return lines + self.suspicions()

    def suspicions(self) -> list[str]:
        """Return a line for each value that many pixels have and that may be no measurement."""
        lines = []
        for value, counts in zip(SUSPECTS, self.suspects.T, strict=True):
            share = counts / np.maximum(self.count, 1)
            if share.max(initial=0) > 0.01:
                lines.append(
                    f"share of pixels equal to {value:g}: {_plain(share)}; if that means "
                    f"no measurement, set nodata: {value:g} and compute the statistics again"
                )
        return lines

    def to_modality(self, name: str, known: Modality | None = None) -> Modality:
        """Return a modality with these statistics: the known one otherwise unchanged, or a new one.

        A new one of 8-bit data is scaled by its range, 0 to 255; of other data by mean and standard
        deviation, radar after a cut of 2 % (DeCUR paper, appendix B.1). The augmentation follows
        from the name, as `guess_augmentation` tells.

        Raises:
            ConfigError: if a band is constant and the scaling is by standard deviations, or the
                known modality has another number of bands.
        """
        mean, std = tuple(_plain(self.mean)), tuple(_plain(self.std))
        if known is not None:
            if known.channels != len(mean):
                raise ConfigError(
                    f"modality {name!r} is given {known.channels} bands "
                    f"({', '.join(known.bands)}), its files have {len(mean)}; correct `bands`"
                )
            return known.with_(name=name, mean=mean, std=std)
        augmentation = guess_augmentation(name)
        return Modality(
            name=name,
            bands=self.band_names,
            mean=mean,
            std=std,
            scaling="range" if self.is_byte else "standard",
            cut=2.0 if augmentation == "sar" and not self.is_byte else 0.0,
            augmentation=augmentation,
        )


def _plain(values: np.ndarray) -> list[float]:
    """Return numbers with the seven digits that float32 holds, for people and YAML."""
    return [float(f"{value:.7g}") for value in values]
