"""Packed data: a few large files in place of millions of small ones, in litdata's layout."""

from decur.data.packed.reading import PackedPairs
from decur.data.packed.writing import pack

__all__ = ["PackedPairs", "pack"]
