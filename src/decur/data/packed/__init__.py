"""Packed data: a few large files in place of millions of small ones, in litdata's layout."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.data.packed.reading import PackedPairs
    from decur.data.packed.writing import pack
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["PackedPairs", "pack"]
