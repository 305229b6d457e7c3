"""Any torch data set whose samples are dictionaries, torchgeo's or one's own, as pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from decur.data.arrays import bands_last
from decur.data.band_statistics import BandStatistics
from decur.data.base import PairedDataset
from decur.data.files import resize
from decur.data.sample import Sample, Target
from decur.data.selection import evenly_spaced
from decur.errors import BadSampleError, ConfigError, DataError, reason_of
from decur.modality import Modality, load_modalities

_READ = 200  # samples that are read for the statistics of sensors that are given none

Key = str | tuple[str, Sequence[int]]


def from_dataset(
    dataset: Any,
    images: Mapping[str, Key],
    *,
    modalities: Mapping[str, Any] | None = None,
    target: str | None = None,
    classes: Sequence[str] | int | None = None,
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> PairedDataset:
    """Return a data set of pairs from a torch data set whose samples are dictionaries.

    Args:
        dataset: has `len` and gives `{key: array or tensor}` by index, numbers raw: without a
            transform that normalises.
        images: `{sensor: key of its pictures}`, each (C, H, W) or (H, W), a picture of Pillow, or
            (H, W, C) where the modality's number of bands says so; where a key holds the bands of
            several sensors `(key, rows of the bands)`, of (C, H, W). A sample without the key, or
            with None, lacks the sensor.
        modalities: as `load_modalities` takes them, of all or some of the sensors. Others are
            scaled from 0 to 255 where their pictures are uint8, else by the statistics of up to
            200 samples.
        target: key of a label: a whole number or a name (its class), a vector of 0 and 1 (several
            classes), a number with a fraction, or (H, W) whole numbers (a mask, 255 unknown).
        classes: names of the classes, or their number; None: those that the data set has as
            `classes`.
        ids: names of the samples; None numbers them.
        groups: of the samples, those that must not be split between training and test.

    Raises:
        ConfigError: if the samples have no such keys or no numbers, or classes are needed and
            unknown.
        DataError: if no sample can be read.

    Examples:
        >>> pairs = from_dataset(data, {"s1": ("image", [0, 1]), "s2": ("image", range(2, 14))})
        >>> PairedData(pairs)  # also embed, transfer and the rest
    """
    return _Dictionaries(
        dataset,
        images,
        modalities=modalities,
        target=target,
        classes=classes,
        ids=ids,
        groups=groups,
    )


class _Dictionaries(PairedDataset):  # private, so that --help does not offer it
    def __init__(
        self,
        dataset: Any,
        images: Mapping[str, Key],
        *,
        modalities: Mapping[str, Any] | None,
        target: str | None,
        classes: Sequence[str] | int | None,
        ids: Sequence[str] | None,
        groups: Sequence[str] | None,
    ) -> None:
        if not images or len(dataset) == 0:
            raise ConfigError(
                "from_dataset: needs a sensor in `images`, and samples in the data set"
            )
        self.dataset, self.target = dataset, target
        self.keys = {
            name: (key, None) if isinstance(key, str) else (key[0], list(key[1]))
            for name, key in images.items()
        }
        digits = len(str(len(dataset) - 1))
        self.ids = [f"{i:0{digits}d}" for i in range(len(dataset))] if ids is None else list(ids)
        self.groups = None if groups is None else list(groups)
        for name, given in (("ids", self.ids), ("groups", self.groups)):
            if given is not None and len(given) != len(dataset):
                raise ConfigError(f"{name}: {len(given)} for {len(dataset)} samples; give one each")
        if len(set(self.ids)) < len(self.ids):
            raise ConfigError("ids: two samples have one name; give each its own")
        self.present = {name: np.ones(len(dataset), bool) for name in images}
        known = load_modalities(dict(modalities) if modalities else None)
        if strange := set(known) - set(images):
            raise ConfigError(f"modalities: no {min(strange)!r} in images ({', '.join(images)})")
        first = self._first(known)
        self.modalities = {name: self._modality(name, first, known.get(name)) for name in images}
        self.targets = {}
        if target is not None:
            self.targets[target] = _target_of(target, first, dataset, classes)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            BadSampleError: if a picture has other bands than its sensor.
        """
        given = self.dataset[index]
        images = {}
        for name in self.sensors_of(index):
            modality = self.modalities[name]
            picture = self._picture(given, name, modality)
            if picture is None:
                continue
            if len(picture) != modality.channels:
                reason = f"{name} has {len(picture)} bands, others {modality.channels}"
                raise BadSampleError(self.ids[index], f"{reason}; correct `images`")
            images[name] = resize(picture, modality.size)
        sample: Sample = {"id": self.ids[index], "images": images}
        if self.targets:
            sample["target"] = {}
            for name, spec in self.targets.items():
                if given.get(name) is not None:
                    sample["target"][name] = _label(given[name], spec)
        return sample

    def digest_parts(self) -> object:
        """Return the arguments, with the data set as `decur.digest` takes it."""
        return self.dataset, self.keys, self.target, self.modalities, self.targets, self.ids

    def _first(self, known: Mapping[str, Modality]) -> Mapping[str, Any]:
        """Return the first sample that has all sensors."""
        broken, sample = "", None
        for index in range(min(len(self), _READ)):
            try:
                sample = self.dataset[index]
            except (TypeError, AttributeError) as error:
                raise ConfigError(
                    f"from_dataset: sample {index} cannot be had by its number ({error}); data "
                    "that is read by boxes on a map, as torchgeo's GeoDataset, needs a list of them"
                ) from error
            except Exception as error:  # a bad sample, as it is once it is read
                broken = broken or f"sample {index}: {type(error).__name__}: {reason_of(error)}"
                continue
            if not isinstance(sample, Mapping):
                raise ConfigError(
                    f"from_dataset: samples are dictionaries, not {type(sample).__name__}"
                )
            if all(sample.get(key) is not None for key, _ in self.keys.values()):
                return sample
        if sample is None:
            raise DataError(f"from_dataset: no sample can be read; the first: {broken}")
        lacking = next(key for key, _ in self.keys.values() if sample.get(key) is None)
        raise ConfigError(
            f"images: no sample has {lacking!r}; there is {', '.join(map(str, sample))}"
        )

    def _picture(
        self, sample: Mapping[str, Any], name: str, modality: Modality | None
    ) -> Tensor | None:
        key, rows = self.keys[name]
        given = sample.get(key)
        if given is None:
            return None
        is_pillow = isinstance(given, Image.Image)
        picture = torch.as_tensor(np.array(given) if is_pillow else np.asarray(given))
        picture = picture[None] if picture.ndim == 2 else picture
        if picture.ndim != 3:
            raise DataError(
                f"images: {key!r} is {tuple(picture.shape)}, not (bands, height, width)"
            )
        if is_pillow:
            picture = picture.movedim(-1, 0) if len(given.getbands()) > 1 else picture
        elif rows is None:
            c, h, w = picture.shape
            bands = modality.channels if modality else None
            last = bands_last(f"images: {key!r}", (c, h, w), bands)
            picture = picture.movedim(-1, 0) if last else picture
        if rows is not None:
            if max(rows) >= len(picture):
                raise ConfigError(
                    f"images: {key!r} has {len(picture)} bands, counted from 0, and no band "
                    f"{max(rows)}"
                )
            picture = picture[rows]
        return picture if picture.dtype == torch.uint8 else picture.float()

    def _modality(self, name: str, first: Mapping[str, Any], given: Modality | None) -> Modality:
        picture = self._picture(first, name, given)
        assert picture is not None  # `_first` has all sensors
        size = (picture.shape[-2], picture.shape[-1])
        if given is None:
            given = self._guess(name, picture)
        if len(picture) != given.channels:
            raise ConfigError(
                f"modality {name!r} has {given.channels} bands, {self.keys[name][0]!r} holds "
                f"{len(picture)}; name the rows, as ({self.keys[name][0]!r}, [0, 1])"
            )
        return given if given.size else given.with_(size=size)

    def _guess(self, name: str, picture: Tensor) -> Modality:
        if picture.dtype == torch.uint8:
            bands = tuple(f"band{i + 1}" for i in range(len(picture)))
            return Modality(name=name, bands=bands, scaling="range")
        found: BandStatistics | None = None
        for index in evenly_spaced(len(self), _READ).tolist():
            try:
                one = self._picture(self.dataset[index], name, None)
            except Exception:  # a bad sample, as it is once it is read
                continue
            if one is not None:
                stats = BandStatistics.of_image(one.numpy(), seed=index)
                found = stats if found is None else found.merge(stats)
        if found is None:
            raise DataError(f"from_dataset: no picture of {name!r} can be read for its statistics")
        return found.to_modality(name).with_(guessed=True)


def _target_of(
    name: str, sample: Mapping[str, Any], dataset: Any, classes: Sequence[str] | int | None
) -> Target:
    """Return what a label is, by its shape and type."""
    if sample.get(name) is None:
        raise ConfigError(
            f"target: samples have no {name!r}; there is {', '.join(map(str, sample))}"
        )
    label = torch.tensor(0) if isinstance(sample[name], str) else _as_tensor(sample[name])
    if label.ndim == 0 and label.is_floating_point():
        return Target("scalar")
    kind = {0: "class", 1: "multilabel", 2: "mask"}.get(label.ndim)
    if kind is None:
        raise ConfigError(f"target: {name!r} is {tuple(label.shape)}, which is no kind of label")
    own = getattr(dataset, "classes", None) if classes is None else classes
    if isinstance(own, int):
        own = tuple(map(str, range(own)))
    elif own is None and kind == "multilabel":
        own = tuple(map(str, range(len(label))))
    if own is None:
        raise ConfigError(f"classes: name those of {name!r}, or give their number")
    return Target(kind, tuple(map(str, own)))


def _as_tensor(label: Any) -> Tensor:
    return torch.as_tensor(np.asarray(label)).squeeze()


def _label(value: Any, spec: Target) -> Tensor:
    if isinstance(value, str):
        if value not in spec.classes:
            raise DataError(f"target: {value!r} is none of {', '.join(spec.classes[:8])}")
        value = spec.classes.index(value)
    label = _as_tensor(value)
    if spec.kind in ("class", "mask"):
        label = label.long()
        void = spec.void if spec.kind == "mask" else int(spec.unknown())
        strange = ((label < 0) | (label >= len(spec.classes))) & (label != void)
        if bool(strange.any()):
            raise DataError(
                f"target: a {spec.kind} is {int(label[strange][0])}, classes are 0 to "
                f"{len(spec.classes) - 1} and {void} is unknown; correct `classes`"
            )
        return label
    return label.float()
