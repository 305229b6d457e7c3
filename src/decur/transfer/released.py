"""Weights that torchgeo has: for which bands, of which architecture, and what scales pictures."""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from decur.encoders import Encoder, build_encoder
from decur.encoders.geo import TORCHGEO, require_torchgeo
from decur.errors import ConfigError, DataError
from decur.modality import Modality

Step = tuple[list[float], list[float]]  # mean and std of each channel

# CROMA's two halves; its repository names them, torchgeo's weights do not.
_OPTICAL = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]
_HALVES = {"optical": _OPTICAL, "sar": ["VV", "VH"]}
# Micrometres: ESA's central wavelengths of Sentinel-2 and, of C-band radar, DOFA's own number.
_WAVELENGTHS = {
    **dict(
        zip(_OPTICAL, (0.443, 0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865), strict=False)
    ),
    **{"B9": 0.945, "B10": 1.375, "B11": 1.61, "B12": 2.19, "R": 0.665, "G": 0.56, "B": 0.49},
    **{"VV": 5.405, "VH": 5.405},
}
_Z_SCORE = (0.5, 0.25)  # of pictures that are mean - 2 std at 0 and mean + 2 std at 1
_ABSENT = re.compile(r"(norm|fc_norm)\.(weight|bias)")  # torchgeo lets weights lack these
_CLASSIFIER = re.compile(r"(fc|head)\.")


def find_weights(name: str) -> Any:
    """Torchgeo's weights by the name it writes, as "ResNet50_Weights.SENTINEL2_ALL_MOCO".

    Raises:
        ConfigError: with the closest names, for an architecture that is not taken, or without
            torchgeo.
    """
    known = {str(member): member for _, enum in _enums() for member in enum}
    if name in known:
        if not _takes_pictures(architecture(known[name])):
            raise ConfigError(
                f"encoders: torchgeo:{name} is for another architecture than those taken here: "
                "ResNets, ViTs, Swin Transformers, CROMA and DOFA"
            )
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    close = [full for full in known if full.endswith(f".{name}")] or close
    hint = f"did you mean {' or '.join(close[:4])}?" if close else "see torchgeo.models"
    raise ConfigError(f"encoders: torchgeo has no weights {name!r}; {hint}")


def _enums() -> Iterable[tuple[str, Any]]:
    """Architectures of torchgeo's and what weights there are for them."""
    models = require_torchgeo()
    for name in models.list_models():
        try:
            yield name, models.get_model_weights(name)
        except KeyError:  # none are released
            continue


def plain(band: str) -> str:
    """B04 and B8a as B4 and B8A."""
    return re.sub(r"^([A-Z]+)0+(?=\d)", r"\1", band.upper())


def bands_of(weights: Any, modality: Modality) -> list[str] | None:
    """Bands of the weights in their order, named as in `plain`; None if not of this sensor."""
    have = [plain(band) for band in modality.bands]
    name = architecture(weights)
    if name.startswith("dofa_"):
        return have if set(have) <= set(_WAVELENGTHS) else None
    if name.startswith("croma_"):
        return next((half for half in _HALVES.values() if set(half) & set(have)), None)
    if "bands" not in weights.meta:
        return have if weights.meta.get("in_chans") == len(have) else None
    bands = [plain(band) for band in weights.meta["bands"]]
    # Landsat's bands are numbered as Sentinel-2's, and others; B8A tells them apart.
    foreign = "LANDSAT" in weights.name and "B8A" in have
    return bands if set(bands) & set(have) and not foreign else None


def _takes_pictures(name: str) -> bool:
    """Whether an architecture takes pictures alone, and is one of those in `decur.encoders`."""
    return timm.is_model(name) or name.startswith(("croma_", "dofa_", "swin_"))


def architecture(weights: Any) -> str:
    """Name of the architecture that weights are for, as torchgeo lists it."""
    return next(name for name, enum in _enums() if isinstance(weights, enum))


def build(weights: Any, bands: Sequence[str]) -> Encoder:
    """The architecture, with weights that are not yet those."""
    name, options = architecture(weights), {}
    if timm.is_model(name):
        if "img_size" in weights.meta:
            options["img_size"] = weights.meta["img_size"]
        return build_encoder(name, len(bands), **options)
    if name.startswith("croma_"):
        options["sensor"] = "optical" if len(bands) > 2 else "sar"
    elif name.startswith("dofa_"):
        options["wavelengths"] = [_WAVELENGTHS[band] for band in bands]
    return build_encoder(f"{TORCHGEO}{name}", len(bands), **options)


def fill(encoder: Encoder, weights: Any) -> None:
    """Load the weights, which are downloaded where they are not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        # nothing of others is unpickled beyond tensors
        released = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise ConfigError(
            f"encoders: torchgeo:{weights} cannot be downloaded "
            f"({' '.join(str(error).split())[:120]}); put {weights.url} into {file}"
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise DataError(
            f"{file}: not the weights of torchgeo:{weights} "
            f"({' '.join(str(error).split())[:120]}); remove it, and put {weights.url} there"
        ) from error
    found, expected = _keyed(encoder, released), encoder.state_dict()
    wrong = [key for key in found if key not in expected or found[key].shape != expected[key].shape]
    wrong += [key for key in expected if key not in found and not _ABSENT.search(key)]
    if wrong:
        raise DataError(
            f"{file}: not the weights of torchgeo:{weights} ({wrong[0]} is missing, or not one of "
            f"them); remove it, and put {weights.url} there"
        )
    encoder.load_state_dict({**expected, **found})


def _keyed(encoder: Encoder, released: Mapping[str, Any]) -> dict[str, Tensor]:
    """Torchgeo's keys as the encoder's, without a classifier."""
    if encoder.name.startswith(f"{TORCHGEO}croma_"):
        sensor = "s2" if encoder.options["sensor"] == "optical" else "s1"
        parts = {"transformer": f"{sensor}_encoder", "pool": f"{sensor}_GAP_FFN"}
        return {
            f"{own}.{key}": value
            for own, theirs in parts.items()
            for key, value in released.get(theirs, {}).items()
        }
    prefix = "backbone." if encoder.name.startswith(f"{TORCHGEO}dofa_") else ""
    return {f"{prefix}{k}": v for k, v in released.items() if not _CLASSIFIER.match(k)}


def steps_of(weights: Any, channels: int) -> tuple[list[Step], list[Step]]:
    """Normalisations of the weights' transforms: those of raw values, and of values in [0, 1].

    ImageNet's mean and deviation are for [0, 1]; whatever else there is brings raw values there.
    """
    if architecture(weights).startswith("dofa_"):  # torchgeo leaves it out, as each sensor's own
        return [], [([_Z_SCORE[0]] * channels, [_Z_SCORE[1]] * channels)]
    transforms: Any = weights.transforms
    layers = transforms.modules() if isinstance(transforms, nn.Module) else [transforms]
    raw: list[Step] = []
    unit: list[Step] = []
    layer: Any
    for layer in layers:
        if type(layer).__name__ != "Normalize":
            continue
        mean, std = (
            [float(v) for v in values] * (channels if len(values) == 1 else 1)
            for values in (layer.mean, layer.std)
        )
        of_unit = all(0 < value < 1 for value in mean)
        (unit if of_unit else raw).append((mean, std))
    return raw, unit
