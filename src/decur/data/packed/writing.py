"""Packing of any data set into litdata chunks: in parallel, by several machines, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from decur.data.base import PairedDataset
from decur.data.loader import reporting_lost_workers
from decur.data.packed.items import HEAD, encode, litdata, zstd
from decur.data.packed.metadata import (
    FORMAT,
    HEADER,
    INDEX,
    PackingPlan,
    read_json,
    source_digest,
    write_metadata,
)
from decur.data.sample import Sample
from decur.digest import digest
from decur.errors import (
    SHARE,
    WORKERS,
    BadSampleError,
    ConfigError,
    DataError,
    RunLostError,
    WriteError,
    check_ranges,
    listed,
)
from decur.locks import watched
from decur.modality import Modality
from decur.runs import make_folder, remove_leftovers, write_text
from decur.signals import ignore_signals

log = logging.getLogger(__name__)
STATE = ".packing"  # folder of what is done, until all is
_LARGEST = 2048  # MB of a chunk: litdata's offsets are of 32 bits


def pack(
    data: PairedDataset,
    out: str | Path,
    *,
    compression: Literal["zstd"] | None = None,
    quantize: bool = False,
    chunk_mb: float = 64.0,
    workers: int = 0,
    part: str | None = None,
    max_bad: float = 0.05,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Pack a data set; an interrupted call goes on where it was, to the same bytes.

    Chunk k holds samples k n to (k + 1) n of the source but the bad ones, whoever writes it: a
    worker takes one chunk at a time, and what is done is what lies in the folder. (litdata's
    `optimize` lets the number of workers decide which sample comes into which file.)

    Args:
        data: any data set.
        out: folder to write.
        compression: "zstd" compresses each sample by itself, so that any can be read alone.
        quantize: store images as the 8 bits that the modality's scaling makes of them (DeCUR,
            appendix B.1); else as the data set gives them.
        chunk_mb: size of a file before compression, at most 2,048.
        workers: reading processes; 0: this one.
        part: "i/n": only every n-th chunk, for machine i of n; None: all, or the part of a SLURM
            array's task. Whichever part is last merges.
        max_bad: share of the samples that may turn out unreadable; beyond it nothing is merged,
            and the same call tries those anew.
        progress: called with the chunks done and all of this part.

    Returns:
        Whether all parts are done, and the data can be read.

    Raises:
        ConfigError: for options that cannot be, or that differ from those it was begun with.
        DataError: if the disk is full or the data cannot be read; the same call then goes on.
        RunLostError: if the folder was deleted meanwhile.
    """
    folder = Path(out)
    number, parts = parse_part(part)
    numbers = SimpleNamespace(workers=workers, max_bad=max_bad)
    check_ranges(numbers, workers=WORKERS, max_bad=SHARE)
    if not 0 < chunk_mb <= _LARGEST:
        raise ConfigError(f"chunk_mb: must be above 0 and at most {_LARGEST}, is {chunk_mb:g}")
    if compression == "zstd":
        zstd()
    litdata()
    _refuse_doubles(data)
    plan = _plan(data, compression, quantize, chunk_mb)
    make_folder(folder, "--out")
    with watched(folder):
        try:
            _pack_missing(data, folder, plan, workers, (number, parts), max_bad, progress)
        except (OSError, DataError, WriteError) as error:
            if not folder.is_dir():
                raise _lost(folder) from error
            if (folder / HEADER).is_file():  # another part has just merged, and cleared the state
                return True
            if not isinstance(error, OSError):
                raise
            raise DataError(_cannot_write(folder, error)) from error
    return (folder / HEADER).is_file()


def _pack_missing(
    data: PairedDataset,
    folder: Path,
    plan: PackingPlan,
    workers: int,
    part: tuple[int, int],
    max_bad: float,
    progress: Callable[[int, int], None],
) -> None:
    """Write the chunks of a part that are not there, and merge once those of all parts are."""
    if _open(folder, plan):
        _refuse_changed(data, folder, plan)
        _tidy(folder)
        return
    number, parts = part
    mine = range(number - 1, plan.chunks, parts)
    todo = [k for k in mine if not _is_done(data, folder, plan, k)]
    progress(len(mine) - len(todo), len(mine))
    loader: DataLoader[str | None] = DataLoader(
        _Chunks(data, folder, plan),
        sampler=todo,
        batch_size=None,
        num_workers=min(workers, len(todo)),
        in_order=False,
        worker_init_fn=ignore_signals,
        # the loader's own draw of a worker seed would otherwise consume the global state
        generator=torch.Generator(),
    )
    for count, failed in enumerate(_survived(loader), len(mine) - len(todo) + 1):
        if failed is not None:
            raise DataError(failed)
        progress(count, len(mine))
    missing = not all(_done(folder, k).is_file() for k in mine)
    if missing and not (folder / HEADER).is_file():  # which is there before the state goes
        raise _lost(folder)
    there = [k for k in range(plan.chunks) if _done(folder, k).is_file()]
    changed = [k for k in there if not _is_done(data, folder, plan, k)]
    if changed:
        again = sorted({f"{k % parts + 1}/{parts}" for k in changed})
        log.warning(
            "%s: %d of %d chunks are of files that have changed since, in size or time; give the "
            "command again with --part %s (where each machine reads a copy of its own, copy the "
            "files with their times)",
            folder,
            len(changed),
            plan.chunks,
            listed(again),
        )
    elif len(there) == plan.chunks:
        _merge(folder, plan, data, max_bad)


def _is_done(data: PairedDataset, folder: Path, plan: PackingPlan, k: int) -> bool:
    """Return whether a chunk is there, made of files as they are today.

    Version 0.1 did not note the files of a chunk: such a chunk is done.
    """
    path = _done(folder, k)
    if not path.is_file():
        return False
    now = data.file_digest(plan.rows(k))
    return bool(read_json(path).get("files", now) == now)


def _refuse_changed(data: PairedDataset, folder: Path, plan: PackingPlan) -> None:
    """Refuse packed data whose files have changed since.

    Raises:
        ConfigError: naming the folder and the remedy.
    """
    noted = read_json(folder / HEADER).get("files")  # version 0.1 noted nothing
    if noted not in (None, digest([data.file_digest(plan.rows(k)) for k in range(plan.chunks)])):
        raise ConfigError(
            f"{folder}: holds packed data of files that have changed since, in size or time; "
            "choose another folder, or delete this one to pack anew"
        )


def parse_part(part: str | None) -> tuple[int, int]:
    """Return the part and the number of parts; by default a SLURM array's task, or 1 of 1.

    Raises:
        ConfigError: if it is not "i/n" with 1 <= i <= n, or the array leaves numbers out.
    """
    if part is None:
        count = int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1"))
        first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        task = int(os.environ.get("SLURM_ARRAY_TASK_ID", str(first)))
        last = int(os.environ.get("SLURM_ARRAY_TASK_MAX", str(first + (count - 1) * step)))
        if (max(task, last) - first) // step + 1 != count:  # as in --array=3,5
            raise ConfigError(
                f"part: the SLURM array of {count} tasks leaves numbers out between {first} and "
                f"{last}; use one without gaps, such as --array=1-{count}, or give --part i/n"
            )
        return (task - first) // step + 1, count
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"part: {part!r} is not i/n with i from 1 to n, such as 1/4")
    return int(found[1]), int(found[2])


def quantized(modality: Modality) -> Modality:
    """Return the modality of images that are stored as 8 bits after its scaling."""
    return modality.with_(
        scaling="range",
        value_range=(0.0, 255.0),
        mean=None,
        std=None,
        cut=0.0,
        nodata=None,
        factor=None,
        offset=None,
        to_db=False,
    )


def _quantize(sample: Sample, modalities: Mapping[str, Modality]) -> Sample:
    def to_bytes(name: str, image: Tensor) -> Tensor:
        raw = modalities[name].convert(image)
        return (modalities[name].scale(raw) * 255).round().to(torch.uint8)

    images = {name: to_bytes(name, image) for name, image in sample["images"].items()}
    return {**sample, "images": images}


class _Chunks(Dataset[str | None]):
    """A data set whose item k writes chunk k, and is the error's message or None."""

    def __init__(self, data: PairedDataset, folder: Path, plan: PackingPlan) -> None:
        self.data, self.folder, self.plan = data, folder, plan

    def __getitem__(self, k: int) -> str | None:
        temporary = self.folder / STATE / f"{k}.{platform.node()}.{os.getpid()}"
        try:
            self._write(k, temporary)
        except OSError as error:
            if not (self.folder / HEADER).is_file():  # else others have written it meanwhile
                return _cannot_write(self.folder, error)
        except DataError as error:
            return str(error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if (self.folder / HEADER).is_file():  # others finished: this one outlived its command
                shutil.rmtree(self.folder / STATE, ignore_errors=True)
        return None

    def _write(self, k: int, temporary: Path) -> None:
        rows: list[int] = []
        bad: list[list[str]] = []
        stamp = hashlib.sha256()
        temporary.mkdir()  # not its folder: that may have been deleted meanwhile
        chunk_writer = litdata().writer.BinaryWriter(
            str(temporary), chunk_size=self.plan.per_chunk, chunk_index=k
        )
        files = self.data.file_digest(self.plan.rows(k))  # before they are read
        for row in self.plan.rows(k):
            try:
                sample = self.data[row]
            except BadSampleError as error:
                bad.append([self.data.ids[row], error.path, error.reason])
                continue
            if self.plan.quantized:
                sample = _quantize(sample, self.data.modalities)
            item = encode(sample, self.plan.compression == "zstd")
            stamp.update(item[: HEAD.size])  # its checksum
            chunk_writer.add_item(len(rows), item)
            rows.append(row)
        if rows:
            chunk_writer.done()
            (index,) = temporary.glob("*.index.json")
            values = json.loads(index.read_text())
            (chunk,) = values["chunks"]
            # litdata names it by the process that wrote it
            written, chunk["filename"] = chunk["filename"], f"chunk-0-{k}.bin"
            (temporary / written).replace(self.folder / chunk["filename"])
            write_text(self.folder / STATE / f"{k}.index.json", json.dumps(values))
        done = {"rows": rows, "bad": bad, "stamp": stamp.hexdigest(), "files": files}
        write_text(_done(self.folder, k), json.dumps(done))


def _survived(loader: DataLoader[str | None]) -> Iterator[str | None]:
    with reporting_lost_workers("lower --workers"):
        yield from loader


def _refuse_doubles(data: PairedDataset) -> None:
    if len(set(data.ids)) == len(data.ids):
        return
    seen: set[str] = set()
    for id_ in data.ids:
        if id_ in seen:
            raise DataError(f"id {id_!r}: two samples have it; give each its own")
        seen.add(id_)


def _plan(
    data: PairedDataset, compression: str | None, quantize: bool, chunk_mb: float
) -> PackingPlan:
    """Plan the packing by the size of the first sample that can be read."""
    for row in range(len(data)):
        try:
            sample = data[row]
            break
        except BadSampleError as error:
            problem = error
    else:
        raise DataError(f"no sample can be read; the last: {problem}")
    size = len(encode(_quantize(sample, data.modalities) if quantize else sample))
    return PackingPlan(
        format=FORMAT,
        data=type(data).__name__,
        source=source_digest(data),
        samples=len(data),
        per_chunk=max(1, int(chunk_mb * 1e6 / size)),
        compression=compression,
        quantized=quantize,
    )


def _open(folder: Path, plan: PackingPlan) -> bool:
    """Make the folder, or see that what it holds is of the same plan; True where all is done."""
    header, state = folder / HEADER, folder / STATE / "plan.json"
    ours = vars(plan)
    for path in (header, state):
        if not path.is_file():
            continue
        found = read_json(path)
        found = found.get("plan", {}) if path == header else found
        for key, value in ours.items():
            if key == "source" and found.get(key) != value:
                raise ConfigError(
                    f"{folder}: holds packed data of other samples, sensors or labels, or by an "
                    "older decur; choose another folder, or delete this one to pack anew"
                )
            if found.get(key) != value:
                raise ConfigError(
                    f"{folder}: holds packed data with {key} {found.get(key)!r}, not {value!r}; "
                    "choose another folder, or delete this one"
                )
        if path == header:
            return True
    if not state.is_file():
        foreign = folder.is_dir() and any(entry.name != STATE for entry in folder.iterdir())
        if foreign and not state.is_file():  # another part may have begun just now
            raise ConfigError(f"{folder}: is not empty and holds no packed data; choose another")
        state.parent.mkdir(parents=True, exist_ok=True)
        mine = state.with_name(f"plan.{platform.node()}.{os.getpid()}")
        mine.write_text(json.dumps(ours))
        mine.replace(state)
    return False


def _done(folder: Path, k: int) -> Path:
    return folder / STATE / f"{k}.json"


def _merge(folder: Path, plan: PackingPlan, data: PairedDataset, max_bad: float) -> None:
    """Write one index of all chunks, by litdata, and the headers; then delete the state."""
    rows: list[int] = []
    bad: list[list[str]] = []
    with_bad = []
    stamps = []
    files = []
    for k in range(plan.chunks):
        done = read_json(_done(folder, k))
        rows += done["rows"]
        bad += done["bad"]
        stamps.append(done.get("stamp"))
        files.append(done.get("files"))
        if done["bad"]:
            with_bad.append(k)
    if len(bad) > max_bad * plan.samples or not rows:
        for k in with_bad:
            _done(folder, k).unlink(missing_ok=True)
        _, path, reason = bad[0]
        raise DataError(
            f"{len(bad)} of {plan.samples} samples cannot be read, the first: {path}: {reason}; "
            "mend them and run the command again, or raise max_bad"
        )
    temporary = folder / STATE / f"merge.{platform.node()}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    indices = [folder / STATE / f"{k}.index.json" for k in range(plan.chunks)]
    indices = [index for index in indices if index.is_file()]
    for index in indices:
        shutil.copy(index, temporary / index.name)
    # `merge` deletes what it merges: on a copy, an interrupted one can be done again.
    litdata().writer.BinaryWriter(str(temporary), chunk_size=1).merge(len(indices))
    (temporary / INDEX).replace(folder / INDEX)
    modalities = data.modalities
    if plan.quantized:
        modalities = {name: quantized(modality) for name, modality in modalities.items()}
    stamp = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    write_metadata(
        folder,
        plan,
        data=data,
        modalities=modalities,
        rows=np.array(rows),
        bad=bad,
        stamp=stamp,
        files=None if None in files else digest(files),
    )
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Delete the state of a packing that is done, and what killed commands left half written."""
    shutil.rmtree(folder / STATE, ignore_errors=True)
    remove_leftovers(folder)


def _lost(folder: Path) -> RunLostError:
    return RunLostError(
        f"{folder}: what was packed has been deleted meanwhile; give the same command again"
    )


def _cannot_write(folder: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return (
        f"{folder}: cannot be written ({reason}); what is packed is kept: make room, and the same "
        "command goes on"
    )
