"""Weights with a header in a safetensors file, and whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from decur.bounded_yaml import parse_json
from decur.errors import DataError
from decur.runs import atomic

_MAY_CHANGE = ("encoder", "options")
_DIGEST = "sha256"  # key of the header: of the rest of the header and of all tensors
# Of tensors: not the complex ones and those of 8 bits, with which PyTorch computes little.
_TYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)


@dataclass(frozen=True)
class Stored:
    """What a file of weights holds.

    Args:
        path: of the file.
        header: the text under the key that was asked for; None where there is none.
        state: the tensors by name.
        is_whole: whether header and tensors are as they were written; True where an older decur
            wrote no digest of them.
    """

    path: Path
    header: str | None
    state: dict[str, Tensor]
    is_whole: bool

    def refuse_damage(self) -> None:
        """Refuse a file that was damaged or changed since it was written.

        Raises:
            DataError: naming the file.
        """
        if not self.is_whole:
            raise DataError(
                f"{self.path}: is damaged: its weights or its header are not what was written; "
                "copy the file anew"
            )


def write_stored(
    path: Path, key: str, header: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write weights and a header, whole or not at all.

    Args:
        path: the file.
        key: of the metadata, under which the header is kept.
        header: what JSON can hold.
        state: the tensors by name.

    Raises:
        DataError: if a tensor is not finite.
        WriteError: if the file cannot be written.
    """
    refuse_non_finite(state, path)
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    # within the header: safetensors writes several keys in an order that changes from file to file
    text = json.dumps({**header, _DIGEST: _digest(header, plain)})
    with atomic(path, sum(value.nbytes for value in plain.values())) as temporary:
        save_file(plain, temporary, metadata={key: text})


def read_stored(path: Path, key: str) -> Stored:
    """Read what `write_stored` has written; nothing in it is unpickled.

    The caller asks for `Stored.refuse_damage` once the header is understood: of what does not fit
    together that tells more.

    Args:
        path: the file.
        key: of the metadata, under which the header is kept.

    Raises:
        DataError: if it is cut short, no safetensors file, or has numbers of an unknown type.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: not a whole safetensors file ({error}); copy it anew, or make it one of "
            "decur's with `decur import` where it is of another program"
        ) from error
    for name, value in state.items():
        if value.dtype not in _TYPES:
            raise DataError(f"{path}: {name} is {value.dtype}, which no weight of decur is")
    text = metadata.get(key)
    try:
        header = parse_json(text or "")
        digest = header.pop(_DIGEST, None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return Stored(path, text, state, True)  # of a damaged header the caller says so
    if digest is None:
        return Stored(path, text, state, True)
    return Stored(path, json.dumps(header), state, digest == _digest(header, state))


def refuse_non_finite(state: Mapping[str, Tensor], where: object) -> None:
    """Refuse weights that are not finite: whatever is computed with them is not either.

    Args:
        state: the tensors by name.
        where: the file, for the message.

    Raises:
        DataError: naming the first tensor.
    """
    for name, value in state.items():
        if not is_finite(value):
            count = int((~value.isfinite()).sum())
            raise DataError(
                f"{where}: {name} is not finite ({count:,} of {value.numel():,} values are NaN or "
                "infinite); take other weights, or train again with a lower optimizer.lr"
            )


def is_finite(x: Tensor) -> bool:
    """Return whether no value of a tensor is NaN or infinite.

    A sum is far faster than a look at each value. It is finite only if all of them are, but may be
    too large for its type where they are.
    """
    return not x.is_floating_point() or bool(x.sum().isfinite()) or bool(x.isfinite().all())


def _digest(header: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a header, and of names, types, shapes and bytes of tensors.

    What the header says of the architecture is left out: it is held against the tensors, and may
    be mended by hand, such as where a module was renamed.
    """
    told = {name: value for name, value in header.items() if name not in _MAY_CHANGE}
    found = hashlib.sha256(json.dumps(told).encode())
    for name in sorted(state):
        value = state[name]
        found.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
