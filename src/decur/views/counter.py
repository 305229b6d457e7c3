"""Random numbers as a pure function of sample and purpose, without state or order.

Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the finaliser
of splitmix64 (Steele et al. 2014) as the mixing function. A number depends on its sample's seed and
the name of what is drawn, and on nothing else; so views survive resuming, another number of
processes, another order of the samples, and another device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def _signed(bits: int) -> int:
    """Return the int64 with the same bits as a word; torch has no arithmetic on uint64."""
    return bits - (1 << 64) if bits >> 63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _hash(text: str) -> int:
    """Return 64 bits of a text, the same in every process; Python's own `hash` is salted."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _shift(words: Tensor, bits: int) -> Tensor:
    """Shift to the right without the sign, which int64's own shift drags along."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def mix(words: Tensor) -> Tensor:
    """Return one step of splitmix64: the output of the generator whose state is `words`.

    Args:
        words: int64 of any shape, read as 64-bit words.

    Returns:
        int64 of the same shape, every bit of which depends on every bit of the input.
    """
    words = words + _GOLDEN  # products and sums wrap modulo 2^64, as they should
    words = (words ^ _shift(words, 30)) * _MIX_1
    words = (words ^ _shift(words, 27)) * _MIX_2
    return words ^ _shift(words, 31)


def sample_seeds(ids: Sequence[str], seed: int, *, epoch: int) -> Tensor:
    """Return the seed of each sample in one epoch of one run.

    Args:
        ids: of the samples, as the data set names them; B of them.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        (B,) int64 on the CPU.
    """
    return torch.tensor([_hash(f"{seed}/{epoch}/{name}") for name in ids], dtype=torch.int64)


def stream_keys(names: Iterable[str]) -> Tensor:
    """Return one key for each thing to draw.

    Args:
        names: distinct texts, S of them.

    Returns:
        (S,) int64 on the CPU.
    """
    return torch.tensor([_hash(name) for name in names], dtype=torch.int64)


def uniform(seeds: Tensor, keys: Tensor) -> Tensor:
    """Return a uniform number for each sample and stream.

    Args:
        seeds: (B,) int64, of the samples.
        keys: (S,) int64, of the streams; see `stream_keys`.

    Returns:
        (B, S) float64 in [0, 1), in steps of 2^-53.
    """
    words = mix(mix(seeds)[:, None] ^ keys)  # (B, S)
    return _shift(words, 11).to(torch.float64) * 2.0**-53
