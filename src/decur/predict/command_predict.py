"""`decur predict`: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decur.config import Parser
from decur.errors import ConfigError
from decur.predict.settings import PredictSettings

if TYPE_CHECKING:
    from decur.predict.scene import Mapped

_ABOUT = (
    "A map of a scene of any size: decur predict MODEL --scene s1=FILE s2=FILE --out map.tif, "
    "where MODEL is a folder of `decur transfer`. An interrupted command goes on where it was."
)
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what predicts, and what it sees": ("model", "scene"),
    "what is mapped": ("out", "probabilities", "bounds", "resolution", "part"),
    "windows": ("window", "overlap", "min_valid"),
    "where it runs": ("device", "loader.batch_size", "loader.workers", "tile", "config"),
}


def build_parser() -> Parser:
    """Return the parser of `decur predict`: a model, a scene, fields of `PredictSettings`."""
    parser = Parser("decur predict", _ABOUT)
    parser.usage = "decur predict MODEL [--help] [--config FILE] [--key value ...]"
    parser.add_argument("model", type=str, help="Folder of `decur transfer`; comes first.")
    parser.add_config()
    parser.add_argument(
        "--scene",
        type=str,
        nargs="+",
        help="SENSOR=FILE for each sensor; the first gives the pixels of the map, and the others "
        "are warped onto them. A sensor that is named again has several rasters side by side.",
    )
    parser.add_argument(
        "--bounds",
        type=float,
        nargs="+",
        help="Left, lower, right and upper edge of what is mapped, in units of the first sensor's "
        "CRS; by default all of the scene.",
    )
    parser.add_class_arguments(PredictSettings, skip={"bounds"})
    parser.show_first(_ESSENTIALS)
    return parser


def main(arguments: Sequence[str]) -> Mapped:
    """Run `decur predict ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = build_parser()
    given = parser.parse(arguments)
    given.pop("config", None)
    made = vars(parser.instantiate_classes(given))
    model, scene, bounds = (made.pop(key) for key in ("model", "scene", "bounds"))
    if not scene:
        raise ConfigError("scene: is missing; give --scene SENSOR=FILE for each sensor")
    if bounds is not None and len(bounds) != 4:
        raise ConfigError(f"bounds: four numbers, left lower right upper, not {len(bounds)}")
    from decur.predict.scene import predict

    edges = None if bounds is None else (bounds[0], bounds[1], bounds[2], bounds[3])
    return predict(model, scene, settings=PredictSettings(**{**made, "bounds": edges}))
