"""`decur explain`: its command line."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature

from decur.config import Parser
from decur.data import PairedDataset
from decur.data.base import open_data
from decur.explain.base import ANALYSES
from decur.explain.opening import configuration, option_names
from decur.explain.run import Explained, explain

_ABOUT = (
    "What is common and what is unique in a run: pictures, arrays and a report, on the data that "
    "it was trained on or on other: decur explain RUN --data.root FOLDER"
)


def build_parser() -> Parser:
    """The parser of `decur explain`: the arguments of `explain`, and the options of analyses."""
    parser = Parser("decur explain", _ABOUT)
    parser.usage = "decur explain RUN [--help] [--config FILE] [--key value ...]"
    parser.add_argument("run", type=str, help="Folder of a run of `decur pretrain`; comes first.")
    parser.add_config()
    for name, text in (
        ("beside", "Folders of more runs, for the analyses that compare runs."),
        ("only", f"Analyses to do, of {', '.join(ANALYSES)}; by default all."),
        (
            "modalities",
            "Sensors to look at; by default all of the data that the run has encoders for.",
        ),
    ):
        default: list[str] | None = [] if name == "beside" else None
        parser.add_argument(f"--{name}", type=str, nargs="+", default=default, help=text)
    skipped: set[str | int] = {"run", "data", "beside", "only", "modalities", "options"}
    parser.add_function_arguments(explain, skip=skipped)
    parser.add_subclass_arguments(
        PairedDataset,
        "data",
        required=False,
        help="Any data set; by default what the run was trained on.",
    )
    for name, analysis in ANALYSES.items():
        own = option_names(analysis)
        given: set[str | int] = {
            argument for argument in signature(analysis.arrays).parameters if argument not in own
        }
        parser.add_function_arguments(analysis.arrays, f"options.{name}", skip=given)
    return parser


def main(arguments: Sequence[str]) -> Explained:
    """Run `decur explain ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser, arguments = build_parser(), list(arguments)
    drawn = any(argument.startswith("--redraw") for argument in arguments)  # data need not be there
    if arguments and not arguments[0].startswith("-") and not drawn:
        # what is said of the data changes what the run was trained on
        parser.set_defaults({"data": configuration(arguments[0])["data"]})
    settings = parser.parse(arguments)
    settings.pop("config", None)
    spec = settings.pop("data", None)
    data = (
        open_data("decur explain", spec.as_dict())
        if spec is not None and not settings.redraw
        else None
    )
    made = vars(parser.instantiate_classes(settings))
    given = made.pop("options").as_dict()
    return explain(**made, data=data, options=given)
