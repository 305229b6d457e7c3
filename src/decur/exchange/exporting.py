"""Encoders for other programs: plain state dicts, ONNX, torch.export, each with its scaling."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decur.encoders import Encoder, TimmEncoder, load_encoder
from decur.encoders.attention.deformable import DeformableAttention
from decur.errors import PIXELS, ConfigError, DecurError, needing, require
from decur.exchange.formats import NOTE, Format, Sampling, note_beside
from decur.exchange.hub import export_hub
from decur.modality import Modality
from decur.runs import atomic, write_json, writing

log = logging.getLogger(__name__)

Size = tuple[int, int]

SUFFIXES = {
    "timm": (".safetensors", ".pth"),
    "torchgeo": (".pth",),
    "onnx": (".onnx",),
    "torch": (".pt2",),
}
TORCHGEO = ("resnet18", "resnet50", "resnet152", "vit_small_patch16_224")
OPSET = 18
TRACED, TRIED = (3, (224, 256)), (2, (192, 160))  # pictures and their sizes; multiples of 32
TOLERANCE = 1e-4  # largest error of the graph's vectors, relative to the largest number


@torch.no_grad()  # with gradients attention takes another kernel, whose layout a graph cannot keep
def export_encoder(
    encoder: str | Path,
    out: str | Path,
    *,
    format: Format,
    scaling: bool = False,
    size: Size | None = None,
    sampling: Sampling = "grid",
) -> list[Path]:
    """Write an encoder for another program, and beside it its modality as JSON.

    A graph is run once on pictures of another number and size before it is kept.

    Args:
        encoder: an encoder file.
        out: the file: .safetensors or .pth for "timm", .pth for "torchgeo", .onnx, .pt2 for
            "torch" (`torch.export.load`). `<out>.json`, and the metadata of .onnx and .safetensors,
            hold the architecture, the modality and the kind of input.
        format: "hub": a folder, see `export_hub`; "timm": a state dict that
            `timm.create_model(name, in_chans=..., num_classes=0)` loads strictly; "torchgeo": the
            same, of an architecture of torchgeo's; "onnx" and "torch": a graph from "image"
            (B, C, H, W) to "vector" (B, D), of any batch and size; that of "torch" insists on
            multiples of 32 px, from 64.
        scaling: let the graph take raw values and scale them, as `Modality.scale` does.
        size: height and width of a graph that takes pictures of this size only.
        sampling: how a graph reads the points of deformable attention: "grid" by GridSample,
            "gather" by plain gathers, which every program computes alike.

    Returns:
        The files.

    Raises:
        ConfigError: if the architecture cannot have this format, or `out` cannot be written,
            naming the reason.
        DataError: if the encoder file cannot be read.
    """
    out = Path(out)
    for side in size or ():
        require(PIXELS[0] <= side <= PIXELS[1], f"--size: sides are from 1 to {PIXELS[1]:,} px")
    if format == "hub":
        if scaling or size or sampling != "grid":
            raise ConfigError(
                "--scaling, --size, --sampling: are of graphs; leave them out for --format hub"
            )
        return export_hub(encoder, out)
    if out.suffix not in SUFFIXES[format]:
        raise ConfigError(
            f"--out: {out} must end in {' or '.join(SUFFIXES[format])} for --format {format}"
        )
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; give a file in it")
    model = load_encoder(encoder)
    about: dict[str, Any] = {
        "encoder": model.name,
        "options": model.options,
        "input": "raw values" if scaling else "values in [0, 1], as the modality scales them",
        "modality": _modality(model).to_dict(),
    }
    if format in ("timm", "torchgeo"):
        if scaling or size or sampling != "grid":
            option = "scaling" if scaling else "size" if size else "sampling"
            raise ConfigError(
                f"--{option}: a state dict has no graph to hold it; take --format onnx or torch"
            )
        if "normalisation" in model.options:  # which is no layer of timm's or torchgeo's
            about["input"] += ", then normalised by the mean and std of options.normalisation"
        with writing(out):
            _write_state(model, out, format, about)
    else:
        modality = _modality(model)
        if scaling and format == "onnx" and (modality.cut or modality.scaling == "image"):
            raise ConfigError(
                f"--scaling: modality {modality.name!r} is cut at percentiles, and ONNX does not "
                "say where pixels without a measurement (NaN) are sorted; take --format torch, or "
                "scale before the graph"
            )
        if format == "onnx":
            _onnxruntime()  # before the graph is traced, which takes long
        write = _write_onnx if format == "onnx" else _write_program
        deformable = [m for m in model.modules() if isinstance(m, DeformableAttention)]
        for module in deformable:
            module.gathers = sampling == "gather"
        with writing(out), _one_line(format, model.name, size):
            program = _trace(model, scaling, size)
            for module in deformable:
                module.gathers = False  # the graph is compared with what training computes
            with atomic(out) as temporary:
                run = write(program, temporary, about, _free(size))
                _compare(run, model, scaling, size)
        if deformable and format == "onnx" and sampling == "grid":
            shape = ",".join(map(str, (1, modality.channels, *(size or TRACED[1]))))
            log.warning(
                "%s: TensorRT has compiled the GridSample of deformable attention to other numbers "
                "without a word; check with `polygraphy run %s --trt --onnxrt --input-shapes "
                "image:[%s]`, or give --sampling gather",
                out,
                out,
                shape,
            )
    sidecar = note_beside(out)
    with writing(sidecar):
        write_json(sidecar, about)
    return [out, sidecar]


class _Graph(nn.Module):
    """An encoder, with or without the scaling of raw values before it."""

    def __init__(self, encoder: Encoder, scaling: bool) -> None:
        super().__init__()
        self.encoder, self.modality = encoder, _modality(encoder) if scaling else None

    def forward(self, image: Tensor) -> Tensor:
        vector: Tensor = self.encoder(
            image if self.modality is None else self.modality.scale(image)
        )
        return vector


def _modality(encoder: Encoder) -> Modality:
    assert encoder.modality is not None  # encoder files have one
    return encoder.modality


def _write_state(encoder: Encoder, out: Path, format: Format, about: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    name = encoder.name.split(".")[0]  # timm's tag names weights, which these are no more
    attention = encoder.options.get("attention")
    if not isinstance(encoder, TimmEncoder) or attention:
        what = "attention" if attention else f"encoder {name!r}"
        raise ConfigError(f"--format {format}: {format} has no such {what}; take onnx or torch")
    if format == "torchgeo" and name not in TORCHGEO:
        raise ConfigError(
            f"--format torchgeo: it has no encoder {name!r}, but {', '.join(TORCHGEO)}; take timm"
        )
    state = {key: value.detach().contiguous() for key, value in encoder.state_dict().items()}
    with atomic(out) as temporary:
        if out.suffix == ".pth":
            with temporary.open("wb") as file:  # of a name, torch hides what the system says
                torch.save(state, file)
        else:
            save_file(state, temporary, metadata={NOTE: json.dumps(about)})


@contextmanager
def _one_line(format: Format, name: str, size: Size | None) -> Iterator[None]:
    """Turn what the exporters raise into one line, and silence the pages that they print."""
    modules = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    noisy = [logging.getLogger(module) for module in modules]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DecurError, OSError):
        raise
    except Exception as error:  # the tracers have dozens of classes, and layers raise any
        reason = " ".join(str(error).split())[:200]
        remedy = "take another --format" if size else "try a fixed --size, or another --format"
        raise ConfigError(
            f"--format {format}: encoder {name!r} cannot be a graph "
            f"({type(error).__name__}: {reason}); {remedy}"
        ) from error
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _pictures(encoder: Encoder, batch: int, size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, _modality(encoder).channels, *size, generator=generator)


def _free(size: Size | None) -> dict[int, str]:
    """Return the axes of pictures whose size a graph leaves open, and their names."""
    return {0: "batch"} | ({2: "height", 3: "width"} if size is None else {})


def _trace(encoder: Encoder, scaling: bool, size: Size | None) -> torch.export.ExportedProgram:
    from torch.export import Dim

    batch, example = TRACED
    return torch.export.export(
        _Graph(encoder, scaling).eval(),
        (_pictures(encoder, batch, size or example),),
        dynamic_shapes=(dict.fromkeys(_free(size), Dim.DYNAMIC),),
        # Shapes are checked when the graph runs: while it is traced, they would become conditions
        # on the size, as "no multiple of 32 plus 1".
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _write_program(
    program: torch.export.ExportedProgram, path: Path, about: dict[str, Any], free: dict[int, str]
) -> Callable[[Tensor], Tensor]:
    with path.open("wb") as file:  # a name without the suffix is refused, a stream is not
        torch.export.save(program, file, extra_files={"decur.json": json.dumps(about)})
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, about: dict[str, Any], free: dict[int, str]
) -> Callable[[Tensor], Tensor]:
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
        input_names=["image"],
        output_names=["vector"],
        dynamic_shapes=(free,),  # their names only
    )
    assert made is not None
    made.model.metadata_props[NOTE] = json.dumps(about)
    made.save(path, external_data=False)  # one file
    session = _onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def _onnxruntime() -> Any:
    with needing("--format onnx", "export"):
        import onnxruntime
        import onnxscript  # noqa: F401
    return onnxruntime


@torch.no_grad()
def _compare(
    run: Callable[[Tensor], Tensor], encoder: Encoder, scaling: bool, size: Size | None
) -> None:
    batch, other = TRIED
    pictures = _pictures(encoder, batch, size or other)
    expected = _Graph(encoder, scaling).eval()(pictures)
    difference = float((run(pictures) - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"the graph of encoder {encoder.name!r} gives other vectors (by {difference:.1e}); "
            "nothing is written; take another --format"
        )
