"""The formats of weights that `decur import` reads and `decur export` writes."""

from __future__ import annotations

from typing import Literal

Format = Literal["hub", "timm", "torchgeo", "onnx", "torch"]  # of what is written

Sampling = Literal["grid", "gather"]  # how a graph reads the points of deformable attention

Layout = Literal["auto", "decur", "torchgeo", "resnet", "vit", "mit"]  # of what is read
Normalised = Literal["auto", "imagenet", "half", "none"]
Compat = Literal["official"]
