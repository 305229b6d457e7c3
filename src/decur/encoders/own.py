"""Networks of one's own as encoders: any module that turns pictures into vectors or maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from decur.encoders.base import ENCODERS, Encoder, WrappedEncoder
from decur.encoders.build import build_encoder
from decur.encoders.settings import EncoderSettings
from decur.errors import ConfigError, DecurError, plain_name
from decur.modality import Modality
from decur.registry import find_object, is_ours

# A network of one's own for a sensor, or what builds one.
Own = nn.Module | Callable[[Modality], nn.Module]


def register_encoder(name: str, build: Callable[..., nn.Module]) -> None:
    """Name what builds an encoder of one's own, so that its files can be opened again.

    Register it in each process that opens such a file, before `load_encoder`; the `decur` command
    imports the modules that the environment variable `DECUR_IMPORT` lists.

    Args:
        name: a word that files hold.
        build: a function or class whose first argument is `modality`, the sensor, or else the
            number of its bands; further arguments are options of the encoder. It returns any
            module from pictures (B, C, H, W) to vectors (B, D), to a feature map (B, D, h, w), or
            to a list of maps.

    Raises:
        ConfigError: for a name that another one, perhaps of timm's, has, and for what is no
            function.

    Examples:
        >>> def small(modality, width=8):
        ...     return nn.Conv2d(modality.channels, width, 3, stride=2)
        >>> register_encoder("small", small)
        >>> build_encoder("small", Modality.preset("rgb")).dim
        8
    """
    if not callable(build):
        raise ConfigError(f"encoder {name!r}: {build!r} builds nothing; give a function or class")
    if timm.is_model(name):
        raise ConfigError(f"encoder {name!r}: timm has one of this name; give another")
    ENCODERS.register(plain_name(name, f"encoder {name!r}"))(build)


class OwnEncoders(EncoderSettings):
    """Settings of encoders that are given as networks or functions, in place of names.

    Args:
        given: a function of the modality, or for each modality a name, a network or a function.
            A network is copied, and stays as it is.
    """

    def __init__(self, given: Own | Mapping[str, str | Own]) -> None:
        super().__init__()
        self.given = given

    def build(self, name: str, modality: Modality) -> Encoder:
        """Return the encoder of one modality.

        Raises:
            ConfigError: where there is none, or its files could not be opened again.
        """
        found: Any = self.given
        if isinstance(found, Mapping):
            if name not in found:
                raise ConfigError(f"encoder: names no encoder for modality {name!r}")
            found = found[name]
        if isinstance(found, str):
            return EncoderSettings(found).build(name, modality)
        if isinstance(found, nn.Module):
            return _given(found, modality)
        return build_encoder(_name_of(found), modality)


def encoder_settings(given: Any) -> EncoderSettings:
    """Return settings of encoders that are given as settings, by name, or as networks."""
    if isinstance(given, EncoderSettings):
        return given
    names = given.values() if isinstance(given, Mapping) else [given]
    if all(isinstance(name, str) for name in names):
        return EncoderSettings(given if isinstance(given, str) else dict(given))
    return OwnEncoders(given)


def _name_of(build: Any) -> str:
    """Return the name by which a function is found again."""
    for name in ENCODERS.names():
        if ENCODERS.get(name) is build:
            return name
    if (reference := _reference(build)) is not None:
        return reference
    shown = getattr(build, "__qualname__", type(build).__name__)
    raise ConfigError(
        f"encoder: {shown} cannot be found again when its files are opened; name it first with "
        "decur.encoders.register_encoder('a_name', function), or define it in a module"
    )


def _reference(thing: Any) -> str | None:
    """Return "module:name" of a function or class; None where it cannot be imported."""
    module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        return None
    try:
        return f"{module}:{name}" if find_object(f"{module}:{name}", "encoder") is thing else None
    except ConfigError:
        return None


def _given(module: nn.Module, modality: Modality) -> Encoder:
    """Return a copy of a network as an encoder, once it is clear what builds it again."""
    names: Sequence[str]
    if isinstance(module, Encoder) and "name" in vars(module):
        names, options = [module.name], getattr(module, "options", {})
    else:
        own = [n for n in ENCODERS.names() if not is_ours(ENCODERS.get(n))]
        names, options = [*own, *filter(None, [_reference(type(module))])], {}
    for name in names:
        if _builds(name, options, module, modality):
            break
    else:
        raise ConfigError(
            f"encoder of {modality.name!r}: no file of this {type(module).__name__} could be "
            f"opened again; say first what builds one, with decur.encoders.register_encoder("
            f"'{modality.name}_encoder', function of the modality)"
        )
    copied = copy.deepcopy(module)
    encoder = copied if isinstance(copied, Encoder) else WrappedEncoder(copied, modality.channels)
    if encoder.modality is not None:
        encoder.check(modality)
    encoder.name, encoder.options, encoder.modality = name, dict(options), modality
    return encoder


def _builds(name: str, options: Mapping[str, Any], module: nn.Module, modality: Modality) -> bool:
    """Return whether a name builds a network like one that is given."""
    try:
        built: nn.Module = build_encoder(name, modality, **options)
    except (DecurError, TypeError, ValueError, RuntimeError):
        return False
    if isinstance(built, WrappedEncoder) and not isinstance(module, Encoder):
        built = built.module
    return type(built) is type(module) and _shapes(built) == _shapes(module)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in module.state_dict().items() if isinstance(v, Tensor)}
