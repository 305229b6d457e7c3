"""Things that are found by name: objectives, encoders, attentions, analyses, tasks, data sets."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, invalidate_caches
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Generic, Self, TypeVar, cast

from decur.bounded_yaml import loaded
from decur.errors import ConfigError, reason_of

T = TypeVar("T")
Item = TypeVar("Item")

# Modules of one's own that register something, separated by commas. The `decur` command imports
# them; a script imports them itself.
ENVIRONMENT = "DECUR_IMPORT"

# Set to "1" by `--trust`: configurations that runs have kept may name any module.
TRUST = "DECUR_TRUST"

_NAMED: set[str] = set()  # modules that a person has named, and that are imported

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*")


class Registry(Generic[T]):
    """Items of one kind by name.

    Each item registers itself where it is defined, so that adding one means adding one file:

        @OBJECTIVES.register("DeCUR")
        class DeCUR(Objective): ...

    The modules of the package are imported when a name is first asked for that is not known yet,
    not before. Modules whose names begin with "command_" hold commands and are left out.

    Args:
        kind: what an item is, for messages ("objective").
        package: name of the package whose modules, and those of the packages within it, register
            items ("decur.objectives").
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._items: dict[str, T] = {}
        self._found: dict[str, T] = {}  # by where they are defined
        self._complete = False

    def register(self, name: str) -> Callable[[Item], Item]:
        """Return a decorator that registers a class, function or object under a name.

        Raises:
            ConfigError: when the decorator is applied, if another item has the name.
        """

        def add(item: Item) -> Item:
            known = self._items.get(name)
            if known is not None and _origin(known) != _origin(item):
                raise ConfigError(
                    f"two items are registered as {self.kind} {name!r}; give one another name"
                )
            self._items[name] = cast(T, item)
            return item

        return add

    def names(self) -> list[str]:
        """Return the names of all items, sorted."""
        self._import_all()
        return sorted(self._items)

    def get(self, name: str, key: str = "") -> T:
        """Return an item.

        Args:
            name: the name that it is registered under, or where it is defined, as
                "package.module:attribute" or "package.module.attribute".
            key: of the configuration that the name was given for, for messages.

        Raises:
            ConfigError: if there is no such item; it names the nearest ones.
        """
        if name not in self._items:
            self._import_all()
        if name in self._items:
            return self._items[name]
        where = f"{key}: " if key else ""
        if is_reference(name):
            self._found[name] = cast(T, find_object(name, f"{where}{self.kind} {name!r}"))
            return self._found[name]
        close = difflib.get_close_matches(name, self._items, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"choose from {', '.join(self.names())}"
        )
        raise ConfigError(f"{where}no {self.kind} {name!r}; {hint}")

    def is_known(self, name: str) -> bool:
        """Return whether an item can be had without importing anything that nobody asked for.

        True for a registered name, and for "package.module:attribute" where a person has asked for
        it before in this process or lists the module in `DECUR_IMPORT`. For names that come from
        a data file: to import a module runs its code.
        """
        self._import_all()
        module = name.replace(":", ".").rpartition(".")[0]
        return name in self._items or name in self._found or module in own_modules()

    def _import_all(self) -> None:
        if self._complete:
            return
        self._complete = True  # before importing: a module may ask for names of others
        try:
            import_own_modules()
            _import_modules(self.package)
        except BaseException:
            self._complete = False
            raise


def is_ours(thing: Any) -> bool:
    """Return whether a class or function, or a partial of one, is of this package."""
    thing = getattr(thing, "func", thing)
    return str(getattr(thing, "__module__", "")).split(".")[0] == "decur"


def is_own(module: str) -> bool:
    """Return whether a person has named a module, and not this package's."""
    return module.split(".")[0] != "decur" and (module in _NAMED or module in own_modules())


def is_reference(name: str) -> bool:
    """Return whether a name is "package.module:attribute" or "package.module.attribute"."""
    return _REFERENCE.fullmatch(name) is not None


def find_object(reference: str, where: str) -> Any:
    """Import what "package.module:attribute" or "package.module.attribute" stands for.

    Args:
        reference: of one of these two forms.
        where: what it was given for, at the beginning of an error's message.

    Raises:
        ConfigError: if the module cannot be imported, or has no such attribute.
    """
    module, _, attribute = reference.replace(":", ".").rpartition(".")
    try:
        found = _import(module)
    except Exception as error:  # a module of one's own may fail in any way
        raise ConfigError(
            f"{where}: module {module!r} cannot be imported ({_told(error)}); see that it lies in "
            "the working folder, or that its folder is on PYTHONPATH"
        ) from error
    if not hasattr(found, attribute):
        raise ConfigError(f"{where}: module {module!r} has no {attribute!r}")
    _NAMED.add(module)
    return getattr(found, attribute)


def _import(module: str) -> Any:
    """Import a module, which may lie in the working folder: the `decur` command has it on no path.

    The folder comes last, and only once a module in it was asked for, so that it hides no package.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        top, here = module.partition(".")[0], Path.cwd()
        is_here = (here / f"{top}.py").is_file() or (here / top).is_dir()
        if error.name != top or not is_here or str(here) in sys.path:
            raise
    sys.path.append(str(here))
    invalidate_caches()
    return import_module(module)


def _told(error: Exception) -> str:
    """Return what an import has raised, with its kind where the text alone says little."""
    text = reason_of(error)
    return text if isinstance(error, ImportError) else f"{type(error).__name__}: {text}"


def own_modules() -> list[str]:
    """Return the names of the modules that the environment variable `DECUR_IMPORT` lists."""
    names = (name.strip() for name in os.environ.get(ENVIRONMENT, "").split(","))
    return [name for name in names if name]


class Made:
    """Base of classes whose objects keep the arguments that they were made with."""

    _made_of: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keep the arguments, since two objects may differ in one that no attribute shows."""
        made = super().__new__(cls)
        made._made_of = (args, options)
        return made

    @property
    def made_of(self) -> dict[str, Any]:
        """The arguments that the object was made with, defaults included."""
        args, options = self._made_of
        bound = inspect.signature(type(self)).bind(*args, **options)
        bound.apply_defaults()
        return bound.arguments


def refuse_foreign(
    values: Mapping[str, Any], where: object, named: Mapping[str, Any] | None = None
) -> None:
    """Refuse a kept configuration that would have modules imported which nobody asked for.

    To import a module runs its code. Modules of decur, those that `DECUR_IMPORT` lists, and those
    that are imported already are let in; after `--trust` all are.

    Args:
        values: a configuration that a run has kept, as its YAML says it.
        where: the file, for the message.
        named: a configuration that the person has given now: what it names is asked for.

    Raises:
        ConfigError: naming what is refused, and how to trust it.
    """
    if os.environ.get(TRUST) == "1":
        return
    asked = {name for name, _ in _references(named or {})}
    for name, called in _references(values):
        module = name.replace(":", ".").rpartition(".")[0]
        own = module.split(".")[0] == "decur" or module in sys.modules
        if name not in asked and module not in own_modules() and (called or not own):
            raise ConfigError(
                f"{where}: names {name!r}, whose module would be imported, and that runs its code; "
                f"add --trust if you trust it, or set {ENVIRONMENT}={module}"
            )


def _references(values: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Yield what a configuration names by "package.module.attribute", and whether it is called.

    Classes are checked for their base before they are made; a builder of encoders is called.
    """
    last = key.rpartition(".")[2]
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _references(value, f"{key}.{name}".lstrip("."))
    elif isinstance(values, list):
        for value in values:
            yield from _references(value, key)
    elif isinstance(values, str):
        inner, path = loaded(values), key.split(".")
        encoder = "encoder" in path and "weights" not in path
        if inner != values:  # YAML within YAML, perhaps several times
            yield from _references(inner, key)
        elif key == "encoder" or (encoder and ":" in values and not values.startswith("torchgeo:")):
            yield values, True  # a file of keys, or a builder
        elif encoder and "attention" in path and is_reference(values):
            yield values, True
        elif (key in ("data", "objective") or last == "class_path") and is_reference(values):
            yield values, False


def import_own_modules() -> None:
    """Import the modules of one's own that the environment variable `DECUR_IMPORT` lists.

    Raises:
        ConfigError: naming the one that cannot be imported.
    """
    for name in own_modules():
        try:
            _import(name)
        except Exception as error:
            raise ConfigError(
                f"{ENVIRONMENT}: module {name!r} cannot be imported ({_told(error)}); see that its "
                "folder is on PYTHONPATH"
            ) from error


def _import_modules(package: str) -> None:
    """Import all modules of a package, and of the packages within it, but commands."""
    for module in iter_modules(import_module(package).__path__):
        name = f"{package}.{module.name}"
        if module.name.startswith("command_"):
            continue
        if module.ispkg:
            _import_modules(name)
        else:
            import_module(name)


def _origin(item: object) -> object:
    """Tell where an item is defined; a class that is imported anew is no other class."""
    name = getattr(item, "__qualname__", None)
    return item if name is None else (getattr(item, "__module__", None), name)
