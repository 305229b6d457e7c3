"""The model card of exported encoders: what they take, how they were made, what they are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from decur.encoders import Encoder, TimmEncoder
from decur.encoders.files import HUB
from decur.errors import ConfigError, DataError, reading
from decur.modality import Modality
from decur.pretrain.callbacks import read_metrics
from decur.runs import RunFolder, write_text

_ABSENT = "–"
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
    scores: Sequence[Path],
    repository: str | None,
) -> Path:
    """Write the card of some encoders, and return its path.

    Args:
        path: of the card.
        encoders: `{sensor: encoder}`, each with its modality.
        folders: where each lies, from the card's folder on; "." for that folder itself.
        run: that has trained them; None: not known.
        licence: of the weights.
        scores: folders of `decur transfer`.
        repository: "USER/REPO" of the hub; None: the folder stays here.

    Raises:
        DataError: if a score cannot be read.
    """
    title = repository or path.parent.resolve().name
    training, objective = ([], None) if run is None else _training(run)
    sensors = [
        _sensor(name, encoder, _timm_source(folders[name], title, repository))
        for name, encoder in encoders.items()
    ]
    rows = [row for folder in scores for row in _results(folder)]
    if run is not None:
        rows += _alignment(run)
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
        scores=rows,
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
    blank = [_ABSENT] * modality.channels
    numbers = [
        [f"{value:g}" for value in values] if values is not None else blank
        for values in (modality.mean, modality.std)
    ]
    return {
        "name": name,
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
    rows = read_metrics(run)
    last = rows[-1] if rows else {}
    table = {
        "data": str(data.get("class_path", "")).rpartition(".")[2]
        + (f", {Path(str(root)).name}" if root else ""),
        "objective": f"{name}: {_plain(_mapping(spec, 'init_args'))}",
        "encoders started from": _plain(_started(_mapping(values, "encoder"))),
        "projector": _plain(_mapping(values, "projector")),
        "views": _plain({"size": _mapping(values, "views").get("size")}),
        "optimiser": _plain(_mapping(values, "optimizer")),
        "batch": str(_mapping(values, "loader").get("batch_size", "")),
        "epochs": f"{last['epoch']:.0f}" if "epoch" in last else "",
        "steps": f"{last['step']:.0f}" if "step" in last else "",
        "seed": str(values.get("seed", "")),
    }
    return [(k, v) for k, v in table.items() if v], {"name": name} if name else None


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
    batch = _mapping(run.configuration(used=()), "loader").get("batch_size")
    found = []
    for key, value in (rows[-1] if rows else {}).items():
        if key.startswith("diagonal/"):
            found.append([f"training: {key}", f"{value:.3f}", "0", "uncorrelated embeddings"])
        elif key.startswith("offdiag_rms/") and isinstance(batch, int) and batch > 0:
            floor = f"{batch**-0.5:.3f}"
            found.append(
                [f"training: {key}", f"{value:.3f}", floor, "uncorrelated embeddings of a batch"]
            )
    return found


def _results(folder: Path) -> list[list[str]]:
    """Return the scores of a transfer, each with its interval and its floor."""
    path = folder / "results.json"
    if not path.is_file():
        raise ConfigError(f"--scores {folder}: holds no results.json; give a folder of a transfer")
    with reading(path, "transfer again"):
        found = json.loads(path.read_text())
        how = "fine-tuned" if found["freeze"] is False else "frozen"
        what = f"{found['target']}, {'+'.join(found['modalities'])}, {how}"
        rows = []
        for metric, told in found["metrics"].items():
            value, limits, floor = told["value"], told.get("interval"), told.get("floor")
            shown = _ABSENT if value is None else f"{value:.3f}"
            if limits:
                shown += f" ({limits[0]:.3f} to {limits[1]:.3f})"
            floor = _ABSENT if floor is None else f"{floor:.3f}"
            rows.append([f"{metric} of {what}", shown, floor, "the best constant guess"])
    if not rows:
        raise DataError(f"{path}: holds no score; transfer again")
    return rows
