"""`decur explore`: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decur.config import Parser
from decur.data.base import PairedDataset, open_data
from decur.embed.neighbors import Part
from decur.explore.run import MOST, PlotLayout, explore

_ABOUT = (
    "One page to look through a data set by its embeddings, offline in any browser: a map, the "
    "pictures of all sensors, labels, neighbours in either sensor, and the true partner's rank: "
    "decur explore embeddings --data.root FOLDER"
)


def main(arguments: Sequence[str]) -> Path:
    """Run `decur explore ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = Parser("decur explore", _ABOUT)
    parser.usage = "decur explore EMBEDDINGS [--data.root FOLDER] [--out PAGE.html]"
    parser.add_argument("embeddings", type=str, help="Folder that `decur embed` wrote.")
    parser.add_argument(
        "--data", type=PairedDataset | None, help="Data set that has the pictures and labels."
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="Page to write, by default explore.html among the embeddings.",
    )
    parser.add_argument(
        "--part",
        type=Part | None,
        help="Part of the vectors that is compared: common, unique, embedding, features, or a "
        "block; by default what sensors share.",
    )
    parser.add_argument(
        "--layout",
        type=PlotLayout | None,
        help="Layout of the map: tsne keeps neighbours together, pca takes a moment; by default "
        "tsne of up to 5,000.",
    )
    parser.add_argument(
        "--samples", type=int, default=MOST, help="Largest number of samples, evenly spaced."
    )
    parser.add_argument(
        "--neighbors", type=int, default=8, help="Number of nearest neighbours of each sensor."
    )
    parser.show_first(
        {
            "what is shown": ("embeddings", "data", "part", "samples", "neighbors", "layout"),
            "where it goes": ("out",),
        }
    )
    if any(each.startswith("--data.") for each in arguments):
        parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    settings = parser.parse(arguments)
    data = open_data("decur explore", settings.data.as_dict()) if settings.data else None
    return explore(
        settings.embeddings,
        data,
        out=settings.out,
        part=settings.part,
        layout=settings.layout,
        samples=settings.samples,
        neighbors=settings.neighbors,
    )
