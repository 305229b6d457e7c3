"""A whole transfer: encoders and labels in, results in a folder out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from decur import plotting
from decur.data import PairedDataset
from decur.data.base import require_data
from decur.data.loader import reporting_lost_workers
from decur.data.selection import join_columns
from decur.data.units import check_units
from decur.devices import choose_device
from decur.encoders import Encoder
from decur.errors import ConfigError
from decur.features import (
    FeatureModel,
    Features,
    MasksDifferError,
    SampleLoader,
    cached_features,
    zeroed,
)
from decur.layers import override
from decur.pretrain.trainer import quiet_lightning, seed_everything
from decur.runs import RunFolder, make_folder, write_text
from decur.transfer.engine import Engine, unfinished
from decur.transfer.evaluate import (
    describe_transfer,
    print_results,
    score_test_part,
    write_ids,
    write_predictions,
    write_results,
    write_transfer_report,
)
from decur.transfer.examples import choose_examples, draw_examples
from decur.transfer.fit import averaging_of, train_on_maps, train_on_pictures, train_on_vectors
from decur.transfer.heads import FCN, Fusion, LateFusion, build_model, save_model
from decur.transfer.matching import match_label
from decur.transfer.settings import TransferSettings
from decur.transfer.sources import open_encoders, representation_of, take_known_bands
from decur.transfer.splits import Parts, Rows, choose_parts, join_apart
from decur.transfer.tasks import Kept, choose_task
from decur.transfer.tasks.segmentation import Segmentation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transferred:
    """What a transfer leaves: its folder, its results, and the model in memory.

    Whatever takes the folder takes this in its place: `predict(transferred, scene)`.
    """

    folder: RunFolder
    results: dict[str, Any]
    model: Fusion

    def __fspath__(self) -> str:
        return str(self.folder.path)

    def __repr__(self) -> str:
        metrics = ", ".join(
            f"{name} {one['value']:.3f}" for name, one in self.results["metrics"].items()
        )
        return f"<{self.results['target']}: {metrics}; {self.folder.path}>"


def transfer(
    data: PairedDataset,
    settings: TransferSettings | None = None,
    *,
    test_data: PairedDataset | None = None,
    val_data: PairedDataset | None = None,
    config: str | None = None,
    **options: Any,
) -> Transferred:
    """Learn a label from encoders, test it, and leave a run folder (paper, section 5 and B.2).

    Vectors of frozen encoders are computed once and kept in the cache; a linear head on them is
    solved in a moment. Everything else trains under Lightning.

    Args:
        data: the labelled data set.
        settings: what to do; None for the defaults.
        test_data: a data set to test on; None: one of the folds of `data`.
        val_data: a data set that chooses the best epoch of what trains in epochs; None: see
            `val_fraction`.
        config: the complete configuration as YAML, kept as `config.yaml`.
        **options: fields of `TransferSettings` by name, which override those of `settings`:
            `transfer(data, encoders="runs/mine", target="cover")`.

    Returns:
        The run's folder, its results and the trained model.

    Raises:
        ConfigError: if the configuration cannot be run.
        DataError: if encoders, labels and data do not fit together.
        DivergedError: if the loss is not finite.
    """
    require_data(data, "transfer")
    settings = override(settings or TransferSettings(), options, "transfer")
    with reporting_lost_workers(), RunFolder(Path(settings.run)).owned():
        return _transfer(data, settings, test_data, val_data, config)


def _transfer(
    data: PairedDataset,
    settings: TransferSettings,
    test_data: PairedDataset | None,
    val_data: PairedDataset | None,
    config: str | None,
) -> Transferred:
    """Transfer in a folder that this process owns; arguments as those of `transfer`."""
    started = time.monotonic()
    folder, console = RunFolder(Path(settings.run)), Console(soft_wrap=True)
    data, whole = _join(data, test_data, val_data, settings)
    task = choose_task(whole.targets, settings.target)
    given, settings = (
        settings,
        settings.complete(task, validated=val_data is not None, tested=test_data is not None),
    )
    encoders = open_encoders(whole.modalities, settings)
    settings = replace(
        settings, representation=representation_of(encoders, settings.representation)
    )
    whole = take_known_bands(whole, encoders)
    device = choose_device(settings.device)
    cache = _make_folders(folder, settings.cache)
    quiet_lightning()
    seed_everything(settings.seed)
    console.print(f"data      {whole.describe()}", highlight=False)
    if given.probe == "auto" and settings.freeze and not task.dense:
        console.print(f"probe     {settings.probe}, as {task.name} is a {task.kind}")
    _check_units(whole, encoders)

    model = build_model(settings.head if task.dense else "late_fusion", encoders, task.outputs)
    seen = _collect(whole, model, task.name, settings, cache, device)
    folder.list_bad(seen.bad)
    apart, labels = 0 if val_data is None else len(val_data), seen.labels[task.name]
    parts = choose_parts(whole, data, task, labels, list(encoders), settings, val_samples=apart)
    _begin(folder, config, parts)
    ready = time.monotonic()

    engine = Engine(folder, console, device, settings.precision)
    strength, kept = _learn(model, seen, parts, settings, engine)
    spent = round(ready - started, 3), round(time.monotonic() - ready, 3)
    results = {
        **score_test_part(parts, kept, settings, task.missing_classes(labels[task.known(labels)])),
        **describe_transfer(parts, settings, list(encoders), strength),
        "validation": None if engine.best is None else engine.best.plain(),
        "bad": len(seen.bad),
        "seed": settings.seed,
        "seconds": {"reading": spent[0], "training": spent[1], "cached": not seen.computed},
    }
    _leave(folder, model, parts, kept, results, settings)
    print_results(console, folder, results)
    return Transferred(folder, results, model)


def _join(
    data: PairedDataset,
    test_data: PairedDataset | None,
    val_data: PairedDataset | None,
    settings: TransferSettings,
) -> tuple[PairedDataset, PairedDataset]:
    """Return the data with its columns as one label, and the same with the other parts behind it.

    Raises:
        ConfigError: if two things are to choose the best epoch.
        DataError: if the label of another part does not fit that of the data.
    """
    if val_data is not None and settings.val_fraction:
        raise ConfigError("val_fraction: there is a validation part of its own; leave one out")
    data = join_columns(data, settings.target)
    if test_data is None and val_data is None:
        return data, data
    task = choose_task(data.targets, settings.target)
    data = data.only(targets=[task.name])  # other labels need not be alike
    test_data, val_data = (
        None if other is None else match_label(other, task, key)
        for key, other in (("test_data", test_data), ("val_data", val_data))
    )
    return data, join_apart(data, test_data, val_data)


def _check_units(data: PairedDataset, encoders: Mapping[str, Encoder]) -> None:
    """Warn of pictures in other units than those that the encoders were trained on."""
    trained = {name: encoder.modality for name, encoder in encoders.items()}
    check_units(data, {name: sensor for name, sensor in trained.items() if sensor is not None})


def _make_folders(folder: RunFolder, cache: str | None) -> Path:
    """Make the run's folder and the cache, and return the latter.

    Raises:
        ConfigError: if there is a pretraining run: it is not written over.
    """
    folder.refuse_pretraining()
    make_folder(folder.path, "--run")
    home = Path(cache) if cache else folder.path / "cache"
    make_folder(home, "--cache")
    return home


def _collect(
    data: PairedDataset,
    model: Fusion,
    target: str,
    settings: TransferSettings,
    cache: Path,
    device: str,
) -> Features:
    """Collect all labels, and what frozen encoders give where that is always the same."""
    dense = not isinstance(model, LateFusion)
    maps = isinstance(model, FCN) and settings.stores_maps
    once = {name: model.encoder(name) for name in model.encoders} if settings.freeze else {}
    if settings.augments_probe or (dense and not maps):
        once = {}

    def collect(encoders: dict[str, Encoder]) -> Features:
        return cached_features(
            FeatureModel(encoders, size=settings.size),
            SampleLoader(data.only(list(model.encoders), [target]), settings=settings.loader),
            cache=cache,
            maps=bool(encoders) and dense,
            device=device,
        )

    try:
        return collect(once)
    except MasksDifferError as error:
        log.info("%s; pictures are read in each epoch", error)
        return collect({})


def _begin(folder: RunFolder, config: str | None, parts: Parts) -> None:
    """Delete the results of an earlier transfer, now that all is in order; write the settings."""
    for old in ("results.json", "predictions.npz", "model.safetensors", "metrics.csv"):
        (folder.path / old).unlink(missing_ok=True)
    if config is not None:
        write_text(folder.config, config)
    write_ids(folder.path / "train_ids.txt", parts.ids(parts.train))


def _learn(
    model: Fusion,
    seen: Features,
    parts: Parts,
    settings: TransferSettings,
    engine: Engine,
) -> tuple[float | None, Kept]:
    """Train the head, and the encoders unless frozen; return the regularisation, and the test."""
    parts.task.prepare(seen.labels[parts.task.name][parts.train])
    if settings.fit.class_weights is not None:
        parts.task.weigh(seen.labels[parts.task.name][parts.train])
    if settings.freeze:
        model.freeze()
    elif settings.freeze_modalities:
        _freeze_some(model, settings.freeze_modalities)
    if settings.freeze and isinstance(model, LateFusion) and not settings.augments_probe:
        return _probe(model, seen, parts, settings, engine)
    if isinstance(model, FCN) and seen.features:
        return None, train_on_maps(model, seen, parts, settings, engine)
    if settings.fit.standardise:
        raise ConfigError(
            "fit.standardise: keeps maps, for which masks need one size; leave it out"
        )
    return None, train_on_pictures(model, parts, settings, engine)


def _freeze_some(model: Fusion, names: Sequence[str]) -> None:
    """Keep the encoders of some sensors as they are.

    Raises:
        ConfigError: for a sensor that is not used, or if none is left to fine-tune.
    """
    for name in names:
        if name not in model.encoders:
            raise ConfigError(
                f"freeze_modalities: there is no {name!r}; choose from {', '.join(model.encoders)}"
            )
    if set(names) == set(model.encoders):
        raise ConfigError("freeze_modalities: names all sensors; give --freeze true")
    model.freeze(names)


def _probe(
    model: LateFusion,
    seen: Features,
    parts: Parts,
    settings: TransferSettings,
    engine: Engine,
) -> tuple[float | None, Kept]:
    """Fit a linear head on the vectors of frozen encoders; return as `_learn` does."""
    task, strength = parts.task, None
    labels, x = seen.labels[task.name], _vectors(seen, model, parts.train)
    if settings.probe == "sgd":
        held = None
        if len(parts.val):
            held = _vectors(seen, model, parts.val), labels[parts.val]
        train_on_vectors(
            model.head,
            x,
            labels=labels[parts.train],
            task=task,
            settings=settings,
            engine=engine,
            validated=held,
        )
        task.finish(model.head)
    else:
        names = parts.groups(parts.train)
        groups = None if names is None else np.array(names)
        model.head, strength = task.fit_head(
            settings.probe, x, labels=labels[parts.train], groups=groups, seed=settings.seed
        )
    with torch.no_grad():
        output = model.head(torch.from_numpy(_vectors(seen, model, parts.test)))
    truth = torch.from_numpy(labels[parts.test])
    return strength, task.keep(output, truth, samples=len(parts.test))


def _vectors(seen: Features, model: Fusion, rows: Rows) -> NDArray[np.float32]:
    """Return the vectors of all sensors side by side, zeros where absent: (rows, D)."""
    return np.concatenate([zeroed(seen.features[name][rows]) for name in model.encoders], axis=1)


def _seen_in_training(parts: Parts, model: Fusion, settings: TransferSettings) -> dict[str, Any]:
    """Return what `decur predict` must know to show the model what it was trained on."""
    data, solved = parts.data, settings.freeze and not parts.task.dense
    absent = any(not data.present[name][parts.train].all() for name in model.encoders)
    sizes = {name: data.modalities[name].size for name in model.encoders}
    return {
        "pictures": {name: list(size) if size else None for name, size in sizes.items()},
        "absent": absent,
        "probe": settings.probe if solved else None,
    }


def _leave(
    folder: RunFolder,
    model: Fusion,
    parts: Parts,
    kept: Kept,
    results: dict[str, Any],
    settings: TransferSettings,
) -> None:
    """Write predictions, model, results and report; then forget an unfinished training."""
    task = parts.task
    write_predictions(folder, parts.ids(parts.test), kept)
    if settings.keep_model:
        about = {
            "target": task.name,
            "kind": task.kind,
            "classes": list(task.classes),
            "size": settings.size,
            **_seen_in_training(parts, model, settings),
        }
        save_model(model, folder.path / "model.safetensors", about)
    write_results(folder, results)
    # not before: a test part and its intervals can take long, too
    shutil.rmtree(unfinished(folder).path, ignore_errors=True)
    write_transfer_report(
        folder, results, task, kept, _draw_examples(folder, model, parts, kept, settings)
    )


def _draw_examples(
    folder: RunFolder, model: Fusion, parts: Parts, kept: Kept, settings: TransferSettings
) -> Path | None:
    """Draw the best, the median and the worst mask of the test part; None for other labels."""
    if not isinstance(parts.task, Segmentation) or not plotting.available():
        return None
    examples = choose_examples(kept, parts.test)
    if not examples:
        return None
    sensors = {name: model.modality(name) for name in model.encoders}
    return draw_examples(
        model,
        parts,
        examples,
        folder.figures / "examples.png",
        size=settings.size,
        averaging=averaging_of(settings, sensors),
    )
