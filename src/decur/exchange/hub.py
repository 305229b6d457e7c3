"""Encoders as folders that timm, terratorch and decur load, with a model card; also on the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from decur.encoders import Encoder, TimmEncoder, load_encoder, save_encoder
from decur.encoders.files import HUB, WEIGHTS, read_objective
from decur.errors import ConfigError, DataError, reason_of
from decur.exchange.card_scores import ABSENT, CardScores, read_scores
from decur.modality import Modality
from decur.objectives.blocks import COMMON
from decur.objectives.decur import SHARE
from decur.pretrain.directions import Counted
from decur.pretrain.metrics import offdiag_by_chance, read_metrics
from decur.runs import RunFolder, make_folder, write_json, write_text, writing

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
        scores: folders of `decur transfer`, whose results come into the card. Those of other
            encoders are refused; where that cannot be told, a row names the encoders.
        push: "USER/REPO" of the hub, which is made where it is missing.

    Returns:
        The files.

    Raises:
        ConfigError: if `out` holds something else or cannot be written, if scores are of other
            encoders, or if the hub refuses.
        DataError: if an encoder or a result cannot be read.
    """
    source, out = Path(source), Path(out)
    run, files = _sources(source)
    encoders = {name: load_encoder(file) for name, file in files.items()}
    objectives = [read_objective(file) for file in files.values()]
    if not source.is_dir():  # whose name says nothing of the sensor
        encoders = {e.modality.name: e for e in encoders.values() if e.modality is not None}
    homes = {name: out / name if source.is_dir() else out for name in encoders}
    written = [home / name for home in homes.values() for name in (CONFIG, WEIGHTS)]
    told = read_scores(scores, encoders, trained=run is not None)
    _check_folder(out, [*written, out / CARD])
    with writing(out):
        for (name, encoder), objective in zip(encoders.items(), objectives, strict=True):
            write_json(homes[name] / CONFIG, timm_config(encoder, licence))
            save_encoder(encoder, homes[name] / WEIGHTS, objective=objective)
        shown = {name: home.relative_to(out).as_posix() for name, home in homes.items()}
        card = write_card(
            out / CARD,
            encoders,
            folders=shown,
            run=run,
            licence=licence,
            scores=told,
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


# -- the model card: what encoders take, how they were made, what they are worth -------------------

_SCALING = {
    "standard": "clip((x - mean + 2 std) / (4 std), 0, 1)",
    "zscore": "(x - mean) / std",
    "image": "from the minimum to the maximum of each picture and band to [0, 1]",
}


def write_card(
    path: Path,
    encoders: Mapping[str, Encoder],
    *,
    folders: Mapping[str, str],
    run: RunFolder | None,
    licence: str | None,
    scores: CardScores,
    repository: str | None,
) -> Path:
    """Write the card of some encoders, and return its path.

    Args:
        path: of the card.
        encoders: `{sensor: encoder}`, each with its modality.
        folders: where each lies, from the card's folder on; "." for that folder itself.
        run: that has trained them; None: not known.
        licence: of the weights.
        scores: of transfers.
        repository: "USER/REPO" of the hub; None: the folder stays here.
    """
    title = repository or path.parent.resolve().name
    training, objective = ([], None) if run is None else _training(run)
    sensors = [
        _sensor(name, encoder, _timm_source(folders[name], title, repository))
        for name, encoder in encoders.items()
    ]
    template = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(files("decur.exchange").joinpath("card.md").read_text(encoding="utf-8"))
    text = template.render(
        title=title,
        sensors=sensors,
        source=f"{HUB}{repository}" if repository else title,
        download=repository if repository and set(folders.values()) != {"."} else None,
        timm=all(sensor["timm"] for sensor in sensors),
        objective=objective,
        training=training,
        scores=[*scores.rows, *([] if run is None else _alignment(run))],
        warnings=scores.warnings,
        licence=licence,
    )
    return write_text(path, text)


def _timm_source(folder: str, title: str, repository: str | None) -> str:
    """Return the name by which timm finds an encoder; it opens no folder of a repository."""
    if folder == ".":
        return f"{HUB}{repository}" if repository else f"local-dir:{title}"
    return f"local-dir:{title.rpartition('/')[2]}/{folder}"


def _sensor(name: str, encoder: Encoder, source: str) -> dict[str, Any]:
    """Return what the card says of one encoder."""
    modality = encoder.modality
    assert modality is not None
    attention = bool(encoder.options.get("attention"))
    blank = [ABSENT] * modality.channels
    numbers = [
        [f"{value:g}" for value in values] if values is not None else blank
        for values in (modality.mean, modality.std)
    ]
    return {
        "name": name,
        "variable": re.sub(r"\W|^(?=\d)", "_", name),  # of Python
        "encoder": encoder.name,
        "attention": attention,
        "timm": source if isinstance(encoder, TimmEncoder) and not attention else None,
        "dim": encoder.dim,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "scaling": _scaling(modality, "normalisation" in encoder.options),
        "bands": list(zip(modality.bands, *numbers, strict=True)),
    }


def _scaling(modality: Modality, normalised: bool) -> str:
    """Return in words how raw values become what an encoder takes."""
    low, high = modality.value_range
    formula = _SCALING.get(modality.scaling, f"(x - {low:g}) / ({high:g} - {low:g}), cut to [0, 1]")
    said = [f"Raw values x become {formula}."]
    if modality.converts:
        decibels = ", in decibels" if modality.to_db else ""
        said.append(
            f"Raw values are the numbers of files times {modality.factor or 1:g} plus "
            f"{modality.offset or 0:g}{decibels}."
        )
    if modality.cut:
        said.append(
            f"Before, {modality.cut:g} % of the pixels of each picture and band are clipped to the "
            "rest, half at either end."
        )
    if modality.nodata is not None:
        middle = "0" if modality.scaling == "zscore" else "0.5"
        said.append(f"Pixels of {modality.nodata} were not measured and become {middle}.")
    if normalised:
        said.append(
            "Then pretrained_cfg.mean and std of config.json apply, which timm leaves to you."
        )
    return " ".join(said)


def _training(run: RunFolder) -> tuple[list[tuple[str, str]], dict[str, Any] | None]:
    """Return the table of how a run was trained, and its objective."""
    values = run.configuration(used=())  # only told of, so that it may name any module
    spec = _mapping(values, "objective")
    name = str(spec.get("class_path", "")).rpartition(".")[2]
    data = _mapping(values, "data")
    root = _mapping(data, "init_args").get("root")
    started = _plain(_started(_mapping(values, "encoder")))
    rows = read_metrics(run)
    last = rows[-1] if rows else {}
    table = {
        "data": str(data.get("class_path", "")).rpartition(".")[2]
        + (f", {Path(str(root)).name}" if root else ""),
        "objective": f"{name}: {_plain(_in_effect(_mapping(spec, 'init_args'), run))}",
        "encoders started from": started,
        "projector": _plain(_mapping(values, "projector")),
        "views": _plain({"size": _mapping(values, "views").get("size")}),
        "optimiser": _plain(_mapping(values, "optimizer")),
        "batch": str(_mapping(values, "loader").get("batch_size", "")),
        "epochs": f"{last['epoch']:.0f}" if "epoch" in last else "",
        "steps": f"{last['step']:.0f}" if "step" in last else "",
        "seed": str(values.get("seed", "")),
    }
    known = {"name": name, "started": started} if name else None
    return [(k, v) for k, v in table.items() if v], known


def _in_effect(options: Mapping[str, Any], run: RunFolder) -> dict[str, Any]:
    """Return the options of an objective that its run went by: its blocks, or the share counted."""
    chosen = dict(options)
    if chosen.get("blocks"):
        chosen.pop(COMMON, None)  # which has no effect beside blocks
    if chosen.get(COMMON) == "auto" and (counted := Counted.read(run)) is not None:
        found, taken = counted.share(), counted.taken()
        how = "could not be counted" if found is None else "counted"
        if counted.is_few:
            how = f"counted {found:.2g}, too few"
        chosen[COMMON] = f"{SHARE if taken is None else taken:.3g} ({how})"
    return chosen


def _started(encoder: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encoder[key] for key in ("pretrained", "weights") if encoder.get(key)}


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _plain(values: Mapping[str, Any]) -> str:
    """Return settings as text for a cell of a table."""
    text = ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
    return text.replace("|", "\\|")


def _alignment(run: RunFolder) -> list[list[str]]:
    """Return how far the embeddings agree at the end of a run, beside what chance gives."""
    rows = read_metrics(run)
    found = []
    for key, value in (rows[-1] if rows else {}).items():
        if key.startswith("diagonal/"):
            floor, about = "0", "uncorrelated embeddings"
        elif key.startswith("offdiag_rms/"):
            by_chance = offdiag_by_chance(key, rows[-1])
            floor = ABSENT if by_chance is None else f"{by_chance:.3f}"
            about = "uncorrelated embeddings of a batch"
        else:
            continue
        shown = [f"training: {key}", f"{value:.3f}", floor, about]
        found.append([*shown, "on training batches of the last epoch"])
    return found
