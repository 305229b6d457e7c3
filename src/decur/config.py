"""Recipes, and configurations that end in one clear line when they are wrong."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from decur.errors import ConfigError


def recipes() -> dict[str, str]:
    """The recipes that ship with the package: `{name: YAML text}`."""
    folder = resources.files("decur") / "recipes"
    found = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: found[name].read_text() for name in sorted(found)}


def describe(text: str) -> str:
    """The first line of a recipe's header comment."""
    return text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""


def command_of(text: str) -> str:
    """Which command a recipe is for: the word after `decur` in its header's line "command"."""
    found = re.search(r"^#\s*command\s+decur (\w+)", text, re.M)
    return found[1] if found else ""


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as `{"outer.inner": value}`."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping.

    Args:
        text: YAML.
        where: what to call it if it is none.

    Raises:
        ConfigError: if it is no YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be a YAML mapping of keys to values")
    return values


def find_config(name: str, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A configuration, preceded by what it is based on (`base: NAME`), the foundation first.

    Args:
        name: a file, or a recipe's name.
        above: what is based on it.

    Raises:
        ConfigError: if there is neither, it is no YAML mapping, or it is based on itself.
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
    else:
        close = difflib.get_close_matches(name, shipped, n=3) or list(shipped)
        raise ConfigError(
            f"{name}: no such file and no such recipe; recipes: {', '.join(close)} "
            "(`decur recipes` lists all)"
        )
    values = read_mapping(text, where)
    base = values.pop("base", None)
    return [*(find_config(base, (*above, name)) if base is not None else []), values]


class _ConfigAction(ActionConfigFile):
    """`--config FILE-OR-RECIPE`, with `base:` in either."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        for layer in find_config(values):
            layer = parser.tidy(layer)
            text = yaml.safe_dump(layer, sort_keys=False)  # the order may mean something
            super().__call__(parser, cfg, text, option_string)


class Parser(ArgumentParser):
    """A typed parser of command lines and YAML.

    Args:
        prog: the command's name.
        description: what it does, shown by --help.
    """

    def __init__(
        self, prog: str | None = None, description: str | None = None, **kwargs: Any
    ) -> None:
        kwargs["exit_on_error"] = False
        if prog:  # jsonargparse makes inner parsers of this class without a name
            kwargs["usage"] = f"{prog} [--help] [--config FILE-OR-RECIPE] [--key value ...]"
        super().__init__(prog=prog, description=description, **kwargs)
        self._followed: dict[str, str] = {}
        self._given: dict[str, Any] = {}

    def add_config(self) -> None:
        """Add `--config FILE-OR-RECIPE`."""
        self.add_argument(
            "--config",
            action=_ConfigAction,
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

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse a command line.

        Raises:
            ConfigError: in one line, naming the key.
        """
        settings = self._parse(arguments)
        for word, after in pairwise([*arguments, ""]):
            key, _, value = word.removeprefix("--").partition("=")
            if word.startswith("--") and key in self._followed:
                self._given[key] = yaml.safe_load(value or after)
        self._refuse_other(self._given, settings)
        return settings

    def _refuse_other(self, given: Mapping[str, Any], settings: Namespace) -> None:
        """Refuse what was given for keys that follow others, where it differs from those."""
        for key, value in given.items():
            source = self._followed[key]
            if value != settings[source]:
                raise ConfigError(
                    f"{key}: is {value}, but {source}, which it follows, is {settings[source]}; "
                    f"give --{source} {value}"
                )

    def _parse(self, arguments: Sequence[str]) -> Namespace:
        self._given = {}
        try:
            return self.parse_args(list(arguments))
        except ArgumentError as error:
            raise ConfigError(self._one_line(str(error))) from error

    def parse_layers(self, layers: Sequence[Mapping[str, Any]]) -> Namespace:
        """Parse mappings as if each were a file given with `--config`, the later over the earlier.

        What follows another key may differ within a class: one that is named there may have come
        with its defaults.

        Raises:
            ConfigError: in one line, naming the key.
        """
        with tempfile.TemporaryDirectory() as folder:
            arguments = []
            for number, layer in enumerate(layers):
                path = Path(folder) / f"{number}.yaml"
                path.write_text(yaml.safe_dump(dict(layer), sort_keys=False))
                arguments += ["--config", str(path)]
            settings = self._parse(arguments)
        alone = {key: layer[key] for layer in layers for key in layer if key in self._followed}
        self._refuse_other(alone, settings)
        return settings

    def tidy(self, layer: dict[str, Any]) -> dict[str, Any]:
        """A layer of a configuration with single values made lists where a list is taken.

        Raises:
            ConfigError: if something else than keys stands for what has keys of its own.
        """
        lists = {action.dest for action in self._actions if action.nargs == "+"}
        for key, value in layer.items():
            given = isinstance(value, dict) or (isinstance(value, str) and Path(value).is_file())
            if not given and self._inner(str(key)):
                raise ConfigError(self._wants_keys(str(key), value))
        flat = flatten(layer)
        for key, source in self._followed.items():  # a kept configuration holds both
            if key in flat and flat[key] != flat.get(source):
                self._given[key] = flat[key]
        return {k: [v] if k in lists and isinstance(v, str) else v for k, v in layer.items()}

    def _inner(self, key: str) -> list[str]:
        """The keys of a key that has no value itself; none where a class may be named."""
        inner = [a.dest for a in self._actions if a.dest.startswith(f"{key}.")]
        return [] if f"{key}.help" in inner else inner

    def _wants_keys(self, key: str, value: object) -> str:
        name = f"{key}.name"
        value = yaml.safe_load(value) if isinstance(value, str) else value
        if isinstance(value, str) and name in self._inner(key):
            return f"{key}: has keys of its own; did you mean --{name} {value}?"
        first = next(iter(self._inner(key)), f"{key}.KEY")
        given = "null" if value is None else repr(value)
        return f"{key}: has keys of its own, such as {first}; {given} is no mapping of them"

    def _one_line(self, message: str) -> str:
        key = re.search(r'Parser key "([\w./-]+)"', message)
        where = key[1] if key else ""
        inner = re.search(
            r"given class_path '([\w.]+)':\s*(.*?)(?:\n\s*- Expected|$)", message, re.S
        )
        if inner:
            name, text = inner[1].rsplit(".", 1)[-1], " ".join(inner[2].split())
            if missing := re.search(r"arguments are required: ([\w, ]+)", text):
                first = missing[1].split(",")[0]
                return f"{where}.{first}: is required by {name}; give --{where}.{first} VALUE"
            if unknown := re.search(r"Option '([\w.]+)' is not accepted", text):
                return f"{where}.{unknown[1]}: {name} takes no such key; see --{where}.help {name}"
            if nested := re.search(r'Parser key "([\w./]+)": (.*)', text):
                return f"{where}.{nested[1]}: {_plain(nested[2])}"
            return f"{where}: {name}: {_plain(text)}"
        if alone := re.search(r"Unable to load config [\"'](.*?)[\"']", message):
            return self._wants_keys(where, alone[1])
        if plan := re.search(r"Not a valid subclass of (\w+).*?Got value: (\S+)", message, re.S):
            given = "null" if plan[2] == "None" else plan[2]
            return f"{where}: each is a mapping of keys, or {{}} where it has none; {given} is not"
        if "dot import path" in message or "Import path" in message:
            value = re.search(r"(?:Given value: |path string: |class_path )'?([\w./~-]+)", message)
            given = value[1] if value else "the value"
            if "/" in given:
                return f"{where}: names a class, not a folder; give --{where}.root {given}"
            return f"{where}: no class {given!r}; see --help for the known ones"
        if unknown := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
            return self._suggest(f"{unknown[1]}.{unknown[2]}")
        if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
            return self._suggest(unknown[1])
        if unknown := re.search(r"unrecognized arguments: --([\w.]+)", message, re.I):
            return self._suggest(unknown[1])
        if union := re.search(r"Subtypes: \[(.*?)\]\s+Errors:.*Given value: (.*)", message, re.S):
            return f"{where}: expected {_alternatives(union[1])}, got '{union[2].strip()}'"
        text = _plain(" ".join(message.split()))
        return f"{where}: {text.split(': ', 1)[-1]}" if where else text

    def _suggest(self, key: str) -> str:
        known = [a.dest for a in self._actions if a.dest not in ("help", "config")]
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see `{self.prog} --help`"
        return f"{key}: unknown key; {hint}"


def _alternatives(types: str) -> str:
    """What may be given, from the list of a Union's types."""
    inside = re.findall(r"typing\.Literal\[([^\]]*)\]", types)
    if inside:
        return "one of " + ", ".join(dict.fromkeys(re.findall(r"[\w-]+", " ".join(inside))))
    return " or ".join(_plain(part) for part in types.split(", ")).replace("NoneType", "null")


def _plain(text: str) -> str:
    text = re.sub(r"<class '(?:[\w]+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"\. Got value: (.*)", r", got '\1'", text)
    return text.replace("Expected a ", "expected ").strip()
