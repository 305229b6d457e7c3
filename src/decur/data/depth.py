"""For data sets of RGB-D: depth as a modality, a check of its unit, and MATLAB's files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from decur.data.files import resize
from decur.data.hha import PLAUSIBLE, hha
from decur.errors import BadSampleError, DataError, needing
from decur.modality import Modality

log = logging.getLogger(__name__)

Depth = Literal["metres", "hha"]


def depth_modality(depth: Depth, size: tuple[int, int]) -> Modality:
    """Return the modality of depth pictures: "depth" (1 band, m) or "hha" (3 bands, 8-bit)."""
    return Modality.preset("depth" if depth == "metres" else "hha").with_(size=size)


def encode_depth(
    metres: Tensor, depth: Depth, *, intrinsics: Sequence[float] | None, size: tuple[int, int]
) -> Tensor:
    """Return depth as an image of its modality.

    Args:
        metres: (H, W) float, NaN where there is none.
        depth: "metres", or "hha" (Gupta et al. 2014), which is computed at the picture's own size.
        intrinsics: fx, fy, cx, cy in pixels, the first being (0, 0); needed for HHA.
        size: height and width to resize to.

    Returns:
        (1, *size) float32 in metres, NaN where there is none; or (3, *size) uint8, there 0.
    """
    if depth == "metres":
        return resize(metres[None], size)
    assert intrinsics is not None
    coded = hha(metres, intrinsics)
    if metres.shape == size:
        return coded
    # Resized as if holes were NaN: else their zeros would dim what lies around them.
    holes = metres.isnan()
    return resize(coded.float().masked_fill(holes, torch.nan), size).nan_to_num(0).round().byte()


def check_metres(pictures: Iterable[Tensor], where: object, *, remedy: str) -> None:
    """Warn when the median depth of most of some pictures is none of a room.

    Args:
        pictures: depth as it is taken to be in metres, NaN where there is none.
        where: the data set, for the message.
        remedy: what to do, for the message.
    """
    medians = [float(picture.nanmedian()) for picture in pictures]
    odd = [m for m in medians if not PLAUSIBLE[0] <= m <= PLAUSIBLE[1]]
    if 2 * len(odd) > len(medians):
        log.warning(
            "%s: the median depth of %d of %d pictures is outside %g to %g m, of the first %.3g; "
            "is it in metres? %s",
            where,
            len(odd),
            len(medians),
            PLAUSIBLE[0],
            PLAUSIBLE[1],
            odd[0],
            remedy,
        )


def read_mat(file: Path, names: Sequence[str], *, layout: str) -> dict[str, Any]:
    """Read variables of a .mat file before version 7.3, structures as dictionaries.

    Raises:
        DataError: if there is no such file, it cannot be read, or a variable is missing.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not file.is_file():
        raise DataError(f"{file}: no such file; {layout}")
    try:
        found = loadmat(file, variable_names=names, simplify_cells=True)
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read as .mat ({reason}); download it anew") from error
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{file}: has no variable {missing[0]!r}; {layout}")
    return {name: found[name] for name in names}


class Mat73:
    """A .mat file of version 7.3, which is HDF5: opened when first read, in each process anew.

    Arrays are those of MATLAB with their axes reversed.

    Args:
        file: the file.
        names: datasets that it must have.
        layout: for messages.

    Raises:
        DataError: if there is no such file, it cannot be read, or a dataset is missing.
    """

    def __init__(self, file: Path, names: Sequence[str], *, layout: str) -> None:
        self.file = file
        self._process: int | None = None
        self._opened: Any = None
        if not file.is_file():
            raise DataError(f"{file}: no such file; {layout}")
        for name in names:
            if name not in self._open():
                there = ", ".join(sorted(self._open()))
                raise DataError(f"{file}: has no {name!r} (it has {there}); {layout}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a dataset."""
        return tuple(self._open()[name].shape)

    def read(self, name: str, row: int) -> np.ndarray:
        """Read one row of a dataset; of a column of references, the array that the row refers to.

        Raises:
            BadSampleError: naming the file, if it is cut short or corrupt there.
        """
        import h5py

        opened = self._open()
        try:
            value = opened[name][row]
            if getattr(value, "dtype", None) == h5py.ref_dtype:
                value = opened[value[0]][()]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._bad(name, row, error) from error
        return np.asarray(value)

    def read_bytes(self, name: str, row: int) -> np.ndarray:
        """Read one row of a dataset, or the array it refers to, as it is stored: (bytes,) uint8.

        Chunks that hold other rows, too, are whole.

        Raises:
            BadSampleError: naming the file, if it is cut short there.
        """
        import h5py

        opened = self._open()
        try:
            dataset: Any = opened[name]
            rows: tuple[slice, ...] = (slice(row, row + 1),)
            if dataset.dtype == h5py.ref_dtype:
                dataset, rows = opened[dataset[row][0]], ()
            if dataset.chunks is None:
                return np.ascontiguousarray(dataset[rows]).reshape(-1).view(np.uint8)
            whole = rows + tuple(slice(0, n) for n in dataset.shape[len(rows) :])
            corners = {
                tuple(s.start // n * n for s, n in zip(part, dataset.chunks, strict=True))
                for part in dataset.iter_chunks(whole)
            }
            stored = [dataset.id.read_direct_chunk(corner)[1] for corner in sorted(corners)]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._bad(name, row, error) from error
        return np.frombuffer(b"".join(stored), np.uint8)

    def _bad(self, name: str, row: int, error: Exception) -> BadSampleError:
        reason = " ".join(str(error).split())
        return BadSampleError(
            self.file, f"row {row} of {name} cannot be read ({reason}); download it anew"
        )

    def strings(self, name: str) -> list[str]:
        """Read a cell array of strings, (1, N)."""
        opened = self._open()
        return ["".join(map(chr, opened[cell][()].ravel())) for cell in opened[name][()].ravel()]

    def _open(self) -> Any:
        if self._process != os.getpid():  # a handle does not survive a fork
            with needing(f"reading {self.file}", "rgbd", DataError):
                import h5py
            try:
                self._opened = h5py.File(self.file, "r")
            except OSError as error:
                reason = " ".join(str(error).split())
                raise DataError(
                    f"{self.file}: cannot be read as .mat 7.3 ({reason}); download it anew"
                ) from error
            self._process = os.getpid()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None, "_opened": None}
