"""One pass over a data set: its labels, and what frozen encoders make of it; kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad, Target
from decur.digest import digest, try_digest
from decur.encoders import Encoder
from decur.encoders.attention import encode, encode_maps, is_crossing
from decur.errors import DataError
from decur.modality import Modality
from decur.runs import atomic
from decur.transfer.keeping import Arrays, is_kept, state_of, turn, write_note

log = logging.getLogger(__name__)
MAPS = 3  # last feature maps of each encoder that an FCN reads
fingerprint = digest  # its name in version 0.1
FORMAT = 3  # of what is kept; raised when it would come out otherwise


@dataclass
class Survey:
    """What one pass finds, one row a sample.

    Args:
        features: `{modality: (N, D) float32}`, memory-mapped; zeros where absent. Of feature maps
            `{"modality/0": (N, C, H, W)}`, one for each that an FCN reads.
        masks: (N, H, W) uint8, memory-mapped, where maps were asked for; else None.
        labels: of one target: (N,) classes or numbers, (N, classes) multilabels; for masks
            (N, classes), the pixels of each class.
        bad: file and reason of what could not be read; its labels are unknown.
        computed: whether anything was computed, or all found on disk.
    """

    features: dict[str, NDArray[np.float32]]
    masks: NDArray[np.uint8] | None
    labels: NDArray[Any]
    bad: list[tuple[str, str]]
    computed: bool


@torch.no_grad()
def survey(
    data: PairedDataset,
    target: str,
    encoders: Mapping[str, Encoder],
    cache: Path,
    loader: LoaderSettings,
    size: int | None = None,
    device: torch.device | str = "cpu",
    maps: bool = False,
) -> Survey:
    """Labels of a data set, and what encoders make of it as they are, without augmentation.

    What an earlier pass has left in `cache` is used again: features belong to weights, sensor,
    data and input size, labels to the data; features of encoders that attend to each other belong
    to both. The data is known by `decur.digest`: what it holds, and size and time of every file
    that it reads; what cannot be told from others is computed each time.

    Args:
        data: any data set.
        target: the label that is wanted.
        encoders: `{modality: encoder}` in eval mode; may be empty.
        cache: folder for what is kept.
        loader: batches, workers, tolerance of bad samples.
        size: height and width that pictures are resized to; None for their own.
        device: where the encoders run.
        maps: keep the feature maps that an FCN reads in place of pooled vectors, and the masks.

    Raises:
        DataError: if more of the data is bad than `loader.max_bad` allows.
    """
    # what cannot be told apart is computed each time
    known_by = try_digest(data, what="features and labels are not cached") or uuid4().hex
    label_file = cache / f"labels-{_digest(known_by, target)}.npz"
    mask_file = cache / f"masks-{_digest(known_by, target)}.npy" if maps and encoders else None
    digests = {n: _digest(known_by, n, *_weights(n, encoders), size) for n in encoders}
    files = {
        name: {
            key: cache / f"{key.replace('/', '-')}-{digests[name]}.npy"
            for key in _keys(name, encoder, maps)
        }
        for name, encoder in encoders.items()
    }

    def lacking() -> tuple[dict[str, Encoder], bool]:
        absent = [n for n in encoders if not all(map(is_kept, files[n].values()))]
        missing = {n: e for n, e in encoders.items() if {n, *_crossing(n, encoders)} & {*absent}}
        others = [label_file, *([mask_file] if mask_file is not None else [])]
        return missing, bool(missing) or not all(map(is_kept, others))

    computed = lacking()[1]
    if computed:
        with turn(cache, digests.values()):
            missing, computed = lacking()  # another run may have made it meanwhile
            if computed:
                read = _Pass(data, target, missing, loader, size, torch.device(device))
                wanted = {k: f for n in missing for k, f in files[n].items()}
                read.run(wanted, label_file, mask_file)
    if not computed:
        log.info("features and labels are taken from %s", cache)
    with np.load(label_file) as kept:
        labels, bad = kept["labels"], [(str(a), str(b)) for a, b in kept["bad"]]
    features = {
        key: np.load(file, mmap_mode="r") for of in files.values() for key, file in of.items()
    }
    if len(bad) > loader.max_bad * len(data):
        raise DataError(
            f"{len(bad)} of {len(data)} samples could not be read, more than loader.max_bad "
            f"{loader.max_bad:g} allows; the first: {bad[0][0]}: {bad[0][1]}"
        )
    masks = np.load(mask_file, mmap_mode="r") if mask_file is not None else None
    return Survey(features, masks, labels, bad, computed)


def _crossing(name: str, encoders: Mapping[str, Encoder]) -> list[str]:
    """Sensors whose maps the encoder of this one attends to."""
    if not is_crossing(encoders[name]):
        return []
    return [other for other, e in encoders.items() if other != name and is_crossing(e)]


def _weights(name: str, encoders: Mapping[str, Encoder]) -> list[str]:
    """What tells apart the vectors of a sensor, as far as encoders go."""
    others = [(other, digest(encoders[other])) for other in _crossing(name, encoders)]
    return [digest(encoders[name]), *(part for other in others for part in other)]


def _keys(name: str, encoder: Encoder, maps: bool) -> list[str]:
    """Names under which an encoder's vector, or its last feature maps, are kept."""
    return map_names(name, encoder) if maps else [name]


def map_names(name: str, encoder: Encoder) -> list[str]:
    """Names of the feature maps that an FCN reads of a sensor: "s1/0", ..."""
    return [f"{name}/{number}" for number in range(len(encoder.channels[-MAPS:]))]


@dataclass
class _Pass:
    """Every sample read once; features, labels and masks written, each whole or not at all."""

    data: PairedDataset
    target: str
    encoders: Mapping[str, Encoder]
    loader: LoaderSettings
    size: int | None
    device: torch.device

    def run(self, files: Mapping[str, Path], label_file: Path, mask_file: Path | None) -> None:
        label_file.parent.mkdir(parents=True, exist_ok=True)
        spec = self.data.targets[self.target]
        modalities = {name: self.data.modalities[name] for name in self.encoders}
        homes = {name: encoder.to(self.device) for name, encoder in self.encoders.items()}
        labels: list[NDArray[Any]] = []
        bad: list[tuple[str, str]] = []
        states: dict[str, list[int]] = {}
        start = 0
        with Arrays(len(self.data), states) as arrays:
            for batch in _batches(self.data, self.target, modalities, self.loader):
                target = batch["target"][self.target]
                labels.append(_surveyed(target, spec))
                bad += batch["bad"]
                states |= {path: state_of(path) for path, _ in batch["bad"]}
                if mask_file is not None:
                    arrays.write(mask_file, start, target.numpy().astype(np.uint8))
                for key, values in self._encode(homes, batch, mask_file is not None):
                    arrays.write(files[key], start, values)
                start += len(batch["ids"])
        for encoder in homes.values():
            encoder.cpu()
        write_note(label_file, states)
        with atomic(label_file) as temporary, temporary.open("wb") as stream:
            pairs = np.array(bad, dtype=str).reshape(-1, 2)
            np.savez(stream, labels=np.concatenate(labels), bad=pairs)

    def _encode(
        self, encoders: Mapping[str, Encoder], batch: Batch, maps: bool
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """What is kept of the encoders, zeros for samples without the sensor."""
        present = {name: batch["present"][name] for name in encoders}
        images = {}
        for name, encoder in encoders.items():
            assert encoder.modality is not None  # gather_encoders gives none without
            if (has := present[name]).any():
                raw = batch["images"][name]
                raw = (raw if has.all() else raw[has]).to(self.device)
                images[name] = scaled(raw, encoder.modality, self.size)
        found = (
            {n: m[-MAPS:] for n, m in encode_maps(encoders, images, present).items()}
            if maps
            else {n: [v] for n, v in encode(encoders, images, present).items()}
        )
        for name, encoder in encoders.items():
            if name not in found and not maps:
                yield name, np.zeros((len(present[name]), encoder.dim), np.float32)
                continue
            of = found[name] if name in found else self._like(encoder, batch["images"][name])
            for key, values in zip(_keys(name, encoder, maps), of, strict=True):
                rows = values.float().cpu().numpy()  # (present, D) or (present, C, H, W)
                kept = np.zeros((len(present[name]), *rows.shape[1:]), np.float32)
                kept[present[name].numpy()] = rows
                yield key, kept

    def _like(self, encoder: Encoder, raw: Tensor) -> list[Tensor]:
        """No maps, of the shape that there would be."""
        assert encoder.modality is not None
        x = scaled(raw[:1].to(self.device), encoder.modality, self.size)
        return [y[:0] for y in encoder.forward_features(x)[-MAPS:]]


def _batches(
    data: PairedDataset, target: str, modalities: dict[str, Modality], loader: LoaderSettings
) -> DataLoader[Batch]:
    return DataLoader(
        SkipBad(data.only(targets=[target])),  # type: ignore[arg-type]
        batch_size=min(loader.batch_size, 64),
        collate_fn=Collate(modalities or data.modalities, {target: data.targets[target]}),
        num_workers=loader.processes(),
        # the loader's own draw of a worker seed would otherwise consume the global state
        generator=torch.Generator().manual_seed(0),
    )


def scaled(raw: Tensor, modality: Modality, size: int | None) -> Tensor:
    """Raw pictures (B, C, H, W) to [0, 1], resized to `size` where one is given."""
    x = modality.scale(raw)
    if size is None or x.shape[-2:] == (size, size):
        return x
    return interpolate(x, (size, size), mode="bilinear", antialias=True)


def _surveyed(labels: Tensor, spec: Target) -> NDArray[Any]:
    if spec.kind != "mask":
        return labels.numpy()
    classes = torch.arange(len(spec.classes))
    flat = labels.flatten(1)  # (B, H * W)
    return torch.stack([(flat == c).sum(dim=1) for c in classes], dim=1).numpy()  # (B, classes)


def _digest(*parts: object) -> str:
    return digest(FORMAT, *parts)
