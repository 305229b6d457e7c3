"""Encoders with a head: late fusion of vectors, an FCN on feature maps (appendix B.2); files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.encoders import Encoder, build_encoder
from decur.errors import DataError
from decur.modality import Modality
from decur.runs import atomic
from decur.transfer.cmx import CMX
from decur.transfer.fusion import Fusion
from decur.transfer.survey import MAPS

FORMAT = 1  # of model files


class LateFusion(Fusion):
    """Pooled vectors of all sensors, concatenated, to one linear layer (appendix B.2).

    Args:
        encoders: `{modality: encoder}`.
        outputs: length of the output.
    """

    def __init__(self, encoders: Mapping[str, Encoder], outputs: int) -> None:
        super().__init__(encoders, outputs)
        self.head = nn.Linear(sum(encoder.dim for encoder in encoders.values()), outputs)

    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """See `Fusion.forward`."""
        found, vectors = self._encode(images, present, maps=False), []
        for name in self.encoders:
            x = images[name]
            vectors += found.get(name) or [x.new_zeros(len(x), self.encoder(name).dim)]  # (B, D)
        return self.head(torch.cat(vectors, dim=1))  # (B, outputs)


class FCN(Fusion):
    """Last three feature maps of all sensors to one map of classes (Long et al. 2015; B.2).

    The paper concatenates the sensors' maps, upsamples them and classifies each of the three by a
    1x1 convolution. A 1x1 convolution of concatenated maps is the sum of one for each of them,
    and it commutes with upsampling, so each map is classified as it is, maps of one size are
    added, and their sums upsampled and added: the same function, far cheaper, and the sensors'
    maps need not agree in size. The biases of all convolutions act as their sum; here that is one.

    Args:
        encoders: `{modality: encoder}`.
        outputs: number of classes.
    """

    def __init__(self, encoders: Mapping[str, Encoder], outputs: int) -> None:
        super().__init__(encoders, outputs)
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    nn.Conv2d(channels, outputs, 1, bias=False)
                    for channels in encoder.channels[-MAPS:]
                )
                for name, encoder in encoders.items()
            }
        )
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """See `Fusion.forward`."""
        first = images[next(iter(self.encoders))]
        maps = self._encode(images, present, maps=True)
        return self.classify(maps, size or (first.shape[-2], first.shape[-1]), len(first))

    def classify(
        self, maps: Mapping[str, list[Tensor]], size: tuple[int, int], batch: int
    ) -> Tensor:
        """Feature maps to the output.

        Args:
            maps: `{modality: (B, C, H, W) each}`; of one that is absent left out, or zeros.
            size: height and width of the output.
            batch: B.

        Returns:
            (B, outputs, *size).
        """
        sums: dict[torch.Size, Tensor] = {}
        for name, heads in self.heads.items():
            assert isinstance(heads, nn.ModuleList)
            for head, features in zip(heads, maps.get(name, []), strict=False):
                x = head(features)  # (B, K, h, w)
                x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums keep their digits
                sums[x.shape] = sums[x.shape] + x if x.shape in sums else x
        total = self.bias[:, None, None].expand(batch, self.outputs, *size)  # (B, K, H, W)
        for x in sums.values():  # few channels: innermost they would be slow
            total = total + interpolate(x.contiguous(), size, mode="bilinear")
        return total


HEADS: dict[str, type[FCN] | type[CMX]] = {"fcn": FCN, "cmx": CMX}  # for masks
_MODELS: dict[str, type[LateFusion] | type[FCN] | type[CMX]] = {"late_fusion": LateFusion, **HEADS}


def save_model(model: Fusion, path: Path, about: Mapping[str, Any]) -> Path:
    """Write a model with its sensors, as safetensors.

    Args:
        model: any of this module.
        path: file to write.
        about: what else its metadata shall hold, plain types: target, classes, input size.
    """
    from safetensors.torch import save_file

    kind = next(name for name, made in _MODELS.items() if isinstance(model, made))
    header = {
        "format": FORMAT,
        "model": kind,
        "outputs": model.outputs,
        "encoders": {
            name: {
                "encoder": model.encoder(name).name,
                "options": model.encoder(name).options,
                "modality": model.modality(name).to_dict(),
            }
            for name in model.encoders
        },
        **about,
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic(path) as temporary:
        save_file(state, temporary, metadata={"decur-transfer": json.dumps(header)})
    return path


def load_model(path: str | Path) -> tuple[Fusion, dict[str, Any]]:
    """Read a model that `decur transfer` wrote.

    Args:
        path: its `model.safetensors`.

    Returns:
        The model in eval mode on the CPU, and its metadata: `target`, `kind`, `classes`, `size`
        (height and width that pictures are resized to, None for their own).

    Raises:
        DataError: if the file is missing, damaged, or no model of decur's.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `decur transfer` writes model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("decur-transfer")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error
    if text is None:
        raise DataError(f"{path}: not written by `decur transfer`; load_encoder reads encoders")
    header = json.loads(text)
    if header["format"] > FORMAT:
        raise DataError(f"{path}: written by a newer decur (format {header['format']}); upgrade")
    encoders = {
        name: build_encoder(
            part["encoder"], Modality.from_dict(part["modality"]), **part["options"]
        )
        for name, part in header["encoders"].items()
    }
    model = _MODELS[header["model"]](encoders, header["outputs"])
    model.load_state_dict(state)
    return model.eval(), header
