"""Embeddings of any data set as Parquet, and the search for neighbours across sensors."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.embed.embedding import Embedded, embed
    from decur.embed.neighbors import Hits, Part, Vectors, nearest, read_vectors
    from decur.embed.settings import EmbedSettings
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

__all__ = [
    "EmbedSettings",
    "Embedded",
    "Hits",
    "Part",
    "Vectors",
    "embed",
    "nearest",
    "read_vectors",
]
