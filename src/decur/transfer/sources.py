"""Where encoders come from: a run's folder, files, pretrained weights, or fresh ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from shlex import quote

import torch

from decur.data import PairedDataset
from decur.data.chosen_bands import take_bands, with_bands
from decur.encoders import Encoder, EncoderSettings, ProjectedEncoder, load_encoder, select_bands
from decur.encoders.base import refuse_name, refuse_size
from decur.encoders.build import build_encoder
from decur.encoders.files import HUB, encoder_files
from decur.encoders.pretrained import (
    TIMM,
    PretrainedSource,
    load_torchgeo,
    parse_source,
    sensor_of,
)
from decur.encoders.settings import MissingBands
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.objectives.blocks import PREFIX, find_part, sensors_of
from decur.pretrain.restore import restore
from decur.transfer.augment import scaled_size
from decur.transfer.settings import (
    RANDOM,
    RANDOM_AS,
    Representation,
    TransferSettings,
    encoder_sources,
    is_fresh,
)

log = logging.getLogger(__name__)

_CHOICES = (
    f"a run's folder, encoder files, {HUB}USER/REPO, torchgeo:NAME, {TIMM}NAME, {RANDOM!r}, or "
    f"{RANDOM_AS}RUN"
)


def open_encoders(
    modalities: Mapping[str, Modality], settings: TransferSettings
) -> dict[str, Encoder]:
    """Return the encoders that a transfer asks for, see `gather_encoders`.

    Args:
        modalities: those of the data.
        settings: of the transfer.

    Raises:
        ConfigError: also if an encoder does not take pictures of `size`, or resized by one of
            `test_scales`.
        DataError: as `gather_encoders` does.
    """
    encoders = gather_encoders(
        settings.encoders,
        modalities,
        wanted=settings.modalities,
        settings=settings.encoder,
        seed=settings.seed,
        representation=settings.representation,
        missing_bands=settings.missing_bands,
        by_name=True,
    )
    for name, encoder in encoders.items():
        modality, size = modalities[name], settings.size
        own = (size, size) if size else modality.size
        if own is None:
            continue  # a data set of somebody's own may not say
        modality = encoder.modality or modality  # the data may have more bands
        refuse_size(encoder, modality, size=own, key="size")
        for scale in settings.test_scales:
            if scale != 1:
                refuse_size(encoder, modality, size=scaled_size(own, scale), key="test_scales")
    return encoders


def baseline(sources: Sequence[str]) -> str:
    """Return the `--encoders` of fresh weights in the same networks; empty where there are none.

    Args:
        sources: where encoders come from, as `gather_encoders` takes them.
    """
    if any(map(is_fresh, sources)):
        return ""
    weights = [parse_source(given) for given in sources]
    if len(weights) == 1 and weights[0] and (weights[0].carrier, weights[0].sensor) == (TIMM, None):
        return f"{RANDOM} --encoder.name {weights[0].name}"
    return "" if any(weights) else " ".join(quote(RANDOM_AS + given) for given in sources)


def take_known_bands(data: PairedDataset, encoders: Mapping[str, Encoder]) -> PairedDataset:
    """Return a data set of just the bands that encoders of `by_name` have, see `take_bands`."""
    known = {name: e.modality.bands for name, e in encoders.items() if e.modality is not None}
    return take_bands(data, known)


def gather_encoders(
    source: str | Sequence[str],
    modalities: Mapping[str, Modality],
    wanted: Sequence[str] | None = None,
    settings: EncoderSettings | None = None,
    seed: int = 0,
    representation: Representation = "features",
    missing_bands: MissingBands = "refuse",
    by_name: bool = False,
) -> dict[str, Encoder]:
    """Return an encoder for each sensor that is used.

    Args:
        source: folders of runs, encoder files, "hf-hub:USER/REPO" of what `decur export --push` has
            written there, pretrained weights as `[SENSOR=]torchgeo:NAME` (see `load_torchgeo`) and
            `[SENSOR=]timm:NAME` (their first layer adapted to the bands, for all sensors where none
            is named), or "random" for fresh weights. "random:SOURCE" has fresh weights, too, in the
            networks of a run, file or repository: what its training is measured against.
        modalities: those of the data.
        wanted: sensors to use; None for all of the data that the source has an encoder for.
        settings: the architecture of fresh weights, and options of timm's.
        seed: of fresh weights.
        representation: what an encoder's vector is: its own features, or with the projector of
            its run on top the embedding, or the dimensions of it that the objective calls common
            or unique, or those of a block, as "block:optical+sar".
        missing_bands: whether data without some of an encoder's bands is refused, or these count
            as empty: 0 in every scaled picture, as the authors insert B10, or their mean where the
            encoder normalises pictures. Bands go by name then,
            whatever their order; those of torchgeo's weights always do.
        by_name: take an encoder also where the data has its bands among others, or in another
            order; `decur.data.chosen_bands.take_bands` then gives data of just these.

    Returns:
        `{modality: encoder}` in the order of the data, in eval mode, on the CPU. The `modality` of
        an encoder says how its pictures are scaled, which pretrained weights may want otherwise
        than the data does.

    Raises:
        ConfigError: if a wanted sensor is not in the data, or the source cannot give the
            representation.
        DataError: if a sensor has no encoder, a file cannot be read, or an encoder was trained on
            other bands than the data has.
    """
    for name in wanted or ():
        if name not in modalities:
            raise ConfigError(
                f"modalities: the data has no {name!r}; choose from {', '.join(modalities)}"
            )
    chosen = [name for name in modalities if not wanted or name in wanted]
    for name in chosen:
        refuse_name(name)
    sources = encoder_sources(source)
    if fresh := [given for given in sources if given.startswith(RANDOM_AS)]:
        trained = [given.removeprefix(RANDOM_AS) for given in sources]
        files = [g for g in trained if g and not parse_source(g) and g.split(":")[0] != RANDOM]
        if len(fresh) < len(sources) or files != trained:
            raise ConfigError(
                f"encoders: {fresh[0]!r} asks for fresh weights in the networks of runs or encoder "
                f"files; give only such ones, as {RANDOM_AS}RUN, or {RANDOM!r} with encoder.name"
            )
        if representation != "features":
            raise ConfigError(
                f"representation: {representation} is of a trained projector, and {fresh[0]} has "
                "fresh weights; take features"
            )
        return _anew(
            gather_encoders(
                trained, modalities, wanted, missing_bands=missing_bands, by_name=by_name
            ),
            seed,
        )
    if made := [given for given in sources if given == RANDOM or given.startswith(TIMM)]:
        if len(sources) > 1:
            raise ConfigError(f"encoders: {made[0]!r} is for all sensors; give nothing beside it")
        if representation != "features":
            raise ConfigError(_no_projector(representation, made[0]))
        made_for = {name: modalities[name] for name in chosen}
        return _make(made[0], made_for, settings or EncoderSettings(), seed)
    parsed = {given: parse_source(given) for given in sources}
    pretrained = [weights for weights in parsed.values() if weights is not None]
    homes = _homes([given for given, weights in parsed.items() if weights is None])
    by_sensor = _sensors(pretrained, homes, {name: modalities[name] for name in chosen})
    if not wanted:
        chosen = [name for name in chosen if name in homes or name in by_sensor]
    known = [*homes, *by_sensor]
    missing = [name for name in wanted or chosen or modalities if name not in known]
    if missing:
        raise DataError(
            f"encoders: none for modality {missing[0]!r} in {', '.join(sources)}, which has "
            f"{', '.join(known)}; choose others with --modalities, or name the data's sensors alike"
        )
    fit = partial(_fit, missing_bands=missing_bands, by_name=by_name)
    reopen = cache(restore)  # the sensors of a run share it
    found: dict[str, Encoder] = {}
    for name in chosen:
        modality = modalities[name]
        if name in by_sensor:
            given = by_sensor[name]
            if representation != "features":
                raise ConfigError(_no_projector(representation, given.text))
            if given.carrier == TIMM:
                alone = {name: modality}
                made_of = f"{TIMM}{given.name}"
                found.update(_make(made_of, alone, settings or EncoderSettings(), seed))
            else:
                found[name] = load_torchgeo(given, modality, missing_bands)
            continue
        home = homes[name]
        if representation == "features":
            found[name] = fit(load_encoder(home.file), modality, file=home.file)
            continue
        if home.run is None:
            raise ConfigError(_no_projector(representation, home.file))
        run = reopen(home.run)
        dims = run.objective.dimensions_of(representation, f" of {home.run}")
        encoder = fit(run.encoders[home.file.stem], modality, file=home.file)
        projected = ProjectedEncoder(
            encoder, run.projectors[home.file.stem], part=(dims.start, dims.stop)
        )
        if block := find_part(representation, [p for p in run.objective.parts if sensors_of(p)]):
            projected.block = block
            if name not in sensors_of(block):
                log.warning(
                    "representation: %s does not name %s, whose dimensions there are its own",
                    f"{PREFIX}{block}",
                    name,
                )
        found[name] = projected.eval()
    return found


def representation_of(encoders: Mapping[str, Encoder], given: Representation) -> Representation:
    """Return a representation by its run's name: "block:sar+optical" may be "block:optical+sar".

    Args:
        encoders: as `gather_encoders` gives them.
        given: the representation that was asked for.
    """
    blocks = [e.block for e in encoders.values() if isinstance(e, ProjectedEncoder) and e.block]
    return f"{PREFIX}{blocks[0]}" if blocks else given


def _make(
    source: str, modalities: Mapping[str, Modality], settings: EncoderSettings, seed: int
) -> dict[str, Encoder]:
    """Return encoders with fresh weights or timm's for these sensors."""
    settings = replace(settings, weights=None)  # fresh ones are fresh; a file is given as source
    if source != RANDOM:
        settings = replace(settings, name=source.removeprefix(TIMM), pretrained=True)
    torch.manual_seed(seed)
    made = {name: settings.build(name, modality) for name, modality in modalities.items()}
    return {name: encoder.eval() for name, encoder in made.items()}


def _anew(encoders: Mapping[str, Encoder], seed: int) -> dict[str, Encoder]:
    """Return the networks of encoders with fresh weights."""
    torch.manual_seed(seed)
    made = {}
    for name, encoder in encoders.items():
        assert encoder.modality is not None  # those of files have one
        made[name] = build_encoder(encoder.name, encoder.modality, **encoder.options).eval()
    return made


def _sensors(
    pretrained: Sequence[PretrainedSource],
    homes: Mapping[str, _Home],
    modalities: Mapping[str, Modality],
) -> dict[str, PretrainedSource]:
    """Return pretrained weights by the sensor that they are for."""
    found: dict[str, PretrainedSource] = {}
    for given in pretrained:
        name = sensor_of(given, modalities)
        if name in found or name in homes:
            other = found[name].text if name in found else homes[name].file
            raise ConfigError(f"encoders: {other} and {given.text} are both for {name!r}; give one")
        found[name] = given
    return found


@dataclass(frozen=True)
class _Home:
    """The file of an encoder, and its run if a run's folder was given."""

    file: Path
    run: Path | None


def _homes(sources: Sequence[str]) -> dict[str, _Home]:
    """Return the files of encoders by the modality that they are for."""
    homes: dict[str, _Home] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir() or source.startswith(HUB):
            found = encoder_files(source)
            if not found:
                raise DataError(
                    f"encoders: {source} holds no encoders/*.safetensors; give a finished run's "
                    f"folder, encoder files, {HUB}USER/REPO, {TIMM}NAME, or {RANDOM!r}"
                )
            run = path if path.is_dir() else None
            named = {name: _Home(file, run) for name, file in found.items()}
        elif path.is_file():
            modality = load_encoder(path).modality
            assert modality is not None  # else it is no encoder file
            named = {modality.name: _Home(path, None)}
        else:
            raise DataError(f"encoders: {path}: no such file or folder; give {_CHOICES}")
        for name, home in named.items():
            if name in homes:
                raise ConfigError(
                    f"encoders: {homes[name].file} and {home.file} are both for {name!r}; give one"
                )
            homes[name] = home
    return homes


def _fit(
    encoder: Encoder,
    modality: Modality,
    *,
    missing_bands: MissingBands,
    by_name: bool,
    file: Path,
) -> Encoder:
    """Return the encoder for the data's bands; refuse one that is for another sensor."""
    assert encoder.modality is not None  # encoder files have one
    own = encoder.modality.bands
    absent = ", ".join(band for band in own if band not in modality.bands)
    known = set(modality.bands) <= set(own)
    if missing_bands == "empty" and known and own != modality.bands:
        encoder = select_bands(encoder, modality.bands)
        if absent:
            log.info("%s: the data has no %s, which counts as empty", modality.name, absent)
    elif by_name:
        modality = with_bands(modality, own) or modality
    try:
        encoder.check(modality)
    except DataError as error:
        remedy = ""
        if missing_bands == "refuse" and known and absent:
            remedy = f"; with --missing_bands empty, {absent} counts as empty"
        raise DataError(f"{file}: {error}{remedy}") from error
    return encoder


def _no_projector(representation: Representation, source: object) -> str:
    return (
        f"representation: {representation} needs the projector of a run, which {source} has not; "
        "give the run's folder, or take features"
    )
