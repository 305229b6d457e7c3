"""Weights of other programs as encoder files."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from decur.bounded_yaml import parse_json, read_text
from decur.encoders import Encoder, build_encoder, save_encoder
from decur.encoders.header import EncoderHeader, build_to_fit, shapes_of
from decur.encoders.imagenet import fold
from decur.encoders.stored import read_stored, refuse_non_finite
from decur.errors import ConfigError, DataError, DecurError, listed, reading
from decur.exchange.formats import NOTE, Compat, Normalised, WeightsLayout, note_beside
from decur.exchange.layouts import (
    FIRST,
    JOINT,
    SINGLE,
    WeightsPart,
    infer_architecture,
    kind_of,
    split_weights,
)
from decur.modality import Modality, load_modalities
from decur.runs import RunFolder, writing

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
_CLASSIFIER = re.compile(r"(fc|head)\.(weight|bias)")
_WRAPPERS = {"module", "model"}  # what DataParallel and Lightning modules put before names
_OPTIONAL = re.compile(r".*\.num_batches_tracked")  # old files have none

# What the authors' weights saw, by the number of bands: their code cuts no outliers of SAR.
_SEEN = {
    2: Modality.preset("sentinel1").with_(name="s1", cut=0.0),
    13: Modality.preset("sentinel2-l1c").with_(name="s2"),
}


def import_weights(
    file: str | Path,
    out: str | Path,
    *,
    layout: WeightsLayout = "auto",
    modalities: Mapping[str, str | Mapping[str, Any]] | None = None,
    normalised: Normalised = "auto",
    compat: Compat | None = None,
) -> list[Path]:
    """Turn weights of other programs into encoder files, with the modality they were trained on.

    It reads checkpoints of the DeCUR authors (both encoders with projectors, or one backbone, with
    or without deformable attention), torchgeo's weights from them, plain torchvision or timm
    ResNets and ViTs, and the NVlabs release of MiT. Only tensors are unpickled.

    Encoders of decur take pictures in [0, 1]. Where weights expect pictures less a mean and divided
    by a standard deviation, both are folded into the first layer. The numbers stay the same, but
    for the outermost places: there a convolution that pads with zeros now pads with black, and no
    longer with the mean colour.

    The authors' code reads pictures with OpenCV: its encoders of photographs saw blue, green, red,
    and those of HHA angle, height, disparity (their data sets of GeoNRW and SUN RGB-D hand
    `cv2.imread(...)` on unchanged, and normalise by place in the file). The inputs of their first
    layer are therefore turned round. Sentinel's bands and equal bands of elevation stay.

    Args:
        file: `.pth`, `.pt`, `.bin` or `.safetensors`.
        out: folder that gets `encoders/<modality>.safetensors`, which `--encoders` takes.
        layout: the layout that the file must have; "auto" goes by its keys. "torchgeo" is a plain
            ResNet or ViT of 2 or 13 bands.
        modalities: `{name: preset or fields}` in the order of the file's encoders; by default
            the sensor that `export_encoder` has noted in the file or in `<file>.json` beside it;
            else Sentinel-1 as "s1" and Sentinel-2 L1C as "s2" where the numbers of bands are 2 and
            13, "rgb" for one plain encoder of 3. This "s1" is not cut at percentiles, as in the
            authors' code; `{"s1": "sentinel1", "s2": "sentinel2-l1c"}` fits data that is cut.
        normalised: the values that the weights expect: "imagenet", its mean and deviation;
            "half", 0.5 for both; "none", [0, 1]. "auto" is ImageNet's for a ResNet with a
            classifier of its 1000 classes and for every MiT. For a ViT with such a classifier a
            choice is needed: timm's own expect 0.5, DeiT's and others ImageNet's values, and
            their keys are the same.
        compat: "official" for the weights of the authors, which need one attention for both
            sensors, as these trained through the same module; an elevation encoder of three equal
            bands becomes one of a single band. It also says that weights with the keys of a plain
            backbone are the authors', and saw blue first.

    Returns:
        The files.

    Raises:
        DataError: if the file cannot be read, holds names that match nothing or shapes that
            differ (they are listed), or only one of two encoders.
        ConfigError: if modalities do not fit the encoders, or `compat` or `normalised` is needed,
            or `out` cannot be written.
    """
    file = Path(file)
    state = _read(file)
    exported = _exported(file)
    parts = split_weights(file, state)
    joint = len(parts) == 2
    authors = any(key for key in state if JOINT.match(key) or SINGLE.match(key))
    kinds = [kind_of(file, part) for part in parts]
    _check_layout(file, layout, "decur" if authors else kinds[0], parts, kinds)
    bands = [part.state[FIRST[kind]].shape[1] for part, kind in zip(parts, kinds, strict=True)]
    chosen = _modalities(file, bands, joint, modalities, exported)
    if any(part.attention for part in parts):
        _share(file, parts, compat)
    if not authors and compat is None and bands == [3] and "decur" in file.stem.lower():
        log.warning(
            "%s: a plain backbone with a name of the DeCUR authors, whose photographs were blue, "
            "green, red; if it is theirs, give --compat official",
            file,
        )
    encoders = []
    for part, kind, modality in zip(parts, kinds, chosen, strict=True):
        classes, expected = _drop_classifier(part.state), normalised
        if normalised == "auto":
            expected = _expected(file, part.state, kind, classes)
        if expected != "none":
            _fold(file, part.state, kind, expected)
        if authors or compat == "official":
            _turn_round(file, part, kind, modality)
        _fit_bands(file, part.state[FIRST[kind]].shape[1], part, kind, modality, compat)
        encoders.append(_build(file, part, kind, modality, exported))
    folder = RunFolder(Path(out))
    if folder.config.is_file():
        raise ConfigError(f"--out {out}: holds a run; choose another folder")
    with writing(Path(out)):
        return [
            save_encoder(encoder, folder.encoder(modality.name))
            for encoder, modality in zip(encoders, chosen, strict=True)
        ]


def _read(file: Path) -> dict[str, Tensor]:
    """Read the state dict in a file, whatever it is wrapped in."""
    if not file.is_file():
        raise DataError(f"{file}: no such file of weights; download it first and give its path")
    try:
        if file.suffix == ".safetensors":
            stored = read_stored(file, "decur")
            loaded: Any = stored.state
            if stored.header is not None:
                raise ConfigError(
                    f"{file}: is an encoder file of decur's already; give it to --encoders as it is"
                )
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except DecurError:
        raise
    except Exception as error:  # pickle and zip have an error class each
        reason = " ".join(str(error).split())[:160]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors"
        raise DataError(
            f"{file}: no file of plain tensors ({type(error).__name__}: {reason}); save its "
            "state dict alone, or download it again"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise DataError(f"{file}: holds no state dict; a mapping of names to tensors is needed")
    if other := [key for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise DataError(f"{file}: {listed(other, 5)} are no tensors; save the state dict alone")
    state = dict(loaded)
    refuse_non_finite(state, file)
    return _unwrapped(state)


def _exported(file: Path) -> EncoderHeader | None:
    """Return what `decur export` has noted of the encoder; None for a file of another program."""
    header = None
    if file.suffix == ".safetensors":  # one that `_read` has found whole
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(NOTE)
    noted = note_beside(file)
    if header is None:
        if not noted.is_file():
            return None
        header = read_text(noted)
    with reading(file, "copy it anew", what="what decur export has noted in it is damaged"):
        about = parse_json(header)
    if not isinstance(about, Mapping) or not {"encoder", "options", "modality"} <= about.keys():
        return None  # a file of another program that happens to lie there
    return EncoderHeader.check(file, about)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without the name that a wrapper has put before all their names."""
    if any(JOINT.match(key) or SINGLE.match(key) for key in state):
        return state  # of the authors, whose names are told whole
    while (names := {key.partition(".")[0] for key in state}) and names <= _WRAPPERS:
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def _check_layout(
    file: Path,
    layout: WeightsLayout,
    found: str,
    parts: Sequence[WeightsPart],
    kinds: Sequence[str],
) -> None:
    if layout == "torchgeo":
        bands = parts[0].state[FIRST[kinds[0]]].shape[1]
        fits = found in ("resnet", "vit") and bands in _SEEN
    else:
        fits = layout in ("auto", found)
    if not fits:
        raise ConfigError(
            f"--layout: {file} is not of layout {layout!r}, its keys are those of {found!r}; "
            "give that one, or auto"
        )


def _modalities(
    file: Path,
    bands: Sequence[int],
    joint: bool,
    given: Mapping[str, str | Mapping[str, Any]] | None,
    exported: EncoderHeader | None,
) -> list[Modality]:
    counts = " and ".join(map(str, bands))
    if given:
        found = list(load_modalities(given).values())
        if len(found) != len(bands):
            raise ConfigError(
                f"--modality: {file} holds {len(bands)} encoders (of {counts} bands), "
                f"{len(found)} modalities are given; name one for each, in this order"
            )
        return found
    if exported is not None and not joint:
        log.info("%s: was exported by decur for %r", file, exported.modality)
        return [exported.modality]
    if all(n in _SEEN for n in bands) and len(set(bands)) == len(bands):
        return [_SEEN[n] for n in bands]
    if not joint and bands[0] == 3:
        return [Modality.preset("rgb")]
    example = " ".join(f"--modality {name}=PRESET" for name in ("one", "other")[: len(bands)])
    raise ConfigError(
        f"--modality: {file} holds encoders of {counts} bands, which do not tell their sensors; "
        f"give {example}"
    )


def _share(file: Path, parts: Sequence[WeightsPart], compat: Compat | None) -> None:
    """Give each sensor the attention that its backbone was trained with."""
    if compat != "official":
        raise ConfigError(
            f"{file}: its attention is of the authors' code, where one module served both sensors; "
            "import it with --compat official"
        )
    if len(parts) == 2:  # both sensors ran through the first one's module (their `forward`)
        if not parts[0].attention:
            raise DataError(f"{file}: holds no da1_l3 and da1_l4, which both encoders need")
        parts[1].attention = parts[0].attention
    elif parts[0].module == "2":
        log.warning(
            "%s: its attention da2 was never trained, as the authors' code ran both sensors "
            "through da1; import their joint checkpoint for the one this backbone was trained with",
            file,
        )


def _drop_classifier(state: dict[str, Tensor]) -> int:
    """Remove the last layer; how many classes it had."""
    removed = {key: state.pop(key) for key in list(state) if _CLASSIFIER.fullmatch(key)}
    return max((len(value) for value in removed.values()), default=0)


def _expected(file: Path, state: Mapping[str, Tensor], kind: str, classes: int) -> Normalised:
    """Return the normalisation that weights were trained with, where their keys tell it."""
    if state[FIRST[kind]].shape[1] != 3:
        return "none"
    if kind == "vit" and classes == IMAGENET_CLASSES:
        raise ConfigError(
            f"--normalised: {file} is a ViT with ImageNet's classifier, whose keys do not tell "
            "what its pictures were normalised with; give imagenet (DeiT), half (a mean and "
            "deviation of 0.5, as timm's augreg weights) or none"
        )
    return "imagenet" if kind == "mit" or classes == IMAGENET_CLASSES else "none"


def _fold(file: Path, state: dict[str, Tensor], kind: str, normalised: Normalised) -> None:
    """Fold the normalisation into the first layer, so that it takes [0, 1]."""
    weight = state[FIRST[kind]]
    if normalised == "imagenet" and weight.shape[1] != 3:
        raise ConfigError(
            f"--normalised: {file} has {weight.shape[1]} bands, ImageNet's mean and deviation are "
            "of 3; give none"
        )
    if normalised == "imagenet":
        state[FIRST[kind]], shift = fold(weight)
    else:  # W (x - 0.5) / 0.5 is 2 W x - sum(W)
        state[FIRST[kind]], shift = 2 * weight, weight.sum((1, 2, 3))
    if kind == "resnet":  # no bias, but batch normalisation subtracts its mean
        key, shift = "bn1.running_mean", -shift
    else:
        key = FIRST[kind].replace("weight", "bias")
    if key in state and state[key].shape == shift.shape:  # else it is listed with what is wrong
        state[key] = state[key] - shift


def _turn_round(file: Path, part: WeightsPart, kind: str, modality: Modality) -> None:
    """Let the first layer take its three inputs in the order of the modality's bands.

    The pictures were read by OpenCV, so that the file's order is the reverse of the modality's.
    """
    initials = [band[0].lower() for band in modality.bands]
    equal = modality.augmentation == "dem"  # three times the same band
    if part.state[FIRST[kind]].shape[1] != 3 or len(initials) != 3 or equal:
        return
    if initials in (["b", "g", "r"], ["a", "h", "d"]):  # the order of the file
        return
    part.state[FIRST[kind]] = part.state[FIRST[kind]].flip(1)
    log.info(
        "%s: the pictures of its %s were read by OpenCV, the last band first; its first layer is "
        "turned round to %s",
        file,
        part.label,
        ", ".join(modality.bands),
    )


def _fit_bands(
    file: Path, bands: int, part: WeightsPart, kind: str, modality: Modality, compat: Compat | None
) -> None:
    if modality.channels == bands:
        return
    equal = (modality.channels, bands) == (1, 3)
    if equal and compat == "official":  # equal bands add up
        part.state[FIRST[kind]] = part.state[FIRST[kind]].sum(1, keepdim=True)
        return
    remedy = "choose another"
    if equal:
        remedy = "with --compat official its three equal bands become one"
    raise ConfigError(
        f"--modality: {modality.name!r} has {modality.channels} bands, the {part.label} of {file} "
        f"takes {bands}; {remedy}"
    )


def _build(
    file: Path, part: WeightsPart, kind: str, modality: Modality, exported: EncoderHeader | None
) -> Encoder:
    name = infer_architecture(file, part, kind=kind)
    options: dict[str, Any] = {}
    if exported is not None and "normalisation" in exported.options:
        options["normalisation"] = exported.options["normalisation"]
    if part.attention:
        options["attention"] = {"layer3": "rda_official", "layer4": "rda_official"}
    build = partial(build_encoder, name, modality, **options)
    state, expected = {**part.state, **part.attention}, shapes_of(build)
    problems = {
        "names that match nothing": [key for key in state if key not in expected],
        "names that are missing": [
            key for key in expected if key not in state and not _OPTIONAL.fullmatch(key)
        ],
        "shapes that differ": [
            f"{key} {tuple(value.shape)} for {tuple(expected[key].shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    if found := [f"{what}: {listed(keys, 5)}" for what, keys in problems.items() if keys]:
        raise DataError(f"{file}: the {part.label} is no {name}; {'; '.join(found)}")
    counts = {key: torch.tensor(0) for key in expected.keys() - state.keys()}  # the optional ones
    return build_to_fit(file, build, {**state, **counts}, what=f"a {name}").eval()
