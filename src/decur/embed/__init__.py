"""Embeddings of any data set as Parquet, and the search for neighbours across sensors."""

from decur.embed.embedding import Embedded, embed
from decur.embed.neighbors import PARTS, Part, Vectors, nearest, read_vectors

__all__ = ["PARTS", "Embedded", "Part", "Vectors", "embed", "nearest", "read_vectors"]
