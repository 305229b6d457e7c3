"""Batches of pairs: which samples they hold is a function of (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from decur.data import LoaderSettings
from decur.data.base import PairedDataset, SkipBad
from decur.data.folds import without_fold
from decur.data.sample import Batch, Collate
from decur.data.selection import Regrouped, evenly_spaced, select
from decur.errors import ConfigError
from decur.memory import tell_little_shared_memory
from decur.signals import ignore_signals

if TYPE_CHECKING:
    from decur.pretrain.settings import PretrainSettings


def seen_data(data: PairedDataset, settings: PretrainSettings) -> PairedDataset:
    """Return what a pretraining sees of a data set: all folds but one, and some sensors.

    Args:
        data: the whole data set.
        settings: of the pretraining.

    Raises:
        ConfigError: if the data has no such sensor or no such fold.
    """
    # first the fold: sensors that some samples lack would divide the data otherwise
    data = without_fold(data, settings.without_fold, settings.folds, settings.fold_seed)
    return select(data, settings.modalities)


def refuse_too_few(samples: int, batch_size: int, remedy: str = "") -> None:
    """Refuse samples that do not fill a batch.

    Args:
        samples: how many there are.
        batch_size: over all processes.
        remedy: what helps besides a smaller batch or more samples, as the end of a sentence.

    Raises:
        ConfigError: if there are fewer samples than one batch needs.
    """
    if samples >= batch_size:
        return
    if samples < 2:
        raise ConfigError(f"data: a batch needs 2 samples, and there is 1; give more{remedy}")
    raise ConfigError(
        f"loader.batch_size: {batch_size} is more than the {samples} samples there are; set it to "
        f"{samples} or less{remedy}"
    )


class EpochBatches(Sampler[list[Any]]):
    """Yield the indices of each batch of an epoch, for one process of several.

    The order is a function of (seed, epoch) and a process takes its share of each batch, so the
    samples of a step do not depend on the number of processes. The last, smaller batch is dropped.

    Args:
        samples: number of samples of the data set.
        batch_size: over all processes.
        seed: of the run.
        rank: of this process.
        world: number of processes.
        order: function from a random generator to an order of the samples (samples,), which a data
            set that is read over a network has; None for a random permutation.
        with_epoch: yield pairs of index and epoch, for data that differs between epochs.

    Raises:
        ConfigError: if the batch does not divide among the processes, or there are fewer samples
            than one batch needs.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
        *,
        with_epoch: bool = False,
    ) -> None:
        if batch_size % world:
            raise ConfigError(
                f"loader.batch_size: {batch_size} does not divide among {world} processes"
            )
        refuse_too_few(samples, batch_size)
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.rank, self.world, self.order = rank, world, order
        self.with_epoch = with_epoch
        self.epoch = 0
        self.start = 0  # first batch to yield of this epoch; above 0 when a run goes on

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning calls `set_epoch` of `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; another one than before begins with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.samples) if self.order is None else self.order(rng)
        share = self.batch_size // self.world
        for step in range(self.start, len(self)):
            first = step * self.batch_size + self.rank * share
            rows = order[first : first + share].tolist()
            yield [(row, self.epoch) for row in rows] if self.with_epoch else rows


class ResumableLoader(DataLoader[Any]):
    """A loader whose state is the batch that training, not prefetching, has come to."""

    progress: tuple[int, int] = (0, 0)  # epoch, batches trained on in it

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the batch to go on from."""
        return {"epoch": self.progress[0], "batch": self.progress[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the epoch and the batch to go on from."""
        self.progress = (state["epoch"], state["batch"])
        assert isinstance(self.batch_sampler, EpochBatches)
        self.batch_sampler.epoch, self.batch_sampler.start = self.progress


class PairedData(L.LightningDataModule):
    """A data set as batches for a `Pretrainer`.

    Args:
        dataset: any data set of decur.
        settings: batch size and workers.
        seed: of the order of samples.
        pairing: "fixed", or "group", see `Regrouped`.

    Attributes:
        held_out: rows of the data set that are not trained on; none by default.
    """

    def __init__(
        self,
        dataset: PairedDataset,
        settings: LoaderSettings | None = None,
        *,
        seed: int = 0,
        pairing: Literal["fixed", "group"] = "fixed",
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.settings = settings or LoaderSettings()
        self.seed = seed
        unlabelled = dataset.only(targets=())  # training reads no labels
        self.anew = Regrouped(unlabelled, seed) if pairing == "group" else None
        self.held_out = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return self.samples // self.settings.batch_size

    @property
    def samples(self) -> int:
        """Number of samples that are trained on."""
        return len(self.dataset) - len(self.held_out)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the order of an epoch, each sample that is trained on once: (samples,) rows.

        Args:
            rng: of the order.
        """
        rows = self.dataset.order(rng)
        return rows[~np.isin(rows, self.held_out)] if len(self.held_out) else rows

    def train_dataloader(self) -> ResumableLoader:
        """Return the batches of this process, in an order that is a function of (seed, epoch)."""
        world, rank, sharing = 1, 0, 1
        if self.trainer is not None:
            world, rank = self.trainer.world_size, self.trainer.global_rank
            sharing = max(1, self.trainer.num_devices)
        batches = EpochBatches(
            self.samples,
            self.settings.batch_size,
            self.seed,
            rank,
            world,
            self.order,
            with_epoch=self.anew is not None,
        )
        if self.trainer is not None:
            # Lightning calls set_epoch of a resumed run only once workers have read ahead.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            batches.epoch = progress.processed
        workers = self.settings.processes(sharing)
        if self.trainer is None or self.trainer.is_global_zero:
            modalities = self.dataset.modalities.values()
            share = self.settings.batch_size // world
            tell_little_shared_memory(modalities, share, workers * sharing)
        return ResumableLoader(
            self.anew or SkipBad(self.dataset.only(targets=())),  # training reads no labels
            batch_sampler=batches,
            collate_fn=Collate(self.dataset.modalities, {}),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_signals,
            pin_memory=torch.cuda.is_available(),
            # else the loader would draw the seed of its workers from the global state
            generator=torch.Generator().manual_seed(self.seed),
        )

    def examples(self, samples: int) -> Batch:
        """Return evenly spaced samples in their order, without labels.

        Args:
            samples: at most how many.
        """
        indices = evenly_spaced(len(self.dataset), samples).tolist()
        data = self.dataset.only(targets=())
        readable = SkipBad(data)
        batch: Batch = Collate(data.modalities, {})([readable[index] for index in indices])
        return batch
