"""`decur compare`: the command line of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from decur.compare.plan import MethodPlan, TaskPlan
from decur.compare.run import CellsFailedError, Compared, compare
from decur.config import Parser

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
    settings = parser.parse(arguments)
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
