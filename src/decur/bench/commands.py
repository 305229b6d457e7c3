"""Options that `decur bench` and `decur plan` share."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from jsonargparse import Namespace

from decur.config import Parser
from decur.errors import require
from decur.pretrain.settings import PretrainSettings
from decur.runs import make_folder


def add_device(parser: Parser, seconds: float, json: str) -> None:
    """Add --device, --seconds (with its default) and --json (with its help) to a parser."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="Device that is measured.")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="Seconds that a measurement takes, about."
    )
    parser.add_argument("--json", type=str, help=json)


def check_files(parsed: Namespace, *keys: str) -> None:
    """Refuse files that could not be written: it is minutes before anything is.

    Raises:
        ConfigError: naming the option.
    """
    for key in keys:
        if parsed[key]:
            path = Path(parsed[key])
            make_folder(path.parent, f"--{key}")
            require(not path.is_dir(), f"--{key} {path}: is a folder; give a file in it")


def settings_of(made: Namespace) -> PretrainSettings:
    """Return the settings of pretraining among instantiated options."""
    return PretrainSettings(**{key.name: made[key.name] for key in fields(PretrainSettings)})
