"""The share of common dimensions, counted from the data early in training.

With `objective.common: auto` all dimensions are common for the first tenth of the epochs, or longer
where that is few steps. Then the directions in which two sensors' embeddings agree are counted on
samples that training never sees, and so are those in which two views of one sensor do. Their ratio
is the share with which training goes on, from the same weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor

from decur.agreement import Halves, at_random, canonical, coordinates
from decur.data import Batch, LoaderSettings
from decur.devices import send
from decur.errors import ConfigError
from decur.features import SampleLoader, each_batch, spread
from decur.objectives import DeCUR, Objective
from decur.pretrain.data import PairedData
from decur.pretrain.distributed import from_first
from decur.pretrain.module import Pretrainer
from decur.scores import FeatureRows, Rows, split, standardised

log = logging.getLogger(__name__)

WARM_UP, LONGEST = 0.1, 1 / 3  # of the epochs, at the end of which the share is counted
STEPS = 150  # after which it can be; fewer show too few directions (docs/results/share.md)
HELD_OUT, FEWEST, MOST = 0.1, 200, 4000  # share of the samples that is held out, and its bounds
LEAST = 8  # samples held out of which anything can be counted
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
    """

    between: dict[tuple[str, str], int]
    within: dict[str, int]
    looked: int

    def shares(self) -> dict[tuple[str, str], float]:
        """Return the share of each two sensors: directions of both over the mean of either."""
        return {
            (a, b): min(1.0, 2 * count / (self.within[a] + self.within[b]))
            for (a, b), count in self.between.items()
            if self.within[a] + self.within[b]
        }

    def share(self) -> float | None:
        """Return the share of the common dimensions; None where nothing can be told.

        With more than two sensors that is the least of any two, as the common dimensions are to be
        shared by all of them. Two sensors of which not one direction agrees tell nothing: it would
        leave no common dimension, and more training or more samples may show some.
        """
        return min(self.shares().values(), default=0.0) or None

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold, of which `of` makes the same again."""
        pairs = [[a, b, count] for (a, b), count in self.between.items()]
        return {"between": pairs, "within": self.within, "looked": self.looked}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Counted:
        """Return what `plain` was made of."""
        between = {(a, b): count for a, b, count in plain["between"]}
        return cls(between, plain["within"], plain["looked"])

    def sentence(self) -> str:
        """Return what was counted, in words."""
        pairs = ", ".join(f"{a} and {b} {count}" for (a, b), count in self.between.items())
        views = ", ".join(f"{name} {count}" for name, count in self.within.items())
        return (
            f"directions that agree beyond chance on samples held out: {pairs}; two views of "
            f"{views} (of {self.looked} at most)"
        )


def warm_up_epochs(epochs: int, steps: int) -> int:
    """Return the number of epochs at the end of which the share is counted.

    That is a tenth of them; or as many as have 150 steps, up to a third.

    Args:
        epochs: of the training.
        steps: of an epoch.
    """
    tenth = max(1, round(WARM_UP * epochs))
    return max(tenth, min(math.ceil(STEPS / steps), round(LONGEST * epochs)))


def refuse_too_short(objective: Objective, epochs: int) -> None:
    """Refuse a training that ends with its warm-up.

    Args:
        objective: the method.
        epochs: of the training.

    Raises:
        ConfigError: if the share would be counted at the end of the last epoch.
    """
    if wants_share(objective) and epochs < 2:
        raise ConfigError(
            "objective.common: auto counts the share after the first tenth of the epochs, and "
            "there is one; raise trainer.max_epochs, or give the share"
        )


def choose_held_out(objective: Objective, paired: PairedData) -> Rows:
    """Return the samples that are held out of training, none where the share is given.

    Args:
        objective: the method.
        paired: the data set; groups stay whole.

    Raises:
        ConfigError: if there are too few samples.
    """
    if not wants_share(objective):
        return np.zeros(0, np.int64)
    count = len(paired.dataset)
    wanted = min(MOST, max(round(HELD_OUT * count), min(FEWEST, count // 4)))
    if wanted < LEAST:
        raise ConfigError(
            f"objective.common: auto needs {4 * LEAST} samples, to hold out a quarter of them; "
            f"there are {count}; give more, or the share"
        )
    if wanted < FEWEST:
        log.warning(
            "objective.common: auto counts on %d samples held out, which are few: the share will "
            "be a rough one; give %d samples or more, or the share",
            wanted,
            4 * FEWEST,
        )
    held = split(count, paired.dataset.groups, paired.seed, wanted / count)[1]
    return np.sort(held[:MOST])


def wants_share(objective: Objective) -> bool:
    """Return whether a method's share of common dimensions is to be counted."""
    return isinstance(objective, DeCUR) and objective.counts_share


class CountShare(Callback):
    """Count the share of common dimensions at the end of the warm-up, and set it.

    Its place is before the callbacks that write metrics and save the state: what they keep of an
    epoch then holds the share that the next one is trained with.

    Args:
        console: where the share is said.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of the epoch; after the last one of the warm-up, count it."""
        assert isinstance(pl_module, Pretrainer)
        objective = pl_module.objective
        assert isinstance(objective, DeCUR)
        values = {"share/common": objective.share}
        steps = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        due = trainer.current_epoch + 1 >= warm_up_epochs(trainer.max_epochs or 1, steps)
        if due and not objective.is_counted:
            if pl_module.is_sharded:  # a shard alone has no features: all must run
                counted = trainer.strategy.broadcast(self._count(trainer, pl_module))
            else:  # it takes minutes, and nobody waits for them in a collective
                counted = Counted.of(from_first(lambda: self._count(trainer, pl_module).plain()))
            self._set(objective, counted, trainer.is_global_zero)
            values |= {f"directions/{a}-{b}": float(n) for (a, b), n in counted.between.items()}
            values |= {f"directions/{name}": float(n) for name, n in counted.within.items()}
        device = pl_module.device
        pl_module.meter.add({name: torch.tensor(v, device=device) for name, v in values.items()})

    def _set(self, objective: DeCUR, counted: Counted, speaks: bool) -> None:
        share = counted.share()
        found = objective.set_share(share)
        if not speaks:
            return
        if share is None:
            log.warning(
                "objective.common: two sensors agree in no direction beyond chance after the "
                "warm-up (%s), so the share cannot be counted, and the default %g is taken; train "
                "longer, or give it",
                counted.sentence(),
                objective.share,
            )
        self.console.print(f"share       {counted.sentence()}", highlight=False)
        if len(counted.shares()) > 1:
            each = ", ".join(f"{a}-{b} {x:.0%}" for (a, b), x in counted.shares().items())
            self.console.print(
                f"share       of two sensors: {each}; the least is common to all, and "
                "objective.blocks can give more to two of them",
                highlight=False,
            )
        self.console.print(
            f"share       common {found} of {objective.dim} dimensions ({objective.share:.0%}) "
            "from now on",
            highlight=False,
        )

    def _count(self, trainer: L.Trainer, model: Pretrainer) -> Counted:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PairedData)
        embeddings = embed_views(model, data)
        groups = data.dataset.groups
        own = None if groups is None else [groups[row] for row in data.held_out]
        return count_directions(embeddings, own, model.seed)


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
