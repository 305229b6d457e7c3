"""The metadata of packed data: `decur.json` and `samples.npz`, beside litdata's index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decur.bounded_yaml import parse_json
from decur.data.base import PairedDataset
from decur.data.sample import Sample, Target
from decur.errors import DataError, reading
from decur.modality import Modality
from decur.runs import atomic, write_text

HEADER, SAMPLES, INDEX = "decur.json", "samples.npz", "index.json"
FORMAT = 1  # raised when older readers would misread it

REMEDY = "copy it anew, or pack the data again"


@dataclass(frozen=True)
class PackingPlan:
    """The options that decide the bytes of packed data; packing goes on only with the same.

    Args:
        format: `FORMAT`.
        data: class of the data set.
        source: its source_digest.
        samples: their number, bad ones among them.
        per_chunk: samples in a chunk.
        compression: "zstd" or None.
        quantized: whether images were scaled to 8 bits.
    """

    format: int
    data: str
    source: str
    samples: int
    per_chunk: int
    compression: str | None
    quantized: bool

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.samples // self.per_chunk)

    def rows(self, k: int) -> range:
        """Return the indices of the samples of chunk k, bad ones among them."""
        return range(k * self.per_chunk, min((k + 1) * self.per_chunk, self.samples))


@dataclass(frozen=True)
class Chunk:
    """One file of litdata's index.

    Args:
        name: of the file.
        size: in bytes.
        samples: in it.
    """

    name: str
    size: int
    samples: int


def source_digest(data: PairedDataset) -> str:
    """Return a digest of sensors, ids, presence, labels and groups of a data set; not of pixels."""
    state = hashlib.sha256()
    modalities = {name: m.to_dict() for name, m in data.modalities.items()}
    targets = {name: asdict(target) for name, target in data.targets.items()}
    state.update(json.dumps([modalities, targets, data.ids, data.groups]).encode())
    for name in data.modalities:
        state.update(np.packbits(data.present[name]).tobytes())
    if data.labels is not None:
        labels = [dict(data.labels.get(id_, {})) for id_ in data.ids]
        state.update(json.dumps(labels, sort_keys=True).encode())
    return state.hexdigest()


def write_metadata(
    folder: Path,
    plan: PackingPlan,
    *,
    data: PairedDataset,
    modalities: Mapping[str, Modality],
    rows: np.ndarray,
    bad: list[list[str]],
    stamp: str,
    files: str | None,
) -> None:
    """Write `samples.npz`, then `decur.json`, whose presence means that all is there.

    Args:
        folder: of the packed data.
        plan: what decided its bytes.
        data: what was packed.
        modalities: of the images as packed.
        rows: indices of the samples that were packed.
        bad: id, file and reason of those that could not be read.
        stamp: what tells these chunks from others of the same names and sizes.
        files: digest of the files that were read; None where it is not known.
    """
    arrays = {"ids": np.array([data.ids[row].encode() for row in rows])}
    arrays |= {f"present/{name}": data.present[name][rows] for name in modalities}
    if data.groups is not None:
        names, group = np.unique([data.groups[row].encode() for row in rows], return_inverse=True)
        arrays |= {"group_names": names, "group": group.astype(np.uint32)}
    with atomic(folder / SAMPLES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    header = {
        "format": FORMAT,
        "samples": len(rows),
        "modalities": {name: modality.to_dict() for name, modality in modalities.items()},
        "targets": {name: asdict(target) for name, target in data.targets.items()},
        "bad": bad,
        "stamp": stamp,
        "files": files,
        "plan": asdict(plan),
    }
    write_text(folder / HEADER, json.dumps(header, indent=1))


def read_metadata(folder: Path, where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read header and arrays of packed data.

    Args:
        folder: where the files lie.
        where: what to call them in messages.

    Raises:
        DataError: if they are missing, damaged or of another format.
    """
    if not (folder / HEADER).is_file():
        remedy = "`decur pack DATA OUT` writes one; one that was interrupted goes on"
        raise DataError(f"{where}: is no packed data (no {HEADER}); {remedy}")
    header = read_json(folder / HEADER)
    if header.get("format") != FORMAT:
        raise DataError(
            f"{folder / HEADER}: format {header.get('format')!r}, this decur reads {FORMAT}; "
            "upgrade decur or pack the data again"
        )
    lacking = {"samples", "modalities", "targets", "bad"} - set(header)
    if lacking:
        raise DataError(f"{folder / HEADER}: {min(lacking)!r} is missing; {REMEDY}")
    with reading(folder / SAMPLES, REMEDY):
        with np.load(folder / SAMPLES, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        wanted = ["ids", *(f"present/{name}" for name in header["modalities"])]
        for name in wanted:
            if len(arrays.get(name, ())) != header["samples"]:
                raise DataError(f"{folder / SAMPLES}: {name!r} is missing or too short; {REMEDY}")
    return header, arrays


def read_stamp(path: Path) -> object:
    """Return the stamp of a header; None where there is none, as in older packed data."""
    try:
        return read_json(path).get("stamp")
    except DataError:
        return None


def read_targets(header: Mapping[str, Any]) -> dict[str, Target]:
    """Return the targets of a header."""
    return {
        name: Target(t["kind"], tuple(t["classes"]), tuple(t["modalities"]))
        for name, t in header["targets"].items()
    }


def misfit(
    sample: Sample, shapes: Mapping[str, tuple[int, ...]], targets: Mapping[str, Target]
) -> str | None:
    """Return what of a packed sample is not as the header says; None where all of it is.

    Args:
        sample: as it is stored.
        shapes: `{sensor: (C, H, W)}`.
        targets: of the labels.
    """
    for name, image in sample["images"].items():
        if name in shapes and tuple(image.shape) != shapes[name]:
            return f"image {name!r} is {tuple(image.shape)}, not {shapes[name]}"
    for name, value in sample.get("target", {}).items():
        target = targets.get(name)
        if target is None or target.kind not in ("class", "multilabel", "scalar", "mask"):
            continue
        size = (value.shape[0], value.shape[-1]) if value.ndim == 2 else (1, 1)
        if value.shape != target.unknown(size).shape:
            return f"label {name!r} is {tuple(value.shape)}, not as a {target.kind} is"
        if target.kind == "class" and not -1 <= int(value) < len(target.classes):
            return f"label {name!r} is class {int(value)} of {len(target.classes)}"
    return None


def read_index(folder: Path) -> list[Chunk]:
    """Read the chunks of litdata's index.

    Raises:
        DataError: if it is missing, damaged, or of a kind that `decur pack` does not write: some
            of those are unpickled by litdata.
    """
    index = read_json(folder / INDEX)
    config = index.get("config") or {}
    kind = [config.get(k) for k in ("data_format", "compression", "encryption", "item_loader")]
    if kind != [["bytes"], None, None, "PyTreeLoader"]:
        raise DataError(
            f"{folder / INDEX}: holds {kind[0]}, not what `decur pack` writes; refused, since "
            "other formats may run code; pack the data with decur"
        )
    with reading(folder / INDEX, REMEDY):
        chunks = [
            Chunk(str(c["filename"]), int(c["chunk_bytes"]), int(c["chunk_size"]))
            for c in index["chunks"]
        ]
    for chunk in chunks:
        if Path(chunk.name).name != chunk.name or chunk.name == ".." or chunk.samples < 0:
            raise DataError(f"{folder / INDEX}: chunk {chunk.name!r} is no file's name; {REMEDY}")
    return chunks


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DataError: if it cannot be read, or holds anything else.
    """
    with reading(path, REMEDY):
        values = parse_json(path.read_text())
    if not isinstance(values, dict):
        raise DataError(f"{path}: is no header; {REMEDY}")
    return values
