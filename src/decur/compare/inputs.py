"""Look at the labels and sensors of a comparison's data before hours are spent on encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from decur.compare.cells import Cell
from decur.errors import ConfigError

if TYPE_CHECKING:
    from decur.data.base import PairedDataset


def describe_inputs(cells: Sequence[Cell]) -> list[str]:
    """Open the data of all transfers, each once; return a line for each data set.

    Args:
        cells: that are still to run.

    Raises:
        ConfigError: naming a task whose label or sensor the data has not.
        DataError: if a data set cannot be opened.
    """
    from decur.data.one_hot import join_columns
    from decur.transfer.command_transfer import build_parser
    from decur.transfer.tasks import choose_task

    parser = build_parser()
    opened: dict[str, PairedDataset] = {}
    looked_at: set[tuple[str, str, str | None, tuple[str, ...]]] = set()
    for cell in cells:
        if cell.command != "transfer":
            continue
        config = yaml.safe_load(cell.config)
        key, target = json.dumps(config["data"]), config["target"]
        if (one := (key, cell.task, target, cell.modalities)) in looked_at:
            continue
        looked_at.add(one)
        if key not in opened:
            given = parser.read([{"data": config["data"]}])
            opened[key] = parser.instantiate_classes(given).data
        data = opened[key]
        try:
            choose_task(join_columns(data, target).targets, target)
        except ConfigError as error:
            raise ConfigError(f"tasks.{cell.task}: {error}") from error
        for name in cell.modalities:
            if name not in data.modalities:
                raise ConfigError(
                    f"tasks.{cell.task}: modalities: the data has no sensor {name!r}; choose from "
                    f"{', '.join(data.modalities)}"
                )
    return [data.describe() for data in opened.values()]
