"""A data set from its name and arguments, where the command line may also go without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from decur.config import Parser
from decur.data.base import PairedDataset


def open_data(command: str, spec: Mapping[str, Any]) -> PairedDataset:
    """A data set from its class and arguments.

    For an option that may be left out: jsonargparse takes an error of a class that may also be
    null for one of the type, and hides what it says, if a parser makes it that knows both.

    Args:
        command: for the messages, as "decur explain".
        spec: `{"class_path": ..., "init_args": {...}}`.

    Raises:
        ConfigError: if there is no such class, or it takes no such arguments.
        DataError: if the data is not there.
    """
    parser = Parser(command)
    parser.add_argument("--data", type=PairedDataset, required=True)
    settings = parser.parse(["--data", json.dumps(spec, default=str)])
    data: PairedDataset = parser.instantiate_classes(settings).data
    return data
