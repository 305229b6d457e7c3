"""Configurations that ship with decur, and files of options, with what they are based on."""

from __future__ import annotations

import difflib
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from decur.bounded_yaml import read_text
from decur.errors import ConfigError
from decur.layers import read_mapping

# Recipes of version 0.1 that differed from another one by their objective alone.
_BY_OBJECTIVE = {
    f"{base}-{name.lower()}": (base, name)
    for base in ("demo", "ombria")
    for name in ("BarlowTwins", "CLIP", "SimCLR", "VICReg")
}


def recipes() -> dict[str, str]:
    """Return the recipes that ship with the package: `{name: YAML text}`."""
    return {name: file.read_text() for name, file in sorted(recipe_files().items())}


def recipe_files() -> dict[str, Traversable]:
    """Return the files of the recipes that ship with the package, by name."""
    folder = resources.files("decur") / "recipes"
    return {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}


def describe_recipe(text: str) -> str:
    """Return the first line of a recipe's header comment."""
    return text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""


def command_of(text: str) -> str:
    """Return the command that a recipe is for: the word after `decur` in its header."""
    found = re.search(r"^#\s*command\s+decur (\w+)", text, re.M)
    return found[1] if found else ""


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
    shipped = recipe_files()
    if Path(name).is_file():
        where, text = name, read_text(name)
    elif name in shipped:
        where, text = f"recipe {name}", shipped[name].read_text()
    elif name in _BY_OBJECTIVE:
        base, objective = _BY_OBJECTIVE[name]
        raise ConfigError(f"{name}: is no more; use --config {base} --objective {objective}")
    else:
        close = difflib.get_close_matches(name, shipped, n=3)
        hint = f"recipes: {', '.join(close)} (`decur recipes` lists all)"
        raise ConfigError(
            f"{name}: no such file and no such recipe; "
            f"{hint if close else '`decur recipes` lists those that ship'}"
        )
    values = read_mapping(text, where)
    base = values.pop("base", None)
    return [*(find_config(base, (*above, name)) if base is not None else []), values]
