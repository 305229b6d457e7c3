"""`decur predict`: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decur.config import Parser
from decur.data.base import PairedDataset, open_data
from decur.errors import ConfigError
from decur.predict.settings import PredictSettings

if TYPE_CHECKING:
    from decur.predict.folder import Predicted
    from decur.predict.scene import Mapped

_ABOUT = (
    "A map of a scene of any size: decur predict MODEL --scene s1=FILE s2=FILE --out map.tif, "
    "where MODEL is a folder of `decur transfer`; or predictions for any data set: decur predict "
    "MODEL --data.root FOLDER --out predictions. An interrupted map goes on where it was."
)
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what predicts, and what it sees": ("model", "scene", "data"),
    "what is written, and where": ("out", "probabilities", "features"),
    "which part of a scene": ("bounds", "resolution", "part"),
    "windows": ("window", "overlap", "shifts", "min_valid"),
    "where it runs": ("device", "loader.batch_size", "loader.workers", "config"),
}


def build_parser() -> Parser:
    """Return the parser of `decur predict`: a model, a scene or data, `PredictSettings`."""
    parser = Parser("decur predict", _ABOUT)
    parser.usage = "decur predict MODEL [--help] [--config FILE] [--key value ...]"
    parser.add_argument(
        "model",
        type=str,
        help="Folder of `decur transfer`; with --features also one of `decur pretrain`, or an "
        "encoder file; comes first.",
    )
    parser.add_config(shipped=False)
    parser.add_argument(
        "--scene",
        type=str,
        nargs="+",
        help="Files of the scene, SENSOR=FILE for each sensor; the first gives the pixels of the "
        "map, and the others are warped onto them. A sensor that is named again has several "
        "rasters side by side.",
    )
    parser.add_subclass_arguments(
        PairedDataset,
        "data",
        required=False,
        help="Data set in place of a scene, such as --data.root FOLDER.",
    )
    parser.add_argument(
        "--bounds",
        type=float,
        nargs="+",
        help="Left, lower, right and upper edge of the map, in units of the first sensor's CRS; by "
        "default all of the scene.",
    )
    parser.add_class_arguments(PredictSettings, skip={"bounds"})
    parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    parser.show_first(_ESSENTIALS)
    return parser


def main(arguments: Sequence[str]) -> Mapped | Predicted:
    """Run `decur predict ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = build_parser()
    with_data = any(word.startswith("--data") for word in arguments)
    with_scene = any(word.partition("=")[0] == "--scene" for word in arguments)
    helped = any(word.startswith("--help") for word in arguments)
    if not (with_data or helped):
        parser.set_defaults({"data": None})
    given = parser.parse(arguments)
    given.pop("config", None)
    spec = given.pop("data", None)
    made = vars(parser.instantiate(given))
    model, scene, bounds = (made.pop(key) for key in ("model", "scene", "bounds"))
    if bounds is not None and len(bounds) != 4:
        raise ConfigError(f"bounds: four numbers, left lower right upper, not {len(bounds)}")
    edges = None if bounds is None else (bounds[0], bounds[1], bounds[2], bounds[3])
    settings = PredictSettings(**{**made, "bounds": edges})
    if scene and spec is None:
        from decur.predict.scene import predict

        return predict(model, scene, settings=settings)
    if spec is None or scene or with_scene:
        raise ConfigError("scene: give --scene SENSOR=FILE ..., or --data.root FOLDER; one of them")
    from decur.predict.folder import predict_data

    return predict_data(model, open_data("decur predict", spec.as_dict()), settings=settings)
