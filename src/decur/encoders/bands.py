"""Encoders that take fewer bands, or bands in another order, than they were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from decur.encoders.base import Encoder
from decur.encoders.build import build_encoder
from decur.errors import DataError
from decur.modality import Modality

# Convolutions that are linear in each band, with zero padding. Others, such as those that
# standardise their weights over the bands, change with a band that is left out.
_PLAIN = (nn.Conv2d, Conv2dSame)


def select_bands(encoder: Encoder, bands: Sequence[str]) -> Encoder:
    """Return an encoder without some of its bands, as if they were 0 in every scaled picture.

    A band of zeros adds nothing to the first convolution, so what the encoder learned for it is
    left out instead, which is exact. Where an encoder normalises its pictures first, as one that
    started from weights of photographs, a band that is left out is at its mean.

    Args:
        encoder: with its modality.
        bands: those to keep, in the order that pictures will have.

    Returns:
        A new encoder in the same mode, on the CPU; its modality has these bands, with their
        statistics.

    Raises:
        DataError: if the encoder does not know a band, or its first layer is none that bands can
            be taken out of.
    """
    assert encoder.modality is not None, "an encoder without a modality has no names of bands"
    known = encoder.modality.bands
    for band in bands:
        if band not in known:
            raise DataError(f"the encoder knows no band {band!r}; it has {', '.join(known)}")
    rows = [known.index(band) for band in bands]
    kept = {
        field: tuple(values[row] for row in rows)
        for field in ("bands", "mean", "std")
        if (values := getattr(encoder.modality, field)) is not None
    }
    options = dict(encoder.options)
    if normalised := options.get("normalisation"):
        options["normalisation"] = {
            key: [values[row] for row in rows] for key, values in normalised.items()
        }
    fewer = build_encoder(encoder.name, encoder.modality.with_(**kept), **options)
    state = encoder.state_dict()
    for key, value in first_weights(encoder).items():
        state[key] = value[:, rows]  # (out, bands, height, width)
    fewer.load_state_dict(state)
    return fewer.train(encoder.training)


def first_weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Return the weights that take the bands, by their key in the state dict.

    Found by building the encoder for one band more: those are the weights whose shape changes.
    """
    assert encoder.modality is not None
    bands = encoder.modality.channels
    wider = build_encoder(encoder.name, _one_more(encoder.modality), **encoder.options).state_dict()
    layers = {id(layer.weight): layer for layer in encoder.modules() if type(layer) in _PLAIN}
    found = {}
    for key, value in encoder.state_dict(keep_vars=True).items():
        if value.shape != wider[key].shape:
            if id(value) not in layers or value.shape[1] != bands:
                raise DataError(
                    f"encoder {encoder.name!r} cannot do without a band: its first layer is no "
                    "plain convolution of the bands; give the data all of them"
                )
            found[key] = value.detach()
    if not found:  # an adapted encoder's weights do not know of the data's bands
        raise DataError(
            f"encoder {encoder.name!r} cannot do without a band; adapt its weights anew"
        )
    return found


def _one_more(modality: Modality) -> Modality:
    """Return a sensor with one band more."""
    more = {
        field: (*values, values[-1])
        for field in ("mean", "std")
        if (values := getattr(modality, field)) is not None
    }
    return modality.with_(bands=(*modality.bands, "one_more"), **more)
