"""Encoders as folders that timm, terratorch and decur load, also from the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decur.encoders import Encoder, TimmEncoder, load_encoder, save_encoder
from decur.encoders.files import WEIGHTS
from decur.errors import ConfigError, DataError, reason_of
from decur.exchange.card import write_card
from decur.runs import RunFolder, make_folder, write_json, writing

log = logging.getLogger(__name__)

CONFIG, CARD = "config.json", "README.md"
_SIDE = 224  # pixels that are named where the encoder's sensor has no size


def export_hub(
    source: str | Path,
    out: str | Path,
    *,
    licence: str | None = None,
    scores: Sequence[str | Path] = (),
    push: str | None = None,
) -> list[Path]:
    """Write encoders as a folder that `timm.create_model("local-dir:OUT", pretrained=True)` loads.

    The folder holds `config.json` and `model.safetensors`, which is an encoder file of decur's,
    too, and a model card, `README.md`. The encoders of a run come into a folder each,
    `OUT/<sensor>`, with one card for all. What timm has no architecture for, such as an encoder
    with attention, can be read by decur alone, and a line says so.

    Args:
        source: an encoder file, or the folder of a run; of a file within a run, the card tells of
            that run, too.
        out: the folder; it must be new, empty, or hold an export of the same encoders.
        licence: of the weights, as the hub names it ("apache-2.0", "cc-by-4.0").
        scores: folders of `decur transfer`, whose results come into the card.
        push: "USER/REPO" of the hub, which is made where it is missing.

    Returns:
        The files.

    Raises:
        ConfigError: if `out` holds something else or cannot be written, or the hub refuses.
        DataError: if an encoder or a result cannot be read.
    """
    source, out = Path(source), Path(out)
    run, files = _sources(source)
    encoders = {name: load_encoder(file) for name, file in files.items()}
    homes = {name: out / name if source.is_dir() else out for name in encoders}
    written = [home / name for home in homes.values() for name in (CONFIG, WEIGHTS)]
    _check_folder(out, [*written, out / CARD])
    with writing(out):
        for name, encoder in encoders.items():
            write_json(homes[name] / CONFIG, timm_config(encoder, licence))
            save_encoder(encoder, homes[name] / WEIGHTS)
        shown = {name: home.relative_to(out).as_posix() for name, home in homes.items()}
        card = write_card(
            out / CARD,
            encoders,
            folders=shown,
            run=run,
            licence=licence,
            scores=[Path(folder) for folder in scores],
            repository=push,
        )
    if push is not None:
        _push(out, push)
    return [*written, card]


def timm_config(encoder: Encoder, licence: str | None = None) -> dict[str, Any]:
    """Return what `config.json` says of an encoder: to timm how it is built, to people the rest.

    Args:
        encoder: with its modality.
        licence: of the weights, as the hub names it.
    """
    modality = encoder.modality
    assert modality is not None  # encoder files have one
    about: dict[str, Any] = {
        "decur": {
            "encoder": encoder.name,
            "options": encoder.options,
            "input": "values in [0, 1], as the modality scales them",
            "modality": modality.to_dict(),
        }
    }
    if reason := _unknown_to_timm(encoder):
        log.info("timm has no such %s: decur reads the %s encoder, timm does not", *reason)
        return about
    backbone: Any = encoder.backbone
    arguments = {k: v for k, v in encoder.options.items() if k != "normalisation"}
    size = list(modality.size or (_SIDE, _SIDE))
    if fixed := bool(backbone.pretrained_cfg.get("fixed_input_size")):
        # the tag in a name, which is left out below, may have said it
        size = arguments["img_size"] = list(backbone.patch_embed.img_size)
        if dynamic := bool(getattr(backbone, "dynamic_img_size", False)):
            arguments["dynamic_img_size"], fixed = dynamic, False
    normalisation = encoder.options.get("normalisation") or {
        "mean": [0.0] * modality.channels,
        "std": [1.0] * modality.channels,
    }
    return {
        "architecture": encoder.name.split(".")[0],  # timm's tag names weights, no more these
        "num_classes": 0,
        "num_features": encoder.dim,
        "pretrained_cfg": {
            "tag": "decur",
            "custom_load": False,
            "input_size": [modality.channels, *size],
            "fixed_input_size": fixed,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            **normalisation,
            "num_classes": 0,
            "pool_size": None,
            # None: older timm takes weights of bands other than three for those of photographs
            "first_conv": None,
            "classifier": None,
            "license": licence,
        },
        "model_args": {"in_chans": modality.channels, **arguments},
        **about,
    }


def _unknown_to_timm(encoder: Encoder) -> tuple[str, str] | None:
    """Return what timm has not, and the encoder's sensor; None where timm has all."""
    assert encoder.modality is not None
    if encoder.options.get("attention"):
        return "attention", encoder.modality.name
    if not isinstance(encoder, TimmEncoder):
        return f"architecture as {encoder.name!r}", encoder.modality.name
    return None


def _sources(source: Path) -> tuple[RunFolder | None, dict[str, Path]]:
    """Return the run that encoders come from, if there is one, and their files."""
    if source.is_dir():
        run = RunFolder(source)
        if not (files := run.saved_encoders()):
            raise DataError(
                f"{source}: holds no encoders/*.safetensors; give a finished run's folder, or an "
                "encoder file"
            )
        return (run if run.config.is_file() else None), {file.stem: file for file in files}
    run = RunFolder(source.parent.parent)
    of_run = source.parent.name == "encoders" and run.config.is_file()
    return (run if of_run else None), {source.stem: source}


def _check_folder(out: Path, expected: Sequence[Path]) -> None:
    """Refuse a folder that holds anything but an export of the same encoders."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; give a folder for --format hub")
    make_folder(out, "--out")
    known = {*expected, *(path.parent for path in expected)}
    for path in sorted(out.rglob("*")):
        if path not in known:
            raise ConfigError(f"--out {out}: holds {path.relative_to(out)}; choose another folder")


def _push(folder: Path, repository: str) -> None:
    """Upload a folder to the hub in one commit.

    Raises:
        ConfigError: saying why the hub did not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Encoders of decur"
        )
    except Exception as error:  # the hub's client and those below it have dozens of classes
        raise ConfigError(
            f"--push {repository}: the hub does not take it ({reason_of(error)}); {folder} is "
            "written, log in with `hf auth login` and give the same command again"
        ) from error
    log.info("pushed: %s/%s", api.endpoint, repository)
