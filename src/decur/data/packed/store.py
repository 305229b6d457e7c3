"""The place of packed files: a folder, or an object store with a folder as its cache."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from decur.data.packed.items import litdata
from decur.data.packed.metadata import HEADER, INDEX, SAMPLES, Chunk, read_stamp
from decur.errors import BadSampleError, DataError

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
