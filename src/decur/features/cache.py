"""Rows of all samples, kept in a folder and known by what they were made from."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from decur.digest import CannotBeTold, digest
from decur.errors import DataError
from decur.features.model import FeatureModel
from decur.features.passes import SampleLoader, compute_features, iterate
from decur.features.rows import Columns, Features, Key, LabelRows, writing_rows
from decur.locks import refuse_lost, taking_turns
from decur.runs import atomic, put_in_place, remove_leftovers, temporary_name

log = logging.getLogger(__name__)
FORMAT = 5  # format of a cache; raised when its content would come out otherwise
_SEAL = struct.Struct("<4sI")  # at the end of a file: what it is, and the CRC-32 of all before it
_MAGIC = b"CRC1"
_BLOCK = 1 << 22  # bytes that are read at a time


def cached_features(
    model: FeatureModel,
    loader: SampleLoader,
    *,
    cache: Path,
    maps: bool = False,
    device: torch.device | str = "cpu",
) -> Features:
    """Return the rows of all samples; what an earlier call has left in a folder is used again.

    Features of a sensor belong to its weights, its pictures, their scaling and size, and to those
    of the sensors that its encoder attends to; labels belong to the data. Each array is a file of
    its own that is there whole or not at all. What cannot be told from others is computed each
    time, and the log says so.

    Args:
        model: may have no encoder: then only labels are read. On the CPU afterwards.
        loader: the samples.
        cache: the folder.
        maps: give feature maps and masks in place of features and embeddings.
        device: where the encoders run.

    Raises:
        DataError: if more of the data is bad than `loader.settings.max_bad` allows, or the folder
            cannot be written.
        RunLostError: if the folder is of a run whose folder was lost.
    """
    try:
        plan = _Plan(model, loader, cache, maps)
    except CannotBeTold as error:
        log.warning("features are computed each time and not cached: %s", error)
        found = compute_features(model.to(device), loader, maps=maps, on_disk=True)
        model.cpu()
    else:
        computed = plan.missing()
        if computed:
            with _turn(cache, plan.digests()):
                computed = plan.missing()  # another run may have computed it meanwhile
                if computed:
                    plan.compute(device)
        if not computed:
            log.info("features and labels are taken from %s", cache)
        found = plan.read(computed)
    allowed = loader.settings.max_bad * len(loader.indices)
    if len(found.bad) > allowed:
        raise DataError(
            f"{len(found.bad)} of {len(loader.indices)} samples could not be read, more than "
            f"loader.max_bad {loader.settings.max_bad:g} allows; the first: {found.bad[0][0]}: "
            f"{found.bad[0][1]}"
        )
    return found


class _Plan:
    """Which files of a cache hold what is wanted, which are missing, and how they are made."""

    def __init__(self, model: FeatureModel, loader: SampleLoader, cache: Path, maps: bool) -> None:
        self.model, self.loader, self.cache, self.maps = model, loader, cache, maps
        self._whole: set[Path] = set()  # files that were compared with their checksums
        data, names = loader.data, list(model.encoders)
        whole = loader.indices == list(range(len(data)))
        some = None if whole else loader.indices
        self.labels_by = digest(FORMAT, "labels", data, some)
        self.known_by: dict[str, str] = {}
        pictures = {name: digest(FORMAT, data.only([name], targets=()), some) for name in names}
        weights = {
            name: digest(model.encoders[name], *(p for _, p in model._projectors([name])))
            for name in names
        }
        for name in names:
            about = [
                (pictures[other], weights[other], model.modalities[other])
                for other in (name, *model.attended(name))
            ]
            self.known_by[name] = digest(*about, model.size, maps)
        # Rows with unreadable samples are of use only where the same samples are unreadable.
        self.read_with = self.labels_by[:8]

    def digests(self) -> list[str]:
        """Return the digests whose locks are held while their arrays are computed."""
        return [self.labels_by, *self.known_by.values()]

    def keys(self, name: str) -> list[Key]:
        """Return the keys of the arrays of one sensor."""
        if self.maps:
            return [("features", key) for key in self.model.map_names(name)]
        kinds = ["features", *(["embeddings"] if name in self.model.projectors else [])]
        return [(kind, name) for kind in kinds]

    def all_keys(self) -> list[Key]:
        """Return the keys of all arrays that are wanted."""
        return [*(key for name in self.model.encoders for key in self.keys(name)), *self.masks()]

    def masks(self) -> list[Key]:
        """Return the keys of the masks that are wanted."""
        targets = self.loader.data.targets.items()
        return [("masks", name) for name, spec in targets if self.maps and spec.kind == "mask"]

    def file(self, key: Key, bad: bool) -> Path:
        """Return the file of an array.

        One with unreadable samples has a name of its own, as it is used only where the same samples
        are unreadable.
        """
        kind, name = key
        known_by = self.labels_by if kind == "masks" else self.known_by[name.partition("/")[0]]
        stem = {"features": "", "embeddings": "-embedding", "masks": "-mask"}[kind]
        ending = f"-{self.read_with}" if bad else ""
        return self.cache / f"{name.replace('/', '-')}{stem}-{known_by}{ending}.npy"

    @property
    def label_file(self) -> Path:
        """Where labels and the list of bad samples lie."""
        return self.cache / f"labels-{self.labels_by}.npz"

    def found(self, key: Key) -> Path | None:
        """The file of an array, where there is one that is whole."""
        both = (self.file(key, True), self.file(key, False))
        return next((file for file in both if self._is_usable(file)), None)

    def missing(self) -> bool:
        """Return whether anything must be computed."""
        lacking = any(self.found(key) is None for key in self.all_keys())
        return lacking or not self._is_usable(self.label_file)

    def _is_usable(self, file: Path) -> bool:
        """Return whether a file is there and whole; delete a damaged one, and log that."""
        if file not in self._whole and file.is_file():
            if is_whole(file):
                self._whole.add(file)
            else:
                log.warning("%s is damaged; what it held is computed anew", file)
                file.unlink(missing_ok=True)
        return file in self._whole

    def compute(self, device: torch.device | str) -> None:
        """Compute what is missing, in one pass over the samples."""
        for known_by in self.digests():  # whose locks this process holds
            remove_leftovers(self.cache, pattern=f".*{known_by}*.tmp")
        lacking = {
            name
            for name in self.model.encoders
            if any(self.found(key) is None for key in self.keys(name))
        }
        names = [n for n in self.model.encoders if {n, *self.model.attended(n)} & lacking]
        model = FeatureModel(
            {name: self.model.encoders[name] for name in names},
            self.model.modalities,
            projectors=dict(self.model._projectors(names)),
            size=self.model.size,
        ).to(device)
        labels = LabelRows(self.loader.data.targets)
        masks = {name: self.loader.data.targets[name] for _, name in self.masks()}
        columns = Columns(len(self.loader.indices), masks, self._open)
        try:
            for batch in iterate(model, self.loader, maps=self.maps):
                with writing_rows(self.cache):
                    columns.add(batch)
                labels.add(batch)
            with writing_rows(self.cache):
                self._name(columns, labels)
        finally:
            for file in columns.files.values():
                with suppress(OSError):  # a full disk, of which another error tells already
                    file.close()
                Path(file.name).unlink(missing_ok=True)
            model.cpu()

    def _name(self, columns: Columns, labels: LabelRows) -> None:
        """Give the files their names, now that they are whole."""
        columns.finish()
        for key, file in columns.files.items():
            file.close()
            seal(Path(file.name))
            put_in_place(Path(file.name), self.file(key, bool(self.loader.bad)))
        bad = np.array(self.loader.bad, dtype=str).reshape(-1, 2)
        arrays: dict[str, Any] = {f"label/{name}": x for name, x in labels.arrays().items()}
        with atomic(self.label_file) as temporary:
            with temporary.open("wb") as stream:
                np.savez(stream, bad=bad, **arrays)
            seal(temporary)

    def _open(self, key: Key) -> IO[bytes]:
        return temporary_name(self.file(key, False)).open("wb")

    def read(self, computed: bool) -> Features:
        """Open what lies in the cache."""
        with np.load(self.label_file) as file:
            labels = {name: file[f"label/{name}"] for name in self.loader.data.targets}
            bad = [(str(path), str(reason)) for path, reason in file["bad"]]
        arrays: dict[str, dict[str, NDArray[Any]]] = {"features": {}, "embeddings": {}, "masks": {}}
        for kind, name in self.all_keys():
            path = self.found((kind, name))
            assert path is not None  # missing() has seen it
            arrays[kind][name] = np.load(path, mmap_mode="r")
        self.loader.bad = bad
        known_by = digest(self.digests(), self.maps)
        return Features(**arrays, labels=labels, bad=bad, computed=computed, known_by=known_by)


def seal(path: Path) -> None:
    """Append a checksum to an .npy or .npz file; what reads arrays does not notice."""
    checksum = _checksum(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(_SEAL.pack(_MAGIC, checksum))


def is_whole(path: Path) -> bool:
    """Return whether a sealed file is as it was written."""
    try:
        size = path.stat().st_size - _SEAL.size
        with path.open("rb") as stream:
            stream.seek(max(size, 0))
            magic, checksum = _SEAL.unpack(stream.read())
        return bool(magic == _MAGIC and checksum == _checksum(path, size))
    except (OSError, struct.error):
        return False


def _checksum(path: Path, size: int) -> int:
    """Return the CRC-32 of the first bytes of a file."""
    checksum = 0
    with path.open("rb") as file:
        while size > 0 and (some := file.read(min(size, _BLOCK))):
            checksum, size = zlib.crc32(some, checksum), size - len(some)
    return checksum


@contextmanager
def _turn(cache: Path, digests: Iterable[str]) -> Iterator[None]:
    """Wait for other runs that compute the same, as the cells of a comparison do at one time."""
    refuse_lost(cache)
    cache.mkdir(parents=True, exist_ok=True)
    told = f"another run computes the same features in {cache}; waiting for it"
    with ExitStack() as held:
        for known_by in sorted(digests):  # in one order, so that no two wait for each other
            held.enter_context(taking_turns(cache / f".{known_by}.lock", told))
        yield
