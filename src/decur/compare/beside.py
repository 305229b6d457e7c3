"""Published rows beside measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

from decur.compare.plan import Cell
from decur.compare.published import PublishedTable, Training, find
from decur.compare.table import Table

# What the paper calls a transfer, by whether its encoders are frozen.
_TRAININGS: dict[bool, tuple[Training, ...]] = {
    True: ("frozen",),
    False: ("fine-tuned", "supervised"),
}
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
    frozen: dict[str, set[bool]] = {}  # both, where methods differ in it
    for cell in cells:
        if cell.command == "transfer" and published.get(cell.task):
            frozen.setdefault(cell.task, set()).add(yaml.safe_load(cell.config)["freeze"])
    found: dict[str, list[float | None]] = {}
    for number, column in enumerate(table.columns):
        for source in published.get(column.task, ()):
            for score in find(
                source,
                training=[name for freeze in frozen[column.task] for name in _TRAININGS[freeze]],
                label_fraction=column.label_fraction,
                modalities=column.modalities or None,
                metric=_PRINTED.get(table.metrics.get(column, ""), "?"),
            ):
                if not column.modalities and len(score.column.modalities) < 2:
                    continue  # all sensors are at least two
                training = score.column.training if len(frozen[column.task]) > 1 else None
                parts = (score.row.method, score.row.backbone, training)
                name = f"{', '.join(filter(None, parts))}, published"
                values = found.setdefault(name, [None] * len(table.columns))
                values[number] = score.value
    table.published = list(found.items())
