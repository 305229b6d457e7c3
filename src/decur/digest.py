"""One digest for whatever is cached, resumed or refused: equal where the results would be equal.

Everything is known by its content, and nothing by its `repr`:

- numbers, strings and None by type and value: 1, 1.0, True and "1" are four things;
- sequences by their items (a list equals a tuple), mappings by their items in any order;
- arrays, tensors and pandas frames by type, shape and every value;
- a `Path` by its text and, where it is a file, by size and modification time;
- modules of torch by class, attributes, parameters and buffers;
- functions and classes by module and qualified name; where they are neither of decur nor of an
  installed package, by their code, the variables that they capture and the globals they name, too;
- any other object by its class and by what `pickle` would save of it, unless it has a method
  `digest_parts()` that returns what it is known by. `PairedDataset` has one: it adds size and
  modification time of every file that the data set reads.

What cannot be identified, such as an open file or a generator, raises `CannotBeTold`. The caller
then does not cache; `try_digest` says so in the log.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import logging
import os
import sys
import types
from collections.abc import Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

log = logging.getLogger(__name__)
_READ_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_LENGTH = 32  # hexadecimal digits of a digest
_INSTALLED = {"site-packages", "dist-packages"}  # folders of an environment, a user or the system


class CannotBeTold(Exception):
    """Something that no digest can tell from another of its kind."""


def digest(*parts: object) -> str:
    """Return what tells these parts from all others, as 32 hexadecimal digits.

    Args:
        *parts: numbers, strings, paths, arrays, modules, data sets, ..., see the module's text.

    Raises:
        CannotBeTold: naming what cannot be identified.
    """
    return _Digest().of(parts).hex()[:_LENGTH]


def try_digest(*parts: object, what: str) -> str | None:
    """Return the digest of these parts; None where there is none, which the log then says.

    Args:
        *parts: as `digest` takes them.
        what: what follows from it, for the log: "features are not cached".
    """
    try:
        return digest(*parts)
    except CannotBeTold as error:
        log.warning("%s: %s", what, error)
        return None


def file_states(files: Iterable[str | PurePath]) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of files, each once, in the order of their paths.

    Args:
        files: any paths; a missing file has size and time -1.
    """
    return [(path, *file_state(path)) for path in sorted({os.fspath(file) for file in files})]


def file_state(file: str | PurePath) -> tuple[int, int]:
    """Return size in bytes and modification time in nanoseconds; -1 twice for a missing file."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def files_in(folder: str | PurePath) -> list[str]:
    """Return the paths of what lies directly in a folder, but for folders."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if not entry.is_dir()]
    except OSError:
        return []


def files_named(values: Iterable[object], below: bool = False) -> list[str]:
    """Return the files among some values that may be paths.

    Args:
        values: strings and paths are looked at.
        below: a folder stands for all files below it; else folders are passed over.
    """
    found: list[str] = []
    for value in values:
        if isinstance(value, str | Path) and value and "\0" not in str(value):
            if os.path.isfile(value):
                found.append(os.fspath(value))
            elif below:
                found += [
                    os.path.join(at, name) for at, _, names in os.walk(value) for name in names
                ]
    return found


class _Digest:
    """Digests of values, of which objects that contain themselves may be a part."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}  # objects that are being looked at: id to depth
        self.done: dict[int, tuple[object, bytes]] = {}  # large ones that have been: they recur

    def of(self, value: object) -> bytes:
        """Return the digest of any value."""
        if id(value) in self.open:
            return _hash("cycle", str(len(self.open) - self.open[id(value)]).encode())
        if id(value) in self.done:
            return self.done[id(value)][1]
        simple = _simple(value)
        if simple is not None:
            return _hash(type(value).__name__, simple)
        self.open[id(value)] = len(self.open)
        try:
            found = self._of(value)
        finally:
            del self.open[id(value)]
        if isinstance(value, np.ndarray | Tensor | nn.Module) or hasattr(value, "digest_parts"):
            self.done[id(value)] = value, found
        return found

    def _of(self, value: Any) -> bytes:
        kind = type(value)
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asanyarray(value))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if kind in (list, tuple, torch.Size):
            return self._sequence("sequence", value)
        if isinstance(value, type):
            return self._class(value)
        if callable(parts := getattr(value, "digest_parts", None)):
            return self._sequence("object", (kind, parts()))
        if isinstance(value, Path):
            state = file_state(value) if value.is_file() else None
            return self._sequence("path", (os.fspath(value), state))
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, Set):
            return _hash("set", *sorted(map(self.of, value)))
        if isinstance(value, Enum):
            return self._sequence("enum", (kind, value.name))
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self._sequence("method", (value.__func__, value.__self__))
        if isinstance(value, functools.partial):
            return self._sequence("partial", (value.func, value.args, value.keywords))
        if isinstance(value, types.ModuleType):
            return _hash("python module", value.__name__.encode())
        if isinstance(value, types.CodeType):
            # neither the line numbers nor the file
            code = (value.co_code, value.co_consts, value.co_names, value.co_varnames)
            return self._sequence("code", code)
        if (pandas := sys.modules.get("pandas")) is not None and isinstance(
            value, pandas.DataFrame | pandas.Series | pandas.Index
        ):
            return self._pandas(value)
        if isinstance(value, Dataset):  # not of decur: its files are not known
            read = file_states(files_named(getattr(value, "__dict__", {}).values(), below=True))
            return _hash("data set", self._object(value), self.of(read))
        if is_dataclass(value):
            named = {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
            return self._sequence("object", (kind, named))
        return self._object(value)

    def _sequence(self, kind: str, values: Iterable[object]) -> bytes:
        values = list(values)
        simple = [_simple(value) for value in values]
        if None in simple:
            return _hash(kind, *map(self.of, values))
        # much faster where there are very many
        types_ = " ".join(type(value).__name__ for value in values).encode()
        lengths = np.array([len(text or b"") for text in simple], np.int64).tobytes()
        return _hash(f"simple {kind}", types_, lengths, b"".join(simple))  # type: ignore[arg-type]

    def _mapping(self, values: Mapping[Any, object]) -> bytes:
        if all(type(key) is str for key in values):
            keys = sorted(values)
            named = [values[key] for key in keys]
            return _hash("named", self._sequence("keys", keys), self._sequence("values", named))
        return _hash("mapping", *sorted(self.of(k) + self.of(v) for k, v in values.items()))

    def _array(self, array: NDArray[Any]) -> bytes:
        if isinstance(array, np.ma.MaskedArray):
            return self._sequence("masked", (array.filled(0), np.ma.getmaskarray(array)))
        about = _encode(f"{array.dtype} {array.shape}")
        if array.dtype.hasobject:
            return _hash("objects", about, self.of(array.ravel().tolist()))
        if not array.nbytes:
            return _hash("array", about)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return _hash("array", about, flat.data)

    def _tensor(self, tensor: Tensor) -> bytes:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            text = (
                f"a tensor of layout {tensor.layout} on {tensor.device} cannot be told from another"
            )
            raise CannotBeTold(text)
        about = _encode(f"{tensor.dtype} {tuple(tensor.shape)}")
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if not plain.numel():
            return _hash("tensor", about)
        return _hash("tensor", about, plain.view(-1).view(torch.uint8).numpy().data)

    def _module(self, module: nn.Module) -> bytes:
        attributes = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_") and key != "training"
        }
        state = (module._parameters, module._buffers, list(module._modules.items()))
        return self._sequence("module", (type(module), attributes, *state))

    def _pandas(self, values: Any) -> bytes:
        pandas = sys.modules["pandas"]
        if isinstance(values, pandas.DataFrame):
            columns = [values.iloc[:, column].array for column in range(values.shape[1])]
            return self._sequence(
                "frame", (values.columns, values.index, *map(self._column, columns))
            )
        if isinstance(values, pandas.MultiIndex):
            return self._sequence("index", (list(values.names), values.tolist()))
        index = values.index if isinstance(values, pandas.Series) else None
        return self._sequence("series", (values.name, index, self._column(values.array)))

    def _column(self, values: Any) -> bytes:
        if str(values.dtype) == "category":
            return self._sequence("category", (values.categories, values.codes, values.ordered))
        plain = isinstance(values.dtype, np.dtype) and not values.dtype.hasobject
        content = np.asarray(values) if plain else list(values)
        return self._sequence("column", (str(values.dtype), content))

    def _class(self, kind: type) -> bytes:
        """Describe a class by its name; one of a person's own scripts by its code, too."""
        parts: list[object] = [_name(kind)]
        for base in kind.__mro__:
            if _is_own(base.__module__):
                parts.append(_name(base))
                parts += [
                    (key, _attribute(value))
                    for key, value in sorted(vars(base).items())
                    if not key.startswith(("__", "_abc_")) or callable(value)
                ]
        return self._sequence("class", parts)

    def _function(self, function: types.FunctionType) -> bytes:
        """Describe a function by its name; one of a person's own scripts by its code, too."""
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        if len(cells) != len(function.__closure__ or ()):
            raise CannotBeTold(f"{_name(function)} captures a variable that has no value yet")
        captured = {
            key: value
            for key, value in zip(function.__code__.co_freevars, cells, strict=True)
            if key != "__class__"
        }
        defaults = (function.__defaults__, function.__kwdefaults__)
        parts: list[object] = [_name(function), *defaults, captured]
        if _is_own(function.__module__) or "<" in function.__qualname__:
            named = {
                name: function.__globals__[name]
                for name in sorted(_names(function.__code__))
                if name in function.__globals__
            }
            parts += [function.__code__, named]
        return self._sequence("function", parts)

    def _object(self, value: Any) -> bytes:
        kind = type(value)
        if isinstance(value, types.BuiltinFunctionType) and isinstance(
            value.__self__, types.ModuleType | types.NoneType
        ):
            return _hash("builtin", _encode(f"{value.__module__}.{value.__qualname__}"))
        if isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType):
            return self._sequence("wrapped", (kind, wrapped))
        try:
            reduce: Any = copyreg.dispatch_table.get(kind)
            reduced: Any = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception as error:  # any that its class thinks of
            text = f"a {kind.__module__}.{kind.__qualname__} cannot be told from another"
            raise CannotBeTold(text) from error
        if isinstance(reduced, str):  # the name of a global
            return self._sequence("global", (kind, reduced))
        make, arguments, state, items, pairs = (*reduced, None, None, None, None)[:5]
        parts = (make, arguments, state, list(items or ()), list(pairs or ()))
        return self._sequence("object", (kind, parts))


def _simple(value: object) -> bytes | None:
    """Return the bytes of a value that has no parts; None for any other."""
    kind = type(value)
    if value is None:
        return b""
    if kind is str:
        return _encode(value)  # type: ignore[arg-type]
    if kind in (bool, int):
        return str(value).encode()
    if kind is float or kind is complex:
        return np.array(value).tobytes()
    if isinstance(value, bytes | bytearray) and kind in (bytes, bytearray):
        return bytes(value)
    return b"" if value is Ellipsis or value is NotImplemented else None


def _hash(kind: str, *parts: Any) -> bytes:
    """Return the digest of parts, each with its length, so that their limits are not lost."""
    found = hashlib.sha256(_encode(kind))
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # names of files need not be text


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _attribute(value: object) -> object:
    """Return the functions within a class's attribute; any other value as it is."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, functools.cached_property):
        return value.func
    if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
        return value.__name__
    return value


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    """Return the global variables that code reads, and the functions within it."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in _READ_GLOBAL}
    within = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return found.union(*map(_names, within))


@functools.cache
def _is_own(module: str) -> bool:
    """Return whether a module is a person's own: not decur's, Python's or an installed one."""
    root = module.partition(".")[0]
    if root == "decur" or root in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module == "__main__"
    return _INSTALLED.isdisjoint(Path(os.path.realpath(file)).parts)
