"""`decur compare`: the command line of a comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from decur.compare.plan import MethodPlan, TaskPlan
from decur.compare.run import CellsFailedError, Compared, compare
from decur.config import Parser
from decur.errors import ConfigError

_ABOUT = (
    "Methods x backbones x label fractions x sensors x seeds: pretrain and transfer each, resume "
    "where it stopped, and make the table: decur compare --config FILE-OR-RECIPE"
)


def build_parser() -> Parser:
    """The parser of `decur compare`: the arguments of `compare`."""
    parser = Parser("decur compare", _ABOUT)
    parser.add_config()
    parser.add_function_arguments(compare, skip={"config"})
    return parser


def main(arguments: Sequence[str]) -> Compared:
    """Run `decur compare ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend; at the end, if cells have failed.
    """
    parser = build_parser()
    arguments, changes = _take_changes(arguments)
    settings = parser.parse(arguments)
    for part in ("methods", "tasks", "data", "pretrain", "transfer"):
        if settings[part] is None:
            raise ConfigError(f"{part}: must be a mapping of keys, not null")
    for part, values in changes.items():
        settings[part] = {**settings[part], **values}
    text = parser.dump(settings, skip_none=False, skip_validation=True)
    settings.pop("config", None)
    made = settings.as_dict()  # not instantiated: classes within belong to the cells
    made["methods"] = {name: MethodPlan(**plan) for name, plan in made["methods"].items()}
    made["tasks"] = {name: TaskPlan(**plan) for name, plan in made["tasks"].items()}
    compared = compare(**made, config=text)
    if compared.failed:
        raise CellsFailedError(
            f"{len(compared.failed)} cells failed, as {compared.folder.path / 'tables.md'} says; "
            "the same command tries them again"
        )
    return compared


def _take_changes(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--pretrain.KEY value` and its like out: the parser knows no keys within mappings."""
    rest: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    left = iter(arguments)
    for argument in left:
        found = re.fullmatch(r"--(data|pretrain|transfer)\.([^=]+)(?:=(.*))?", argument, re.S)
        if found is None:
            rest.append(argument)
            continue
        part, key, value = found.groups()
        if value is None and (value := next(left, None)) is None:
            raise ConfigError(f"--{part}.{key}: give a value")
        try:
            changes.setdefault(part, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--{part}.{key}: not a valid value ({reason})") from error
    return rest, changes
