"""A parser of options and configurations that ends in one clear line when they are wrong."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    Namespace,
    get_loader,
    set_dumper,
    set_loader,
)

from decur import completion
from decur.bounded_yaml import check_bounds, loaded
from decur.errors import ConfigError
from decur.layers import (
    Keys,
    assign,
    flatten,
    get,
    literals_of,
    name_of,
    options_of,
    type_of,
    words_taken,
)
from decur.recipes import find_config, recipe_files
from decur.short_help import ShowAll, short_help

log = logging.getLogger(__name__)

# PyYAML's safe dumper, written in C where it is there, ten times as fast.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_load_yaml = get_loader("yaml")


def _load_bounded(text: str) -> Any:
    """Load YAML as jsonargparse does, which also takes texts within a file for YAML."""
    check_bounds(text)
    try:
        return _load_yaml(text)
    except ValueError as error:  # such as a date in month 13
        raise yaml.YAMLError(str(error)) from error


set_loader("yaml", _load_bounded, (yaml.YAMLError,))


def as_yaml(values: Any) -> str:
    """Return YAML of values, their keys in the order given."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


set_dumper("yaml", as_yaml)

_TRUTHS = ("true", "false")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")

# How jsonargparse says what is wrong.
_KEY = re.compile(r'Parser key "([\w./-]+)"(?: element \d+)?:\s*')
_WRONG_VALUE = re.compile(r"^(?:Expected a |Does not validate).*(?:Got|Given) value: (.*)$", re.S)
_NO_MAPPING = re.compile(r"^Not a valid subclass of \w+\. Got value: (\S+)")


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
        self.essentials: Mapping[str, Sequence[str]] = {}
        self.needed: set[str] = set()  # options without which nothing is parsed
        self._shown: dict[str, Any] = {}

    def add_config(self, shipped: bool = True) -> None:
        """Add `--config FILE-OR-RECIPE`.

        Args:
            shipped: whether recipes for this command ship with the package.
        """
        what = "A YAML file or the name of a recipe (`decur recipes` lists them)"
        if not shipped:
            what = "A YAML file of options"
            self.usage = str(self.usage).replace("FILE-OR-RECIPE", "FILE")
        self.add_argument(
            "--config",
            action="config",
            metavar="FILE-OR-RECIPE" if shipped else "FILE",
            help=f"{what}. Later options override it.",
        )

    def show_first(
        self, essentials: Mapping[str, Sequence[str]], values: Namespace | None = None
    ) -> None:
        """Let `--help` list only some options, in groups, and `--help-all` all of them.

        Args:
            essentials: `{title: keys}`; a key may lie in a class, as "data.root".
            values: a configuration whose values are shown in place of the defaults.
        """
        self.essentials = essentials
        # jsonargparse takes the mark from them while it parses
        self.needed = {action.dest for action in self._actions if action.required}
        self._shown = {} if values is None else values.as_dict()
        if "--help-all" not in self._option_string_actions:
            about, none = "Show all options and exit.", argparse.SUPPRESS
            self.add_argument("--help-all", nargs=0, action=ShowAll, default=none, help=about)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the text that `--help` prints."""
        if self.essentials:
            return short_help(self, self.essentials)
        return str(super().format_help(*args, **kwargs))

    def class_keys(self) -> dict[str, list[str]]:
        """Return the keys that name a class, as "data", and the names that each takes."""
        keys = self._keys()
        return {key: keys.class_names(key) for key in keys.bases}

    def find_option(self, key: str) -> tuple[argparse.Action, Any]:
        """Return what parses an option, which may lie in a class, and its default value.

        Raises:
            KeyError: if there is no such option.
        """
        keys = self._keys()
        action = next((a for a in self._actions if a.dest == key), None)
        if action is not None:
            if key not in keys.values and key not in keys.bases:
                return action, None
            return action, get(self._shown, key) if self._shown else self.get_default(key)
        home, _, name = key.partition(".")
        default = get(self._shown, home) or self.get_default(home)
        action = options_of(keys.class_of(home, str(default["class_path"])))[name]
        return action, (default.get("init_args") or {}).get(name, action.default)

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
        self._keys()  # imports the classes that may be named
        super().set_defaults(*args, **kwargs)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse a command line.

        Raises:
            ConfigError: in one line that names the key.
        """
        if completion.asked():
            self._complete()
        keys = self._keys()
        arguments = self._switches(arguments)
        layers, rest = self._layers(keys, arguments)
        merged = keys.merge(layers)
        for line in keys.dropped:
            log.info(line)
        if not any(re.match(r"-h$|--help|--print_|--.+\.help\b", word) for word in rest):
            self._check_words(rest, merged)
            self._check(keys, merged)
        if "--config" not in self._option_string_actions:
            rest = arguments
        elif merged:
            rest = ["--config", as_yaml(merged), *rest]
        settings = self._typed(lambda: self.parse_args(rest), merged)
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
        keys = self._keys()
        merged = keys.merge(layers)
        self._check(keys, merged)
        copied = deepcopy(merged)  # jsonargparse changes what it is given
        settings = self._typed(lambda: self.parse_object(copied), merged)
        alone = {key: layer[key] for layer in layers for key in layer if key in self._followed}
        self._refuse_other(alone, settings)
        return settings

    def to_yaml(self, settings: Namespace, *, skip_default: bool = False) -> str:
        """Return what was parsed as YAML that gives the same again, nulls too.

        Args:
            settings: a configuration that this parser has checked.
            skip_default: leave out what is as by default.
        """
        return str(
            self.dump(settings, skip_unset=False, skip_default=skip_default, skip_validation=True)
        )

    def merge(self, layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return one nested configuration of several layers, the later over the earlier.

        Keys may be dotted ("views.size"). Groups of keys are merged; values, lists and mappings
        among them, are replaced. A class that replaces another takes over the options that mean the
        same for both, which is to say that they have the same name and the same default.

        Raises:
            ConfigError: for an unknown key, and for a value where only keys make sense.
        """
        return self._keys().merge(layers)

    def _keys(self) -> Keys:
        return Keys(self, self._followed)

    def _check(self, keys: Keys, merged: dict[str, Any]) -> None:
        """Refuse what jsonargparse would drop in silence, or name by another key than its own.

        Mappings of dataclasses are put in place of their texts, without dotted keys.
        """
        keys.check_options(merged)
        for key, kind in keys.mappings():
            given, inner = loaded(get(merged, key)), Parser(self.prog)
            inner.add_class_arguments(kind)
            for name, values in given.items() if isinstance(given, dict) else ():
                if isinstance(values, dict):
                    try:
                        inner.read([values])
                    except ConfigError as error:
                        raise ConfigError(f"{key}.{name}.{error}") from error
                    assign(merged, [*key.split("."), name], inner.merge([values]))

    def _typed(self, parse: Callable[[], Namespace], given: Mapping[str, Any]) -> Namespace:
        """Return what parsing returns, or raise what is wrong in one line."""
        try:
            return parse()
        except ArgumentError as error:
            raise ConfigError(self._one_line(str(error), given)) from error

    def _complete(self) -> None:
        """Complete options and their values for the shell, and exit."""
        words = self.class_keys() | {"config": sorted(recipe_files())}
        for action in self._actions:
            hint = type_of(action)
            found = ["true", "false"] if hint is bool else literals_of(hint)
            found = words.get(action.dest, found)
            setattr(action, "completer", lambda prefix, words=found, **_: words)  # noqa: B010
        self.parse_args([])

    def _switches(self, arguments: Sequence[str]) -> list[str]:
        """Return the words with options that are on or off as argparse wants them.

        Whoever gives one need not know whether it takes a value: it may stand alone, which means
        on, or be told true or false.

        Raises:
            ConfigError: if an option is told anything else.
        """
        found, words = [], list(arguments)
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            order = isinstance(action, argparse._StoreTrueAction)
            if not order and (action is None or type_of(action) is not bool):
                found.append(word)
                continue
            if not equals:
                value = words.pop(0) if words and words[0].lower() in _TRUTHS else "true"
            if not order:
                found.append(f"{name}={value}")
            elif value.lower() not in _TRUTHS:
                raise ConfigError(f"{name[2:]}: expected true or false, got '{value}'")
            elif value.lower() == "true":
                found.append(name)
        return found

    def _layers(
        self, keys: Keys, arguments: Sequence[str]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the layers that files and options make, and the words that make none."""
        layers: list[dict[str, Any]] = []
        rest: list[str] = []
        words = list(arguments)
        while words:
            word = words.pop(0)
            name, equals, value = word.removeprefix("--").partition("=")
            action = self._option_string_actions.get(f"--{name}")
            key = action.dest if action else name.removesuffix("+")
            home = keys.home(key)
            if not word.startswith("--") or word == "--":
                rest.append(word)
                continue
            if action is None and (home is None or home in keys.groups):
                raise ConfigError(keys.unknown(name))
            flag = action is not None and action.nargs == 0
            other = action is not None and home != key != "config"  # such as --data.help
            many = action is not None and action.nargs == "+"
            most = words_taken(action) if action is not None else 1
            given = [value] if equals else []
            if not (flag or other or name.endswith("+")):
                while words and not words[0].startswith("--") and len(given) < most:
                    if given and given[0].startswith("["):  # the list is whole
                        break
                    given.append(words.pop(0))
            # an option of a class, such as --data.mask_nodata -1 255, has no action here
            if many and len(given) == 1 and given[0].startswith("[") and given[0].endswith("]"):
                listed = loaded(given[0])  # as in a YAML file, for --modalities "[s1, s2]"
                given = [str(one) for one in listed] if isinstance(listed, list) else given
            numbers = action is None and all(map(_NUMBER.fullmatch, given))
            while numbers and given and words and _NUMBER.fullmatch(words[0]):
                given.append(words.pop(0))
            if not (flag or other or name.endswith("+") or given):
                raise ConfigError(f"--{name}: give a value; `{self.prog} --help` says how")
            if flag or other or name.endswith("+"):
                rest.append(word)
            elif key == "config":
                layers += find_config(given[0])
            else:
                more = [loaded(word) for word in given] if len(given) > 1 else given[0]
                layers.append({key: given if many else more})
        return layers, rest

    def _check_words(self, rest: Sequence[str], merged: Mapping[str, Any]) -> None:
        """Refuse words that no option takes, and a line without what must be given."""
        loose = [word for word in rest if not word.startswith("-")]
        given = [action for action in self._actions if get(merged, action.dest) is not None]
        places = [a for a in self._actions if not a.option_strings and a not in given]
        see = f"`{self.prog} --help`"
        if loose and all(action.option_strings for action in self._actions):
            first = next((key for keys in self.essentials.values() for key in keys), "key")
            if loose[0] in recipe_files() and "--config" in self._option_string_actions:
                first = "config"
            raise ConfigError(
                f"{loose[0]}: every value has its option, such as --{first} {loose[0]}; "
                f"{see} lists them"
            )
        too_much = loose[len(places) :] if all(a.nargs in (None, "?") for a in places) else []
        if too_much:
            raise ConfigError(f"{' '.join(too_much)}: is too much; {see} says how")
        lacking = [each.dest.upper() for each in places[len(loose) :] if each.nargs != "?"]
        options = [action for action in self._actions if action.option_strings]
        lacking += [
            f"--{action.dest}"
            for action in options
            if action.required and action not in given and self.get_default(action.dest) is None
        ]
        if lacking:
            raise ConfigError(f"{', '.join(lacking)}: must be given; {see} says how")

    def _unlike_source(self, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a layer gives for keys that follow others, where it differs from those.

        A configuration that a run has kept holds both, and they agree.
        """
        flat = flatten(dict(layer))
        return {
            key: loaded(flat[key])
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

    def _one_line(self, message: str, given: Mapping[str, Any]) -> str:
        """Return jsonargparse's message about what was given in one line that begins with the key.

        Three of its sentences are put more plainly: where a message is about, a value of a wrong
        type, and no mapping where keys are needed. All others are printed as they are.
        """
        where = [key for key in _KEY.findall(message) if key != "config"]
        reason = _KEY.split(message)[-1].strip()
        if where and (wrong := _WRONG_VALUE.search(reason)):
            keys = self._keys()
            known = keys.values.get(where[0])
            path, form = get(given, f"{where[0]}.class_path"), ""
            value = wrong[1].strip()
            if where[1:] and path and where[0] in keys.bases:
                # jsonargparse may show an argument of its own that holds what was given
                value = get(given, f"{where[0]}.init_args.{where[1]}") or value
                kind = keys.class_of(where[0], path)
                known = options_of(kind).get(where[1])
                form = getattr(kind, "forms", {}).get(where[1], "")
            if known is not None:
                like = f", such as {form}" if form else ""
                reason = f"expected {name_of(type_of(known))}{like}, got '{value}'"
        elif wrong := _NO_MAPPING.search(reason):
            value = "null" if wrong[1] == "None" else wrong[1]
            reason = f"each is a mapping of keys, or {{}} where it has none; {value} is not"
        return ": ".join(filter(None, [".".join(where), " ".join(reason.split())]))
