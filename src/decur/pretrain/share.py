"""The share of common dimensions, counted from the data before training.

With `objective.common: auto` a short training comes first, with all dimensions common. At its end
the directions in which two sensors' embeddings agree are counted on samples that it has not seen,
and so are those in which two views of one sensor do. Their ratio, or a quarter where that is more,
is the share. Then training starts, from fresh weights and with all samples, as if that share had
been given.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from decur.agreement import PAIRINGS, pairings
from decur.errors import ConfigError, DataError
from decur.objectives import DeCUR, Objective
from decur.pretrain.batchnorm import SyncBatchNorms
from decur.pretrain.callbacks import BadSamples, EpochLog, ProgressBar
from decur.pretrain.data import PairedData, refuse_too_few
from decur.pretrain.directions import (
    FEW,
    LEAST,
    WHOLE_GROUPS,
    Counted,
    count_directions,
    embed_views,
)
from decur.pretrain.distributed import from_first
from decur.pretrain.module import Pretrainer
from decur.pretrain.settings import PretrainSettings
from decur.pretrain.state import AtomicCheckpointIO, TrainingState, epochs_done
from decur.pretrain.trainer import OWN, fit, limited, make_trainer
from decur.runs import RunFolder
from decur.scores import Rows, split

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 0.1, 0.15  # of the epochs, which the training that counts takes besides
STEPS = 150  # of it that show most directions; fewer show too few (docs/results/share.md)
_CUT_BELOW = 10  # groups, of which half are too few to know chance
HELD_OUT, MOST = 0.1, 4000  # share of the samples that is counted on, and how many at most
_COUNTING = "an epoch of the training that counts the share"  # for messages


def wants_share(objective: Objective) -> bool:
    """Return whether a method's share of common dimensions is to be counted."""
    return isinstance(objective, DeCUR) and objective.counts_share


def counting_epochs(epochs: int, steps: int) -> int:
    """Return the number of epochs of the training that counts the share.

    That is a tenth of those that follow; or as many as have 150 steps, up to 15 % of them. One is
    the least.

    Args:
        epochs: of the training that follows.
        steps: of an epoch.
    """
    least = max(1, round(SHORTEST * epochs))
    return max(least, min(math.ceil(STEPS / max(1, steps)), int(LONGEST * epochs)))


def hold_out(paired: PairedData) -> PairedData:
    """Return the pairs of the training that counts the share, some of which it does not see.

    Groups stay whole, unless there are fewer than ten: half of these are too few to know chance.
    So many are held out that it is well known, if that leaves half of them to train on.

    Args:
        paired: the pairs of the training that follows.

    Raises:
        ConfigError: if there are too few samples, or too few groups to know chance.
    """
    count = len(paired.dataset)
    groups, share = paired.dataset.groups, _held_out_of(count) / count
    several = len(set(groups or ()))
    each = np.arange(several)
    if groups is not None and pairings(each, each, None) < PAIRINGS:
        raise ConfigError(
            f"objective.common: auto has samples of {several} group{'s' * (several > 1)} "
            "to count on, too few to know chance; five groups are enough; give the share"
        )
    if several >= _CUT_BELOW:
        share = max(share, min(0.5, WHOLE_GROUPS / several))
    fewer = copy(paired)
    fewer.held_out = np.sort(split(count, groups, paired.seed, share, _CUT_BELOW)[1])
    if fewer.anew is not None:  # a group that is cut would deal them out to its other samples
        fewer.anew = fewer.anew.without(fewer.held_out.tolist())
    _refuse_no_batch(count, len(fewer.held_out), paired.settings.batch_size)
    return fewer


def _held_out_of(count: int) -> int:
    """Return how many of so many samples are held out, where they need not be whole groups."""
    wanted = min(MOST, max(round(HELD_OUT * count), min(FEW, count // 4)))
    if wanted < LEAST:
        raise ConfigError(
            f"objective.common: auto needs {4 * LEAST} samples, to hold out a quarter of them; "
            f"there are {count}; give more, or the share"
        )
    return wanted


def _refuse_no_batch(count: int, held: int, batch_size: int) -> None:
    """Refuse to hold so many samples out that the others do not fill a batch."""
    holds = f"objective.common: auto holds {held} of the {count} out"
    refuse_too_few(count - held, batch_size, f", as {holds}; or give the share")


def counting_steps(paired: PairedData, epochs: int, samples: int, limit: float | None) -> int:
    """Return the steps of the training that counts the share.

    Args:
        paired: the pairs of the training that follows, or an example of them.
        epochs: of that training.
        samples: of the whole data set.
        limit: the Trainer's `limit_train_batches`.

    Raises:
        ConfigError: if there are too few samples.
    """
    batch_size = paired.settings.batch_size
    if samples == len(paired.dataset):
        held = len(hold_out(paired).held_out)
    else:
        held = _held_out_of(samples)
        _refuse_no_batch(samples, held, batch_size)
    steps = limited((samples - held) // batch_size, limit, _COUNTING)
    return counting_epochs(epochs, steps) * steps


def counting_batches(fewer: PairedData, limit: float | None) -> int:
    """Return the batches of an epoch of the training that counts the share.

    Args:
        fewer: the pairs, as `hold_out` gives them.
        limit: the Trainer's `limit_train_batches`.

    Raises:
        ConfigError: if it leaves none.
    """
    return limited(fewer.steps_per_epoch, limit, _COUNTING)


def counted_on(fewer: PairedData) -> Rows:
    """Return the rows on which directions are counted: those held out, 4,000 of them at most.

    Args:
        fewer: the pairs, as `hold_out` gives them.
    """
    rows: Rows = fewer.held_out
    if len(rows) <= MOST:
        return rows
    return np.sort(np.random.default_rng(fewer.seed).choice(rows, MOST, replace=False))


def count_share(
    folder: RunFolder,
    fewer: PairedData,
    make: Callable[[PretrainSettings], Pretrainer],
    settings: PretrainSettings,
    options: Mapping[str, Any],
    console: Console,
    data: str | None = None,
) -> Counted:
    """Set the share of common dimensions that a short training finds, and return what it counted.

    The training goes on where it was interrupted. What it has found stays as `share.json` in the
    folder.

    Args:
        folder: of the run.
        fewer: the pairs, as `hold_out` gives them.
        make: makes a model of settings, whose objective is that of the run.
        settings: of the run.
        options: of the run's Trainer.
        console: where its epochs are said.
        data: digest of the files, by which a change is noticed where it goes on.
    """
    place, epochs, held = folder.counting, options["max_epochs"], len(counted_on(fewer))
    short = counting_epochs(epochs, counting_batches(fewer, options.get("limit_train_batches")))
    warmup = settings.optimizer.warmup_epochs * short / epochs
    settings = replace(settings, optimizer=replace(settings.optimizer, warmup_epochs=warmup))
    checkpoint = place.newest_checkpoint()
    if checkpoint is not None and not _goes_on(checkpoint, short):
        checkpoint = None
    quiet = replace(settings.monitor, every_epochs=0)
    epoch_log = EpochLog(place, quiet, console, 0, "counting epoch")
    state = TrainingState(place, settings.checkpoint, data=data)
    trainer = make_trainer(
        # a limit of time is for the training that follows
        {key: value for key, value in options.items() if key != "max_time"} | {"max_epochs": short},
        float32_matmul=settings.float32_matmul,
        plugins=[AtomicCheckpointIO(), SyncBatchNorms()],
        callbacks=[
            BadSamples(place, settings.loader.max_bad, len(fewer.dataset)),
            CountShare(folder, data),
            epoch_log,
            ProgressBar(epoch_log, console),
            state,
        ],
        logger=False,
        **OWN,
    )
    if trainer.is_global_zero:
        if checkpoint is None:
            shutil.rmtree(place.path, ignore_errors=True)
        of = f" of the {len(fewer.held_out)}" if held < len(fewer.held_out) else ""
        console.print(
            "share       is counted first, by a training with all dimensions common "
            f"({short} epoch{'s' if short > 1 else ''}), on {held}{of} samples held out of it",
            highlight=False,
        )
        if held < FEW:
            log.warning(
                "objective.common: auto counts on %d samples held out, which are few: the share "
                "will be a rough one; give %s, or the share",
                held,
                f"{4 * FEW} samples or more"
                if len(fewer.dataset) < 4 * FEW
                else "more samples in each group",
            )
    place.path.mkdir(parents=True, exist_ok=True)
    model = make(settings)
    assert isinstance(model.objective, DeCUR)
    model.objective.forget_share()
    fit(trainer, model, fewer, checkpoint, state)
    counted = take_counted(folder, model)
    assert counted is not None
    return counted


def _goes_on(checkpoint: Path, short: int) -> bool:
    """Return whether a training of so many epochs can go on from a checkpoint and count.

    It cannot from one of a longer training, nor from one that has counted, of which the count has
    been deleted: its split is set.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return epochs_done(saved) < short and _counted_in(saved) < 0


def _counted_in(saved: Mapping[str, Any]) -> int:
    """Return how many common dimensions a checkpoint has counted; -1 for not yet."""
    return int(saved["state_dict"].get("objective.counted", -1))


class CountShare(Callback):
    """Log the share of common dimensions; count it at the end of a training, if nobody has.

    Its place is before the callbacks that write metrics and save the state, which keep what it has
    found.

    Args:
        run: the run's folder, to which the share is written.
        data: digest of the files, which is written beside it.
    """

    def __init__(self, run: RunFolder, data: str | None = None) -> None:
        self.run, self.data = run, data

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of the epoch; after the last one, count it."""
        assert isinstance(pl_module, Pretrainer)
        objective = pl_module.objective
        assert isinstance(objective, DeCUR)
        values = {"share/common": objective.share}
        if trainer.current_epoch + 1 == trainer.max_epochs and not objective.is_counted:
            if pl_module.is_sharded:  # a shard alone has no features: all must run
                counted = trainer.strategy.broadcast(self._count(trainer, pl_module))
            else:  # it takes minutes, and nobody waits for them in a collective
                counted = Counted.of(from_first(lambda: self._count(trainer, pl_module).plain()))
            objective.set_share(counted.taken())
            if trainer.is_global_zero:
                counted.write(self.run)
            found = {f"{a}-{b}": n for (a, b), n in counted.between.items()} | counted.within
            values |= {f"directions/{x}": float(n) for x, n in found.items() if n is not None}
        device = pl_module.device
        pl_module.meter.add({name: torch.tensor(v, device=device) for name, v in values.items()})

    def _count(self, trainer: L.Trainer, model: Pretrainer) -> Counted:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PairedData)
        rows, groups = counted_on(data), data.dataset.groups
        embeddings = embed_views(model, data, rows)
        own = None if groups is None else [groups[row] for row in rows]
        found = count_directions(embeddings, own, model.seed)
        return replace(found, samples=len(rows), steps=trainer.global_step, data=self.data)


def take_counted(
    folder: RunFolder, model: Pretrainer, checkpoint: Path | None = None
) -> Counted | None:
    """Set the share that was counted for a run; all dimensions are common if none was.

    Where what was counted has been deleted, it is the share that the checkpoint holds.

    Args:
        folder: of the run.
        model: whose objective's share is set.
        checkpoint: from which the run goes on, if there is one.

    Returns:
        What was counted.

    Raises:
        DataError: if what was counted cannot be read, is of other sensors, or is not what the
            checkpoint has.
    """
    objective = model.objective
    if not wants_share(objective):
        return None
    assert isinstance(objective, DeCUR)
    counted = Counted.read(folder)
    kept = -1  # not counted yet
    if checkpoint is not None and checkpoint.is_file():  # a folder where it is sharded
        kept = _counted_in(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True))
    if counted is None:
        if kept < 0:
            objective.forget_share()
        else:
            objective.set_share(kept / objective.dim)
        return None
    if set(counted.within) != set(model.modalities):
        raise DataError(
            f"{folder.counted}: is of {' and '.join(counted.within)}, and these are "
            f"{' and '.join(model.modalities)}; delete it, or start anew with --overwrite"
        )
    common = objective.set_share(counted.taken())
    if kept not in (-1, common):
        raise DataError(
            f"{folder.counted}: makes {common} of {objective.dim} dimensions common, and "
            f"{checkpoint} has {kept}; delete it, and the checkpoint's are kept"
        )
    return counted


def tell_share(counted: Counted, objective: Objective, console: Console) -> None:
    """Say what was counted, and which share training has by it.

    Args:
        counted: the directions.
        objective: whose share has been set.
        console: where it is said.
    """
    assert isinstance(objective, DeCUR)
    found = counted.share()
    for line in counted.untold:
        log.warning("objective.common: %s", line)
    if not counted.is_counted:
        log.warning(
            "objective.common: the share cannot be told; %g of the dimensions will be common. Give "
            "the share",
            objective.share,
        )
    elif not found:
        log.warning(
            "objective.common: after a training of %d step%s %s; %g of the dimensions will be "
            "common. Where sensors share more, train longer or give the share",
            counted.steps,
            "s" if counted.steps > 1 else "",
            "not even two views of a sensor agree in any direction beyond chance"
            if found is None
            else f"{', '.join(counted.apart())} agree in no direction beyond chance",
            objective.share,
        )
    console.print(f"share       {counted.sentence()}", highlight=False)
    shares = counted.shares()
    if len(shares) > 1:
        each = ", ".join(f"{a}-{b} {x:.0%}" for (a, b), x in shares.items())
        differ = len(set(shares.values())) > 1
        more = "; objective.blocks can give more to two of them" if differ else ""
        console.print(f"share       of two sensors: {each}{more}", highlight=False)
    common = round(objective.share * objective.dim)
    why = f", the least; counted were {found:.1%}" if counted.is_few else ""
    console.print(
        f"share       common {common} of {objective.dim} dimensions ({objective.share:.0%}{why}); "
        "training starts with it",
        highlight=False,
    )
