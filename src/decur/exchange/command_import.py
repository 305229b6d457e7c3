"""`decur import`: weights of other programs as encoder files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decur.bounded_yaml import read_text
from decur.config import Parser
from decur.errors import ConfigError
from decur.exchange.formats import Compat, Normalised, WeightsLayout
from decur.layers import read_mapping
from decur.terminal import tell_result


def main(arguments: Sequence[str]) -> list[Path]:
    """Run `decur import ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = Parser(
        "decur import",
        "Weights of others as encoder files that --encoders takes: the DeCUR authors' checkpoints, "
        "torchgeo's, plain torchvision or timm ResNets and ViTs, NVlabs' MiT.",
    )
    parser.usage = "decur import FILE --out FOLDER [--key value ...]"
    parser.add_argument("file", type=str, help="File of weights: .pth, .pt, .bin or .safetensors.")
    parser.add_argument("--out", type=str, required=True, help="Folder for encoders/<name>.*.")
    parser.add_argument(
        "--layout",
        type=WeightsLayout,
        default="auto",
        help="Layout of the file (decur, torchgeo, resnet, vit or mit); auto finds out.",
    )
    parser.add_argument(
        "--modality",
        type=str,
        nargs="+",
        help="Modality of each encoder, in order, as NAME=PRESET or NAME=FILE (its fields as YAML "
        "or JSON).",
    )
    parser.add_argument(
        "--normalised",
        type=Normalised,
        default="auto",
        help="Normalisation that the weights expect, which is then folded into them: imagenet (its "
        "mean and deviation), half (0.5 for both) or none; auto: imagenet for ResNets with its "
        "classifier and every MiT; ViTs with it need a choice.",
    )
    parser.add_argument(
        "--compat",
        type=Compat | None,
        help='Conventions that the weights follow, "official" for those of the DeCUR authors (one '
        "attention for both sensors, three equal bands of elevation, photographs as blue, "
        "green, red).",
    )
    parser.show_first(
        {
            "what is read, and where it goes": ("file", "out", "modality"),
            "what the file holds": ("layout", "normalised", "compat"),
        }
    )
    settings = parser.parse(arguments)
    from decur.exchange.importing import import_weights  # imports timm, which takes seconds

    files = import_weights(
        settings.file,
        settings.out,
        layout=settings.layout,
        modalities=_modalities(settings.modality),
        normalised=settings.normalised,
        compat=settings.compat,
    )
    for file in files:
        tell_result("written: ", file)
    print(f"use: decur transfer --encoders {settings.out} --data.root FOLDER --target NAME")
    return files


def _modalities(given: Sequence[str] | None) -> dict[str, Any]:
    """Return `NAME=PRESET` and `NAME=FILE` as `{name: preset or fields}`."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--modality: {text!r} is not NAME=PRESET, as s1=sentinel1")
        if name in found:
            raise ConfigError(f"--modality: {name!r} is given twice; each encoder has its own")
        if Path(value).is_file():
            fields = read_mapping(read_text(value), value)
            found[name] = fields.get(name, fields.get("modality", fields))
        else:
            found[name] = value
    return found
