"""`decur recipes`: the configurations that ship with decur, listed or printed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from decur.config import Parser
from decur.errors import ConfigError, did_you_mean
from decur.recipes import command_of, describe_recipe, recipes

_ORDER = ("pretrain", "transfer", "compare")
_OWN = "Your own pairs need no recipe, but for comparisons:"
_FOR_OWN = "Your own pairs"  # how a recipe for own data begins
_EXAMPLES = [
    "  decur pretrain --data.root FOLDER, with FOLDER/<sensor>/<id>.tif|png|jpg|npy",
    "  decur transfer --encoders RUN --data.root FOLDER, with FOLDER/labels.csv",
]
_SMALL = "To start from: pairs like yours, generated pairs, comparisons of methods on them"


def main(arguments: Sequence[str]) -> None:
    """Run `decur recipes ARGUMENTS`: list all recipes, or print one.

    Raises:
        ConfigError: if there is no recipe of the name.
    """
    parser = Parser("decur recipes", "List the configurations that ship with decur, or print one.")
    parser.usage = "decur recipes [NAME]"
    parser.add_argument("name", nargs="?", type=str, help="Recipe to print.")
    parser.show_first({"what is printed": ("name",)})
    name = parser.parse(arguments).name
    found = recipes()
    if name is None:
        print("\n".join(_listing(found)))
    elif name in found:
        print(found[name], end="")
    else:
        hint = did_you_mean(name, found, "`decur recipes` lists them")
        raise ConfigError(f"no recipe {name!r}; {hint}")


def _listing(found: dict[str, str]) -> list[str]:
    """Return the lines that list recipes: for own data first, then the paper's by table."""
    width = max(map(len, found))
    own = {name: text for name, text in found.items() if describe_recipe(text).startswith(_FOR_OWN)}
    lines = [_OWN, *_EXAMPLES, *_lines(own, width)]
    found = {name: text for name, text in found.items() if name not in own}
    places = set(map(_place, found.values()))
    for place in sorted(places, key=lambda place: (place.startswith("Figure"), place)):
        lines += ["", f"The paper, {place}" if place else _SMALL]
        here = {name: text for name, text in found.items() if _place(text) == place}
        lines += _lines(here, width)
    return [
        *lines,
        "",
        "Run one with `decur COMMAND --config NAME`; `decur recipes NAME` prints it.",
    ]


def _lines(found: dict[str, str], width: int) -> list[str]:
    """Return a line for each recipe: its name, its command, and what it is for."""
    ordered = sorted(found.items(), key=lambda item: (_ORDER.index(command_of(item[1])), item[0]))
    return [
        f"  {name:<{width}}  {command_of(text):<8}  {describe_recipe(text)}"
        for name, text in ordered
    ]


def _place(text: str) -> str:
    """Return where in the paper a recipe's results stand, "Table 1"; nothing for other recipes."""
    place = re.search(r"(Table|Figure)s? (\w+)", describe_recipe(text))
    return f"{place[1]} {place[2]}" if place else ""
