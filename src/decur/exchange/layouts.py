"""The names in files of weights: which encoder they belong to, and of which architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from decur.errors import DataError, listed

# Keys of the authors' code: what is left out, whose encoder a key belongs to, its name there.
_LEFT_OUT = re.compile(r"(module\.)?(projector[12]|bn)\.")
JOINT = re.compile(r"(?:module\.)?backbone_(?P<sensor>[12])\.(?P<key>.+)")
SINGLE = re.compile(r"(?:module\.)?backbone\.(?P<key>.+)")
_ATTENTION = re.compile(r"(?:module\.)?da(?P<sensor>[12])_l(?P<stage>[34])\.(?P<key>.+)")
_OF_ATTENTION = {
    "proj_q.": "query.",
    "proj_k.": "key.",
    "proj_v.": "value.",
    "proj_out.": "out.",
    "conv_offset.1.norm.": "offset.1.",
    "conv_offset.": "offset.",
    "rpe_table": "bias",
}

# Architectures by what their keys show.
_RESNETS = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_VITS = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"}
_MITS = {
    (32, (2, 2, 2, 2)): "mit_b0",
    (64, (2, 2, 2, 2)): "mit_b1",
    (64, (3, 4, 6, 3)): "mit_b2",
    (64, (3, 4, 18, 3)): "mit_b3",
    (64, (3, 8, 27, 3)): "mit_b4",
    (64, (3, 6, 40, 3)): "mit_b5",
}
FIRST = {  # the weights that take the bands
    "resnet": "conv1.weight",
    "vit": "patch_embed.proj.weight",
    "mit": "patch_embed1.proj.weight",
}


@dataclass
class WeightsPart:
    """The weights of one sensor in a file: of the encoder, and of attention behind its stages."""

    label: str
    state: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict)
    module: str = ""  # of the attention in the authors' code, "1" or "2"


def split_weights(file: Path, state: Mapping[str, Tensor]) -> list[WeightsPart]:
    """Split weights into one part a sensor, by the authors' names; a plain file is one part.

    Raises:
        DataError: if one of two encoders is missing, or a name is none of theirs.
    """
    kept = {key: value for key, value in state.items() if not _LEFT_OUT.match(key)}
    sensors = {found["sensor"] for key in kept if (found := JOINT.match(key))}
    if len(sensors) == 1:
        (one,) = sensors
        other = "2" if one == "1" else "1"
        raise DataError(
            f"{file}: holds backbone_{one} but no backbone_{other}, so it is cut short; take the "
            f"whole checkpoint, or rename its keys backbone_{one}.* to backbone.*"
        )
    labels = sorted(sensors) or [""]
    parts = {label: WeightsPart(f"backbone_{label}" if label else "encoder") for label in labels}
    of_authors = bool(sensors) or any(SINGLE.match(key) for key in kept)
    unmatched = []
    for key, value in kept.items():
        if not of_authors:
            parts[""].state[key] = value
        elif found := _ATTENTION.match(key):
            owner = parts[found["sensor"] if sensors else ""]
            if owner.module not in ("", found["sensor"]):  # one backbone, two attentions
                unmatched.append(key)
                continue
            owner.attention[f"layer{found['stage']}.attention.{_renamed(found['key'])}"] = value
            owner.module = found["sensor"]
        elif found := JOINT.match(key) or SINGLE.match(key):
            parts[found["sensor"] if sensors else ""].state[found["key"]] = value
        else:
            unmatched.append(key)
    if unmatched:
        raise DataError(f"{file}: names that match nothing: {listed(unmatched, 5)}")
    return list(parts.values())


def _renamed(key: str) -> str:
    for theirs, ours in _OF_ATTENTION.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def kind_of(file: Path, part: WeightsPart) -> str:
    """Return the family of an encoder: a key of `FIRST`.

    Raises:
        DataError: if it is none of them.
    """
    for kind, key in FIRST.items():
        if key in part.state and part.state[key].ndim == 4:
            return kind
    raise DataError(
        f"{file}: the {part.label} is neither ResNet, ViT nor MiT (its keys begin with "
        f"{listed(list(part.state), 5) or 'nothing'}); these have {', '.join(FIRST.values())}"
    )


def infer_architecture(file: Path, part: WeightsPart, *, kind: str) -> str:
    """Return the name that `build_encoder` takes, by width and depth.

    Raises:
        DataError: if there is none of this width and depth.
    """
    state = part.state
    if kind == "resnet":
        blocks = tuple(_count(state, rf"layer{i}\.(\d+)\.conv1\.weight") for i in range(1, 5))
        signature: Any = ("layer1.0.conv3.weight" in state, blocks)
        name = _RESNETS.get(signature)
    elif kind == "mit":
        depths = tuple(_count(state, rf"block{i}\.(\d+)\.norm1\.weight") for i in range(1, 5))
        signature = (len(state[FIRST[kind]]), depths)
        name = _MITS.get(signature)
    else:
        signature = len(state[FIRST[kind]])
        name = _VITS.get(signature)
    if name is None:
        tables: dict[str, Mapping[Any, str]] = {"resnet": _RESNETS, "mit": _MITS, "vit": _VITS}
        raise DataError(
            f"{file}: the {part.label} is a {kind} of unknown width or depth ({signature}); known "
            f"are {', '.join(tables[kind].values())}"
        )
    return name


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)
