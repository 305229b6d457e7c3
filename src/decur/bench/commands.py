"""Options that `decur bench` and `decur plan` share."""

from __future__ import annotations

from dataclasses import fields

import torch
from jsonargparse import Namespace

from decur.config import Parser
from decur.pretrain.settings import PretrainSettings


def add_device(parser: Parser, seconds: float, json: str) -> None:
    """Add --device, --seconds (with its default) and --json (with its help) to a parser."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="The device that is measured.")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="Of each measurement, about."
    )
    parser.add_argument("--json", type=str, help=json)


def settings_of(made: Namespace) -> PretrainSettings:
    """Return the settings of pretraining among instantiated options."""
    return PretrainSettings(**{key.name: made[key.name] for key in fields(PretrainSettings)})
