"""Published rows beside measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

from decur.compare.plan import Cell
from decur.compare.published import PublishedTable, find
from decur.compare.table import Table

# The paper's names of metrics; its mAP averages over all decisions (section 5.1).
_PRINTED = {"mAP_micro": "mAP", "mIoU": "mIoU", "overall_accuracy": "OA"}


def add_published(
    table: Table, cells: Iterable[Cell], published: Mapping[str, Sequence[PublishedTable]]
) -> None:
    """Add the rows of published tables that were measured as the columns of a table are.

    Args:
        table: that they stand beside, changed in place.
        cells: of the comparison, which know whether encoders were frozen.
        published: `{task: tables}`.
    """
    frozen = {
        cell.task: yaml.safe_load(cell.config)["freeze"]
        for cell in cells
        if cell.command == "transfer" and published.get(cell.task)
    }
    found: dict[str, list[float | None]] = {}
    for number, column in enumerate(table.columns):
        for source in published.get(column.task, ()):
            for score in find(
                source,
                training="frozen" if frozen[column.task] else ("fine-tuned", "supervised"),
                label_fraction=column.label_fraction,
                modalities=column.modalities or None,
                metric=_PRINTED.get(table.metrics.get(column, ""), "?"),
            ):
                if not column.modalities and len(score.column.modalities) < 2:
                    continue  # all sensors are at least two
                parts = (score.row.method, score.row.backbone)
                name = f"{', '.join(filter(None, parts))}, published"
                values = found.setdefault(name, [None] * len(table.columns))
                values[number] = score.value
    table.published = list(found.items())
