"""A whole transfer: encoders and labels in, results in a folder out."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from rich.console import Console

from decur.checkpoint import RunFolder, atomic
from decur.data import PairedDataset
from decur.errors import ConfigError, DataError
from decur.pretrain import EncoderSettings, LoaderSettings
from decur.pretrain.run import quiet_lightning
from decur.transfer.evaluate import intervals
from decur.transfer.fit import Engine
from decur.transfer.learn import Learning
from decur.transfer.models import FCN, Fusion, LateFusion, save_model
from decur.transfer.results import (
    sentence,
    write_ids,
    write_predictions,
    write_report,
    write_results,
)
from decur.transfer.settings import FitSettings
from decur.transfer.sources import gather_encoders
from decur.transfer.splits import Joined, Rows, draw_fraction, fold_split, shared_groups
from decur.transfer.survey import Survey, survey
from decur.transfer.tasks import Task, make_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transferred:
    """What a transfer leaves: its folder, its results, and the model in memory."""

    folder: RunFolder
    results: dict[str, Any]
    model: Fusion


def transfer(
    data: PairedDataset,
    test_data: PairedDataset | None = None,
    encoders: str | Sequence[str] = "random",
    target: str | None = None,
    modalities: Sequence[str] | None = None,
    freeze: bool = True,
    label_fraction: float = 1.0,
    run: str = "runs/transfer",
    probe: Literal["ridge", "sgd"] = "ridge",
    encoder: EncoderSettings = EncoderSettings(),  # noqa: B008
    fit: FitSettings = FitSettings(),  # noqa: B008
    loader: LoaderSettings = LoaderSettings(),  # noqa: B008
    size: int | None = None,
    folds: int = 5,
    fold: int = 0,
    bootstrap: int = 1000,
    seed: int = 0,
    cache: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    config: str | None = None,
) -> Transferred:
    """Learn a label from encoders, test it, and leave a run folder (paper, section 5 and B.2).

    Vectors of frozen encoders are computed once and kept in the cache; a linear head on them is
    solved in a moment. Everything else trains under Lightning.

    Args:
        data: the labelled data set.
        test_data: a data set to test on; None: one of the folds of `data`.
        encoders: the folder of a run, encoder files, or "random" for fresh weights.
        target: the label to learn; may be left out where the data has only one.
        modalities: sensors to use; None for all of the data that there is an encoder for.
        freeze: keep the encoders as they are, to the last bit; else fine-tune them.
        label_fraction: share of the training part's labels that is used, drawn by `seed`.
        run: folder to write.
        probe: the head on frozen vectors: "ridge", its regularisation chosen on a validation
            part of the training part, or "sgd", the paper's.
        encoder: architecture of fresh weights.
        fit: how heads and encoders are trained; what is left open is the paper's.
        loader: batches and workers.
        size: height and width that pictures are resized to; None for their own.
        folds: into how many parts `data` is split, whole groups where it names groups.
        fold: which of them tests, from 0.
        bootstrap: resamples of the test part for the 95 % interval; 0 for none.
        seed: of fresh weights, folds without groups, draws, order and augmentation.
        cache: folder for vectors and labels, may be shared by runs; None: in the run's folder.
        device: "auto" takes the GPU where there is one.
        precision: as Lightning names it, for what trains under it.
        config: the complete configuration as YAML, kept as `config.yaml`.

    Returns:
        The run's folder, its results and the trained model.

    Raises:
        ConfigError: if the configuration cannot be run.
        DataError: if encoders, labels and data do not fit together.
        DivergedError: if the loss is not finite.
    """
    started = time.monotonic()
    if not 0 < label_fraction <= 1:
        raise ConfigError(f"label_fraction: a share in (0, 1], is {label_fraction:g}")
    folder, console = RunFolder(Path(run)), Console(soft_wrap=True)
    if size is not None and size < 1:
        raise ConfigError(f"size: height and width in pixels, at least 1, is {size}")
    whole = data if test_data is None else Joined(data, test_data)
    task = _task(whole, target)
    if probe == "sgd" and task.target.kind == "scalar" and freeze:
        raise ConfigError("probe: sgd is the paper's head for classes; a scalar takes ridge")
    settings = fit.complete(task.target.kind, freeze)
    chosen = gather_encoders(encoders, whole.modalities, modalities, encoder, seed)
    engine = Engine(folder, console, device, precision)
    _make(folder)
    quiet_lightning()
    L.seed_everything(seed, verbose=False)
    console.print(f"data      {whole.describe()}", highlight=False)

    vectors = freeze and not task.dense
    home = Path(cache) if cache else folder.path / "cache"
    seen = survey(whole, task.name, chosen if vectors else {}, home, loader, size, engine.device)
    _list_bad(folder, seen)
    train, test = _parts(whole, data, task, seen, list(chosen), (folds, fold), seed)
    by_class = seen.labels if task.target.kind == "class" else None
    train = draw_fraction(train, label_fraction, seed, by_class, task.target.classes)
    if task.target.kind != "class" and (missing := task.missing_classes(seen.labels[train])):
        log.warning("no training sample shows %s", ", ".join(map(repr, missing)))
    _begin(folder, config)
    write_ids(folder.path / "train_ids.txt", [whole.ids[i] for i in train])
    ready = time.monotonic()

    task.prepare(seen.labels[train])
    model: Fusion = (FCN if task.dense else LateFusion)(chosen, task.outputs)
    if freeze:
        model.freeze()
    learning = Learning(whole, task, train, test, settings, loader, engine, size, seed)
    strength: float | None = None
    if vectors:
        assert isinstance(model, LateFusion)
        strength, kept = learning.probe(model, seen, probe)
    else:
        kept = learning.train_on_pictures(model)
    trained = time.monotonic()

    test_groups = [whole.groups[i] for i in test] if whole.groups is not None else None
    limits = intervals(task, kept, bootstrap, seed, test_groups)
    results: dict[str, Any] = {
        "target": task.name,
        "kind": task.target.kind,
        "metrics": {
            name: {"value": value, **({"interval": list(limits[name])} if limits else {})}
            for name, value in task.metrics(kept).items()
        },
        "by_class": task.by_class(kept),
        "encoders": [encoders] if isinstance(encoders, str) else list(encoders),
        "modalities": list(chosen),
        "freeze": freeze,
        "model": _how(vectors, probe, task),
        "regularisation": strength,
        "fit": None if vectors and probe == "ridge" else settings.plain(),
        "label_fraction": label_fraction,
        "train": len(train),
        "test": len(test),
        "groups": len(set(test_groups)) if test_groups else None,
        "bad": len(seen.bad),
        "seed": seed,
        "seconds": {
            "reading": round(ready - started, 3),
            "training": round(trained - ready, 3),
            "cached": not seen.computed,
        },
    }
    write_predictions(folder, [whole.ids[i] for i in test], kept)
    about = {"target": task.name, "kind": task.target.kind, "classes": list(task.target.classes)}
    save_model(model, folder.path / "model.safetensors", {**about, "size": size})
    write_results(folder, results)
    write_report(folder, results, task, kept)
    _print(console, folder, results)
    return Transferred(folder, results, model)


def _task(data: PairedDataset, target: str | None) -> Task:
    there = ", ".join(f"{name} ({spec.kind})" for name, spec in data.targets.items())
    if not there:
        raise DataError("target: the data has no labels; add labels.csv or mask/ to its folder")
    if target is None:
        if len(data.targets) > 1:
            raise ConfigError(f"target: the data has several labels, choose from {there}")
        target = next(iter(data.targets))
    if target not in data.targets:
        raise ConfigError(f"target: the data has no label {target!r}; choose from {there}")
    return make_task(target, data.targets[target])


def _make(folder: RunFolder) -> None:
    """Make the folder; a pretraining run is not written over."""
    if folder.checkpoints.exists() or (folder.path / "encoders").exists():
        raise ConfigError(
            f"--run {folder.path}: holds a pretraining run; choose another folder for the transfer"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run {folder.path}: cannot be made ({error.strerror})") from error


def _begin(folder: RunFolder, config: str | None) -> None:
    """All is in order: what an earlier transfer left here is no result of this one."""
    for old in ("results.json", "predictions.npz", "model.safetensors", "metrics.csv"):
        (folder.path / old).unlink(missing_ok=True)
    if config is not None:
        with atomic(folder.config) as temporary:
            temporary.write_text(config)


def _list_bad(folder: RunFolder, seen: Survey) -> None:
    folder.bad_samples.unlink(missing_ok=True)
    if seen.bad:
        log.warning("%d samples cannot be read, see %s", len(seen.bad), folder.bad_samples)
        with folder.bad_samples.open("w", newline="") as file:
            csv.writer(file).writerows([("file", "reason"), *seen.bad])


def _parts(
    whole: PairedDataset,
    data: PairedDataset,
    task: Task,
    seen: Survey,
    modalities: Sequence[str],
    folds: tuple[int, int],
    seed: int,
) -> tuple[Rows, Rows]:
    """Labelled samples with one of the sensors at least, to train on and to test on."""
    known = task.known(seen.labels)
    if not known.any():
        raise DataError(
            f"target: no sample has a known label {task.name!r}; correct labels.csv or mask/"
        )
    there = np.logical_or.reduce([whole.present[name] for name in modalities])
    rows = np.flatnonzero(known & there)
    if whole is data:
        train, test = fold_split(rows, data.groups, *folds, seed)
    else:
        train, test = rows[rows < len(data)], rows[rows >= len(data)]
    for part, chosen in (("training", train), ("test", test)):
        if not len(chosen):
            raise DataError(
                f"the {part} part is empty: none of its samples has a known {task.name!r} and one "
                f"of {', '.join(modalities)}; choose another split or label it"
            )
    log.info(
        "%d of %d samples are labelled and seen: %d to train on, %d to test on",
        *(len(rows), len(whole), len(train), len(test)),
    )
    if shared := shared_groups(whole.groups, train, test):
        log.warning(
            "%d groups are in the training and in the test part: the scores flatter; split by "
            "folds instead",
            shared,
        )
    if task.target.kind == "class":
        shown = np.unique(seen.labels[test])
        for name in task.missing_classes(seen.labels[train]):
            if (label := task.target.classes.index(name)) in shown:
                raise DataError(
                    f"target: class {name!r} of {task.name!r} has "
                    f"{int((seen.labels[test] == label).sum())} test samples and none to train on; "
                    "choose another --fold or split, or take the class out"
                )
    return train, test


def _how(vectors: bool, probe: str, task: Task) -> str:
    if task.dense:
        return "FCN"
    return f"linear head ({probe})" if vectors else "late fusion, linear head"


def _print(console: Console, folder: RunFolder, results: dict[str, Any]) -> None:
    console.print(f"transfer  {sentence(results)}", highlight=False)
    for name, value in results["metrics"].items():
        interval = value.get("interval")
        limits = f"   95 % {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        console.print(f"{name:<18}{value['value']:.4f}{limits}", highlight=False)
    console.print(f"results   {folder.path / 'results.json'}", highlight=False)
    console.print(f"report    {folder.report}", highlight=False)
