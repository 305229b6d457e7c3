"""`predict_data`: the samples of a data set through a model, into a folder of predictions."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import TimeRemainingColumn
from torch import Tensor

from decur.data import Batch, PairedDataset
from decur.data.chosen_bands import take_bands
from decur.data.loader import reporting_lost_workers
from decur.data.units import check_units
from decur.devices import choose_device
from decur.digest import digest
from decur.errors import ConfigError, DataError, needing
from decur.features import SampleLoader
from decur.layers import override
from decur.modality import Modality
from decur.plotting import class_colours
from decur.predict.model import HeadPredictor, open_predictor, warn_absent
from decur.predict.pixels import map_layout
from decur.predict.raster_files import write_tile
from decur.predict.settings import PredictSettings
from decur.predict.sheet import Sheet
from decur.runs import RunFolder, atomic, writing
from decur.terminal import progress_bar, tell_result

log = logging.getLogger(__name__)

_LONGEST = 200  # bytes of a mask's name; a disk takes 255, with the ending and a temporary name
# Settings that a data set, whose samples are neither windows nor parts of anything, can use.
_OF_DATA = ("out", "loader", "device")
TABLE, MASKS, SHEET = "predictions.parquet", "masks", "contact_sheet.png"


@dataclass(frozen=True)
class Predicted:
    """What `predict_data` leaves: the folder, its samples, and what could not be read."""

    folder: Path
    samples: int
    bad: list[tuple[str, str]]


def predict_data(
    model: str | os.PathLike[str],
    data: PairedDataset,
    *,
    settings: PredictSettings | None = None,
    **options: Any,
) -> Predicted:
    """Predict every sample of a data set.

    `predictions.parquet` has a row for each: its id, and the class with the probability of each
    class, the labels likewise, the number, or of a mask the share of each class. A ridge tells no
    probabilities: its columns "p CLASS" are scores from 0 to 1, by least squares. Masks lie in
    `masks`, named by id: GeoTIFFs where the data knows their place, else PNGs with a palette.
    `contact_sheet.png` shows some samples.

    Args:
        model: a folder of `decur transfer`.
        data: any data set with one of the model's sensors.
        settings: what to do; None for the defaults.
        **options: fields of `PredictSettings` by name, which override those of `settings`.

    Returns:
        The folder, the number of samples, and what could not be read.

    Raises:
        ConfigError: if the configuration cannot be run.
        DataError: if data and model do not fit together, or too much of it cannot be read.
    """
    settings = override(settings or PredictSettings(), options, "predict")
    _refuse_of_scenes(settings)
    with needing("a table of predictions", "eo"):
        import pyarrow  # noqa: F401  # before hours of predicting
    predictor = open_predictor(model)
    predictor.pictures = {}  # samples are pictures, not windows of a grid
    folder, console = (
        RunFolder(Path(settings.out or "predictions")),
        Console(soft_wrap=True, markup=False),
    )
    _refuse_columns(predictor)
    wanted = _fitted(data, predictor)
    console.print(f"data      {data.describe()}", highlight=False)
    check_units(wanted, {name: predictor.modalities[name] for name in wanted.modalities})
    with reporting_lost_workers(), folder.owned("--out"), writing(folder.path):
        return _predict(predictor, wanted, settings, folder, console)


def _refuse_of_scenes(settings: PredictSettings) -> None:
    """Refuse settings that would do nothing.

    Raises:
        ConfigError: naming the first.
    """
    default = PredictSettings()
    for name, value in vars(settings).items():
        if name not in _OF_DATA and value != getattr(default, name):
            raise ConfigError(f"{name}: is for a scene, not for a data set; leave it out")


def _refuse_columns(predictor: HeadPredictor) -> None:
    """Refuse names of classes or labels that would be one column of the table with another.

    Raises:
        ConfigError: naming the column.
    """
    any_answer = np.zeros((len(predictor.bands), 1, 1), np.float32)
    names = ["id", *(name for name, _ in predictor.task.columns(any_answer))]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"the table of predictions would have two columns {twice[0]!r}: rename that label in "
            "the data of the training, and train again"
        )


def _fitted(data: PairedDataset, predictor: HeadPredictor) -> PairedDataset:
    """Return a data set of the model's sensors, whose raw values are meant as the model means them.

    Raises:
        ConfigError: if the model needs a sensor that the data lacks.
        DataError: if the data has none of the model's sensors, or other bands.
    """
    names = [name for name in predictor.modalities if name in data.modalities]
    known, there = ", ".join(predictor.modalities), ", ".join(data.modalities)
    if not names:
        raise DataError(f"the model is for {known}, and the data has {there}; name sensors alike")
    if predictor.needs_all and len(names) < len(predictor.modalities):
        raise ConfigError(f"the model's head needs all of {known}, and the data has only {there}")
    warn_absent(predictor, _absent(data, predictor), "the data")
    data = take_bands(data, {name: predictor.modalities[name].bands for name in names})
    made = copy.copy(data.only(names, targets=()))
    made.modalities = dict(data.modalities)
    for name in names:
        own, wanted = data.modalities[name], predictor.modalities[name]
        if own.channels != wanted.channels:
            raise DataError(
                f"{name}: the data has {own.channels} bands ({', '.join(own.bands)}), the model "
                f"was trained on {wanted.channels} ({', '.join(wanted.bands)}); say in its "
                "modalities.yaml which are these: `bands: {NAME: NUMBER}`, counted from 1"
            )
        made.modalities[name] = _as_meant(own, wanted)
    predictor.reference = names[0]
    return made


def _absent(data: PairedDataset, predictor: HeadPredictor) -> list[str]:
    """Return the sensors of the model that samples of the data lack, and how many where not all."""
    found = []
    for name in predictor.modalities:
        if name not in data.modalities:
            found.append(name)
        elif lacking := int((~data.present[name]).sum()):
            found.append(f"{name} for {lacking:,} of {len(data):,} samples")
    return found


def _as_meant(own: Modality, wanted: Modality) -> Modality:
    """Return how a sensor of the data is read: its own bands, scaled as the model scales them.

    Args:
        own: the sensor as the data says.
        wanted: the same of the model, with as many bands.

    Raises:
        DataError: if the data names other bands than the model's.
    """
    alike = own.bands == wanted.bands
    unnamed = all(re.fullmatch(r"band\d+", band) for band in own.bands)
    if not alike and own.channels > 1 and (own.guessed or unnamed):
        log.warning(
            "%s: nobody said which bands the data has, so its %s are taken for the model's %s in "
            "this order; a modalities.yaml names them",
            own.name,
            ", ".join(own.bands),
            ", ".join(wanted.bands),
        )
    elif not alike and not (own.guessed or unnamed):
        raise DataError(
            f"{own.name}: the data has the bands {', '.join(own.bands)}, the model was trained on "
            f"{', '.join(wanted.bands)}; name them alike in the data's modalities"
        )
    if own.converts:
        return own
    read = {field: getattr(own, field) for field in ("name", "size", "picks", "variable")}
    read["nodata"] = wanted.nodata if own.nodata is None else own.nodata
    return wanted.with_(**read)


def _predict(
    predictor: HeadPredictor,
    data: PairedDataset,
    settings: PredictSettings,
    folder: RunFolder,
    console: Console,
) -> Predicted:
    """Predict into a folder that this process owns; arguments as those of `predict_data`."""
    device = choose_device(settings.device)
    predictor.to(device)
    bad: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    sheet = Sheet(predictor, data, len(data))
    place = {id_: index for index, id_ in enumerate(data.ids)}
    masks: set[Path] = set()
    for batch in _batches(data, settings, console):
        bad += batch["bad"]
        output = predictor.predict(*_inputs(batch, predictor, device))  # (B, K, h, w)
        for number, id_ in enumerate(batch["ids"]):
            there = any(bool(batch["present"][name][number]) for name in batch["present"])
            if not there:
                continue
            answer = output[number].cpu().numpy()  # (K, h, w)
            rows.append({"id": id_, **dict(predictor.task.columns(answer))})
            if predictor.dense:
                mask = answer.argmax(axis=0).astype(np.uint8 if answer.shape[0] < 256 else np.int32)
                at = data.place(place[id_])
                masks.add(_write_mask(folder.path / MASKS, id_, mask, predictor, at))
            sheet.add(place[id_], answer)
    if len(bad) > settings.loader.max_bad * len(data):
        folder.list_bad(bad)
        raise DataError(
            f"{len(bad)} samples could not be read, more than loader.max_bad allows; "
            f"{folder.bad_samples} lists them: mend them, or allow more"
        )
    sheet.save(folder.path / SHEET)
    folder.list_bad(bad)
    _remove_old(folder.path, masks)
    _write_table(folder.path / TABLE, rows)  # last, since it says that all is there
    tell_result(f"written   {len(rows)} samples in ", folder.path)
    return Predicted(folder.path, len(rows), bad)


def _batches(data: PairedDataset, settings: PredictSettings, console: Console) -> Iterator[Batch]:
    """Yield the samples in their order, with a bar."""
    loader = SampleLoader(data, settings=settings.loader)
    with progress_bar(console, "predicting", "batches", TimeRemainingColumn()) as bar:
        yield from bar.track(loader, total=len(loader))


def _inputs(
    batch: Batch, predictor: HeadPredictor, device: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return pictures and presence of all sensors of the model; those of no sample are zeros.

    Args:
        batch: pictures with the bands of the model.
        predictor: whose bands and sensors the inputs have.
        device: of the pictures.
    """
    images, present = {}, {}
    size = batch["images"][predictor.reference].shape
    for name, modality in predictor.modalities.items():
        if name in batch["images"]:
            images[name] = batch["images"][name].to(device)  # (B, C, H, W)
            present[name] = batch["present"][name]
        else:
            none = torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=device)
            images[name] = none.expand(size[0], modality.channels, *size[-2:])
            present[name] = torch.zeros(size[0], dtype=torch.bool)
    return images, present


def mask_name(id_: str) -> str:
    """Return the name of a sample's mask, without its ending: the id, also where it has folders."""
    parts = PurePosixPath(id_).parts
    plain = parts and not id_.startswith("/") and ".." not in parts
    safe = "/ ()[]{}+,;=@&!~#^'" if plain else " "
    name = "".join(c if ord(c) > 127 else quote(c, safe=safe) for c in id_)
    return "/".join(map(_shortened, name.split("/")))


def _shortened(name: str) -> str:
    """Return the name of a file; one that is too long for a disk is cut, and gets a digest."""
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST:
        return name
    return data[: _LONGEST - 40].decode("utf-8", "ignore") + "-" + digest(name)


def _write_mask(
    folder: Path, id_: str, mask: NDArray[Any], predictor: HeadPredictor, place: Any
) -> Path:
    """Write a mask: a GeoTIFF where its place is known, else a PNG with a palette."""
    if place is not None and (place.height, place.width) == mask.shape:
        path = folder / f"{mask_name(id_)}.tif"
        write_tile(path, mask[None], place, map_layout(predictor, {}))
        return path
    if mask.dtype != np.uint8:
        picture = Image.fromarray(mask)
    else:
        picture = Image.fromarray(mask, mode="P")
        picture.putpalette([v for c in class_colours(len(predictor.classes)) for v in c])
    path = folder / f"{mask_name(id_)}.png"
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def _remove_old(folder: Path, masks: set[Path]) -> None:
    """Remove the masks that an earlier table tells of, and this run has not written.

    Args:
        folder: with the earlier table; other files in it are left alone.
        masks: of this run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        earlier = pq.read_table(folder / TABLE, columns=["id"])["id"].to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return
    for id_ in map(str, earlier):
        for ending in (".tif", ".png"):
            old = folder / MASKS / f"{mask_name(id_)}{ending}"
            if old not in masks:
                old.unlink(missing_ok=True)


def _write_table(path: Path, rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    """Write the rows of all samples as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(rows))
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
