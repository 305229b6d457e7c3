"""Layers of a configuration, such as recipes, files and options, merged into one."""

from __future__ import annotations

import difflib
import inspect
import math
from argparse import Action, ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import jsonargparse
from jsonargparse._util import resolved_import_paths

from decur.bounded_yaml import loaded, parse_yaml, read_text
from decur.errors import ConfigError, did_you_mean
from decur.registry import Registry, find_object, import_own_modules, is_ours, is_reference

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

_PLAIN = {str, int, float}

# jsonargparse asks for the path of the class of each type hint thousands of times a command line,
# and looks for it anew, which takes a tenth of the time, unless it has been told.
for _kind in (type, UnionType):
    resolved_import_paths.add(_kind, f"{_kind.__module__}.{_kind.__qualname__}")


def override(settings: Settings, options: Mapping[str, Any], command: str) -> Settings:
    """Return settings with some of their fields replaced.

    Args:
        settings: a dataclass; the defaults where a caller gives none.
        options: values of fields by name; of a group of settings perhaps as a mapping, which
            leaves the group's other fields as they are.
        command: what takes the options, for the message.

    Raises:
        ConfigError: for a name that is no field; it says which is nearest. For a group of settings
            that is something else.
    """
    known, changes = [field.name for field in fields(settings)], dict(options)
    for name, value in options.items():
        group = getattr(settings, name, None)
        if is_dataclass(group) and not isinstance(group, type):
            if isinstance(value, Mapping):
                changes[name] = override(group, value, f"{name} of {command}")
            elif not isinstance(value, type(group)):
                raise ConfigError(
                    f"{name}: of {command} is a {type(group).__name__} or a mapping of its fields, "
                    f"not {value!r}"
                )
        if name not in known:
            hint = did_you_mean(name, known, f"choose from {', '.join(known)}")
            raise ConfigError(f"{name}: unknown option of {command}; {hint}")
    return replace(settings, **changes)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as `{"outer.inner": value}`."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Args:
        text: YAML.
        where: what an error's message calls the text.

    Raises:
        ConfigError: if the text is no YAML, out of bounds, or no mapping.
    """
    values = parse_yaml(text, where)
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be a YAML mapping of keys to values")
    return values


class Keys:
    """The keys of a parser, and what may be given for them.

    A key takes a value ("views.size"), stands for a group of keys ("views"), or names a class
    with options ("data").

    Args:
        parser: the parser.
        followed: keys that take the value of another one, and that other one.
    """

    def __init__(self, parser: ArgumentParser, followed: Mapping[str, str]) -> None:
        self.parser, self.followed = parser, followed
        self.bases = self._find_bases()
        found = {
            action.dest: action
            for action in parser._actions
            if action.dest not in ("help", "help_all", "config", "print_config")
            and not action.dest.endswith(".help")
        }
        self.groups = {part for key in found for part in key_parts(key)[1:]} - self.bases.keys()
        self.values = {key: action for key, action in found.items() if key not in self.groups}
        self.dropped: list[str] = []  # what the last merge has left out, and why

    def _find_bases(self) -> dict[str, type]:
        """Return the keys that name a class, and what the class must be derived from.

        The classes that may be named are imported. jsonargparse is told to write them down as
        their package offers them; it would take the shortest name that works, which changes
        whenever another package offers a class, too.
        """
        bases = {}
        for action in self.parser._actions:
            hint = type_of(action)
            kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
            named = f"--{action.dest}.help" in self.parser._option_string_actions
            if named and len(kinds) == 1 and isinstance(kinds[0], type):
                bases[action.dest] = kinds[0]
        for base in bases.values():
            import_own_modules()
            if isinstance(registry := getattr(base, "registry", None), Registry):
                registry.names()
            package = import_module(base.__module__.rpartition(".")[0])
            for name in getattr(package, "__all__", ()):
                found = getattr(package, name)
                if isinstance(found, type) and issubclass(found, base):
                    resolved_import_paths.add(found, f"{package.__name__}.{name}")
        return bases

    def mappings(self) -> Iterator[tuple[str, type]]:
        """Yield the keys that take a mapping of names to a dataclass, and that dataclass."""
        for key, action in self.values.items():
            hint = type_of(action)
            kind = get_args(hint)[1] if get_origin(hint) is dict else None
            if isinstance(kind, type) and is_dataclass(kind):
                yield key, kind

    def home(self, key: str) -> str | None:
        """Return the key of this parser that a key is, or lies in."""
        known = (part for part in key_parts(key) if part in self.values or part in self.groups)
        return next(known, None)

    def class_names(self, key: str) -> list[str]:
        """Return the names of the classes that may be given for a key."""
        base = self.bases[key]
        found = {each.__name__: each for each in _subclasses(base) if not inspect.isabstract(each)}
        ours = getattr(base, "registry", None)
        named = ours.names() if isinstance(ours, Registry) else found
        return sorted(n for n, each in found.items() if n in named or not is_ours(each))

    def class_of(self, key: str, name: str) -> Any:
        """Return the class that is named for a key, by its own name or by its path."""
        if "/" in name:
            raise ConfigError(f"{key}: names a class, not a folder; give --{key}.root {name}")
        if is_reference(name):
            return find_object(name, f"{key}: no class {name!r}")
        known = {found.__name__: found for found in _subclasses(self.bases[key])}
        if name not in known:
            hint = did_you_mean(name, known, f"choose from {', '.join(self.class_names(key))}")
            raise ConfigError(f"{key}: no class {name!r}; {hint}")
        return known[name]

    def _default_class(self, key: str) -> str | None:
        default = self.parser.get_default(key)
        return str(default["class_path"]) if default else None

    def unknown(self, key: str) -> str:
        """Return the message for a key that is not there."""
        known = [*self.values, *self.groups]
        hint = did_you_mean(key, known, f"see `{self.parser.prog} --help`")
        return f"{key}: unknown key; {hint}"

    def merge(self, layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one nested configuration of several layers; see `Parser.merge`.

        Raises:
            ConfigError: for an unknown key, and for a value where only keys make sense.
        """
        self.dropped = []
        merged: dict[str, Any] = {}
        for layer in layers:
            for key, value in sorted(layer.items(), key=lambda item: "." in str(item[0])):
                self._put(merged, str(key), value)
        for key in self.bases:
            self._complete(merged, key)
        return merged

    def _put(self, merged: dict[str, Any], key: str, value: Any) -> None:
        """Put a value over what a merged configuration has for a key."""
        home = self.home(key) or ""
        inner = key[len(home) + 1 :].split(".") if key != home else []
        if home in self.bases:
            spec = self._put_class(home, get(merged, home), inner, value)
            assign(merged, home.split("."), spec)
        elif home in self.groups and not inner:
            for name, inside in self._mapping(home, value).items():
                self._put(merged, f"{home}.{name}", inside)
        elif home in self.values:
            value = value if inner else _as_list(self.values[home], value)
            assign(merged, [*home.split("."), *inner], loaded(value) if inner else value)
        else:
            first = next(iter(flatten(value, key)), key)  # the nearest key has a value, too
            raise ConfigError(self.unknown(first))

    def _mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Return the keys and values that are given for a group, perhaps in a file."""
        if isinstance(value, str) and Path(value).is_file():
            return read_mapping(read_text(value), value)
        value = loaded(value)
        if isinstance(value, dict):
            return value
        inside = [name for name in self.values if name.startswith(f"{key}.")]
        if isinstance(value, str) and f"{key}.name" in inside:
            raise ConfigError(f"{key}: has keys of its own; did you mean --{key}.name {value}?")
        given = "null" if value is None else repr(value)
        raise ConfigError(
            f"{key}: has keys of its own, such as {inside[0]}; {given} is no mapping of them"
        )

    def _put_class(self, key: str, before: Any, inner: list[str], value: Any) -> Any:
        """Return `class_path` and `init_args` of a key after a value has been put over them.

        Args:
            key: the key.
            before: what was given for it.
            inner: where in it the value belongs: nowhere, "class_path", or an option's name, with
                or without "init_args" before it.
            value: the value.
        """
        spec = dict(before) if isinstance(before, dict) else {}
        options = dict(_options_in(spec, key))
        inner = inner[1:] if inner[:1] == ["init_args"] and len(inner) > 1 else inner
        if inner and inner not in (["class_path"], ["init_args"]):
            assign(options, inner, loaded(value) if inner[1:] else value)
            return {**spec, "init_args": options}
        value = {inner[0]: value} if inner else loaded(value)
        if value is None:
            return None
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: names a class; {value!r} is none")
        if not value.keys() & {"class_path", "init_args"}:
            value = {"init_args": value}
        for name in value:
            if name not in ("class_path", "init_args"):
                hint = did_you_mean(str(name), ["class_path", "init_args"], "put it into init_args")
                raise ConfigError(f"{key}.{name}: unknown key beside class_path; {hint}")
        if "class_path" in value:
            path = str(value["class_path"])
            options = self._switch(key, spec.get("class_path"), path, options)
            kept = resolved_import_paths.get(self.class_of(key, path)) or path.replace(":", ".")
            value = {**value, "class_path": kept}
        return {**spec, **value, "init_args": {**options, **_options_in(value, key)}}

    def _switch(
        self, key: str, before: str | None, now: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the options that stay when a key names a class, perhaps another than before."""
        before = before or self._default_class(key)
        found = self.class_of(key, now)
        other = self.class_of(key, before) if before else found
        if other is found:
            return options
        known, old = options_of(found), options_of(other)
        kept = {
            name: value
            for name, value in options.items()
            if name in known and name in old and known[name].default == old[name].default
        }
        dropped = [n for n in options if n not in kept and f"{key}.{n}" not in self.followed]
        if dropped:
            names = ", ".join(f"{key}.{name}" for name in dropped)
            self.dropped.append(
                f"{key}: {found.__name__} in place of {other.__name__}; {names} dropped"
            )
        return kept

    def _complete(self, merged: dict[str, Any], key: str) -> None:
        """Write down the defaults of a class that is not the default one.

        jsonargparse would take over the values that the default class has for options of the same
        name.
        """
        spec, default = get(merged, key), self._default_class(key)
        if not isinstance(spec, dict) or default is None:
            return
        spec.setdefault("class_path", default)
        found, other = self.class_of(key, spec["class_path"]), self.class_of(key, default)
        if found is other:
            return
        for name, action in options_of(found).items():
            follows = f"{key}.{name}" in self.followed
            if name in options_of(other) and not action.required and not follows:
                value = action.default
                spec["init_args"].setdefault(name, str(value) if isinstance(value, Path) else value)

    def check_options(self, merged: Mapping[str, Any]) -> None:
        """Refuse options that a class does not take, a class without one, and keys for a list."""
        for action in self.parser._actions:
            if action.nargs == "+" and isinstance(merged.get(action.dest), Mapping):
                raise ConfigError(f"{action.dest}: is a list, such as [A, B], and has no keys")
        for key in self.bases:
            spec = get(merged, key) or {"class_path": self._default_class(key)}
            if spec.get("class_path") is None:
                continue
            found, given = self.class_of(key, spec["class_path"]), _options_in(spec, key)
            known = options_of(found)
            for name in given if known else ():
                if not any(option.split(".")[0] == name for option in known):
                    close = difflib.get_close_matches(name, known, n=1)
                    see = f"see --{key}.help {found.__name__}"
                    hint = f"did you mean {key}.{close[0]}?" if close else see
                    raise ConfigError(f"{key}.{name}: {found.__name__} takes no such key; {hint}")
            default = self.parser.get_default(key)  # perhaps with options, as that of a run
            own = default and self.class_of(key, str(default["class_path"])) is found
            there = {*given, *(_options_in(default, key) if own else ())}
            for name, action in known.items():
                if action.required and name not in there and f"{key}.{name}" not in self.followed:
                    raise ConfigError(
                        f"{key}.{name}: is required by {found.__name__}; give --{key}.{name} VALUE"
                    )


def _options_in(spec: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the options of a class that a configuration names."""
    found = spec.get("init_args")
    if found is None:
        return {}
    if isinstance(found, jsonargparse.Namespace):  # in the defaults of a parser
        found = vars(found)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{key}.init_args: must be options by name, is {str(found)[:60]!r}")
    return found


@cache
def options_of(kind: Any) -> dict[str, Action]:
    """Return what parses each option of a class."""
    if not isinstance(kind, type):
        return {}
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(kind)
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _subclasses(base: type) -> Iterator[type]:
    for found in (base, *base.__subclasses__()):
        yield from () if found is base else _subclasses(found)
    yield base


def type_of(action: Action) -> Any:
    """Return the type of a key's values."""
    return getattr(action, "_typehint", action.type)


def takes_list(action: Action, *, of_any_length: bool = False) -> bool:
    """Return whether a key takes a list of words or numbers, and neither a word nor a number.

    Args:
        action: of the key.
        of_any_length: whether the list may have one item, unlike a height and a width.
    """
    hint = type_of(action)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    inside = [get_args(kind) for kind in kinds if get_origin(kind) in (list, tuple, Sequence)]
    if of_any_length:
        inside = [kind for kind in inside if len(kind) == 1 or Ellipsis in kind]
    plain = {item for kind in inside for item in kind} - {Ellipsis}
    listed = bool(plain) and plain <= _PLAIN and not _PLAIN & set(kinds)
    return action.nargs == "+" or listed


def words_taken(action: Action) -> float:
    """Return how many words an option takes at most: several where it takes a list."""
    if not takes_list(action):
        return 1
    kinds = get_args(type_of(action))
    pairs = [get_args(kind) for kind in (type_of(action), *kinds) if get_origin(kind) is tuple]
    fixed = [len(items) for items in pairs if Ellipsis not in items]
    return max(fixed) if fixed else math.inf


def _as_list(action: Action, value: Any) -> Any:
    """Return what is given for a key, a single word or number as a list where it takes one."""
    if action.nargs == "+":
        return [value] if isinstance(value, str) else value
    read = loaded(value)
    alone = type(read) in _PLAIN and takes_list(action, of_any_length=True)
    return [read] if alone else value


def literals_of(hint: Any) -> list[str]:
    """Return the values of the literals in a type."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return list(dict.fromkeys(value for kind in kinds for value in literals_of(kind)))


def name_of(hint: Any) -> str:
    """Return how a person calls a type."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    mixed = get_origin(hint) in (Union, UnionType) and not all(map(literals_of, kinds))
    if (values := literals_of(hint)) and not mixed:
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if hint is None or hint is type(None):
        return "null"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(name_of, get_args(hint)))
    if get_origin(hint) in (dict, Mapping) and get_args(hint):
        return f"{{{': '.join(map(name_of, get_args(hint)))}}}"
    if get_origin(hint) is list:
        return f"list of {name_of(get_args(hint)[0])}"
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return f"[{', '.join(map(name_of, get_args(hint)))}]"
    return getattr(get_origin(hint) or hint, "__name__", str(hint))


def key_parts(key: str) -> list[str]:
    """Return a dotted key and all that it begins with, the longest first."""
    names = key.split(".")
    return [".".join(names[:n]) for n in range(len(names), 0, -1)]


def get(values: Any, key: str) -> Any:
    """Return what a nested configuration has for a dotted key, None where it has nothing."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value into a nested configuration, leaving mappings that others hold as they are."""
    for name in path[:-1]:
        inner = values.get(name)
        values[name] = dict(inner) if isinstance(inner, dict) else {}
        values = values[name]
    values[path[-1]] = value
