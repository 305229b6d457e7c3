"""Models: encoders, and the head that joins them; their files.

Late fusion of vectors and an FCN on feature maps (DeCUR, appendix B.2), and CMX.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.devices import send
from decur.encoders import Encoder, MiTEncoder
from decur.encoders.attention import encode, encode_maps
from decur.encoders.header import EncoderHeader, build_to_fit, parse_header
from decur.encoders.stored import read_stored, refuse_non_finite, write_stored
from decur.errors import ConfigError, DataError
from decur.features import LAST_MAPS
from decur.modality import Modality
from decur.transfer.cmx import ATTENTION_HEADS, FeatureFusion, FeatureRectification, MLPDecoder

FORMAT = 1  # of model files


class Fusion(nn.Module, ABC):
    """One encoder for each sensor, and a head that joins them.

    Args:
        encoders: `{modality: encoder}`, each with its `modality`.
        outputs: length of the output, classes or 1.
    """

    def __init__(self, encoders: Mapping[str, Encoder], outputs: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.outputs = outputs
        self.frozen: set[str] = set()  # sensors whose encoders stay as they are

    def encoder(self, modality: str) -> Encoder:
        """Return the encoder of one sensor."""
        found = self.encoders[modality]
        assert isinstance(found, Encoder)
        return found

    def modality(self, name: str) -> Modality:
        """Return the modality that says how the pictures of a sensor are scaled."""
        found = self.encoder(name).modality
        assert found is not None  # gather_encoders gives none without
        return found

    def freeze(self, names: Iterable[str] | None = None) -> None:
        """Keep encoders as they are: no gradient, eval mode, batch statistics fixed.

        Args:
            names: of the sensors; None for all.
        """
        self.frozen |= set(self.encoders if names is None else names)
        for name in self.frozen:
            self.encoder(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Fusion:
        """Set training or eval mode; frozen encoders stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.encoder(name).eval()
        return self

    @abstractmethod
    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the output for pictures.

        Args:
            images: `{modality: (B, C, H, W)}` in [0, 1].
            present: `{modality: (B,) bool}`, where some samples lack a sensor. The features of an
                absent sensor are zeros.
            size: height and width of a map that is returned; the first picture's by default.

        Returns:
            (B, outputs), or (B, outputs, *size) for maps.
        """

    def _encode(
        self, images: Mapping[str, Tensor], present: Mapping[str, Tensor] | None, maps: bool
    ) -> dict[str, list[Tensor]]:
        """Encode each sensor that some sample has; rows of samples without it are zeros."""
        rows: dict[str, Tensor] = {}  # of sensors that some samples lack
        given: dict[str, Tensor] = {}
        for name in self.encoders:
            has = present[name].cpu() if present else None
            if has is None or bool(has.all()):
                given[name] = images[name]
                continue
            count = int(has.sum())
            if count == 0 or (count == 1 and self.encoder(name).training):
                continue  # batch statistics need two
            rows[name] = send(has.nonzero()[:, 0], images[name].device)
            given[name] = images[name][rows[name]]
        there = {name: present[name].cpu() for name in given} if present else None
        learns = not self.frozen.issuperset(self.encoders)
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            found = (
                {
                    n: m[-LAST_MAPS:]
                    for n, m in encode_maps(self.encoders, given, present=there).items()
                }
                if maps
                else {n: [v] for n, v in encode(self.encoders, given, present=there).items()}
            )
        for name, at in rows.items():
            count = len(images[name])
            found[name] = [
                f.new_zeros(count, *f.shape[1:]).index_copy(0, at, f) for f in found[name]
            ]
        return found


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
        output: Tensor = self.head(torch.cat(vectors, dim=1))  # (B, outputs)
        return output


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
                    for channels in encoder.channels[-LAST_MAPS:]
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
        return self.classify(maps, size or (first.shape[-2], first.shape[-1]), batch=len(first))

    @torch.no_grad()
    def unstandardise(self, moments: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> None:
        """Let convolutions that were trained on standardised maps take the maps as they are.

        The output stays the same: w (x - m) / s + b is (w / s) x + (b - w m / s).

        Args:
            moments: `{modality: mean and standard deviation (C,) of each map}`.
        """
        for name, heads in self.heads.items():
            assert isinstance(heads, nn.ModuleList)
            for head, (mean, std) in zip(heads, moments[name], strict=True):
                assert isinstance(head, nn.Conv2d)
                weight = head.weight[:, :, 0, 0].double() / std.to(head.weight.device)  # (K, C)
                self.bias.sub_((weight @ mean.to(weight)).to(self.bias))
                head.weight.copy_(weight[:, :, None, None])

    def classify(
        self, maps: Mapping[str, list[Tensor]], size: tuple[int, int], *, batch: int
    ) -> Tensor:
        """Return the output for feature maps.

        Args:
            maps: `{modality: (B, C, H, W) each}`; an absent sensor is left out, or zeros.
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


class CMX(Fusion):
    """Two Mix Transformers side by side; after each stage they correct each other, and are fused.

    The corrected maps go on into the next stage of either encoder, the four fused ones into the
    decoder. Where the encoders are frozen, what corrects their maps is trained through them.

    Args:
        encoders: `{modality: encoder}`, two MiT of one size.
        outputs: number of classes.

    Raises:
        ConfigError: for another number of sensors, or other encoders.

    Source: Zhang, Liu, Yang, Hu, Liu and Stiefelhagen 2023, "CMX: Cross-Modal Fusion for RGB-X
    Semantic Segmentation With Transformers".
    """

    def __init__(self, encoders: Mapping[str, Encoder], outputs: int) -> None:
        super().__init__(encoders, outputs)
        if len(encoders) != 2:
            raise ConfigError(
                f"head: cmx fuses two sensors, not {len(encoders)} ({', '.join(encoders)}); name "
                "two in modalities, or take fcn"
            )
        for name, encoder in encoders.items():
            if not isinstance(encoder, MiTEncoder):
                raise ConfigError(
                    f"head: cmx steps through the four stages of MiT encoders (mit_b0 to mit_b5), "
                    f"and {name} has {encoder.name!r}; pretrain one of those, or take fcn"
                )
        first, second = encoders.values()
        if first.channels != second.channels:
            raise ConfigError(
                f"head: cmx needs two encoders with equal stages, not {first.name!r} and "
                f"{second.name!r}; take one size for both"
            )
        self.rectify = nn.ModuleList(map(FeatureRectification, first.channels))
        self.fuse = nn.ModuleList(map(FeatureFusion, first.channels, ATTENTION_HEADS))
        self.decoder = MLPDecoder(first.channels, outputs)

    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """See `Fusion.forward`.

        Raises:
            DataError: if a sample lacks a sensor, or the sensors' pictures differ in size.
        """
        names = list(self.encoders)
        for name in names:
            if present is not None and not bool(present[name].all()):
                raise DataError(
                    f"cmx: a sample lacks {name!r}, and CMX needs both sensors of each; leave it "
                    "out, or take the head fcn"
                )
        a, b = (images[name] for name in names)
        if a.shape[-2:] != b.shape[-2:]:
            raise DataError(
                f"cmx: {names[0]!r} and {names[1]!r} must be of one size, not "
                f"{a.shape[-2]} x {a.shape[-1]} and {b.shape[-2]} x {b.shape[-1]}; set size"
            )
        size = size or (a.shape[-2], a.shape[-1])
        encoders = [self.encoder(name) for name in names]
        fused = []
        for number, (rectify, fuse) in enumerate(zip(self.rectify, self.fuse, strict=True)):
            a, b = (self._stage(e, number, x) for e, x in zip(encoders, (a, b), strict=True))
            a, b = rectify(a, b)
            fused.append(fuse(a, b))
        return interpolate(self.decoder(fused), size, mode="bilinear")

    @staticmethod
    def _stage(encoder: Encoder, number: int, x: Tensor) -> Tensor:
        assert isinstance(encoder, MiTEncoder)
        return encoder.stage(number, x)


_MODELS: dict[str, type[LateFusion] | type[FCN] | type[CMX]] = {
    "late_fusion": LateFusion,
    "fcn": FCN,
    "cmx": CMX,
}


def build_model(head: str, encoders: Mapping[str, Encoder], outputs: int) -> Fusion:
    """Return encoders with a fresh head.

    Args:
        head: "late_fusion", or of masks "fcn" or "cmx".
        encoders: `{modality: encoder}`.
        outputs: length of the output.
    """
    return _MODELS[head](encoders, outputs)


def save_model(model: Fusion, path: Path, about: Mapping[str, Any]) -> Path:
    """Write a model with its sensors, as safetensors.

    Args:
        model: any of this module.
        path: file to write.
        about: what else its metadata shall hold, plain types: target, classes, input size.
    """
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
    write_stored(path, "decur-transfer", header, model.state_dict())
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
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `decur transfer` writes model.safetensors")
    stored = read_stored(path, "decur-transfer")
    if stored.header is None:
        raise DataError(f"{path}: not written by `decur transfer`; load_encoder reads encoders")
    header = parse_header(
        path, stored.header, {"model": str, "outputs": int, "encoders": dict}, newest=FORMAT
    )
    checked = {n: EncoderHeader.check(path, part) for n, part in header["encoders"].items()}

    def build() -> Fusion:
        encoders = {name: part.build() for name, part in checked.items()}
        return build_model(header["model"], encoders, header["outputs"])

    model = build_to_fit(path, build, stored.state, what=f"a {header['model']!r}")
    refuse_non_finite(model.state_dict(), path)
    stored.refuse_damage()
    return model.eval(), header
