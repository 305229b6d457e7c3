"""YAML and JSON that others may have written: within bounds, and each key once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from decur.errors import ConfigError, reason_of

LARGEST_FILE = 1_000_000  # bytes
MOST_NODES = 100_000  # values and keys, those behind aliases counted as often as they are used
DEEPEST = 50  # mappings and lists within each other
LONGEST_SCALAR = 100_000  # characters

# PyYAML's safe loader, written in C where it is there, ten times as fast.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class OutOfBoundsError(yaml.YAMLError):
    """YAML that is larger than any configuration, or names a key twice."""


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: if the file cannot be read, is no YAML, or is out of bounds; see `parse_yaml`.
    """
    return parse_yaml(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """Return the text of a small file; bytes that are no UTF-8 become a mark.

    Raises:
        ConfigError: if the file cannot be read, or has more than a million bytes.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)}); see to it") from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(
            f"{path}: has more than {LARGEST_FILE:,} bytes, which no configuration has; give "
            "another file"
        )
    return data.decode("utf-8-sig", errors="replace")


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text stands for.

    Args:
        text: YAML.
        where: what an error's message calls the text.

    Raises:
        ConfigError: if the text is no YAML, names a key twice, is nested more than 50 deep, or has
            more than 100,000 values, those behind aliases counted as often as they are used.
    """
    try:
        check_bounds(text)
        return yaml.load(text, LOADER)
    except OutOfBoundsError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def parse_json(text: str) -> Any:
    """Return what a JSON text stands for; a key that stands twice says nothing.

    Raises:
        ValueError: if it is no JSON, or names a key twice, of which Python would take the last.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found


def loaded(value: Any) -> Any:
    """Return what a text stands for in YAML; the text itself where it is none."""
    if not isinstance(value, str):
        return value
    try:
        check_bounds(value)
        return yaml.load(value, LOADER)
    except (yaml.YAMLError, ValueError):
        return value


def check_bounds(text: str) -> None:
    """Refuse YAML that is out of bounds, before anything is made of it.

    The events of the parser are counted, which neither recursion nor aliases make many.

    Raises:
        OutOfBoundsError: saying what is too much, and where.
        yaml.YAMLError: if the text is no YAML.
    """
    open_nodes: list[_Node] = [_Node("", None)]
    sizes: dict[str, int] = {}  # of what an anchor stands for, itself included
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            closed = open_nodes.pop()
            sizes[closed.anchor] = closed.size
            open_nodes[-1].size += closed.size
        elif isinstance(event, yaml.CollectionStartEvent):
            _note_key(open_nodes[-1], None, event)
            keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
            open_nodes.append(_Node(event.anchor or "", keys))
        elif isinstance(event, yaml.ScalarEvent):
            _note_key(open_nodes[-1], event.value, event)
            if len(event.value) > LONGEST_SCALAR:
                raise OutOfBoundsError(f"a value of {len(event.value):,} characters is too long")
            sizes[event.anchor or ""] = 1
            open_nodes[-1].size += 1
        elif isinstance(event, yaml.AliasEvent):
            _note_key(open_nodes[-1], None, event)
            name = event.anchor or ""
            if name in (node.anchor for node in open_nodes):
                raise OutOfBoundsError(f"*{name} holds itself; write out what it stands for")
            open_nodes[-1].size += sizes.get(name, 1)
        if len(open_nodes) > DEEPEST:
            raise OutOfBoundsError(f"nested more than {DEEPEST} deep; flatten it")
        if open_nodes[-1].size > MOST_NODES:
            raise OutOfBoundsError(
                f"has more than {MOST_NODES:,} values with its aliases written out; shorten it"
            )


class _Node:
    """A mapping or list that is not closed yet."""

    def __init__(self, anchor: str, keys: set[str] | None) -> None:
        self.anchor, self.keys, self.size = anchor, keys, 1
        self.key_next = keys is not None


def _note_key(node: _Node, value: str | None, event: yaml.Event) -> None:
    """Note a child of a node; where it is a key that the node has already, refuse it."""
    if node.keys is None:
        return
    if node.key_next and value is not None:
        if value in node.keys and value != "<<":
            line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
            raise OutOfBoundsError(f"{line}key {value!r} comes twice; keep one of them")
        node.keys.add(value)
    node.key_next = not node.key_next
