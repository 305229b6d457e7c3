"""Parts of a data set under Lightning: reading them in batches, writing their rows to Parquet."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad
from decur.embed.geography import GEOMETRY, footprint
from decur.embed.model import EmbeddingColumns, EmbeddingModel
from decur.embed.parquet import BAD, bad_of, is_current, open_part, part_file
from decur.errors import DataError
from decur.features.rows import refuse_rows_not_finite
from decur.memory import tell_little_shared_memory
from decur.runs import put_in_place, reason_not_written, temporary_name
from decur.signals import ignore_signals

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
_BEHIND = 2  # batches that may wait to be written while the device goes on


class PartBatch(Batch):
    """A batch of one part; parts do not share batches."""

    part: int
    last: bool  # of its part
    footprints: list[bytes | None]  # of its samples; empty where the data has no place


class _Batches(Dataset[PartBatch]):
    """Some batches of a data set, read and collated."""

    def __init__(
        self,
        data: PairedDataset,
        names: Sequence[str],
        rows: list[tuple[int, bool, range]],
        placed: bool,
    ) -> None:
        self.data, self.rows, self.placed, self.place = SkipBad(data), rows, placed, data.place
        self.collate = Collate({name: data.modalities[name] for name in names}, {})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PartBatch:
        part, last, rows = self.rows[index]
        samples = [self.data[i] for i in rows]
        footprints: list[bytes | None] = []
        if self.placed:
            footprints = [
                None if "bad" in sample else footprint(sample.get("place") or self.place(i))
                for i, sample in zip(rows, samples, strict=True)
            ]
        batch = self.collate(samples)
        return {**batch, "part": part, "last": last, "footprints": footprints}


def _as_it_is(batch: Any) -> Any:
    return batch


class PartData(L.LightningDataModule):
    """The parts that are still missing, shared among the processes.

    Which samples a part holds does not depend on the number of processes.

    Args:
        data: any data set.
        names: sensors to read.
        settings: batch size, workers.
        folder: where the parts are.
        size: samples of a part.
        content: digest of the data; parts of other content are missing. None: all are.
        placed: whether samples have footprints.
    """

    def __init__(
        self,
        data: PairedDataset,
        names: Sequence[str],
        settings: LoaderSettings,
        folder: Path,
        size: int,
        content: str | None,
        placed: bool = False,
    ) -> None:
        super().__init__()
        # fewer parts may be missing than there are processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.data, self.names, self.settings = data, list(names), settings
        self.folder, self.size, self.content, self.placed = folder, size, content, placed

    def predict_dataloader(self) -> DataLoader[PartBatch]:
        """Return the loader of this process's batches."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        todo: list[int] = []
        if rank == 0:
            for left in self.folder.glob(".part-*.tmp"):  # of a command that was killed
                left.unlink(missing_ok=True)
            count = -(-len(self.data) // self.size)
            files = [part_file(self.folder, number) for number in range(count)]
            old = [f for f in files if f.is_file() and not is_current(f, self.content)]
            for file in old:
                file.unlink(missing_ok=True)
            if old:
                log.info("%s: the data has changed; %d parts are made anew", self.folder, len(old))
            todo = [number for number, file in enumerate(files) if not file.is_file()]
        todo = self.trainer.strategy.broadcast(todo)  # one that comes late sees parts of others
        step, rows = max(1, self.settings.batch_size // world), []
        for part in todo[rank::world]:
            stop = min((part + 1) * self.size, len(self.data))
            for first in range(part * self.size, stop, step):
                rows.append((part, first + step >= stop, range(first, min(first + step, stop))))
        workers = min(self.settings.processes(), len(rows))
        if rank == 0:
            sensors = [self.data.modalities[name] for name in self.names]
            tell_little_shared_memory(sensors, step, workers)
        return DataLoader(
            _Batches(self.data, self.names, rows, self.placed),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=ignore_signals,
            pin_memory=torch.cuda.is_available(),
            # the loader's own draw of a worker seed would otherwise consume the global state
            generator=torch.Generator().manual_seed(0),
        )


class _Job(TypedDict):
    part: int
    last: bool
    ids: dict[str, list[str]]
    footprints: dict[str, list[bytes | None]]
    found: dict[str, EmbeddingColumns]
    bad: list[tuple[str, str]]


class PartWriter(BasePredictionWriter):
    """Writes a row group for each batch and sensor; a part gets its name when it is whole.

    Writing happens in a thread of its own, so that the device does not wait for the disk.

    Args:
        folder: where the parts are.
        layout: as `schema` gives it.
        limit: samples that may be bad, with those of the parts that are there already.

    Raises:
        DataError: if a part that is there is cut off or damaged.
    """

    def __init__(self, folder: Path, layout: pa.Schema, limit: float) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.layout, self.limit = folder, layout, limit
        self.bad = 0
        # else each repetition of the command would allow as many again
        content = json.loads(layout.metadata[b"decur"])["content"]
        for path in folder.glob("part-*.parquet"):
            if is_current(path, content):
                with open_part(path) as part:
                    self.bad += len(bad_of(part))
                    for _ in part.iter_batches():  # which compares it with its checksums
                        pass
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []
        self._open: Any = None
        self._bad: list[tuple[str, str]] = []

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand a batch to the thread.

        Raises:
            DataError: if too many samples are bad, or the disk takes no more.
        """
        assert isinstance(pl_module, EmbeddingModel)
        self.bad += len(batch["bad"])
        if batch["bad"] and self.bad > self.limit:
            path, reason = batch["bad"][-1]
            raise DataError(
                f"{self.bad} samples could not be read, more than loader.max_bad allows; the last: "
                f"{path}: {reason}"
            )
        there = {name: batch["present"][name].tolist() for name in prediction}
        job: _Job = {
            "part": batch["part"],
            "last": batch["last"],
            "ids": {name: list(compress(batch["ids"], has)) for name, has in there.items()},
            "footprints": {n: list(compress(batch["footprints"], has)) for n, has in there.items()},
            "found": prediction,
            "bad": batch["bad"],
        }
        self._waiting.append(self._pool.submit(self._write, job))
        while len(self._waiting) > _BEHIND or (self._waiting and self._waiting[0].done()):
            self._wait(self._waiting.pop(0))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._wait(self._waiting.pop(0))

    def close(self) -> None:
        """Let go of the thread, and of the part that an error has cut off."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._open is not None:
            writer, partial = self._open
            with suppress(OSError):  # a full disk, of which another error tells already
                writer.close()
            partial.unlink(missing_ok=True)
            self._open = None

    def _wait(self, job: Future[None]) -> None:
        try:
            job.result()
        except OSError as error:
            reason = reason_not_written(error, self.folder / "part")
            raise DataError(
                f"{self.folder}: cannot be written ({reason}); make room, then give the same "
                "command again"
            ) from error

    def _write(self, job: _Job) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = part_file(self.folder, job["part"])
        if self._open is None:
            partial = temporary_name(path)
            # vectors neither repeat nor compress
            writer = pq.ParquetWriter(
                partial,
                self.layout,
                compression="none",
                use_dictionary=["modality"],
                write_page_checksum=True,
            )
            self._open, self._bad = (writer, partial), []
        writer, partial = self._open
        self._bad += job["bad"]
        for name, columns in job["found"].items():
            ids = job["ids"][name]
            arrays = [pa.array(ids), pa.array([name] * len(ids))]
            for column, x in columns.items():
                rows = x.contiguous().cpu().numpy()
                refuse_rows_not_finite(rows, ids, f"{column} of {name!r}")
                flat = pa.array(rows.ravel())
                if pa.types.is_fixed_size_list(self.layout.field(column).type):
                    arrays.append(pa.FixedSizeListArray.from_arrays(flat, x.shape[1]))
                else:
                    offsets = pa.array(range(0, x.numel() + 1, x.shape[1]), pa.int32())
                    arrays.append(pa.ListArray.from_arrays(offsets, flat))
            if GEOMETRY in self.layout.names:
                arrays.append(pa.array(job["footprints"][name], pa.binary()))
            writer.write_table(pa.Table.from_arrays(arrays, schema=self.layout))
        if job["last"]:
            writer.add_key_value_metadata({BAD: json.dumps(self._bad)})
            writer.close()
            put_in_place(partial, path)
            self._open = None
