"""One pass over a data set: its labels, and what frozen encoders make of it; kept on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from decur.checkpoint import atomic
from decur.data import Batch, Collate, PairedDataset, SkipBad, Target
from decur.encoders import Encoder
from decur.errors import DataError
from decur.modality import Modality
from decur.pretrain import LoaderSettings
from decur.transfer.splits import Joined

log = logging.getLogger(__name__)
FORMAT = 1  # of what is kept; raised when it would come out otherwise


@dataclass
class Survey:
    """What one pass finds, one row a sample.

    Args:
        features: `{modality: (N, D) float32}`, memory-mapped; zeros where absent.
        labels: of one target: (N,) classes or numbers, (N, classes) multilabels; for masks
            (N, classes), the pixels of each class.
        bad: file and reason of what could not be read; its labels are unknown.
        computed: whether anything was computed, or all found on disk.
    """

    features: dict[str, NDArray[np.float32]]
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
) -> Survey:
    """Labels of a data set, and the pooled vectors of encoders as they are, without augmentation.

    What an earlier pass has left in `cache` is used again: features belong to weights, sensor,
    data and input size, labels to the data. The data is known by its class and settings, its ids,
    and the names, sizes and times of what lies directly in its root; a picture changed in place
    goes unnoticed (delete the cache then).

    Args:
        data: any data set.
        target: the label that is wanted.
        encoders: `{modality: encoder}` in eval mode; may be empty.
        cache: folder for what is kept.
        loader: batches, workers, tolerance of bad samples.
        size: height and width that pictures are resized to; None for their own.
        device: where the encoders run.

    Raises:
        DataError: if more of the data is bad than `loader.max_bad` allows.
    """
    known_by = fingerprint(data)
    label_file = cache / f"labels-{_digest(known_by, target)}.npz"
    files = {
        name: cache / f"{name}-{_digest(known_by, name, weights_digest(encoder), size)}.npy"
        for name, encoder in encoders.items()
    }
    todo = {name: encoders[name] for name, file in files.items() if not file.is_file()}
    computed = bool(todo) or not label_file.is_file()
    if computed:
        _pass(data, target, todo, files, label_file, loader, size, torch.device(device))
    else:
        log.info("features and labels are taken from %s", cache)
    with np.load(label_file) as kept:
        labels, bad = kept["labels"], [(str(a), str(b)) for a, b in kept["bad"]]
    features = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
    if len(bad) > loader.max_bad * len(data):
        raise DataError(
            f"{len(bad)} of {len(data)} samples could not be read, more than loader.max_bad "
            f"{loader.max_bad:g} allows; the first: {bad[0][0]}: {bad[0][1]}"
        )
    return Survey(features, labels, bad, computed)


def _pass(
    data: PairedDataset,
    target: str,
    encoders: Mapping[str, Encoder],
    files: Mapping[str, Path],
    label_file: Path,
    loader: LoaderSettings,
    size: int | None,
    device: torch.device,
) -> None:
    """Read every sample once; write features and labels, each whole or not at all."""
    spec = data.targets[target]
    modalities = {name: data.modalities[name] for name in encoders}
    label_file.parent.mkdir(parents=True, exist_ok=True)
    partial = {
        name: files[name].with_name(f".{files[name].name}.{os.getpid()}.tmp") for name in encoders
    }
    kept = {
        name: np.lib.format.open_memmap(
            partial[name], mode="w+", dtype=np.float32, shape=(len(data), encoder.dim)
        )
        for name, encoder in encoders.items()
    }
    homes = {name: encoder.to(device) for name, encoder in encoders.items()}
    labels: list[NDArray[Any]] = []
    bad: list[tuple[str, str]] = []
    start = 0
    try:
        for batch in _batches(data, target, modalities, loader):
            rows = slice(start, start + len(batch["ids"]))
            labels.append(_surveyed(batch["target"][target], spec))
            bad += batch["bad"]
            for name, encoder in homes.items():
                has = batch["present"][name]
                if has.any():
                    raw = batch["images"][name][has].to(device)
                    vectors = np.zeros((len(has), encoder.dim), np.float32)  # (B, D)
                    x = scaled(raw, modalities[name], size)
                    vectors[has.numpy()] = encoder(x).float().cpu().numpy()
                    kept[name][rows] = vectors
            start = rows.stop
        for name, file in files.items():
            if name in kept:
                kept[name].flush()
                partial[name].replace(file)
        with atomic(label_file) as temporary, temporary.open("wb") as stream:
            pairs = np.array(bad, dtype=str).reshape(-1, 2)
            np.savez(stream, labels=np.concatenate(labels), bad=pairs)
    finally:
        for encoder in homes.values():
            encoder.cpu()
        for name in partial:
            partial[name].unlink(missing_ok=True)


def _batches(
    data: PairedDataset, target: str, modalities: dict[str, Modality], loader: LoaderSettings
) -> DataLoader[Batch]:
    return DataLoader(
        SkipBad(data),  # type: ignore[arg-type]
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


def fingerprint(data: PairedDataset) -> str:
    """What tells a data set from another, as `survey` says."""
    if isinstance(data, Joined):
        return _digest(*(fingerprint(part) for part in data.parts))
    public = {key: value for key, value in sorted(vars(data).items()) if key[0] != "_"}
    parts: list[object] = [type(data).__qualname__]
    for key, value in public.items():
        if key == "present":
            parts += [name + has.astype(np.uint8).tobytes().hex() for name, has in value.items()]
        else:
            parts.append((key, value))
    root = public.get("root")
    if isinstance(root, str | Path) and Path(root).is_dir():
        with os.scandir(root) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                state = entry.stat()
                parts.append((entry.name, state.st_size, state.st_mtime_ns))
    return _digest(*parts)


def weights_digest(encoder: Encoder) -> str:
    """What tells an encoder from another: architecture, sensor, and every weight."""
    found = hashlib.sha256(repr((encoder.name, encoder.options, encoder.modality)).encode())
    for key, value in sorted(encoder.state_dict().items()):
        found.update(key.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()[:24]
