"""Directions in which embeddings agree, counted on samples that training has not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decur.agreement import Halves, at_random, canonical, coordinates
from decur.data import Batch, LoaderSettings
from decur.devices import send
from decur.errors import DataError, reason_of
from decur.features import SampleLoader, each_batch, spread
from decur.pretrain.data import PairedData
from decur.pretrain.module import Pretrainer
from decur.runs import RunFolder, write_json
from decur.scores import FeatureRows, Rows, split, standardised

LEAST = 8  # samples held out of which anything can be counted
LEAST_SHARE = 0.25  # of the dimensions, which are common where fewer directions agree
_SAMPLES_A_COMPONENT = 4
_DRAWS = 20  # permutations whose largest correlation is what chance gives
_HERE = LoaderSettings(batch_size=64, workers=0)

ViewPair = tuple[FeatureRows, FeatureRows]  # (N, K) each, NaN where it is absent


@dataclass(frozen=True)
class Counted:
    """Directions in which embeddings agree beyond chance, on samples held out.

    Args:
        between: `{"s1-s2": directions}` of each two sensors.
        within: `{"s1": directions}` of the two views of each sensor.
        looked: components of each embedding that were looked at, at most.
        samples: held out, on which they were counted.
        steps: of the training that came before.
    """

    between: dict[tuple[str, str], int]
    within: dict[str, int]
    looked: int
    samples: int = 0
    steps: int = 0

    def shares(self) -> dict[tuple[str, str], float]:
        """Return the share of each two sensors: directions of both over the mean of either."""
        return {
            (a, b): min(1.0, 2 * count / (self.within[a] + self.within[b]))
            for (a, b), count in self.between.items()
            if self.within[a] + self.within[b]
        }

    def share(self) -> float | None:
        """Return the share of directions that the sensors agree in; None if nothing can be told.

        With more than two sensors that is the least of any two, as the common dimensions are to be
        shared by all of them. Nothing can be told where not even two views of a sensor agree.
        """
        return min(self.shares().values(), default=None)

    def taken(self) -> float | None:
        """Return the share of the dimensions that are to be common, at least a quarter.

        Fewer are too few, also where a small share is what is shared: what both sensors see does
        not fit into as many dimensions as it has directions, and goes into the unique ones as well
        (docs/results/share.md). None where nothing can be told.
        """
        share = self.share()
        return None if share is None else max(share, LEAST_SHARE)

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold, of which `of` makes the same again."""
        pairs = [[a, b, count] for (a, b), count in self.between.items()]
        return {**asdict(self), "between": pairs}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Counted:
        """Return what `plain` was made of.

        Raises:
            ValueError: if it was made of nothing of this kind; or KeyError, TypeError.
        """
        between = {(a, b): count for a, b, count in plain["between"]}
        found = cls(**{**plain, "between": between})
        numbers = (*between.values(), *found.within.values(), found.samples, found.steps)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a count is no whole number")
        if set(between) != set(combinations(found.within, 2)):
            raise ValueError("it does not count each two sensors")
        return found

    def write(self, run: RunFolder) -> None:
        """Write it to the folder of the run whose share it is."""
        write_json(run.counted, self.plain())

    @classmethod
    def read(cls, run: RunFolder) -> Counted | None:
        """Return what was counted for a run; None if nothing was yet.

        Raises:
            DataError: if the file cannot be read.
        """
        if not run.counted.is_file():
            return None
        try:
            return cls.of(json.loads(run.counted.read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{run.counted}: cannot be read ({reason_of(error)}); delete it, and the share is "
                "counted anew unless a checkpoint holds it"
            ) from error

    def apart(self) -> list[str]:
        """Return each two sensors that agree in no direction, in words."""
        return [f"{a} and {b}" for (a, b), count in self.between.items() if not count]

    def sentence(self) -> str:
        """Return what was counted, in words."""
        pairs = ", ".join(f"{a} and {b} {count}" for (a, b), count in self.between.items())
        views = ", ".join(f"{name} {count}" for name, count in self.within.items())
        return (
            f"directions that agree beyond chance: {pairs}; two views of "
            f"{views} (of {self.looked} at most)"
        )


def embed_views(model: Pretrainer, data: PairedData) -> dict[str, ViewPair]:
    """Return the embeddings of two views of each sensor, of the samples held out.

    Args:
        model: whose encoders and projectors are used, in evaluation mode meanwhile.
        data: the data set, with the samples that are held out.
    """
    loader = SampleLoader(
        data.dataset.only(targets=()), None, settings=_HERE, among=data.held_out.tolist()
    )
    none = torch.empty(0, model.objective.dim)

    def embed(batch: Batch) -> dict[str, list[Tensor]]:
        """Return the two views of each sensor, (B, K) each."""
        present = batch["present"]
        views = model.make_views(model.transfer_batch_to_device(batch, model.device, 0), 0)
        rows = {name: send(has.nonzero()[:, 0], model.device) for name, has in present.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in present}
        for view in (0, 1):
            images = {
                name: pair[view].index_select(0, rows[name])
                for name, pair in views.items()
                if len(rows[name])
            }
            _, z = model.embed(images, present)  # (n, K)
            for name, has in present.items():
                found[name].append(spread(z.get(name, none), has))
        return found

    batches = list(each_batch(model, loader, make=embed))

    def whole(name: str, view: int) -> FeatureRows:
        return torch.cat([found[name][view] for found in batches]).numpy()

    return {name: (whole(name, 0), whole(name, 1)) for name in model.modalities}


def count_directions(
    embeddings: dict[str, ViewPair], groups: Sequence[str] | None, seed: int
) -> Counted:
    """Count the directions in which embeddings agree, between sensors and within each.

    They are canonical correlations (Hotelling 1936): directions are fitted on one half of the
    samples, correlations taken on the other. Counted are those that are larger than the largest
    that any of 20 permutations gives. Within a sensor it is its two views that agree; they tell
    how many directions can be found at all, by this network and on so many samples.

    Args:
        embeddings: `{sensor: two views}`, (N, K) each, NaN where the sensor is absent.
        groups: of the samples, which stay whole; None for none.
        seed: of halves and permutations.

    Returns:
        The numbers of directions.
    """
    has = {name: ~np.isnan(first[:, 0]) for name, (first, _) in embeddings.items()}
    looked = 0

    def count(a: str, b: str, views: tuple[int, int]) -> int:
        nonlocal looked
        rows = np.flatnonzero(has[a] & has[b])
        own = None if groups is None else [groups[row] for row in rows.tolist()]
        if len(rows) < LEAST:
            return 0
        train, test = split(len(rows), own, seed, 0.5)
        components = max(1, len(train) // _SAMPLES_A_COMPONENT)
        x, y = (
            coordinates(standardised(embeddings[name][view][rows], train), train, test)
            for name, view in zip((a, b), views, strict=True)
        )
        x, y = (Halves(half.train[:, :components], half.test[:, :components]) for half in (x, y))
        if not x.train.shape[1] or not y.train.shape[1]:
            return 0  # a constant embedding
        looked = max(looked, min(x.train.shape[1], y.train.shape[1]))
        return _above_chance(x, y, (train, test), own, seed)

    within = {name: count(name, name, (0, 1)) for name in embeddings}
    between = {(a, b): count(a, b, (0, 0)) for a, b in combinations(embeddings, 2)}
    return Counted(between, within, looked)


def _above_chance(
    x: Halves, y: Halves, halves: tuple[Rows, Rows], groups: Sequence[str] | None, seed: int
) -> int:
    """Return how many canonical correlations are above all that permutations give."""
    rng = np.random.default_rng(seed)
    components = max(x.train.shape[1], y.train.shape[1])
    level = 0.0
    for _ in range(_DRAWS):
        train, test = at_random(*halves, groups, rng)
        mixed = Halves(y.train[train], y.test[test])
        level = max(level, float(canonical(x, mixed, components).max(initial=0)))
    return int((canonical(x, y, components) > level).sum())
