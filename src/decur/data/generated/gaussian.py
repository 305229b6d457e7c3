"""Linear mixtures of shared and unique Gaussian factors: what is common is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from decur.data.base import DATASETS, PairedDataset
from decur.data.sample import Sample, Target
from decur.errors import ConfigError
from decur.modality import Modality

Array = NDArray[np.float32]

VARIANCE = 0.5  # variance of each factor
_HIDDEN = 64  # width of the networks that label the factors
_CALIBRATION = 8192  # draws whose median is the threshold of a label
_REACH = 5.0  # standard deviations of the strongest band that become [0, 1]
# Streams of randomness besides the samples' own.
_MIXING, _LABELS = 1, 2


@DATASETS.register("LinearGaussianFactors")
class LinearGaussianFactors(PairedDataset):
    """ "Sensors", x and y by default, that see mixtures of shared and of own Gaussian factors.

    The setting of Wang et al. 2025 (DisentangledSSL): z_shared, z_x, z_y ~ N(0, 0.5 I),
    x = [z_x, z_shared] T_x and y = [z_y, z_shared] T_y, the entries of both T uniform in [-1, 1].
    Labels of two classes come from a random network on each of the three latent vectors.

    A picture has `dim` bands. Each of its `size` x `size` pixels is a measurement of its own: the
    mixture plus independent noise. So views need no augmentation that would have to know what may
    be changed in x: a crop of one pixel is another measurement of the same thing (`views.size: 1`
    and `crop_scale` 1 / size^2, as in the recipe "gaussian"), and the whole picture, averaged, is
    a good one. With `size=1, noise=0` there is the plain vector of the paper.

    Further sensors may be named, and factors given that each two of them share and no other sees.

    A sample depends on nothing but `seed` and `start + index`; the mixing and the labels on `seed`.

    Targets, each below or above the median: `shared` (of z_shared), `unique_x` (of z_x, seen by x
    alone), `unique_y` (of z_y, seen by y alone) and, with `pair_dims`, `shared_xy` (seen by x and y
    alone) and so on.

    Args:
        samples: Number of pairs.
        shared_dims: Number of shared factors.
        unique_dims: Number of each sensor's own factors.
        dim: Number of bands of each sensor.
        size: Height and width of a picture: size^2 measurements.
        noise: Standard deviation of a measurement; that of a band is about 4 by default.
        seed: Seed of everything.
        start: Index of the first pair; sets that shall not overlap start at different places.
        sensors: Names of the sensors, two or more.
        pair_dims: Number of factors that each two sensors share alone; needs three sensors.

    Attributes:
        shared_share: share of a sensor's factors that another one has too, 0.5 by default.
        mixing: `{"x": T_x, "y": T_y}`, (number of a sensor's factors, dim) each: its own, those of
            all, then those of each pair.

    Raises:
        ConfigError: for numbers out of range.

    Examples:
        >>> pair = LinearGaussianFactors(samples=8)[0]
        >>> pair["images"]["x"].shape, sorted(pair["target"])
        (torch.Size([100, 4, 4]), ['shared', 'unique_x', 'unique_y'])
    """

    def __init__(
        self,
        samples: int = 4096,
        shared_dims: int = 50,
        *,
        unique_dims: int = 50,
        dim: int = 100,
        size: int = 4,
        noise: float = 0.3,
        seed: int = 0,
        start: int = 0,
        sensors: Sequence[str] = ("x", "y"),
        pair_dims: int = 0,
    ) -> None:
        for name, value, least in (
            ("samples", samples, 1),
            ("shared_dims", shared_dims, 1),
            ("unique_dims", unique_dims, 1),
            ("dim", dim, 1),
            ("size", size, 1),
            ("noise", noise, 0),
            ("seed", seed, 0),
            ("start", start, 0),
            ("pair_dims", pair_dims, 0),
        ):
            if not value >= least:  # also refuses NaN
                raise ConfigError(
                    f"LinearGaussianFactors: {name} must be at least {least}, is {value}"
                )
        names = tuple(sensors)
        if len(set(names)) < max(len(names), 2) or (pair_dims and len(names) < 3):
            raise ConfigError(
                f"LinearGaussianFactors: sensors are {', '.join(names) or 'none'}; name two or "
                "more, each once, and three for pair_dims"
            )
        self.shared_dims, self.unique_dims, self.pair_dims = shared_dims, unique_dims, pair_dims
        self.size, self.noise, self.seed, self.start = size, noise, seed, start
        of_others = pair_dims * (len(names) - 1)  # factors of a sensor that it shares with one
        total = unique_dims + shared_dims + of_others
        self.shared_share = (shared_dims + pair_dims) / total
        rng = np.random.default_rng([seed, _MIXING])
        self.mixing = {name: rng.uniform(-1, 1, (total, dim)).astype(np.float32) for name in names}
        reach = _REACH * max(self._deviation(mixing) for mixing in self.mixing.values())
        self.modalities = {
            name: Modality(
                name=name,
                bands=tuple(f"{name}{band}" for band in range(dim)),
                scaling="range",
                value_range=(-reach, reach),
                size=(size, size),
                augmentation="dem",  # geometry alone: brightness or blur mean nothing here
            )
            for name in self.mixing
        }
        rng = np.random.default_rng([seed, _LABELS])
        seen_by: dict[str, tuple[str, ...]] = {"shared": ()}
        seen_by |= {f"unique_{name}": (name,) for name in names}
        self._factors_of = {name: [f"unique_{name}", "shared"] for name in names}
        sizes = {"shared": shared_dims} | {f"unique_{name}": unique_dims for name in names}
        if pair_dims:
            pairs = {f"shared_{a}{b}": (a, b) for a, b in combinations(names, 2)}
            seen_by |= pairs
            sizes |= dict.fromkeys(pairs, pair_dims)
            for factor, both in pairs.items():
                for name in both:
                    self._factors_of[name].append(factor)
        self._labels = {name: _Label(rng, dims) for name, dims in sizes.items()}
        self.ids = [f"{start + index:07d}" for index in range(samples)]
        self.present = {name: np.ones(samples, dtype=bool) for name in self.mixing}
        self.targets = {name: Target("class", ("low", "high"), m) for name, m in seen_by.items()}

    def factors(self, index: int) -> dict[str, Array]:
        """Return the latent vectors of a pair by the name of their target."""
        return self._draw(index)[0]

    def read(self, index: int) -> Sample:
        """Make one pair."""
        factors, rng = self._draw(index)
        images = {}
        for name, mixing in self.mixing.items():
            latent = np.concatenate([factors[factor] for factor in self._factors_of[name]])
            mean = latent @ mixing  # (dim,)
            noise = rng.standard_normal((len(mean), self.size, self.size), dtype=np.float32)
            picture = mean[:, None, None] + np.float32(self.noise) * noise  # (dim, size, size)
            images[name] = torch.from_numpy(picture)
        return {
            "id": self.ids[index],
            "images": images,
            "target": {
                name: torch.tensor(int(label(factors[name])))
                for name, label in self._labels.items()
            },
        }

    def _draw(self, index: int) -> tuple[dict[str, Array], np.random.Generator]:
        """Return the factors of a pair, and the generator from which its noise comes."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        rng = np.random.default_rng([self.seed, 0, self.start + index])
        sizes = {name: label.dims for name, label in self._labels.items()}
        return {name: _latent(rng, dims) for name, dims in sizes.items()}, rng

    def _deviation(self, mixing: Array) -> float:
        """Return the standard deviation of the strongest band of a measurement."""
        variances = VARIANCE * (mixing**2).sum(axis=0) + self.noise**2  # (dim,)
        return float(np.sqrt(variances.max()))


class _Label:
    """A random network of one hidden layer whose output is above its median, or not.

    Args:
        rng: of the weights, and of the draws that the median is taken of.
        dims: length of the latent vector.
    """

    def __init__(self, rng: np.random.Generator, dims: int) -> None:
        self.dims = dims
        scale = np.float32(1 / np.sqrt(VARIANCE * dims))  # so that hidden units have variance 1
        self.inner = scale * rng.standard_normal((dims, _HIDDEN), dtype=np.float32)
        self.bias = rng.standard_normal(_HIDDEN, dtype=np.float32)
        self.outer = rng.standard_normal(_HIDDEN, dtype=np.float32)
        self.median = np.median(self._value(_latent(rng, (_CALIBRATION, dims))))

    def __call__(self, latent: Array) -> bool:
        return bool(self._value(latent) > self.median)

    def _value(self, latent: Array) -> Array:
        return np.tanh(latent @ self.inner + self.bias) @ self.outer  # (...)


def _latent(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Array:
    return np.float32(np.sqrt(VARIANCE)) * rng.standard_normal(shape, dtype=np.float32)
