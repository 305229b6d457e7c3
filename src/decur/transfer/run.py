"""A whole transfer: encoders and labels in, results in a folder out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from decur.data import LoaderSettings, PairedDataset
from decur.encoders import EncoderSettings
from decur.errors import ConfigError
from decur.pretrain.trainer import quiet_lightning, seed_everything
from decur.runs import RunFolder, atomic, make_folder
from decur.transfer.asked import Head, Probe, choose_task, refuse, refuse_absent, refuse_sizes
from decur.transfer.averaging import Averaging
from decur.transfer.evaluate import intervals
from decur.transfer.fit import Engine
from decur.transfer.fusion import Fusion
from decur.transfer.learn import Learning
from decur.transfer.models import FCN, HEADS, LateFusion, save_model
from decur.transfer.parts import split_parts
from decur.transfer.results import (
    sentence,
    write_ids,
    write_predictions,
    write_report,
    write_results,
)
from decur.transfer.settings import FitSettings
from decur.transfer.sources import MissingBands, Representation, gather_encoders
from decur.transfer.splits import draw_fraction, join, refuse_shared
from decur.transfer.survey import survey
from decur.transfer.tasks import Task

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
    probe: Probe = "ridge",
    head: Head = "fcn",
    representation: Representation = "features",
    missing_bands: MissingBands = "refuse",
    encoder: EncoderSettings = EncoderSettings(),  # noqa: B008
    fit: FitSettings = FitSettings(),  # noqa: B008
    loader: LoaderSettings = LoaderSettings(),  # noqa: B008
    size: int | None = None,
    test_scales: tuple[float, ...] = (1.0,),
    test_flip: bool = False,
    folds: int = 5,
    fold: int = 0,
    bootstrap: int = 1000,
    seed: int = 0,
    cache: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    keep_model: bool = True,
    config: str | None = None,
) -> Transferred:
    """Learn a label from encoders, test it, and leave a run folder (paper, section 5 and B.2).

    Vectors of frozen encoders are computed once and kept in the cache; a linear head on them is
    solved in a moment. Everything else trains under Lightning.

    Args:
        data: the labelled data set.
        test_data: a data set to test on; None: one of the folds of `data`.
        encoders: folders of runs, encoder files, "timm:NAME" for timm's pretrained weights,
            "torchgeo:NAME" for torchgeo's, or "random" for fresh ones.
        target: the label to learn; may be left out where the data has only one.
        modalities: sensors to use; None for all of the data that there is an encoder for.
        freeze: keep the encoders as they are, to the last bit; else fine-tune them.
        label_fraction: share of the training part's labels that is used, drawn by `seed`.
        run: folder to write.
        probe: the head on frozen vectors: "ridge" or, for classes, "logistic", the
            regularisation chosen on a validation part of the training part; or "sgd", the paper's.
        head: of masks: the paper's "fcn", or "cmx", which fuses two MiT encoders stage by stage.
        representation: what of frozen encoders is probed: their "features", or with the projectors
            of their run, whose folder must be given, the "embedding" or its "common" or "unique"
            dimensions. The model that is saved then holds the projectors as well.
        missing_bands: "empty" takes bands of an encoder that the data has not as 0 in every
            scaled picture, as the authors insert B10; the bands of the data are found by name.
        encoder: architecture of fresh weights.
        fit: how heads and encoders are trained; what is left open is the paper's.
        loader: batches and workers.
        size: height and width that pictures are resized to; None for their own.
        test_scales: the mask of a test picture is the mean of what the model gives for it resized
            by each of these factors.
        test_flip: and for each of them mirrored.
        folds: into how many parts `data` is split, whole groups where it names groups.
        fold: which of them tests, from 0.
        bootstrap: resamples of the test part for the 95 % interval; 0 for none.
        seed: of fresh weights, folds without groups, draws, order and augmentation.
        cache: folder for vectors and labels, may be shared by runs; None: in the run's folder.
        device: "auto" takes the GPU where there is one.
        precision: as Lightning names it, for what trains under it.
        keep_model: write the trained model, encoders and head, as `model.safetensors`; False where
            hundreds of them would fill a disk.
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
    if test_data is not None:
        refuse_shared(data, test_data)
    whole = data if test_data is None else join(data, test_data)
    task, averaging = choose_task(whole, target), Averaging(tuple(test_scales), test_flip)
    refuse(task, freeze, probe, representation, head, averaging)
    settings = fit.complete(task.target.kind, freeze)
    chosen = gather_encoders(
        *(encoders, whole.modalities, modalities, encoder, seed), representation, missing_bands
    )
    refuse_sizes(chosen, whole.modalities, size, averaging)
    engine = Engine(folder, console, device, precision)
    _make(folder)
    home = Path(cache) if cache else folder.path / "cache"
    make_folder(home, "--cache")
    quiet_lightning()
    seed_everything(seed)
    console.print(f"data      {whole.describe()}", highlight=False)
    model: Fusion = (HEADS[head] if task.dense else LateFusion)(chosen, task.outputs)

    vectors = freeze and not task.dense
    # what never changes is computed once
    same = not settings.augment and averaging.trivial and isinstance(model, FCN)
    maps = freeze and task.dense and same
    once = chosen if vectors or maps else {}
    seen = survey(whole, task.name, once, home, loader, size, engine.device, maps)
    folder.list_bad(seen.bad)
    train, test = split_parts(whole, data, task, seen, list(chosen), (folds, fold), seed)
    if head == "cmx":
        refuse_absent(whole, np.concatenate([train, test]), list(chosen))
    by_class = seen.labels if task.target.kind == "class" else None
    train = draw_fraction(train, label_fraction, seed, by_class, task.target.classes)
    if task.target.kind != "class" and (missing := task.missing_classes(seen.labels[train])):
        log.warning("no training sample shows %s", ", ".join(map(repr, missing)))
    _begin(folder, config)
    write_ids(folder.path / "train_ids.txt", [whole.ids[i] for i in train])
    ready = time.monotonic()

    task.prepare(seen.labels[train])
    if freeze:
        model.freeze()
    learning = Learning(whole, task, train, test, settings, loader, engine, size, seed, averaging)
    strength: float | None = None
    if vectors:
        assert isinstance(model, LateFusion)
        strength, kept = learning.probe(model, seen, probe)
    elif maps:
        assert isinstance(model, FCN)
        kept = learning.train_on_maps(model, seen)
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
        "representation": representation,
        "freeze": freeze,
        "model": _how(vectors, probe, representation, task, head),
        "regularisation": strength,
        "fit": None if vectors and probe != "sgd" else settings.plain(),
        "label_fraction": label_fraction,
        "train": len(train),
        "test": len(test),
        "test_scales": list(averaging.scales),
        "test_flip": averaging.flip,
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
    if keep_model:
        save_model(model, folder.path / "model.safetensors", {**about, "size": size})
    write_results(folder, results)
    engine.forget()  # not before: a test part and its intervals can take long, too
    write_report(folder, results, task, kept)
    _print(console, folder, results)
    return Transferred(folder, results, model)


def _make(folder: RunFolder) -> None:
    """Make the folder; a pretraining run is not written over."""
    if folder.checkpoints.exists() or (folder.path / "encoders").exists():
        raise ConfigError(
            f"--run {folder.path}: holds a pretraining run; choose another folder for the transfer"
        )
    make_folder(folder.path, "--run")


def _begin(folder: RunFolder, config: str | None) -> None:
    """All is in order: what an earlier transfer left here is no result of this one."""
    for old in ("results.json", "predictions.npz", "model.safetensors", "metrics.csv"):
        (folder.path / old).unlink(missing_ok=True)
    if config is not None:
        with atomic(folder.config) as temporary:
            temporary.write_text(config)


def _how(
    vectors: bool, probe: Probe, representation: Representation, task: Task, head: Head
) -> str:
    if task.dense:
        return head.upper()
    if not vectors:
        return "late fusion, linear head"
    return (
        f"linear head ({probe})"
        + {
            "features": "",
            "embedding": " on the embedding",
            "common": " on the common dimensions",
            "unique": " on the unique dimensions",
        }[representation]
    )


def _print(console: Console, folder: RunFolder, results: dict[str, Any]) -> None:
    console.print(f"transfer  {sentence(results)}", highlight=False)
    for name, value in results["metrics"].items():
        interval = value.get("interval")
        limits = f"   95 % {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        console.print(f"{name:<18}{value['value']:.4f}{limits}", highlight=False)
    console.print(f"results   {folder.path / 'results.json'}", highlight=False)
    console.print(f"report    {folder.report}", highlight=False)
