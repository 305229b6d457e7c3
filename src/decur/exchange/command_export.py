"""`decur export`: an encoder for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from decur.config import Parser
from decur.errors import require
from decur.exchange.formats import Format, Sampling
from decur.terminal import tell_result


def main(arguments: Sequence[str]) -> list[Path]:
    """Run `decur export ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = Parser(
        "decur export",
        "An encoder for other programs: a folder for timm, terratorch and the Hugging Face hub, "
        "with a model card; timm's or torchgeo's state dict, ONNX, torch.export, with a JSON file "
        "beside it that says what its input is.",
    )
    parser.usage = "decur export ENCODER|RUN --format FORMAT --out PLACE [--key value ...]"
    parser.add_argument(
        "encoder", type=str, help="Encoder file of a run, or for hub the run's folder."
    )
    parser.add_argument("--format", type=Format, required=True, help="Format to write.")
    parser.add_argument(
        "--out", type=str, required=True, help="File to write, or for hub a folder."
    )
    parser.add_argument(
        "--push", type=str | None, help="Repository that it is uploaded to, as USER/REPO."
    )
    parser.add_argument(
        "--license",
        type=str | None,
        help="License of the weights, for the card, such as cc-by-4.0.",
    )
    parser.add_argument(
        "--scores",
        type=str,
        nargs="+",
        help="Folders of `decur transfer` with these encoders, for the card.",
    )
    parser.add_argument(
        "--scaling", type=bool, default=False, help="Let the graph take raw values and scale them."
    )
    parser.add_argument(
        "--size",
        type=tuple[int, int] | None,
        help="Height and width of a graph for one size only, as [height, width]; by default it "
        "takes any.",
    )
    parser.add_argument(
        "--sampling",
        type=Sampling,
        default="grid",
        help="How a graph reads the points of deformable attention: by GridSample, which TensorRT "
        "has miscompiled, or by plain gathers.",
    )
    parser.show_first(
        {
            "what is written, and where": ("encoder", "format", "out"),
            "of a hub folder": ("push", "license", "scores"),
            "of a graph (onnx, torch)": ("scaling", "size", "sampling"),
        }
    )
    settings = parser.parse(arguments)
    files = _export_folder(settings) if settings.format == "hub" else _export_file(settings)
    for file in files:
        tell_result("written: ", file)
    return files


def _export_folder(settings: Namespace) -> list[Path]:
    from decur.exchange.hub import export_hub  # imports timm, which takes seconds

    for key in ("scaling", "size"):
        require(not settings[key], f"--{key}: is of a graph; leave it out for --format hub")
    require(settings.sampling == "grid", "--sampling: is of a graph; leave it out for --format hub")
    return export_hub(
        settings.encoder,
        settings.out,
        licence=settings.license,
        scores=settings.scores or (),
        push=settings.push,
    )


def _export_file(settings: Namespace) -> list[Path]:
    from decur.exchange.exporting import export_encoder  # imports timm, which takes seconds

    for key in ("push", "license", "scores"):
        require(not settings[key], f"--{key}: is of a folder with a card; take --format hub")
    return export_encoder(
        settings.encoder,
        settings.out,
        format=settings.format,
        scaling=settings.scaling,
        size=settings.size,
        sampling=settings.sampling,
    )
