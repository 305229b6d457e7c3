"""Headers of encoder files: what they may ask for, and networks that are built as they say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from decur.bounded_yaml import parse_json
from decur.encoders.attention.base import ATTENTIONS, has_geometry
from decur.encoders.base import ADAPTED, ENCODERS, Encoder
from decur.encoders.build import architecture_inside, build_encoder, options_of_builder
from decur.encoders.geo import TORCHGEO
from decur.encoders.projector import PROJECTED
from decur.encoders.timm_models import STARTS_FROM, TimmEncoder
from decur.errors import ConfigError, DataError, DecurError, reading
from decur.modality import Modality
from decur.registry import ENVIRONMENT

Network = TypeVar("Network", bound=nn.Module)

LARGEST = 65_536  # largest number in an option: a width, a side in pixels, the length of a list
TALLEST = 512  # layers on top of each other: ten times what is in use, and built in seconds
_STACKS = frozenset({"depth", "depths", "layers"})  # options that say how many
LONGEST = 200  # characters of a text
DEEPEST = 4  # encoders, lists and mappings within each other

# What a header may hand to timm: sizes and kinds of layers. Nothing that opens files, downloads, or
# makes another kind of model ("features_only") is among them.
_TIMM = """
    act_layer aa_layer always_partition attn_drop_rate avg_down base_width block_reduce_first
    bn_eps bn_momentum cardinality channels class_token conv_mlp depth depths dims down_kernel_size
    drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim final_norm
    fc_norm global_pool head_dropout img_size init_values kernel_sizes layers ls_init_value
    mlp_ratio no_embed_class norm_eps norm_layer num_heads output_stride patch_drop_rate patch_size
    pos_drop_rate pos_embed pre_norm proj_drop_rate qk_norm qkv_bias reg_tokens replace_stem_pool
    stem_ks stem_type stem_width strict_img_size weight_init window_size zero_init_last
"""
_TORCHGEO = frozenset({"sensor", "wavelengths"})
_AROUND = {  # encoders around another one, whose own options are within
    PROJECTED: frozenset({"encoder", "options", "width", "layers", "hidden", "last_norm", "part"}),
    ADAPTED: frozenset({"encoder", "options", "rows", "mean", "std"}),
}


@dataclass(frozen=True)
class EncoderHeader:
    """What a file says of an encoder, checked.

    Args:
        name: of the architecture.
        options: of `build_encoder`, none of which starts from other weights.
        modality: the sensor.
    """

    name: str
    options: dict[str, Any]
    modality: Modality

    @classmethod
    def check(cls, path: Path, values: object) -> EncoderHeader:
        """Return what a header holds in "encoder", "options" and "modality".

        Args:
            path: the file, for messages.
            values: the mapping of a header.

        Raises:
            DataError: if something is missing, of another type, or nothing that a file may ask for.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"{path}: its header is damaged (an encoder is no mapping)")
        wanted: dict[str, type] = {"encoder": str, "options": dict, "modality": dict}
        _check_fields(path, values, wanted)
        name, options = values["encoder"], without_starts(values["options"])
        _refuse_foreign(path, architecture_inside(name, options))
        _check_options(path, name, options)
        try:
            modality = Modality.from_dict(values["modality"])
        except (DecurError, TypeError, ValueError) as error:
            raise DataError(f"{path}: its header is damaged ({error})") from error
        return cls(name, _with_geometry(name, options), modality)

    def build(self) -> Encoder:
        """Return the encoder, with fresh weights."""
        return build_encoder(self.name, self.modality, **self.options)


def parse_header(path: Path, text: str, fields: Mapping[str, type], newest: int) -> dict[str, Any]:
    """Return the header of a file of weights.

    Args:
        path: the file, for messages.
        text: the header, JSON.
        fields: what it must hold besides "format", and of which type.
        newest: the highest format that is known.

    Raises:
        DataError: if it is damaged, lacks something, or was written by a newer version.
    """
    with reading(path, "copy it anew", what="its header is damaged"):
        header = parse_json(text)
    if not isinstance(header, dict):
        raise DataError(f"{path}: its header is damaged (it is no mapping); copy it anew")
    _check_fields(path, header, {"format": int, **fields})
    if header["format"] > newest:
        raise DataError(f"{path}: written by a newer decur (format {header['format']}); upgrade")
    return header


def build_to_fit(
    path: Path, build: Callable[[], Network], state: Mapping[str, Tensor], *, what: str
) -> Network:
    """Return a network that holds a file's weights, and ask for no more memory than they take.

    The network is built on shapes alone first (PyTorch's "meta" device), which takes neither memory
    nor random numbers, and then gets copies of the file's tensors. One that cannot be built without
    numbers, or holds tensors that it does not save, is built anew.

    Args:
        path: the file, for messages.
        build: builds the network.
        state: the weights.
        what: the network is, for messages: "a 'resnet18'".

    Raises:
        DataError: if the network cannot be built, or the weights do not fit.
    """
    try:
        with reading(path, "copy it anew", what="its header does not make a network"):
            network = _planned(build)
            if network is not None:
                planned = network.state_dict()
                _refuse_others(f"{path}: the weights do not fit {what}", planned, state)
            if network is not None and not _lacks_tensors(network):
                # copies, as safetensors may map the file, which someone may write over
                state = {k: v.to(planned[k].dtype, copy=True) for k, v in state.items()}
                network.load_state_dict(state, strict=True, assign=True)
                return network
            network = build()
    except ConfigError as error:  # of the encoder, which knows of no file
        raise DataError(f"{path}: {error}") from error
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: the weights do not fit {what}: {reason}") from error
    return network


def shapes_of(build: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
    """Return the state dict of a network: on the "meta" device where it can be built there."""
    return (_planned(build) or build()).state_dict()


class _Unfilled(TorchFunctionMode):
    """Leaves weights of the "meta" device as they are: to fill them takes long and does nothing."""

    filling = frozenset(
        getattr(Tensor, f"{name}_")
        for name in ("uniform", "normal", "fill", "zero", "copy", "erfinv", "mul", "add", "clamp")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.filling and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _planned(build: Callable[[], Network]) -> Network | None:
    """Return a network on shapes alone, None where it cannot be built without numbers."""
    try:
        with torch.device("meta"), _Unfilled():
            return build()
    except (RuntimeError, NotImplementedError):  # a MiT, whose sizes are fixed
        return None


def _lacks_tensors(network: nn.Module) -> bool:
    """Return whether a network holds tensors that it does not save: in attributes, buffers."""
    saved = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}

    def holds_another(value: Any) -> bool:
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list | tuple | set):
            return any(holds_another(each) for each in value)
        return isinstance(value, Tensor) and id(value) not in saved

    return any(
        holds_another(value) for module in network.modules() for value in vars(module).values()
    )


def _refuse_others(where: str, planned: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not those of a network, before memory for it is asked for."""
    for key in sorted(planned.keys() | state.keys()):
        wanted, there = planned.get(key), state.get(key)
        if wanted is None or there is None or wanted.shape != there.shape:
            shapes = [
                "no such tensor" if t is None else str(list(t.shape)) for t in (there, wanted)
            ]
            raise DataError(
                f"{where}: {key}: the file has {shapes[0]}, the network {shapes[1]}; copy it anew"
            )


def _check_fields(path: Path, values: Mapping[str, Any], wanted: Mapping[str, type]) -> None:
    lacking = sorted(wanted.keys() - values.keys())
    if lacking:
        raise DataError(f"{path}: its header lacks {', '.join(lacking)}; copy it anew")
    for key, kind in wanted.items():
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            raise DataError(
                f"{path}: its header is damaged ({key} is {str(values[key])[:60]!r}); copy it anew"
            )


def _refuse_foreign(path: Path, name: object) -> None:
    """Refuse to import a module only because a file names it."""
    if not isinstance(name, str):
        raise DataError(f"{path}: its header is damaged (encoder is {str(name)[:60]!r})")
    if ":" in name and not name.startswith(TORCHGEO) and not ENCODERS.is_known(name):
        module = name.partition(":")[0]
        raise DataError(
            f"{path}: its encoder is built by {name!r}; if you trust that module, set "
            f"{ENVIRONMENT}={module}"
        )


def _refuse_unknown_attention(path: Path, name: object) -> None:
    """Refuse an attention that would have to be imported only because a file names it."""
    if name is not None and not (isinstance(name, str) and ATTENTIONS.is_known(name)):
        raise DataError(
            f"{path}: its header names the attention {str(name)[:60]!r}, which is none of decur's; "
            f"if you trust the module that registers it, set {ENVIRONMENT}=MODULE"
        )


def without_starts(options: Any) -> Any:
    """Return options without those that name weights to start from: the file has its own.

    Version 0.1 wrote them down.
    """
    if not isinstance(options, dict):
        return options
    kept = {key: value for key, value in options.items() if key not in STARTS_FROM}
    return kept | ({"options": without_starts(kept["options"])} if "options" in kept else {})


def _with_geometry(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the geometry of the attention, where a file leaves it out.

    Version 0.1 knew one geometry, "centred", and did not write it down.
    """
    found = dict(options)
    if name in _AROUND and "options" in found:
        found["options"] = _with_geometry(found["encoder"], found["options"])
    of_timm = ":" not in name and name not in ENCODERS.names()
    if of_timm and has_geometry(found.get("attention"), of_decur=True):
        found.setdefault("geometry", "centred")
    return found


def _check_options(path: Path, name: str, options: Mapping[str, Any], depth: int = 0) -> None:
    """Refuse options that a file has no business with, or of absurd size."""
    allowed = _allowed(name)
    for key, value in options.items():
        if allowed is not None and key not in allowed:
            raise DataError(
                f"{path}: its header gives encoder {name!r} the option {key!r}, which no file may; "
                "get it from where it comes from anew"
            )
        if key == "attention":
            for kind in value.values() if isinstance(value, Mapping) else (value,):
                _refuse_unknown_attention(path, kind)
        if name in _AROUND and key == "options":
            if not isinstance(value, Mapping) or depth == DEEPEST:
                raise DataError(f"{path}: its header is damaged (options of encoder {name!r})")
            _check_options(path, str(options.get("encoder")), value, depth + 1)
        elif key in _STACKS and _total(value) > TALLEST:
            raise DataError(
                f"{path}: its header gives encoder {name!r} {_total(value):,} {key}, and up to "
                f"{TALLEST} are taken; get it from where it comes from anew"
            )
        elif not _is_small(value):
            raise DataError(
                f"{path}: its header gives {key} of encoder {name!r} as {str(value)[:60]}, and "
                f"numbers up to {LARGEST:,} are taken; get it from where it comes from anew"
            )


def _allowed(name: str) -> Collection[str] | None:
    """Return the options that a file may give an encoder; None: those that its builder takes."""
    if name in _AROUND:
        return _AROUND[name]
    if name.startswith(TORCHGEO):
        return _TORCHGEO
    builder = ENCODERS.get(name) if ":" in name or name in ENCODERS.names() else None
    parameters = inspect.signature(builder or TimmEncoder).parameters.values()
    if builder is not None and any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    own = options_of_builder(builder or TimmEncoder)
    return own if builder is not None else own | set(_TIMM.split())


def _total(value: Any) -> float:
    """Return the sum of a number or of a list of numbers; 0 for what is neither."""
    numbers = value if isinstance(value, list) else [value]
    return sum(abs(n) for n in numbers if isinstance(n, int | float) and math.isfinite(n))


def _is_small(value: Any, depth: int = 0) -> bool:
    """Return whether a value is plain, and everything in it of a sane size."""
    if isinstance(value, str):
        return len(value) <= LONGEST
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= LARGEST
    if depth == DEEPEST or not isinstance(value, list | Mapping) or len(value) > LARGEST:
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return all(_is_small(each, depth + 1) for each in inner)
