"""Packages that import a name when it is first used (PEP 562), so that commands start quickly.

A package's `__init__.py` lists what it offers as ordinary imports, which type checkers and editors
read, and hands the same imports to `lazy_names`, which carries each out on first use:

    if TYPE_CHECKING:
        from decur.data.folder import PairedFolder
    else:
        __getattr__, __dir__ = lazy_names(__name__)

    __all__ = ["PairedFolder"]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is called like the function of its name, as `decur.pretrain(...)`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **options)


def lazy_names(
    package: str, *, call: bool = False
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`, which import its names on first use.

    Modules and packages within the package are imported on first use, too.

    Args:
        package: the package's name. The imports in its `__init__.py` under `if TYPE_CHECKING:` say
            which names it offers and where each is defined.
        call: let the package be called like the function of its own name that it offers.

    Raises:
        ImportError: if the package's source is not there to be read.
    """
    module = sys.modules[package]
    loader = module.__spec__ and module.__spec__.loader
    source = getattr(loader, "get_source", lambda name: None)(package)
    if source is None:
        raise ImportError(f"{package}: the source of its __init__.py cannot be read")
    places = _places(ast.parse(source))
    if call:
        module.__class__ = _CallablePackage

    def __getattr__(name: str) -> Any:
        if name not in places:
            if not name.startswith("_") and find_spec(f"{package}.{name}"):
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, there = places[name]
        value = getattr(import_module(home), there)
        setattr(module, name, value)  # the next use finds it without this function
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(module), *places})

    return __getattr__, __dir__


def _places(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return `{name: (module, name there)}` of the imports under `if TYPE_CHECKING:`."""
    return {
        alias.asname or alias.name: (line.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        if isinstance(line, ast.ImportFrom) and line.module
        for alias in line.names
    }
