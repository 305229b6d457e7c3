"""`decur explain`: its command line."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING

from decur.config import Parser
from decur.data import PairedDataset
from decur.explain.base import analyses
from decur.explain.settings import ExplainSettings, configuration

if TYPE_CHECKING:
    from decur.explain.run import Explained

_ABOUT = (
    "What is common and what is unique in a run: pictures, arrays and a report, on the data that "
    "it was trained on or on other: decur explain RUN --data.root FOLDER"
)
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what is explained": ("run", "data", "modalities", "samples", "size"),
    "which analyses, and where they go": ("only", "beside", "out", "redraw", "overwrite"),
    "options of analyses, for example": ("options.samples.vectors", "options.browser.shown"),
    "where it runs": ("device", "loader.batch_size", "loader.workers", "config"),
}


def build_parser() -> Parser:
    """Build the parser of `decur explain`: its settings, and the options of analyses."""
    parser = Parser("decur explain", _ABOUT)
    parser.usage = "decur explain RUN [--help] [--config FILE] [--key value ...]"
    parser.add_argument("run", type=str, help="Folder of a run of `decur pretrain`; comes first.")
    parser.add_config(shipped=False)
    known = analyses()
    comparing = ", ".join(analysis.name for analysis in known if analysis.several)
    for name, text in (
        ("beside", f"Folders of more runs, for the analyses that compare runs: {comparing}."),
        ("only", f"Analyses to do, of {', '.join(a.name for a in known)}; by default all."),
        (
            "modalities",
            "Sensors to look at; by default all of the data that the run has encoders for.",
        ),
    ):
        default: list[str] | None = [] if name == "beside" else None
        parser.add_argument(f"--{name}", type=str, nargs="+", default=default, help=text)
    skipped: set[str | int] = {"beside", "only", "modalities", "options"}
    parser.add_class_arguments(ExplainSettings, skip=skipped)
    parser.add_subclass_arguments(
        PairedDataset,
        "data",
        required=False,
        help="Data set to look at; by default that of the run, unseen samples of it where there "
        "are any.",
    )
    for analysis in known:
        if analysis.settings is not None:
            parser.add_class_arguments(
                analysis.settings, f"options.{analysis.name}", instantiate=False
            )
            continue
        every = set(signature(analysis.arrays).parameters) - set(analysis.options)
        parser.add_function_arguments(analysis.arrays, f"options.{analysis.name}", skip={*every})
    parser.show_first(_ESSENTIALS)
    return parser


def main(arguments: Sequence[str]) -> Explained:
    """Run `decur explain ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser, arguments = build_parser(), list(arguments)
    drawn = any(argument.startswith("--redraw") for argument in arguments)  # data need not be there
    named = bool(arguments) and not arguments[0].startswith("-") and not drawn
    told = configuration(arguments[0], ("data",)) if named else {}
    if "data" in told:  # what is said of the data changes what the run was trained on
        parser.set_defaults({"data": told["data"]})
    given = parser.parse(arguments)
    given.pop("config", None)
    spec = given.pop("data", None)

    from decur.data.base import open_data
    from decur.explain.run import explain

    data = None
    own = parser.get_defaults().data if arguments else None
    if spec is not None and not given.redraw and spec != own:
        data = open_data("decur explain", spec.as_dict())
    made = vars(parser.instantiate(given))
    run = made.pop("run")
    settings = ExplainSettings(**{**made, "options": made["options"].as_dict()})
    return explain(run, data, settings=settings)
