"""`PackedPairs`, the data set of what `decur pack` wrote; and the check of its checksums."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from decur.data.base import DATASETS, PairedDataset, change_modalities
from decur.data.grid import Grid
from decur.data.loader import reporting_lost_workers
from decur.data.packed.items import decode, litdata, matches
from decur.data.packed.metadata import (
    HEADER,
    INDEX,
    REMEDY,
    SAMPLES,
    Chunk,
    misfit,
    read_index,
    read_metadata,
    read_stamp,
    read_targets,
)
from decur.data.sample import Sample
from decur.digest import digest, file_states
from decur.errors import BadSampleError, DataError, reading
from decur.modality import Modality
from decur.signals import ignore_signals

_LISTED = 5  # damaged samples that are named
_SIZE = 4  # bytes that litdata puts before an item: its length


@DATASETS.register("PackedPairs")
class PackedPairs(PairedDataset):
    """Samples that `decur pack` wrote: the source's, in its order, without those that were bad.

    From a folder any sample is read by itself, one system call for its bytes, which the tensors
    then share. From an object store whole chunks are downloaded into a cache, once for all
    processes of a machine, and training takes the samples in an order that suits them, see
    `order`. Nothing is ever unpickled; other formats than decur's are refused.

    Args:
        root: Folder of the packed data, or a URL that litdata knows: `s3://`, `gs://`, `azure://`,
            `hf://`, `r2://`. The store's client takes its credentials from the environment.
        modalities: Changes of the modalities, `{name: preset or fields}`, as `{"s1": {"cut": 0}}`.
        cache: Folder for downloaded chunks; by default one in `~/.cache/decur` for each URL.
        cache_gb: Gigabytes that are kept in the cache. Below `window` chunks, chunks come more than
            once.
        window: Number of chunks of an object store among which samples are shuffled.

    Raises:
        DataError: if this is no packed data, or a file is missing or cut short.
        ConfigError: for wrong `modalities`.

    Examples:
        >>> data = PackedPairs("packed")
        >>> data[0]["images"]["s2"].shape
        torch.Size([13, 264, 264])
    """

    def __init__(
        self,
        root: str | Path,
        modalities: dict[str, Any] | None = None,
        *,
        cache: str | Path | None = None,
        cache_gb: float = 50.0,
        window: int = 16,
    ) -> None:
        if window < 1:
            raise DataError(f"PackedPairs: window must be 1 or more, is {window}")
        self.root, self.window = str(root), window
        self._store = Store(root, cache, cache_gb=cache_gb)
        self._store.fetch_headers()
        self._header, arrays = read_metadata(self._store.folder, self.root)
        self.chunks = read_index(self._store.folder)
        with reading(self._store.folder / HEADER, REMEDY, what="is damaged"):
            known = {n: Modality.from_dict(m) for n, m in self._header["modalities"].items()}
            if lacking := [name for name, modality in known.items() if modality.size is None]:
                raise ValueError(f"modality {lacking[0]!r} has no size")
            self.targets = read_targets(self._header)
        self._shapes = {name: (m.channels, *(m.size or ())) for name, m in known.items()}
        self.modalities = change_modalities(known, modalities)
        self.ids = [id_.decode() for id_ in arrays["ids"].tolist()]
        self.present = {name: arrays[f"present/{name}"] for name in known}
        if "group" in arrays:
            names = [name.decode() for name in arrays["group_names"].tolist()]
            self.groups = [names[group] for group in arrays["group"].tolist()]
        self._ends = np.cumsum([chunk.samples for chunk in self.chunks])
        if not len(self._ends) or self._ends[-1] != len(self.ids):
            raise DataError(
                f"{self.root}: index.json and decur.json disagree on the number of samples; "
                "copy both anew, or pack the data again"
            )
        self._offsets: dict[int, np.ndarray] = {}
        # Samples whose checksum this process has found right. Chunks of a folder are not changed
        # in place, so that comparing again at each epoch would find nothing more.
        self._checked = np.zeros(len(self.ids), dtype=bool)
        if not self._store.remote:
            self._check_files()

    def _check_files(self) -> None:
        for chunk in self.chunks:
            path = self._store.folder / chunk.name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path}: no such file; copy it, or pack the data again") from error
            if size != chunk.size:
                raise DataError(f"{path}: {cut_short(size, chunk.size)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_offsets": {}}  # each process reads them when it needs them

    def digest_parts(self) -> object:
        """Return what tells this data from others: its headers and, in a folder, its chunks."""
        chunks = [] if self._store.remote else [chunk.name for chunk in self.chunks]
        files = [self._store.folder / name for name in (HEADER, SAMPLES, INDEX, *chunks)]
        states = file_states(files) if not self._store.remote else []
        return self.made_of, self._header, self.modalities, self.ids, self.wanted, states

    def file_digest(self, rows: Iterable[int] | None = None) -> str:
        """Return a digest of ids, and of the stamp by which one packing is told from another.

        A copy has the same one, whatever the times of its files.
        """
        return digest(self._header.get("stamp"), super().file_digest(rows))

    @property
    def bad(self) -> list[tuple[str, str, str]]:
        """Id, file and reason of every sample of the source that could not be packed."""
        return [(id_, file, reason) for id_, file, reason in self._header["bad"]]

    def read(self, index: int) -> Sample:
        """Read one sample; its checksum is compared when a process reads it for the first time.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        index = range(len(self))[index]
        item = self.read_bytes(index)
        if self._store.remote or not self._checked[index]:
            if not matches(item):
                raise self._damaged(index, "its checksum is wrong")
            self._checked[index] = True
        try:
            sample = decode(item)
        except (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError) as error:
            raise self._damaged(index, str(error)) from error
        if sample["id"] != self.ids[index]:
            raise self._damaged(index, f"holds {sample['id']!r}")
        if reason := misfit(sample, self._shapes, self.targets):
            raise self._damaged(index, reason)
        return sample

    def place(self, index: int) -> Grid | None:
        """Return where the pixels of a sample lie on a map; None where that was not packed."""
        return self.read(index).get("place")

    def read_bytes(self, index: int) -> np.ndarray:
        """Return the bytes of one sample as they are stored: (bytes,) uint8.

        Raises:
            BadSampleError: naming the file, if they cannot be read.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        chunk = self.chunks[number]
        row = index - int(self._ends[number]) + chunk.samples
        handle = self._store.open(chunk)
        try:
            if number not in self._offsets:
                self._offsets[number] = _read_offsets(handle, chunk)
            first, last = self._offsets[number][row : row + 2].tolist()
            item = np.empty(last - first - _SIZE, dtype=np.uint8)
            if os.preadv(handle, [item.data], first + _SIZE) != len(item):
                raise ValueError("ends early")
        except (OSError, ValueError) as error:
            raise self._damaged(index, str(error)) from error
        finally:
            os.close(handle)
        return item

    def _damaged(self, index: int, reason: str) -> BadSampleError:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return BadSampleError(
            self._store.folder / self.chunks[number].name,
            f"sample {self.ids[index]!r} is damaged ({reason}); copy the file anew",
        )

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the order of an epoch of training, each sample once: (N,) indices.

        Fully random from a folder. From an object store it comes by chunks in random order,
        samples shuffled among `window` of them.

        Args:
            rng: of the epoch.
        """
        if not self._store.remote:
            return super().order(rng)
        starts = self._ends - [chunk.samples for chunk in self.chunks]
        chunks = rng.permutation(len(self.chunks))
        windows = []
        for first in range(0, len(chunks), self.window):
            some = chunks[first : first + self.window]
            rows = np.concatenate([np.arange(starts[c], self._ends[c]) for c in some])
            windows.append(rng.permutation(rows))
        return np.concatenate(windows)

    def damaged_samples(self, chunk: int) -> Iterator[str]:
        """Yield one line for each sample of a chunk whose checksum is wrong."""
        last = int(self._ends[chunk])
        for index in range(last - self.chunks[chunk].samples, last):
            try:
                self._checked[index] = False
                self.read(index)
            except BadSampleError as error:
                yield str(error)


def _read_offsets(handle: int, chunk: Chunk) -> np.ndarray:
    """Read litdata's header of a chunk: where its items begin, and where the last one ends."""
    header = np.empty(chunk.samples + 2, dtype="<u4")
    if os.preadv(handle, [header.data.cast("B")], 0) != header.nbytes:
        raise ValueError("ends early")
    offsets = header[1:].astype(np.int64)
    rising = (np.diff(offsets) > _SIZE).all() and offsets[0] == header.nbytes
    if header[0] != chunk.samples or not rising or offsets[-1] != chunk.size:
        raise ValueError("its table of samples is wrong")
    return offsets


class _Damage(Dataset[list[str]]):
    def __init__(self, data: PackedPairs) -> None:
        self.data = data

    def __getitem__(self, chunk: int) -> list[str]:
        return list(self.data.damaged_samples(chunk))


def verify(
    data: PackedPairs,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Read every sample and compare it with its checksum.

    Args:
        data: packed data.
        workers: reading processes; 0: this one.
        progress: called with the chunks done and all of them.

    Raises:
        DataError: naming the damaged samples and their files.
    """
    chunks = len(data.chunks)
    loader: DataLoader[list[str]] = DataLoader(
        _Damage(data),
        sampler=range(chunks),
        batch_size=None,
        num_workers=min(workers, chunks),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),
    )
    damaged: list[str] = []
    with reporting_lost_workers("lower --workers"):
        for done, lines in enumerate(loader, 1):
            damaged += lines
            progress(done, chunks)
    if damaged:
        more = f"; and {len(damaged) - _LISTED} more" if len(damaged) > _LISTED else ""
        raise DataError(
            f"{len(damaged)} of {len(data)} samples are damaged: "
            + "; ".join(damaged[:_LISTED])
            + more
        )


# -- where the files are: a folder, or an object store with a folder as its cache ------------------

_CHUNKS = "chunk-*.bin"  # names of their files
_PATIENCE = 600  # seconds that another process may take to download a chunk


class Store:
    """Files of packed data.

    Args:
        root: a folder, or the URL of an object store that litdata knows (`s3://`, `gs://`,
            `azure://`, `hf://`, `r2://`; `local:FOLDER` treats a folder as if it were one).
        cache: folder for what is downloaded; None: in `~/.cache/decur`, by the URL.
        cache_gb: how much of it is kept; the oldest chunks go first.
    """

    def __init__(self, root: str | Path, cache: str | Path | None, *, cache_gb: float) -> None:
        self.url = str(root).rstrip("/")
        self.remote = "://" in self.url or self.url.startswith("local:")
        self.cache_bytes = cache_gb * 1e9
        if not self.remote:
            self.folder = Path(root)
        elif cache is not None:
            self.folder = Path(cache)
        else:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            self.folder = home / "decur" / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._downloader: Any = None

    def fetch_headers(self) -> None:
        """Fetch the headers of an object store into the folder.

        Chunks in the cache that are of other packed data are deleted: names and sizes may agree.
        """
        if not self.remote:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (HEADER, SAMPLES, INDEX):
            # litdata leaves an existing file as it is, and the data may have been packed anew.
            fresh = self.folder / f"{name}.{os.getpid()}"
            self._download(name, fresh)
            # Before the header is replaced: whoever is stopped in between does it again.
            if name == HEADER and read_stamp(fresh) != read_stamp(self.folder / name):
                for chunk in self.folder.glob(_CHUNKS):
                    chunk.unlink(missing_ok=True)
            fresh.replace(self.folder / name)

    def open(self, chunk: Chunk) -> int:
        """Open a chunk, downloaded if need be; return its descriptor, which the caller closes.

        Raises:
            BadSampleError: if it is missing or cut short.
        """
        path = self.folder / chunk.name
        for _ in range(5):  # another process may have made room by deleting it
            if self.remote and not path.exists():
                self._wait_for(chunk, path)
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                if self.remote:
                    continue
                break
            except OSError as error:
                raise BadSampleError(path, f"cannot be opened ({error.strerror})") from error
            size = os.fstat(handle).st_size
            if size == chunk.size:
                return handle
            os.close(handle)
            if self.remote:  # the next to read it downloads it anew
                path.unlink(missing_ok=True)
            raise BadSampleError(path, cut_short(size, chunk.size))
        raise BadSampleError(path, "no such file; copy it anew, or pack the data again")

    def _wait_for(self, chunk: Chunk, path: Path) -> None:
        self._make_room(chunk.size)
        end = time.monotonic() + _PATIENCE
        while not path.exists():
            self._download(chunk.name, path)  # returns at once where another process is at it
            if time.monotonic() > end:
                raise BadSampleError(path, "another process has not finished downloading it")
            if not path.exists():
                time.sleep(0.05)

    def _download(self, name: str, path: Path) -> None:
        if self._downloader is None:
            self._downloader = litdata().downloader.get_downloader(self.url, str(self.folder), [])
        try:
            self._downloader.download_file(f"{self.url}/{name}", str(path))
        except Exception as error:  # each store's client has its own kinds
            reason = " ".join(str(error).split())
            raise DataError(f"{self.url}/{name}: cannot be downloaded ({reason})") from error

    def _make_room(self, needed: int) -> None:
        files = []
        for path in self.folder.glob(_CHUNKS):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        taken = needed + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if taken <= self.cache_bytes:
                return
            path.unlink(missing_ok=True)
            taken -= size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_downloader": None}  # clients do not survive a new process


def cut_short(size: int, expected: int) -> str:
    """Return why a chunk of another size cannot be used."""
    return f"has {size} bytes, should have {expected}; copy it anew, or pack the data again"
