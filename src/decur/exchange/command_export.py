"""`decur export`: an encoder for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decur.config import Parser
from decur.exchange.formats import Format


def main(arguments: Sequence[str]) -> list[Path]:
    """Run `decur export ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = Parser(
        "decur export",
        "An encoder for other programs: timm's or torchgeo's state dict, ONNX, torch.export. A "
        "JSON file beside it says what its input is.",
    )
    parser.usage = "decur export ENCODER --format timm|torchgeo|onnx|torch --out FILE"
    parser.add_argument("encoder", type=str, help="An encoder file of a run.")
    parser.add_argument("--format", type=Format, required=True, help="What to write.")
    parser.add_argument("--out", type=str, required=True, help="The file.")
    parser.add_argument(
        "--scaling", type=bool, default=False, help="Let the graph take raw values and scale them."
    )
    parser.add_argument(
        "--size",
        type=tuple[int, int] | None,
        help="[height, width] of a graph for one size only; by default it takes any.",
    )
    settings = parser.parse(arguments)
    from decur.exchange.exporting import export_encoder  # imports timm, which takes seconds

    files = export_encoder(
        settings.encoder,
        settings.out,
        format=settings.format,
        scaling=settings.scaling,
        size=settings.size,
    )
    for file in files:
        print(f"written: {file}")
    return files
