"""Recipes, and configurations that end in one clear line when they are wrong."""

from __future__ import annotations

import difflib
import logging
import re
from argparse import Action
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from jsonargparse._util import resolved_import_paths

from decur import completion
from decur.errors import ConfigError
from decur.registry import Registry, find_object, import_own_modules, is_reference

log = logging.getLogger(__name__)

# PyYAML's safe loader and dumper, written in C where they are there, ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# How jsonargparse says what is wrong.
_KEY = re.compile(r'Parser key "([\w./-]+)"(?: element \d+)?:\s*')
_WRONG_VALUE = re.compile(r"^(?:Expected a |Does not validate).*(?:Got|Given) value: (.*)$", re.S)
_NO_MAPPING = re.compile(r"^Not a valid subclass of \w+\. Got value: (\S+)")

# Recipes of version 0.1 that differed from another one by their objective alone.
_BY_OBJECTIVE = {
    f"{base}-{name.lower()}": (base, name)
    for base in ("demo", "ombria")
    for name in ("BarlowTwins", "CLIP", "SimCLR", "VICReg")
}


def recipes() -> dict[str, str]:
    """Return the recipes that ship with the package: `{name: YAML text}`."""
    folder = resources.files("decur") / "recipes"
    found = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: found[name].read_text() for name in sorted(found)}


def describe(text: str) -> str:
    """Return the first line of a recipe's header comment."""
    return text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""


def command_of(text: str) -> str:
    """Return the command that a recipe is for: the word after `decur` in its header."""
    found = re.search(r"^#\s*command\s+decur (\w+)", text, re.M)
    return found[1] if found else ""


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
        ConfigError: if the text is no YAML, or no mapping.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be a YAML mapping of keys to values")
    return values


def find_config(name: str, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return a configuration, preceded by what it is based on (`base: NAME`).

    Args:
        name: a file, or a recipe's name.
        above: the configurations that are based on it.

    Returns:
        Layers for `Parser.merge`; the later ones override the earlier.

    Raises:
        ConfigError: if there is neither such a file nor such a recipe, it is no YAML mapping, or
            it is based on itself.
    """
    if not isinstance(name, str):
        raise ConfigError(f"base: must be a file or a recipe's name, is {name!r}")
    if name in above:
        raise ConfigError(f"base: {' > '.join((*above, name))}: is based on itself")
    shipped = recipes()
    if Path(name).is_file():
        where, text = name, Path(name).read_text(errors="replace")
    elif name in shipped:
        where, text = f"recipe {name}", shipped[name]
    elif name in _BY_OBJECTIVE:
        base, objective = _BY_OBJECTIVE[name]
        raise ConfigError(f"{name}: is no more; use --config {base} --objective {objective}")
    else:
        close = difflib.get_close_matches(name, shipped, n=3) or list(shipped)
        raise ConfigError(
            f"{name}: no such file and no such recipe; recipes: {', '.join(close)} "
            "(`decur recipes` lists all)"
        )
    values = read_mapping(text, where)
    base = values.pop("base", None)
    return [*(find_config(base, (*above, name)) if base is not None else []), values]


class Parser(ArgumentParser):
    """A parser of a command line and of YAML, typed by signatures of functions and classes.

    What a person gives, files and options, becomes layers of one dictionary. They are merged,
    checked and then parsed once.

    Args:
        prog: the command's name.
        description: what the command does, shown by --help.
    """

    def __init__(
        self, prog: str | None = None, description: str | None = None, **kwargs: Any
    ) -> None:
        kwargs |= {"exit_on_error": False, "allow_abbrev": False}
        if prog:  # jsonargparse makes inner parsers of this class without a name
            kwargs["usage"] = f"{prog} [--help] [--config FILE-OR-RECIPE] [--key value ...]"
        super().__init__(prog=prog, description=description, **kwargs)
        self._followed: dict[str, str] = {}
        self._merged: dict[str, Any] = {}  # what was given last
        self._dropped: list[str] = []  # what has been left out of it

    def add_config(self) -> None:
        """Add `--config FILE-OR-RECIPE`."""
        self.add_argument(
            "--config",
            action=ActionConfigFile,
            metavar="FILE-OR-RECIPE",
            help="A YAML file or the name of a recipe (`decur recipes` lists them). Later options "
            "override it.",
        )

    def follow(self, source: str, key: str) -> None:
        """Give an argument of a class the value of another key, and refuse any other value.

        Args:
            source: the other key.
            key: of the class's argument, as "objective.init_args.dim".
        """
        self.link_arguments(source, key)
        self._followed |= {key: source, key.replace(".init_args", ""): source}

    def set_defaults(self, *args: dict[str, Any], **kwargs: Any) -> None:
        """Set defaults by key."""
        self._name_classes()
        super().set_defaults(*args, **kwargs)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse a command line.

        Raises:
            ConfigError: in one line that names the key.
        """
        if completion.asked():
            self._complete_words()
        layers, rest = self._layers(arguments)
        self._merged = self.merge(layers)
        for line in self._dropped:
            log.info(line)
        if not any(re.match(r"-h$|--help|--print_|--.+\.help\b", word) for word in rest):
            self._check_options()
        if "--config" not in self._option_string_actions:
            rest = list(arguments)
        elif self._merged:
            text = yaml.dump(self._merged, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
            rest = ["--config", text, *rest]
        settings = self._typed(self.parse_args, rest)
        given: dict[str, Any] = {}
        for layer in layers:
            given |= self._unlike_source(layer)
        self._refuse_other(given, settings)
        return settings

    def read(self, layers: Sequence[Mapping[str, Any]]) -> Namespace:
        """Merge layers of a configuration and parse them once.

        Within a class, the argument that follows another key may have any value: a class may have
        been written down with all its defaults.

        Raises:
            ConfigError: in one line that names the key.
        """
        self._merged = self.merge(layers)
        self._check_options()
        settings = self._typed(self.parse_object, self._merged)
        alone = {key: layer[key] for layer in layers for key in layer if key in self._followed}
        self._refuse_other(alone, settings)
        return settings

    def merge(self, layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one nested configuration of several layers, the later over the earlier.

        Keys may be dotted ("views.size"). Groups of keys are merged; values, lists and mappings
        among them, are replaced. A class that replaces another takes over the options that mean the
        same for both, which is to say that they have the same name and the same default.

        Raises:
            ConfigError: for an unknown key, and for a value where only keys make sense.
        """
        self._name_classes()
        self._dropped = []
        merged: dict[str, Any] = {}
        for layer in layers:
            for key, value in sorted(layer.items(), key=lambda item: "." in str(item[0])):
                self._put(merged, str(key), value)
        for key in self._bases:
            self._complete(merged, key)
        return merged

    def _typed(self, parse: Callable[[Any], Namespace], given: Any) -> Namespace:
        try:
            return parse(given)
        except ArgumentError as error:
            raise ConfigError(self._one_line(str(error))) from error

    # Keys: those with a value, those that name a class, and groups of others.

    @property
    def _bases(self) -> dict[str, type]:
        """The keys that name a class, and what the class must be derived from."""
        found = {}
        for action in self._actions:
            hint = _type_of(action)
            kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
            named = f"--{action.dest}.help" in self._option_string_actions
            if named and len(kinds) == 1 and isinstance(kinds[0], type):
                found[action.dest] = kinds[0]
        return found

    def _keys(self) -> tuple[dict[str, Action], set[str]]:
        """Return the keys that take a value, and those of groups."""
        values = {
            action.dest: action
            for action in self._actions
            if action.dest not in ("help", "config", "print_config")
            and not action.dest.endswith(".help")
        }
        groups = {part for key in values for part in _parts(key)[1:]} - self._bases.keys()
        return {key: action for key, action in values.items() if key not in groups}, groups

    def _name_classes(self) -> None:
        """Import the classes that may be named, and have each called by its package's name.

        Otherwise jsonargparse would write down the shortest name that works, which changes
        whenever a class can be had from another package, too.
        """
        for base in self._bases.values():
            import_own_modules()
            if isinstance(registry := getattr(base, "registry", None), Registry):
                registry.names()
            package = import_module(base.__module__.rpartition(".")[0])
            for name in getattr(package, "__all__", ()):
                found = getattr(package, name)
                if isinstance(found, type) and issubclass(found, base):
                    resolved_import_paths.add(found, f"{package.__name__}.{name}")

    def _complete_words(self) -> None:
        """Complete options and their values for the shell, and exit."""
        self._name_classes()
        words = {key: [kind.__name__ for kind in _subclasses(b)] for key, b in self._bases.items()}
        words["config"] = list(recipes())
        for action in self._actions:
            hint = _type_of(action)
            found = ["true", "false"] if hint is bool else _literals(hint)
            found = words.get(action.dest, found)
            setattr(action, "completer", lambda prefix, words=found, **_: words)  # noqa: B010
        self.parse_args([])

    def _class(self, key: str, name: str) -> Any:
        """Return the class that is named for a key, by its own name or by its path."""
        if "/" in name:
            raise ConfigError(f"{key}: names a class, not a folder; give --{key}.root {name}")
        if is_reference(name):
            return find_object(name, f"{key}: no class {name!r}")
        known = {found.__name__: found for found in _subclasses(self._bases[key])}
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see --help for the known ones"
            raise ConfigError(f"{key}: no class {name!r}; {hint}")
        return known[name]

    def _default_class(self, key: str) -> str | None:
        default = self.get_default(key)
        return str(default["class_path"]) if default else None

    def _unknown(self, key: str) -> str:
        """Return the message for a key that is not there."""
        known = [key for keys in self._keys() for key in keys]
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see `{self.prog} --help`"
        return f"{key}: unknown key; {hint}"

    # A command line as layers.

    def _layers(self, arguments: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the layers that files and options make, and the words that make none."""
        layers: list[dict[str, Any]] = []
        rest: list[str] = []
        values, groups = self._keys()
        words = list(arguments)
        while words:
            word = words.pop(0)
            name, equals, value = word.removeprefix("--").partition("=")
            action = self._option_string_actions.get(f"--{name}")
            key = name.removesuffix("+") if action is None else action.dest
            home = next((part for part in _parts(key) if part in values or part in groups), None)
            if not word.startswith("--") or word == "--":
                rest.append(word)
            elif action is None and (home is None or home in groups):
                raise ConfigError(self._unknown(name))
            elif (
                name.endswith("+")
                or (action is not None and action.nargs == 0)
                or (action is not None and home != key != "config")  # such as --data.help
            ):
                rest.append(word)
            else:
                given = [value] if equals else []
                many = action is not None and action.nargs == "+"
                while words and not words[0].startswith("--") and (many or not given):
                    given.append(words.pop(0))
                if not given:
                    rest.append(word)  # which argparse refuses
                elif key == "config":
                    layers += find_config(given[0])
                else:
                    layers.append({key: given if many else given[0]})
        return layers, rest

    # Merging.

    def _put(self, merged: dict[str, Any], key: str, value: Any) -> None:
        """Put a value over what a merged configuration has for a key."""
        values, groups = self._keys()
        home = next((part for part in _parts(key) if part in values or part in groups), "")
        inner = key[len(home) + 1 :].split(".") if key != home else []
        if home in self._bases:
            spec = self._put_class(home, _get(merged, home), inner, value)
            _assign(merged, home.split("."), spec)
        elif home in groups and not inner:
            for name, inside in self._mapping(home, value).items():
                self._put(merged, f"{home}.{name}", inside)
        elif home in values:
            if values[home].nargs == "+" and isinstance(value, str) and not inner:
                value = [value]
            _assign(merged, [*home.split("."), *inner], _loaded(value) if inner else value)
        else:
            first = next(iter(flatten(value, key)), key)  # the nearest key has a value, too
            raise ConfigError(self._unknown(first))

    def _mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Return the keys and values that are given for a group, perhaps in a file."""
        if isinstance(value, str) and Path(value).is_file():
            return read_mapping(Path(value).read_text(errors="replace"), value)
        value = _loaded(value)
        if isinstance(value, dict):
            return value
        inside = [name for name in self._keys()[0] if name.startswith(f"{key}.")]
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
        options = dict(spec.get("init_args") or {})
        inner = inner[1:] if inner[:1] == ["init_args"] and len(inner) > 1 else inner
        if inner and inner not in (["class_path"], ["init_args"]):
            _assign(options, inner, _loaded(value) if inner[1:] else value)
            return {**spec, "init_args": options}
        value = {inner[0]: value} if inner else _loaded(value)
        if value is None:
            return None
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: names a class; {value!r} is none")
        if not value.keys() & {"class_path", "init_args"}:
            value = {"init_args": value}
        if "class_path" in value:
            path = str(value["class_path"])
            options = self._switch(key, spec.get("class_path"), path, options)
            value = {
                **value,
                "class_path": resolved_import_paths.get(self._class(key, path)) or path,
            }
        return {**spec, **value, "init_args": {**options, **(value.get("init_args") or {})}}

    def _switch(
        self, key: str, before: str | None, now: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the options that stay when a key names a class, perhaps another than before."""
        before = before or self._default_class(key)
        found = self._class(key, now)
        other = self._class(key, before) if before else found
        if other is found:
            return options
        known, old = _options(found), _options(other)
        kept = {
            name: value
            for name, value in options.items()
            if name in known and name in old and known[name].default == old[name].default
        }
        dropped = [n for n in options if n not in kept and f"{key}.{n}" not in self._followed]
        if dropped:
            names = ", ".join(f"{key}.{name}" for name in dropped)
            self._dropped.append(
                f"{key}: {found.__name__} in place of {other.__name__}; {names} dropped"
            )
        return kept

    def _complete(self, merged: dict[str, Any], key: str) -> None:
        """Write down the defaults of a class that is not the default one.

        jsonargparse would take over the values that the default class has for options of the same
        name.
        """
        spec, default = _get(merged, key), self._default_class(key)
        if not isinstance(spec, dict) or default is None:
            return
        spec.setdefault("class_path", default)
        found, other = self._class(key, spec["class_path"]), self._class(key, default)
        if found is other:
            return
        for name, action in _options(found).items():
            follows = f"{key}.{name}" in self._followed
            if name in _options(other) and not action.required and not follows:
                value = action.default
                spec["init_args"].setdefault(name, str(value) if isinstance(value, Path) else value)

    # What is wrong.

    def _check_options(self) -> None:
        """Refuse options that a class does not take, and a class without one that it needs."""
        for key in self._bases:
            spec = _get(self._merged, key) or {"class_path": self._default_class(key)}
            if spec.get("class_path") is None:
                continue
            found, given = self._class(key, spec["class_path"]), spec.get("init_args", {})
            known = _options(found)
            for name in given if known else ():
                if not any(option.split(".")[0] == name for option in known):
                    close = difflib.get_close_matches(name, known, n=1)
                    see = f"see --{key}.help {found.__name__}"
                    hint = f"did you mean {key}.{close[0]}?" if close else see
                    raise ConfigError(f"{key}.{name}: {found.__name__} takes no such key; {hint}")
            default = self.get_default(key)  # of a run, say, with the options that it was given
            own = default and self._class(key, str(default["class_path"])) is found
            there = {*given, *(default.get("init_args", {}).keys() if own else ())}
            for name, action in known.items():
                if action.required and name not in there and f"{key}.{name}" not in self._followed:
                    raise ConfigError(
                        f"{key}.{name}: is required by {found.__name__}; give --{key}.{name} VALUE"
                    )

    def _unlike_source(self, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a layer gives for keys that follow others, where it differs from those.

        A configuration that a run has kept holds both, and they agree.
        """
        flat = flatten(dict(layer))
        return {
            key: _loaded(flat[key])
            for key, source in self._followed.items()
            if key in flat and flat[key] != flat.get(source)
        }

    def _refuse_other(self, given: Mapping[str, Any], settings: Namespace) -> None:
        """Refuse what was given for keys that follow others, where it differs from those."""
        for key, value in given.items():
            source = self._followed[key]
            if value != settings[source]:
                raise ConfigError(
                    f"{key}: is {value}, but {source}, which it follows, is {settings[source]}; "
                    f"give --{source} {value}"
                )

    def _one_line(self, message: str) -> str:
        """Return jsonargparse's message in one line that begins with the key."""
        keys = [key for key in _KEY.findall(message) if key != "config"]
        reason = _KEY.split(message)[-1].strip()
        if wrong := _WRONG_VALUE.search(reason):
            known = self._keys()[0].get(keys[0])
            if len(keys) > 1 and keys[0] in self._bases:
                path = (_get(self._merged, keys[0]) or {}).get("class_path")
                known = _options(self._class(keys[0], path)).get(keys[1]) if path else None
            if known is not None:
                reason = f"expected {_name(_type_of(known))}, got '{wrong[1].strip()}'"
        elif wrong := _NO_MAPPING.search(reason):
            given = "null" if wrong[1] == "None" else wrong[1]
            reason = f"each is a mapping of keys, or {{}} where it has none; {given} is not"
        return ": ".join(filter(None, [".".join(keys), " ".join(reason.split())]))


@cache
def _options(kind: Any) -> dict[str, Action]:
    """Return what parses each option of a class."""
    if not isinstance(kind, type):
        return {}
    parser = ArgumentParser()
    parser.add_class_arguments(kind)
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _subclasses(base: type) -> Iterator[type]:
    for found in (base, *base.__subclasses__()):
        yield from () if found is base else _subclasses(found)
    yield base


def _type_of(action: Action) -> Any:
    return getattr(action, "_typehint", action.type)


def _literals(hint: Any) -> list[str]:
    """Return the values of the literals in a type."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return list(dict.fromkeys(value for kind in kinds for value in _literals(kind)))


def _name(hint: Any) -> str:
    """Return how a person calls a type."""
    if values := _literals(hint):
        return "one of " + ", ".join(values)
    if hint is None or hint is type(None):
        return "null"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_name, get_args(hint)))
    return getattr(get_origin(hint) or hint, "__name__", str(hint))


def _parts(key: str) -> list[str]:
    """Return a dotted key and all that it begins with, the longest first."""
    names = key.split(".")
    return [".".join(names[:n]) for n in range(len(names), 0, -1)]


def _get(values: Any, key: str) -> Any:
    """Return what a nested configuration has for a dotted key, None where it has nothing."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value into a nested configuration, leaving mappings that others hold as they are."""
    for name in path[:-1]:
        inner = values.get(name)
        values[name] = dict(inner) if isinstance(inner, dict) else {}
        values = values[name]
    values[path[-1]] = value


def _loaded(value: Any) -> Any:
    """Return what a text stands for in YAML; the text itself where it is none."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.load(value, _Loader)
    except yaml.YAMLError:
        return value
