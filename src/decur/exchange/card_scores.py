"""Scores of transfers for a model card, each with how it came about and whose it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from decur.bounded_yaml import parse_json
from decur.encoders import Encoder, load_encoder
from decur.encoders.files import encoder_files
from decur.encoders.pretrained import parse_source
from decur.errors import ConfigError, DataError, DecurError, enumerated, reading
from decur.objectives.blocks import PREFIX
from decur.transfer.settings import is_fresh

ABSENT = "–"


@dataclass
class CardScores:
    """The table of scores of a card.

    Args:
        rows: cells of each row: what, value, floor, what the floor is, how it was measured.
        warnings: of the results; a row names theirs by number, from 1 on.
    """

    rows: list[list[str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_scores(
    folders: Sequence[str | Path],
    encoders: Mapping[str, Encoder],
    *,
    trained: bool,
) -> CardScores:
    """Return the scores of transfers, each with its interval, its floor and its circumstances.

    Args:
        folders: of `decur transfer`.
        encoders: `{sensor: encoder}` that the card is of.
        trained: whether a run is known that has trained them.

    Raises:
        ConfigError: if a folder holds no results, or those of other encoders.
        DataError: if the results cannot be read.
    """
    scores = CardScores()
    for folder in map(Path, folders):
        path = folder / "results.json"
        if not path.is_file():
            raise ConfigError(
                f"--scores {folder}: holds no results.json; give a folder of a transfer"
            )
        with reading(path, "transfer again"):
            found = parse_json(path.read_text())
            own = {name: encoders.get(name) for name in found["modalities"]}
            sources = [str(source) for source in found.get("encoders", ())]
            first = len(scores.warnings) + 1
            scores.warnings += [_in_a_cell(line) for line in found.get("warnings", ())]
            numbers = range(first, len(scores.warnings) + 1)
            rows = _rows(found, [str(number) for number in numbers])
        if not rows:
            raise DataError(f"{path}: holds no score; transfer again")
        if not _are_exported(folder, sources, own, trained=trained):
            names = enumerated(sources) if sources else "unknown encoders"
            for row in rows:
                row[-1] += _in_a_cell(f"; of {names}: whether these are the ones here is not known")
        scores.rows += rows
    return scores


def _rows(found: Mapping[str, Any], warnings: Sequence[str]) -> list[list[str]]:
    """Return a row for each metric of a `results.json`; those of version 0.1 lack some keys."""
    share, model = found.get("label_fraction"), found.get("model")
    representation = found.get("representation", "features")
    what = [
        str(found["target"]),
        "+".join(found["modalities"]),
        "fine-tuned" if found["freeze"] is False else "frozen",
        *([] if share is None else [f"{100 * share:g} % of the labels"]),
    ]
    how = [] if model is None else [str(model)]
    if representation != "features" and representation.removeprefix(PREFIX) not in str(model):
        how.append(f"on {representation}")
    how += [f"{found[part]} samples to {part}" for part in ("train", "test") if part in found]
    if warnings:
        how.append(f"warning{'s' * (len(warnings) > 1)} {', '.join(warnings)}")
    rows = []
    for metric, told in found["metrics"].items():
        value, limits, floor = told["value"], told.get("interval"), told.get("floor")
        shown = ABSENT if value is None else f"{value:.3f}"
        if limits:
            shown += f" ({limits[0]:.3f} to {limits[1]:.3f})"
        floor = ABSENT if floor is None else f"{floor:.3f}"
        about = "; ".join(how) or ABSENT
        cells = [f"{metric} of {', '.join(what)}", shown, floor, "the best constant guess", about]
        rows.append([_in_a_cell(cell) for cell in cells])
    return rows


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _are_exported(
    folder: Path,
    sources: Sequence[str],
    encoders: Mapping[str, Encoder | None],
    *,
    trained: bool,
) -> bool:
    """Return whether a transfer's encoders are those of the card; False: that cannot be told.

    Names tell little, as files are copied and runs done again: the weights are compared.

    Args:
        folder: of the transfer.
        sources: of its encoders, as `results.json` names them.
        encoders: those of the card for the sensors of the transfer; None where it has none.
        trained: whether a run is known that has trained those of the card.

    Raises:
        ConfigError: if they are others.
    """
    if missing := [name for name, encoder in encoders.items() if encoder is None]:
        raise ConfigError(
            f"--scores {folder}: its encoders are of {enumerated(list(encoders))}, and "
            f"{missing[0]} is not exported; export the run's folder, or transfer with "
            "--modalities of what is exported"
        )
    known = set()
    for source in sources:
        fresh = is_fresh(source)
        if fresh or (trained and parse_source(source)):
            weights = "fresh weights" if fresh else f"weights of {source}"
            raise ConfigError(
                f"--scores {folder}: are of {weights}, not of what is exported; transfer with "
                "--encoders of what is exported"
            )
        for name, encoder in _local(source).items():
            ours = encoders.get(name)
            if ours is None:
                continue
            if not _alike(encoder, ours):
                raise ConfigError(
                    f"--scores {folder}: are of {source}, whose {name} encoder has other weights "
                    "than the one exported; transfer again with --encoders of what is exported"
                )
            known.add(name)
    return known == encoders.keys()


def _local(source: str) -> dict[str, Encoder]:
    """Return the encoders of a folder or file of this machine; none where it cannot be read.

    Nothing is downloaded: what a repository holds may have changed since the transfer.
    """
    path = Path(source)
    with suppress(DecurError, OSError):
        files = list(encoder_files(source).values()) if path.is_dir() else [path]
        found = [load_encoder(file) for file in files if file.is_file()]
        return {e.modality.name: e for e in found if e.modality is not None}
    return {}


def _alike(one: Encoder, other: Encoder) -> bool:
    """Return whether two encoders have the same weights."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )
