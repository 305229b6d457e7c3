"""A whole data set through encoders, into a folder of Parquet files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur.data import LoaderSettings, PairedDataset
from decur.digest import digest, try_digest
from decur.embed.model import EmbeddingModel, build_model
from decur.embed.parts import PartData, PartWriter, bad_of, open_part, part_file, schema
from decur.encoders import EncoderSettings
from decur.errors import ConfigError, DataError
from decur.pretrain.trainer import quiet_lightning
from decur.progress import progress_bar
from decur.runs import RunFolder, write_json
from decur.transfer.settings import MissingBands

HEADER = "embeddings.json"
FORMAT = 1  # of the folder; raised when it would come out otherwise
_MOST = 4096  # samples of a part: what a killed run does again, at most
_PARTS = 64  # parts of a small data set, so that several processes share it


@dataclass(frozen=True)
class Embedded:
    """What embedding leaves: the folder, its rows by sensor, and what could not be read."""

    folder: Path
    rows: dict[str, int]
    bad: list[tuple[str, str]]


def embed(
    data: PairedDataset,
    encoders: str | Sequence[str],
    out: str = "embeddings",
    modalities: Sequence[str] | None = None,
    projector: bool = True,
    missing_bands: MissingBands = "refuse",
    encoder: EncoderSettings = EncoderSettings(),  # noqa: B008
    loader: LoaderSettings = LoaderSettings(),  # noqa: B008
    size: int | None = None,
    seed: int = 0,
    trainer: dict[str, Any] | None = None,
) -> Embedded:
    """Write a row for each sample and sensor: id, modality, features, parts of the embedding.

    The columns `common` and `unique` are there where the encoders are those of a run whose
    objective tells them apart, `embedding` where it does not. Samples that lack a sensor have no
    row for it. Each file holds a fixed range of samples and gets its name when it is whole: the
    same call again, on any number of processes, goes on after a kill and ends with the same rows.

    Args:
        data: any data set.
        encoders: folders of runs, encoder files, "timm:NAME", "torchgeo:NAME", or "random".
        out: folder to write.
        modalities: sensors to use; None for all of the data that there is an encoder for.
        projector: False leaves the embedding out.
        missing_bands: "empty" takes bands of an encoder that the data has not as 0 in every
            scaled picture; the bands of the data are found by name.
        encoder: architecture of fresh weights.
        loader: batches, workers, tolerance of bad samples.
        size: height and width in pixels that pictures are resized to; None for their own.
        seed: of fresh weights.
        trainer: options of Lightning's Trainer: devices, num_nodes, strategy, precision, ...

    Returns:
        The folder, rows by sensor, bad samples; in processes other than the first no rows.

    Raises:
        ConfigError: if the configuration cannot be run, or `out` holds something else.
        DataError: if encoders and data do not fit together, or too much of it cannot be read.
    """
    if size is not None and size < 1:
        raise ConfigError(f"size: height and width in pixels, at least 1, is {size}")
    require_pyarrow()
    _check_ids(data)
    console, folder = Console(soft_wrap=True, markup=False, emoji=False), Path(out)
    root = getattr(data, "root", None)  # whose contents tell data sets apart
    if root is not None and Path(root).resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"--out {folder}: lies within the data; choose a folder beside it")
    quiet_lightning()
    warnings.filterwarnings("ignore", ".*Couldn't infer the batch indices.*")  # not used
    model = build_model(
        *(encoders, data.modalities, modalities, encoder, seed, missing_bands, projector, size)
    )
    options = {key: value for key, value in (trainer or {}).items() if value is not None}
    about = _about(data, encoders, model, loader, str(options.get("precision", "32-true")))
    part = _check_folder(folder, about)
    about["part"] = part
    plain = {key: value for key, value in about.items() if key != "data"}
    limit = loader.max_bad * len(data)
    writer = PartWriter(folder, schema(model.widths, plain), limit)
    try:
        engine = L.Trainer(
            **options,
            logger=False,
            callbacks=[writer, _Bar(console)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error
    _keep(folder, about)  # not before the trainer: the folder holds on to these options
    if engine.is_global_zero:
        console.print(f"data        {data.describe()}", highlight=False)
        for column, widths in model.widths.items():
            text = ", ".join(f"{name} {dim}" for name, dim in widths.items())
            console.print(f"{column:<12}{text}", highlight=False)
    names = list(model.modalities)
    wanted = data.only(names, targets=())
    parts = PartData(wanted, names, loader, folder, part, about["content"])
    try:
        engine.predict(model, parts, return_predictions=False)
    finally:
        writer.close()
    engine.strategy.barrier("decur.embed")
    if not engine.is_global_zero:
        return Embedded(folder, {}, [])
    return _finish(folder, list(model.modalities), len(data), part, limit, console)


def require_pyarrow() -> None:
    """See that pyarrow is there.

    Raises:
        ConfigError: naming what to install.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError("embeddings need pyarrow: pip install 'decur[embed]'") from error


def read_header(folder: Path) -> dict[str, Any]:
    """What a folder of embeddings says of itself.

    Raises:
        DataError: if it is none, or of a newer decur.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_text())
        version = header["format"]
    except FileNotFoundError:
        raise DataError(f"{folder}: holds no embeddings; `decur embed` writes them") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); embed anew") from error
    if version > FORMAT:
        raise DataError(f"{path}: written by a newer decur (format {version}); upgrade")
    return header


def _check_ids(data: PairedDataset) -> None:
    """See that ids can be written down: names of files need not be text."""
    for id_ in data.ids:
        try:
            id_.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the id {id_!r} is no UTF-8; rename its files") from error


def _about(
    data: PairedDataset,
    encoders: str | Sequence[str],
    model: EmbeddingModel,
    loader: LoaderSettings,
    precision: str,
) -> dict[str, Any]:
    """What the rows depend on, and what a reader of them wants to know."""
    parts = -(-len(data) // _PARTS)
    batches = max(1, -(-parts // loader.batch_size))
    return {
        "format": FORMAT,
        "encoders": [encoders] if isinstance(encoders, str) else list(encoders),
        "weights": model.digests,
        "data": _identity(data),
        "content": try_digest(
            data.only(list(model.modalities), targets=()),
            what="embeddings are computed anew each time",
        ),
        "samples": len(data),
        "modalities": {name: m.to_dict() for name, m in model.modalities.items()},
        "widths": model.widths,
        "parts": {name: [dims.start, dims.stop] for name, dims in model.parts.items()},
        "size": model.size,
        "precision": precision,
        "part": min(_MOST, batches * loader.batch_size),
    }


def _identity(data: PairedDataset) -> str:
    """Which data set it is, whatever its files hold now: its class, plain settings and ids."""
    plain = {k: str(v) for k, v in data.made_of.items() if isinstance(v, str | int | float | Path)}
    return digest(type(data).__name__, plain, data.ids)


_FREE = ("encoders", "part", "content")  # may differ: where weights lie, batches; pictures


def _check_folder(folder: Path, about: Mapping[str, Any]) -> int:
    """See that the folder is free or holds the same; samples of a part."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file, not a folder")
    if (folder / HEADER).is_file():
        before, now = read_header(folder), json.loads(json.dumps(about))
        if "content" not in before:  # of version 0.1, which told data apart in another way
            now.pop("data")
        for key in now:
            if key not in _FREE and before.get(key) != now[key]:
                raise ConfigError(
                    f"--out {folder}: holds embeddings of other {key}; choose another folder, or "
                    "delete this one"
                )
        return int(before["part"])
    try:
        names = [file.name for file in folder.iterdir()] if folder.exists() else []
        # other processes of this command may be writing the same
        if not all(HEADER in name or name.endswith(".tmp") for name in names):
            raise ConfigError(
                f"--out {folder}: is not empty and holds no embeddings; choose another folder"
            )
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be read ({error.strerror})") from error
    return int(about["part"])


def _keep(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder, where it is not there yet; note what its pictures are."""
    if (folder / HEADER).is_file() and read_header(folder).get("content") == about["content"]:
        return
    try:
        write_json(folder / HEADER, about)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error


def _finish(
    folder: Path, names: Sequence[str], samples: int, part: int, limit: float, console: Console
) -> Embedded:
    """Count the rows and list what could not be read, of this call and of earlier ones."""
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
    console.print(f"rows        {text}\nwritten     {folder}", highlight=False)
    return Embedded(folder, rows, bad)


class _Bar(Callback):
    """A bar over the batches of the first process, for people."""

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
        """One batch on."""
        if trainer.is_global_zero:
            self.bar.advance(self.task)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take it away, whatever ended the command."""
        self.bar.stop()
