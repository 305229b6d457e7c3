"""The formats of weights that `decur import` reads and `decur export` writes, and their notes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Format = Literal["hub", "timm", "torchgeo", "onnx", "torch"]  # of what is written

Sampling = Literal["grid", "gather"]  # how a graph reads the points of deformable attention

WeightsLayout = Literal["auto", "decur", "torchgeo", "resnet", "vit", "mit"]  # of what is read
Normalised = Literal["auto", "imagenet", "half", "none"]
Compat = Literal["official"]

NOTE = "decur.export"  # the key, in a file's metadata, of what was exported


def note_beside(path: Path) -> Path:
    """Return the file that says what an exported file holds, for formats without metadata."""
    return path.with_name(f"{path.name}.json")
