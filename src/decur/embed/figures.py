"""A picture of queries and their hits. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from decur.data import PairedDataset
from decur.embed.neighbors import Hits
from decur.errors import DataError
from decur.plotting import plain, render, subplots

if TYPE_CHECKING:
    from decur.plotting import Figure


def neighbors_sheet(
    data: PairedDataset, queries: Sequence[str], hits: Hits, source: str, target: str
) -> Figure:
    """A row a query: its picture, then those of its hits with their cosines.

    Args:
        data: where the pictures are.
        queries: ids.
        hits: of each query.
        source: the sensor of the queries.
        target: the sensor of the hits.

    Raises:
        DataError: if the data lacks one of the samples, or its picture.
    """
    places = {name: index for index, name in enumerate(data.ids)}

    def draw(axis: Any, name: str, sensor: str, title: str, own: bool) -> None:
        if name not in places or sensor not in data.modalities:
            raise DataError(f"--data: has no {sensor} picture of {name!r}; give what was embedded")
        images = data[places[name]]["images"]
        if sensor not in images:
            raise DataError(f"--data: {name!r} lacks {sensor}; give what was embedded")
        modality = data.modalities[sensor]
        axis.imshow(render(modality.scale(images[sensor][None])[0], modality))
        axis.set_title(plain(title), fontsize=7, fontweight="bold" if own else "normal")

    columns = 1 + max(map(len, hits.ids))
    figure, axes = subplots(len(queries), columns, width=1.4)
    for axis in axes.flat:
        axis.axis("off")
    for row, query in enumerate(queries):
        draw(axes[row, 0], query, source, f"{source}: {query}", False)
        found = zip(hits.ids[row], hits.similarity[row], strict=True)
        for column, (name, cosine) in enumerate(found, start=1):
            draw(axes[row, column], name, target, f"{name}\n{cosine:.3f}", name == query)
    return figure
