"""`embed`: a whole data set through encoders, into a folder of Parquet files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur.data import LoaderSettings, PairedDataset
from decur.data.base import refuse_within_data, require_data
from decur.data.loader import reporting_lost_workers
from decur.data.units import check_units
from decur.devices import check_processes
from decur.digest import digest, try_digest
from decur.embed.geography import GEOMETRY, is_placed, write_item
from decur.embed.model import EmbeddingModel, build_embedder
from decur.embed.parquet import (
    FORMAT,
    HEADER,
    bad_of,
    open_part,
    part_file,
    read_folder_header,
    require_pyarrow,
    schema,
)
from decur.embed.parts import PartData, PartWriter
from decur.embed.settings import EmbedSettings
from decur.errors import ConfigError, DataError
from decur.layers import override
from decur.pretrain.trainer import keep_raw_values, quiet_lightning
from decur.runs import RunFolder, write_json, writing
from decur.terminal import progress_bar, tell_result
from decur.transfer.settings import encoder_sources
from decur.transfer.sources import take_known_bands

_MOST = 4096  # samples of a part: what a killed run does again, at most
_PARTS = 64  # parts of a small data set, so that several processes share it


@dataclass(frozen=True)
class Embedded:
    """What `embed` leaves: the folder, its rows by sensor, and what could not be read.

    Whatever takes the folder takes this in its place: `read_embeddings(embedded)`.
    """

    folder: Path
    rows: dict[str, int]
    bad: list[tuple[str, str]]

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        rows = ", ".join(f"{count:,} of {name}" for name, count in self.rows.items())
        return f"<rows {rows}; {self.folder}>"


def embed(
    data: PairedDataset,
    encoders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    settings: EmbedSettings | None = None,
    trainer: Mapping[str, Any] | None = None,
    **options: Any,
) -> Embedded:
    """Write a row for each sample and sensor: id, modality, features, parts of the embedding.

    The columns `common` and `unique` are there where the encoders are those of a run whose
    objective tells them apart, `embedding` where it does not. Samples that lack a sensor have no
    row for it. Where the data knows where it lies, the column `geometry` holds footprints, the
    files are GeoParquet, and `item.json` is a STAC item of them. Each file holds a fixed range of
    samples and gets its name when it is whole: the same call again, on any number of processes,
    goes on after a kill and ends with the same rows. If files of the data have changed meanwhile,
    all rows are computed anew.

    Args:
        data: any data set.
        encoders: folders of runs, encoder files, "timm:NAME", "torchgeo:NAME", "random", or
            "random:RUN".
        settings: what to do; None for the defaults.
        trainer: options of Lightning's Trainer: devices, num_nodes, strategy, precision, ...
        **options: fields of `EmbedSettings` by name, which override those of `settings`:
            `embed(data, "runs/mine", out="embeddings")`.

    Returns:
        The folder, rows by sensor, bad samples; in processes other than the first no rows.

    Raises:
        ConfigError: if the configuration cannot be run, or `out` holds something else.
        DataError: if encoders and data do not fit together, or too much of it cannot be read.
    """
    require_data(data, "embed")
    settings = override(settings or EmbedSettings(), options, "embed")
    sources = encoder_sources(encoders)
    require_pyarrow()
    _check_ids(data)
    refuse_within_data(Path(settings.out), data)
    with reporting_lost_workers(), RunFolder(Path(settings.out)).owned("--out"):
        return _embed(data, sources, settings, trainer)


def _embed(
    data: PairedDataset,
    sources: list[str],
    settings: EmbedSettings,
    trainer: Mapping[str, Any] | None,
) -> Embedded:
    """Embed into a folder that this process owns; arguments as those of `embed`."""
    folder, loader = Path(settings.out), settings.loader
    console = Console(soft_wrap=True, markup=False, emoji=False)
    quiet_lightning()
    warnings.filterwarnings("ignore", ".*Couldn't infer the batch indices.*")  # not used
    warnings.filterwarnings("ignore", ".*length of `DataLoader` across ranks is zero.*")  # all done
    model = build_embedder(sources, data.modalities, settings)
    fitting = take_known_bands(data, model.taken)
    wanted = fitting.only(list(model.model.modalities), targets=())
    given = {key: value for key, value in (trainer or {}).items() if value is not None}
    about = {
        **_describe(data, wanted, model, loader),
        "encoders": sources,
        "precision": str(given.get("precision", "32-true")),
        GEOMETRY: is_placed(wanted) and not _is_without_geometry(folder),
    }
    part = about["part"] = _check_folder(folder, about)
    plain = {key: value for key, value in about.items() if key != "data"}
    limit = loader.max_bad * len(data)
    writer = PartWriter(folder, schema(model.widths, plain), limit)
    try:
        engine = L.Trainer(
            **given,
            logger=False,
            callbacks=[writer, _Bar(console)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error
    check_processes(engine.strategy.root_device.type, engine.num_devices)
    keep_raw_values(engine)
    _keep(folder, about)  # not before the trainer: the folder holds on to these options
    if engine.is_global_zero:
        console.print(f"data        {data.describe()}", highlight=False)
        check_units(wanted, model.model.modalities)
        for column, widths in model.widths.items():
            text = ", ".join(f"{name} {dim}" for name, dim in widths.items())
            console.print(f"{column:<11} {text}", highlight=False)
    names = list(model.model.modalities)
    parts = PartData(
        wanted, names, loader, folder, part, content=about["content"], placed=about[GEOMETRY]
    )
    try:
        engine.predict(model, parts, return_predictions=False)
    finally:
        writer.close()
    engine.strategy.barrier("decur.embed")
    if not engine.is_global_zero:
        return Embedded(folder, {}, [])
    if about[GEOMETRY]:
        write_item(folder, wanted, about, _footprints(folder))
    return _finish(folder, names, len(data), part, limit, console)


def _check_ids(data: PairedDataset) -> None:
    """Refuse ids that cannot be written down: names of files need not be text."""
    for id_ in data.ids:
        try:
            id_.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the id {id_!r} is no UTF-8; rename its files") from error


def _describe(
    data: PairedDataset, wanted: PairedDataset, model: EmbeddingModel, loader: LoaderSettings
) -> dict[str, Any]:
    """Return what the rows depend on, and what a reader of them wants to know."""
    parts = -(-len(data) // _PARTS)
    batches = max(1, -(-parts // loader.batch_size))
    return {
        "format": FORMAT,
        "weights": model.digests,
        "data": _identity(data),
        "content": try_digest(wanted, what="embeddings are computed anew each time"),
        "samples": len(data),
        "modalities": {name: m.to_dict() for name, m in model.model.modalities.items()},
        "widths": model.widths,
        "parts": {name: [dims.start, dims.stop] for name, dims in model.parts.items()},
        "size": model.model.size,
        "part": min(_MOST, batches * loader.batch_size),
    }


def _identity(data: PairedDataset) -> str:
    """Return which data set it is, whatever its files hold now: class, plain settings and ids."""
    plain = {k: str(v) for k, v in data.made_of.items() if isinstance(v, str | int | float | Path)}
    return digest(type(data).__name__, plain, data.ids)


def _is_without_geometry(folder: Path) -> bool:
    """Return whether a folder was begun by version 0.1, which wrote no footprints."""
    return (folder / HEADER).is_file() and GEOMETRY not in read_folder_header(folder)


def _footprints(folder: Path) -> set[bytes]:
    """Return the footprints of all rows."""
    found: set[bytes] = set()
    for path in sorted(folder.glob("part-*.parquet")):
        with open_part(path) as part:
            found.update(filter(None, part.read([GEOMETRY])[GEOMETRY].to_pylist()))
    return found


_UNSAID = {GEOMETRY: False}  # what version 0.1 did not say
_FREE = ("encoders", "part", "content")  # may differ: where weights lie, batches; pictures


def _check_folder(folder: Path, about: Mapping[str, Any]) -> int:
    """Refuse a folder that is neither free nor holds the same; return the samples of a part."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file, not a folder")
    if (folder / HEADER).is_file():
        before, now = read_folder_header(folder), json.loads(json.dumps(about))
        if "content" not in before:  # of version 0.1, which told data apart in another way
            now.pop("data")
        for key in now:
            if key not in _FREE and before.get(key, _UNSAID.get(key)) != now[key]:
                raise ConfigError(
                    f"--out {folder}: holds embeddings of other {key}; choose another folder, or "
                    "delete this one"
                )
        return int(before["part"])
    try:
        names = [path.name for path in RunFolder(folder).entries()] if folder.exists() else []
        # other processes of this command may be writing the same
        if not all(HEADER in name or name.endswith(".tmp") for name in names):
            raise ConfigError(
                f"--out {folder}: is not empty and holds no embeddings; choose another folder"
            )
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be read ({error.strerror})") from error
    return int(about["part"])


def _keep(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the header, where there is none yet or the data has changed."""
    there = read_folder_header(folder) if (folder / HEADER).is_file() else {}
    if there and there.get("content") == about["content"]:
        return
    with writing(folder):
        write_json(folder / HEADER, about)


def _finish(
    folder: Path, names: Sequence[str], samples: int, part: int, limit: float, console: Console
) -> Embedded:
    """Count the rows and list what could not be read, in this call and in earlier ones."""
    import pyarrow.compute as pc

    rows, bad = dict.fromkeys(names, 0), []
    for number in range(-(-samples // part)):
        with open_part(part_file(folder, number)) as file:
            bad += bad_of(file)
            for found in pc.value_counts(file.read(["modality"])["modality"]).to_pylist():
                rows[found["values"]] += found["counts"]
    RunFolder(folder).list_bad(bad)
    if len(bad) > limit:  # each of several processes has counted its own only
        raise DataError(
            f"{len(bad)} samples could not be read, more than loader.max_bad allows; {folder} "
            "lists them: mend them and delete the folder, or allow more"
        )
    text = ", ".join(f"{name} {count}" for name, count in rows.items())
    console.print(f"rows        {text}", highlight=False)
    tell_result("written     ", folder)
    return Embedded(folder, rows, bad)


class _Bar(Callback):
    """Shows a bar over the batches of the first process."""

    def __init__(self, console: Console) -> None:
        self.bar = progress_bar(console, "embedding", "batches", TimeRemainingColumn())

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show it."""
        if trainer.is_global_zero:
            self.task = self.bar.add_task("", total=sum(map(int, trainer.num_predict_batches)))
            self.bar.start()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the progress bar by one batch."""
        if trainer.is_global_zero:
            self.bar.advance(self.task)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take it away, whatever ended the command."""
        self.bar.stop()
