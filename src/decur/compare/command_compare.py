"""`decur compare`: the command line of a comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from decur.bounded_yaml import parse_yaml
from decur.compare.settings import (
    ClusterSettings,
    CompareSettings,
    MethodSettings,
    TaskSettings,
)
from decur.config import Parser
from decur.errors import ConfigError

if TYPE_CHECKING:
    from decur.compare.run import Compared

_ABOUT = (
    "Methods x backbones x label fractions x sensors x seeds: pretrain and transfer each, resume "
    "where it stopped, and make the table: decur compare --config FILE-OR-RECIPE"
)
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what is compared": ("config", "methods", "tasks", "data", "backbones", "modalities"),
    "how often": ("label_fractions", "seeds"),
    "what all cells have in common": ("pretrain", "transfer"),
    "how it runs": ("run", "devices", "cluster.name", "cluster.partition", "only", "dry_run"),
}


def build_parser() -> Parser:
    """Return the parser of `decur compare`: the settings, and how they are run."""
    parser = Parser("decur compare", _ABOUT)
    parser.add_config()
    parser.add_class_arguments(CompareSettings)
    parser.add_class_arguments(ClusterSettings, "cluster")
    parser.add_argument(
        "--devices",
        type=int | str | list[int | str] | None,
        help="GPUs of this machine to use, one job each at a time, by number, as 0 or [0, 1], or "
        "`cpu`; null: all that there are.",
    )
    parser.add_argument(
        "--only",
        type=str | None,
        help="Run only cells whose label contains this, as `--dry_run` prints it.",
    )
    parser.add_argument(
        "--dry_run",
        type=bool,
        default=False,
        help="Print the cells and what is done, and run nothing.",
    )
    parser.show_first(_ESSENTIALS)
    return parser


def main(arguments: Sequence[str]) -> Compared:
    """Run `decur compare ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend; at the end, if cells have failed.
    """
    parser = build_parser()
    arguments, changes = _take_changes(arguments)
    given = parser.parse(arguments)
    for part in ("methods", "tasks", "data", "pretrain", "transfer"):
        if given[part] is None:
            raise ConfigError(f"{part}: must be a mapping of keys, not null")
    for part, values in changes.items():
        given[part] = {**given[part], **values}
    text = parser.to_yaml(given)
    made = given.as_dict()  # not instantiated: classes within belong to the cells
    made["methods"] = {name: MethodSettings(**each) for name, each in made["methods"].items()}
    made["tasks"] = {name: TaskSettings(**each) for name, each in made["tasks"].items()}

    from decur.compare.run import CellsFailedError, compare

    compared = compare(
        CompareSettings(**{field.name: made[field.name] for field in fields(CompareSettings)}),
        cluster=ClusterSettings(**made["cluster"]),
        devices=made["devices"],
        only=made["only"],
        dry_run=made["dry_run"],
        config=text,
    )
    if compared.failed:
        raise CellsFailedError(
            f"{len(compared.failed)} cells failed, as {compared.folder.path / 'tables.md'} says; "
            "the same command tries them again"
        )
    return compared


def _take_changes(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--pretrain.KEY value` and its like out: the parser knows no keys within mappings.

    `--cluster NAME` becomes `--cluster.name NAME`.
    """
    rest: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    left = iter(arguments)
    for argument in left:
        found = re.fullmatch(r"--(data|pretrain|transfer)\.([^=]+)(?:=(.*))?", argument, re.S)
        if found is None:
            rest.append(re.sub(r"^--cluster(?==(?!\{)|$)", "--cluster.name", argument))
            continue
        part, key, value = found.groups()
        if value is None and (value := next(left, None)) is None:
            raise ConfigError(f"--{part}.{key}: give a value")
        changes.setdefault(part, {})[key] = parse_yaml(value, f"--{part}.{key}")
    return rest, changes
