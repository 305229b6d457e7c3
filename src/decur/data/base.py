"""The base of every data set, its registry, and what data sets share."""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch.utils.data import Dataset

from decur.data.files import read_files
from decur.data.sample import Sample, Target
from decur.digest import digest, file_state, file_states, files_in, files_named
from decur.errors import BadSampleError, ConfigError, DecurError, reason_of
from decur.modality import Modality
from decur.registry import Made, Registry

if TYPE_CHECKING:
    from decur.data.grid import Grid

# Data sets by the name of their class, as `--data NAME` takes it.
DATASETS: Registry[type[PairedDataset]] = Registry("data set", "decur.data")


# Errors that damaged files do not raise, and faults of code do.
_FAULTS = (AssertionError, AttributeError, NameError, NotImplementedError, ImportError)


class PairedDataset(Made, Dataset[Sample], ABC):
    """Base of every data set: it knows files and samples, and nothing of methods or views.

    To add one, write a file with a subclass that `DATASETS.register` names, with `read`, and with
    `files` where it reads any.

    Attributes:
        modalities: `{name: Modality}`, each with its `size` set.
        ids: of the samples, in index order.
        present: `{name: (N,) bool array}`: which samples have which modality.
        targets: `{name: Target}` of the labels that are read, see `only`; empty where nothing is
            labelled.
        groups: for each sample the name of its group (a scene, a cluster of tiles) that must not
            be split between training and test; None where the data names none.
        labels: `{id: {target: value}}` where labels are known without reading a file for each
            sample, else None. Packed data whose labels differ is known to be of other samples.
        wanted: names of the sensors whose pictures are read, see `only`; None for all.
    """

    registry: ClassVar[Registry[type[PairedDataset]]] = DATASETS
    modalities: dict[str, Modality]
    ids: list[str]
    present: dict[str, np.ndarray]
    targets: dict[str, Target]
    groups: list[str] | None = None
    labels: Mapping[str, Mapping[str, str]] | None = None
    wanted: Collection[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample, its pictures in the numbers of its files.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """

    def __getitem__(self, index: int) -> Sample:
        """Return what `read` returns in raw units; whatever it raises makes a bad sample.

        Libraries raise dozens of kinds of errors for damaged files.

        Args:
            index: of the sample; from the end where it is below 0, as in a list.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        if -len(self) <= index < 0:
            index += len(self)
        try:
            sample = self.read(index)
        except (DecurError, *_FAULTS):
            raise
        except Exception as error:
            if not 0 <= index < len(self):
                raise  # an IndexError ends a loop over the data set
            file = getattr(error, "filename", None) or next(iter(self.files(index)), None)
            reason = f"cannot be read ({type(error).__name__}: {reason_of(error)})"
            raise BadSampleError(file or self.ids[index], reason) from error
        if not any(modality.converts for modality in self.modalities.values()):
            return sample
        images = {n: self.modalities[n].convert(x) for n, x in sample["images"].items()}
        return {**sample, "images": images}

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """Return the same samples, of which only some pictures and some labels need to be read.

        The others may still come where that costs nothing. A label that is not read cannot make a
        sample unusable.

        Args:
            names: of the sensors whose pictures are needed; None changes nothing.
            targets: names of the labels that are needed; None changes nothing.
        """
        made = copy.copy(self)
        if names is not None:
            made.wanted = tuple(names)
        if targets is not None:
            made.targets = {n: spec for n, spec in self.targets.items() if n in targets}
        return made

    def sensors_of(self, index: int) -> list[str]:
        """Return the sensors whose pictures are read for a sample: present and wanted."""
        wanted = self.modalities if self.wanted is None else self.wanted
        return [n for n in self.modalities if n in wanted and self.present[n][index]]

    def files(self, index: int) -> Sequence[str | Path]:
        """Return the files that are read for one sample; none where it has no files of its own.

        Raises:
            BadSampleError: naming the folder, if it must be listed and cannot be.
        """
        return ()

    def file_digest(self, rows: Iterable[int] | None = None) -> str:
        """Return a digest of ids, and of size and modification time of the samples' files.

        It does not hold where the files lie: data that is mounted elsewhere, or was moved, has the
        same one.

        Args:
            rows: indices of the samples whose files are looked at; None: all.
        """
        ids, counts, states, bad = [], [], [], []  # flat: nested ones take ten times as long
        for row in range(len(self)) if rows is None else rows:
            ids.append(self.ids[row])
            try:
                found = [file_state(file) for file in self.files(row)]
            except BadSampleError as error:
                bad.append((self.ids[row], error.reason))
                continue
            counts.append(len(found))
            states += found
        return digest(ids, counts, np.array(states, np.int64), bad)

    def place(self, index: int) -> Grid | None:
        """Return where the pixels of a sample lie on a map; None where that is not known."""
        return None

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return the bytes of one sample as they are stored, not decoded: (bytes,) uint8.

        They are those of its `files`, one after the other, or None where it has no files. A data
        set with many samples in a file returns the bytes that it reads for this one.

        Raises:
            BadSampleError: naming the file, if it cannot be read.
        """
        files = self.files(index)
        return read_files(files) if files else None

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the order of an epoch of training, each sample once: (N,) indices.

        The order is fully random. A data set in an object store has one that suits downloading.

        Args:
            rng: of the epoch.
        """
        return rng.permutation(len(self))

    def digest_parts(self) -> object:
        """Return what tells this data set from others, for `decur.digest`.

        These are its arguments, whatever it holds (what `pickle` would save), and path, size and
        modification time of every file that it reads: those of its samples (`files`), those that
        lie in its folder `root`, and whatever it holds that names a file. Where a class does not
        say which files it reads, all files below a folder that it holds count.
        """
        held = self.__getstate__()
        if isinstance(held, dict):
            held = {key: value for key, value in held.items() if key != "_made_of"}
        given = [*self.made_of.values(), *(held.values() if isinstance(held, dict) else ())]
        silent = type(self).files is PairedDataset.files
        read = {*files_in(getattr(self, "root", None) or ""), *files_named(given, below=silent)}
        bad = []
        for index in range(len(self)):
            try:
                read.update(os.fspath(file) for file in self.files(index))
            except BadSampleError as error:
                bad.append((error.path, error.reason))
        return self.made_of, held, file_states(read), bad

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a table of the sensors, and a few samples."""
        from decur import report
        from decur.plotting import render

        head = ("sensor", "bands", "size", "samples")
        rows = []
        for name, sensor in self.modalities.items():
            size = "various" if sensor.size is None else f"{sensor.size[0]} x {sensor.size[1]}"
            bands = ", ".join(sensor.bands[:12]) + (", ..." if sensor.channels > 12 else "")
            rows.append((name, bands, size, int(self.present[name].sum())))
        strips = []
        for index in range(min(4, len(self))):
            sample = SkipBad(self)[index]
            pictures = [
                report.thumbnail(
                    (255 * render(sensor.scale(sample["images"][name]), sensor)).astype(np.uint8),
                    name,
                )
                for name, sensor in self.modalities.items()
                if name in sample["images"]
            ]
            strips.append(report.strip(sample["id"], pictures))
        labels = ", ".join(f"{name} ({spec.kind})" for name, spec in self.targets.items())
        about = report.paragraph(f"{self!r}" + (f"; labels: {labels}" if labels else ""))
        return about + report.table(head, rows) + "".join(strips)

    def describe(self) -> str:
        """Return one line for the log: samples, how many lack which sensor, labels, groups."""
        n = len(self)
        parts = [f"{n} samples"]
        for name, has in self.present.items():
            bands = self.modalities[name].channels
            size = self.modalities[name].size
            shape = f"{bands} x {size[0]} x {size[1]}" if size else f"{bands} bands"
            lacking = n - int(has.sum())
            parts.append(f"{name} ({shape}" + (f", {lacking} absent)" if lacking else ")"))
        if self.targets:
            said = [f"{name}: {target.describe()}" for name, target in self.targets.items()]
            parts.append(f"labels {', '.join(said)}")
        if self.groups is not None:
            parts.append(f"{len(set(self.groups))} groups")
        return ", ".join(parts)


class Derived(PairedDataset):
    """A data set made of another one: whatever it does not say by itself, the other says.

    Args:
        data: the other data set.
        rows: indices of the samples of `data` that it has, (N,); None: all.
    """

    def __init__(self, data: PairedDataset, rows: np.ndarray | None = None) -> None:
        self.data, self.rows = data, np.arange(len(data)) if rows is None else rows
        self.modalities, self.targets, self.wanted = data.modalities, data.targets, data.wanted
        self.ids = [data.ids[row] for row in self.rows]
        self.present = {name: data.present[name][self.rows] for name in data.present}
        self.labels = data.labels
        if data.groups is not None:
            self.groups = [data.groups[row] for row in self.rows]
        if isinstance(root := getattr(data, "root", None), str | Path):
            self.root = root

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """See `PairedDataset.only`."""
        made = super().only(names, targets)
        made.data = self.data.only(names, targets)
        return made

    def read(self, index: int) -> Sample:
        """Read a sample of the other data set."""
        return self.data.read(int(self.rows[index]))

    def files(self, index: int) -> Sequence[str | Path]:
        """Return those of the other data set."""
        return self.data.files(int(self.rows[index]))

    def file_digest(self, rows: Iterable[int] | None = None) -> str:
        """Return that of the other data set, which may look at more than files."""
        own = range(len(self)) if rows is None else rows
        return self.data.file_digest([int(self.rows[row]) for row in own])

    def place(self, index: int) -> Grid | None:
        """Return that of the other data set."""
        return self.data.place(int(self.rows[index]))

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return those of the other data set."""
        return self.data.read_bytes(int(self.rows[index]))

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the order of the other data set, without the samples that are left out."""
        position = np.full(len(self.data), -1)
        position[self.rows] = np.arange(len(self.rows))
        order = position[self.data.order(rng)]
        kept: np.ndarray = order[order >= 0]
        return kept

    def digest_parts(self) -> object:
        """Return the other data set, of which only what is wanted is read, and the samples."""
        return self.data, self.rows


class SkipBad(Dataset[Sample]):
    """A data set whose bad samples are empty, so that a run survives a corrupt file.

    A bad sample has no images; its `bad` names the file and the reason.

    Args:
        dataset: any data set.
    """

    def __init__(self, dataset: PairedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.dataset[index]
        except BadSampleError as error:
            return {
                "id": self.dataset.ids[index],
                "images": {},
                "bad": (error.path, error.reason),
            }


def require_data(data: object, function: str) -> None:
    """Refuse what is no data set, such as the name of a folder.

    Args:
        data: what was given.
        function: that it was given to, for the message.

    Raises:
        ConfigError: saying what makes a data set.
    """
    if not isinstance(data, PairedDataset):
        folder = repr(str(data)) if isinstance(data, str | Path) else "FOLDER"
        raise ConfigError(
            f"{function}: data is no data set but {type(data).__name__}; give "
            f"decur.PairedFolder({folder}), another of decur.data, or decur.data.from_dataset(...)"
        )


def refuse_within_data(out: Path, data: PairedDataset) -> None:
    """Refuse a folder for results within that of the data, which is told from others by its files.

    Args:
        out: the folder.
        data: any data set.

    Raises:
        ConfigError: naming the folder.
    """
    root = getattr(data, "root", None)
    if root is not None and Path(root).resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"--out {out}: lies within the data; choose a folder beside it")


def open_data(command: str, spec: Mapping[str, Any]) -> PairedDataset:
    """Make a data set from its class and arguments, as they stand in a configuration.

    For options that may be left out. Where an option's type is `PairedDataset | None`,
    jsonargparse hides the error of the class behind one about the type; so such an option is
    declared as a plain mapping, and opened here.

    Args:
        command: for messages, as "decur explain".
        spec: `{"class_path": ..., "init_args": {...}}`.

    Raises:
        ConfigError: if there is no such class, or it takes no such arguments.
        DataError: if the data is not there.
    """
    from decur.config import Parser  # whoever makes data sets in Python needs no parser

    parser = Parser(command)
    parser.add_argument("--data", type=PairedDataset, required=True)
    settings = parser.parse(["--data", json.dumps(spec, default=str)])
    data: PairedDataset = parser.instantiate(settings).data
    return data


def check_choices(dataset: str, **options: tuple[object, Sequence[object]]) -> None:
    """Refuse a value of a data set's option that is none of its choices.

    Args:
        dataset: name of the class, for the message.
        **options: for each option its value and the choices.

    Raises:
        ConfigError: naming the data set, the option and the choices.
    """
    for option, (value, choices) in options.items():
        if value not in choices:
            known = ", ".join(str(choice) for choice in choices)
            raise ConfigError(f"{dataset}: {option} is {value!r}; choose from {known}")


def change_modalities(
    known: Mapping[str, Modality], changes: Mapping[str, Any] | None
) -> dict[str, Modality]:
    """Return the modalities of a data set with some fields changed, such as their statistics.

    Args:
        known: those of the data set.
        changes: `{name: preset or fields}`; fields that are left out stay. A preset gives the
            statistics of those of its bands that the data has: "sentinel2-l1c" fits data of 12
            bands to an encoder of 13.

    Raises:
        ConfigError: for a sensor that the data has not, an unknown field, or other bands.
    """
    made = dict(known)
    for name, change in (changes or {}).items():
        if name not in known:
            raise ConfigError(
                f"modalities: the data has no {name!r}; choose from {', '.join(known)}"
            )
        if isinstance(change, str):
            made[name] = _of_preset(known[name], Modality.preset(change))
        elif isinstance(change, Mapping):
            made[name] = Modality.from_dict({**known[name].to_dict(), **change, "name": name})
        else:
            raise ConfigError(f"modality {name!r}: needs a preset's name or a mapping of fields")
        if made[name].bands != known[name].bands:
            raise ConfigError(
                f"modality {name!r}: its bands are {', '.join(known[name].bands)} in this order; "
                "leave `bands` out"
            )
    return made


def _of_preset(known: Modality, preset: Modality) -> Modality:
    """Return a preset with the known modality's name, size and bands."""
    if not set(known.bands) <= set(preset.bands):
        return preset  # refused by the caller
    rows = [preset.bands.index(band) for band in known.bands]
    of_bands = {
        field: tuple(values[row] for row in rows)
        for field in ("bands", "mean", "std")
        if (values := getattr(preset, field)) is not None
    }
    return preset.with_(name=known.name, size=known.size, **of_bands)
