"""Directions in which embeddings agree, counted on samples that training has not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decur.agreement import PAIRINGS, Halves, at_random, canonical, coordinates, pairings
from decur.data import Batch, LoaderSettings
from decur.devices import send
from decur.errors import DataError, DivergedError, reason_of
from decur.features import SampleLoader, each_batch, spread
from decur.pretrain.data import PairedData
from decur.pretrain.module import Pretrainer
from decur.runs import RunFolder, write_json
from decur.scores import FeatureRows, Rows, split, standardised

FEW = 200  # samples held out on which only strong directions are told from chance
LEAST = 8  # samples held out of which anything can be counted
WHOLE_GROUPS = 8  # fewest that halves keep whole: three groups can hardly change partners
LEAST_SHARE = 0.25  # of the dimensions, which are common where fewer directions agree
_SAMPLES_A_COMPONENT = 4
_DRAWS = 20  # permutations whose largest correlation is what chance gives
_HERE = LoaderSettings(batch_size=64, workers=0)

ViewPair = tuple[FeatureRows, FeatureRows]  # (N, K) each, NaN where it is absent


@dataclass(frozen=True)
class Counted:
    """Directions in which embeddings agree beyond chance, on samples held out.

    Args:
        between: `{("s1", "s2"): directions}` of each two sensors; None where it cannot be counted.
        within: `{"s1": directions}` of the two views of each sensor, or None.
        views: `{("s1", "s2"): (directions, directions)}` of the two views of either, on the samples
            that have both sensors: on fewer samples fewer directions are found.
        looked: components of each embedding that were looked at, at most.
        samples: held out, on which they were counted.
        steps: of the training that came before.
        untold: what cannot be counted, or only roughly, and why, in sentences.
        data: digest of the files that they were counted on.
    """

    between: dict[tuple[str, str], int | None]
    within: dict[str, int | None]
    looked: int
    samples: int = 0
    steps: int = 0
    untold: list[str] = field(default_factory=list)
    data: str | None = None
    views: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def shares(self) -> dict[tuple[str, str], float]:
        """Return the share of each two sensors: directions of both over the mean of either.

        Those that cannot be counted are left out, and those of whom not even two views agree.
        """
        found: dict[tuple[str, str], float] = {}
        for pair, count in self.between.items():
            most = sum(self.views.get(pair, [self.within[name] or 0 for name in pair]))
            if count is not None and most:
                found[pair] = min(1.0, 2 * count / most)
        return found

    def share(self) -> float | None:
        """Return the share of directions that the sensors agree in; None if nothing can be told.

        With more than two sensors that is the least of any two, as the common dimensions are to be
        shared by all of them. Nothing can be told where not even two views of a sensor agree, or no
        two sensors can be counted.
        """
        return min(self.shares().values(), default=None)

    def taken(self) -> float | None:
        """Return the share of the dimensions that are to be common, at least a quarter.

        Fewer are too few, also where a small share is what is shared: what both sensors see does
        not fit into as many dimensions as it has directions, and goes into the unique ones as well
        (docs/results/share.md). A quarter it is, too, where no two sensors can be counted. None
        where not even two views of a sensor agree.
        """
        share = self.share() if self.is_counted else 0.0
        return None if share is None else max(share, LEAST_SHARE)

    @property
    def is_few(self) -> bool:
        """Return whether so few directions were counted that more dimensions are made common."""
        share = self.share()
        return share is not None and share < LEAST_SHARE

    @property
    def is_counted(self) -> bool:
        """Return whether any two sensors could be counted."""
        return any(count is not None for count in self.between.values())

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold, of which `of` makes the same again."""
        pairs = [[a, b, count] for (a, b), count in self.between.items()]
        views = [[a, b, *counts] for (a, b), counts in self.views.items()]
        return {**asdict(self), "between": pairs, "views": views}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Counted:
        """Return what `plain` was made of.

        Raises:
            ValueError: if it was made of nothing of this kind; or KeyError, TypeError.
        """
        between = {(a, b): count for a, b, count in plain["between"]}
        views = {(a, b): (x, y) for a, b, x, y in plain.get("views", [])}
        found = cls(**{**plain, "between": between, "views": views})
        counts = (*between.values(), *found.within.values(), *chain(*views.values()))
        numbers = [n for n in counts if n is not None]
        if not all(type(n) is int and n >= 0 for n in (*numbers, found.samples, found.steps)):
            raise ValueError("a count is no whole number")
        if type(found.looked) is not int or found.looked < max(numbers, default=0):
            raise ValueError("more directions agree than were looked at")
        if type(found.untold) is not list or not all(type(line) is str for line in found.untold):
            raise ValueError("what cannot be counted is told in no words")
        if set(between) != set(combinations(found.within, 2)) or not set(views) <= set(between):
            raise ValueError("it does not count each two sensors")
        if any(
            n is not None and None in (found.within[a], found.within[b])
            for (a, b), n in between.items()
        ):
            raise ValueError("two sensors are counted of which one is not")
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
        return [f"{a} and {b}" for (a, b), count in self.between.items() if count == 0]

    def sentence(self) -> str:
        """Return what was counted, in words."""
        pairs = [f"{a} and {b} {n}" for (a, b), n in self.between.items() if n is not None]
        views = [f"{name} {n}" for name, n in self.within.items() if n is not None]
        told = [", ".join(pairs)] if pairs else []
        if views:
            told.append(f"two views of {', '.join(views)} (of {self.looked} at most)")
        return f"directions that agree beyond chance: {'; '.join(told) or 'cannot be counted'}"


def embed_views(model: Pretrainer, data: PairedData, rows: Rows) -> dict[str, ViewPair]:
    """Return the embeddings of two views of each sensor, of some samples.

    Args:
        model: whose encoders and projectors are used, in evaluation mode meanwhile.
        data: the data set.
        rows: of the samples.

    Raises:
        DivergedError: if an embedding is not finite.
    """
    loader = SampleLoader(data.dataset.only(targets=()), None, settings=_HERE, among=rows.tolist())
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
            if not all(x.isfinite().all() for x in z.values()):
                raise DivergedError(
                    "objective.common: the training that counts the share broke the encoders; "
                    "lower optimizer.lr, or set trainer.gradient_clip_val"
                )
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
    how many directions can be found at all, by this network and on so many samples. So beside two
    sensors of which some samples lack one they are counted on the samples that have both.

    Halves keep groups whole, unless there are fewer than eight, and permutations always do. What is
    of fewer than 8 samples, or of fewer than 5 groups, of which there are too few permutations to
    know chance, cannot be counted.

    Args:
        embeddings: `{sensor: two views}`, (N, K) each, NaN where the sensor is absent.
        groups: of the samples; None for none.
        seed: of halves and permutations.

    Returns:
        The numbers of directions, without those of samples and steps.
    """
    has = {name: ~np.isnan(first[:, 0]) for name, (first, _) in embeddings.items()}
    looked = 0
    untold: list[str] = []

    def count(a: str, b: str, views: tuple[int, int], rows: Rows) -> int | None:
        nonlocal looked
        own = None if groups is None else [groups[row] for row in rows.tolist()]
        where, what = f"{a} occurs", "what it shares"
        if a != b:
            where, what = f"{a} and {b} occur together", "what they share"
        if len(rows) < LEAST:
            told = f"{where} in {len(rows)} of the {len(has[a])} samples held out"
            untold.append(f"{told}: {what} cannot be counted")
            return None
        train, test = split(len(rows), own, seed, 0.5, WHOLE_GROUPS)
        if pairings(train, test, own) < PAIRINGS:
            several = len(set(own or ()))
            told = f"{where} in {several} group{'s' * (several > 1)} of the samples held out"
            untold.append(f"{told}, too few to know chance: {what} cannot be counted")
            return None
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

    within = {name: count(name, name, (0, 1), np.flatnonzero(has[name])) for name in embeddings}
    between: dict[tuple[str, str], int | None] = {}
    own_views: dict[tuple[str, str], tuple[int, int]] = {}
    for pair in combinations(embeddings, 2):
        both = np.flatnonzero(has[pair[0]] & has[pair[1]])
        if None in (within[name] for name in pair):
            between[pair] = None
            continue
        between[pair] = count(*pair, (0, 0), both)
        if between[pair] is None:
            continue
        first, second = (
            within[name] if len(both) == has[name].sum() else count(name, name, (0, 1), both)
            for name in pair
        )
        own_views[pair] = (first or 0, second or 0)
        if len(both) < min(FEW, len(has[pair[0]])):
            untold.append(
                f"{' and '.join(pair)} occur together in {len(both)} of the {len(has[pair[0]])} "
                "samples held out, which are few: their share will be a rough one"
            )
    return Counted(between, within, looked, untold=untold, views=own_views)


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
