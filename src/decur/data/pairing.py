"""Which files belong together: by the names of files and folders, or by a pattern."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from decur.data.files import EXTENSIONS
from decur.data.listing import MASK, as_id, modality_files, scan, subfolders
from decur.errors import BadSampleError, ConfigError, DataError

FEWEST_PAIRED = 0.02  # share of the samples that has two sensors: below it names do not pair
FEW_PAIRED = 0.5

_SPLITS = frozenset(
    ("train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing")
)
_LABELS = re.compile(
    r"(label|mask|gt|ground_?truth|annotation|target|seg|segmentation|class)s?(_.*)?|.*_(label|mask|gt)s?"
)
FEW_VALUES = 16  # whole numbers in the pictures of a folder: no sensor has so few
_LOOKED_AT = 8  # pictures of a folder for that
_PLACES = re.compile(r"\{(id|split|sensor)\}|(\*)")
_BESIDE = frozenset(
    (".xml", ".msk", ".ovr", ".tfw", ".pgw", ".jgw", ".prj", ".img", ".dat", ".txt")
)


@dataclass
class Pairing:
    """The files of a folder of pairs.

    Args:
        folders: `{sensor: {id: file}}`, ids sorted.
        masks: `{id: file}`.
        splits: `{id: split}` where a pattern tells it.
        left_out: what is there and not read, in words.
        labels: folders that look like labels, and why.
    """

    folders: dict[str, dict[str, str]]
    masks: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] | None = None
    left_out: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[str]:
        """How many sensors each id has."""
        return Counter(id_ for files in self.folders.values() for id_ in files)


def pair_files(
    root: Path, names: tuple[str, ...] | None, pattern: str | Mapping[str, str] | None
) -> Pairing:
    """Return the files of each sensor by id.

    Args:
        root: the folder.
        names: of the sensors; None for all that there are.
        pattern: where their files lie, see `PairedFolder`.

    Raises:
        DataError: if a folder is missing or empty, or an id has two files.
        ConfigError: for a wrong pattern.
    """
    if pattern is None:
        return _by_folder(root, names)
    patterns = _complete(root, names, pattern)
    matched = {name: _matches(root, name, text) for name, text in patterns.items()}
    if MASK not in matched and (root / MASK).is_dir():
        matched[MASK] = {("", id_): file for id_, file in scan(root / MASK).items()}
    splits_of: dict[str, set[str]] = {}
    for split, id_ in (key for files in matched.values() for key in files if key[0]):
        splits_of.setdefault(id_, set()).add(split)
    twice = any(len(splits) > 1 for splits in splits_of.values())  # then the split is part of ids
    found = {
        name: {
            f"{split}_{id_}" if split and twice else id_: file
            for (split, id_), file in sorted(files.items())
        }
        for name, files in matched.items()
    }
    told = {
        f"{split}_{id_}" if twice else id_: split
        for files in matched.values()
        for split, id_ in files
        if split
    }
    masks = found.pop(MASK, {})
    folders = {name: dict(sorted(files.items())) for name, files in found.items()}
    return Pairing(folders, masks, told or None)


def _by_folder(root: Path, names: tuple[str, ...] | None) -> Pairing:
    try:
        folders = modality_files(root, names)
    except DataError as error:
        if names is None and root.is_dir() and (nested := _nested(root)):
            raise DataError(f"{error}; {nested}") from error
        raise
    pairing = Pairing(folders)
    if names is None:
        pairing.labels = label_folders(folders)
        for name in pairing.labels:
            del folders[name]
        others = [name for name in subfolders(root) if name not in {*folders, *pairing.labels}]
        pairing.left_out += [f"{name}/ (no pictures)" for name in others]
        pairing.left_out += [f"{name}/ ({why})" for name, why in pairing.labels.items()]
    for name in folders:
        kinds = Counter(
            os.path.splitext(entry.name)[1].lower() or "without extension"
            for entry in os.scandir(root / name)
            if entry.is_file() and not entry.name.startswith(".")
        )
        pairing.left_out += [
            f"{number} {kind} in {name}/"
            for kind, number in sorted(kinds.items())
            if kind not in EXTENSIONS | _BESIDE
        ]
    pairing.masks = scan(root / MASK) if (root / MASK).is_dir() else {}
    return pairing


def sensor_files(
    root: str | Path,
    names: tuple[str, ...] | None,
    pattern: str | Mapping[str, str] | None = None,
) -> dict[str, dict[str, str]]:
    """Return `{sensor: {id: file}}` of the folders below a root, without those of labels.

    Args:
        root: the folder.
        names: of the sensors; None for all that there are.
        pattern: where their files lie, see `PairedFolder`.

    Raises:
        DataError: as `modality_files` does.
    """
    return pair_files(Path(root), names, pattern).folders


def named_as_labels(name: str) -> bool:
    """Return whether a folder's name says that it holds labels."""
    return _LABELS.fullmatch(name.lower()) is not None


def label_folders(folders: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the folders that hold labels rather than a sensor's pictures, and why it seems so.

    Nothing where that would leave no sensor at all.
    """
    found: dict[str, str] = {}
    for name, files in folders.items():
        if named_as_labels(name):
            found[name] = "labels by its name"
        elif few := _few_values(list(files.values())):
            found[name] = f"labels by its {few} different values"
    return found if len(found) < len(folders) else {}


def _few_values(files: list[str]) -> int:
    """Return how many whole numbers some pictures of one band hold, if they are few; else 0."""
    from decur.data.files import read_header, read_mask
    from decur.data.selection import evenly_spaced

    values: set[int] = set()
    pixels = 0
    for i in evenly_spaced(len(files), _LOOKED_AT):
        try:
            header = read_header(files[i])
            if header.bands != 1:
                return 0
            mask = read_mask(files[i])
        except (BadSampleError, DataError):
            return 0  # fractions, colours, or damaged: told of elsewhere
        values |= set(mask.unique().tolist())
        pixels += mask.numel()
        if len(values) > FEW_VALUES:
            return 0
    return len(values) if len(values) > 1 and pixels >= 1000 else 0


def check_pairs(root: Path, pairing: Pairing, *, keep: bool) -> str | None:
    """Return a warning where few samples have two sensors; refuse where hardly any has.

    Args:
        root: the folder.
        pairing: its files.
        keep: whether it was said that samples without a partner are kept.

    Raises:
        DataError: with the pattern by which they would pair, if there is one.
    """
    folders = pairing.folders
    if len(folders) < 2:
        return None
    counts = pairing.counts
    paired = sum(count > 1 for count in counts.values())
    share = paired / len(counts)
    if share >= FEW_PAIRED:
        return None
    numbers = ", ".join(f"{len(files)} of {name}" for name, files in folders.items())
    remedy = "give the files of one place the same name in each folder"
    if proposal := propose_pattern(folders):
        pattern, would = proposal
        if would > paired:
            remedy = f"{would} would with --data.pattern '{pattern}'"
    examples = ", ".join(f"{name}/{next(iter(files))}" for name, files in folders.items())
    if share < FEWEST_PAIRED and not keep:
        what = (
            f"no id has two modalities (for example {examples})"
            if not paired
            else f"only {paired} of {len(counts)} ids have two modalities ({numbers})"
        )
        raise DataError(f"{root}: {what}; {remedy}, or say --data.missing keep")
    return f"{root}: {paired} of {len(counts)} samples have two modalities ({numbers}); {remedy}"


def propose_pattern(folders: Mapping[str, Mapping[str, str]]) -> tuple[str, int] | None:
    """Return patterns by which most files pair, for `--data.pattern`, and how many samples would.

    In the names of each folder a part that all of them have may be left out: what they begin or
    end with, or a word between.
    """
    ways = {name: _ways(list(files)) for name, files in folders.items()}
    names = list(ways)
    best: dict[str, str] = {}
    reference, *others = names
    most = 0
    for pattern, ids in ways[reference].items():
        chosen, common = {reference: pattern}, 0
        for other in others:
            shares = {way: len(ids & found) for way, found in ways[other].items()}
            way = max(shares, key=lambda one: shares[one])
            chosen[other], common = way, common + shares[way]
        if common > most:
            best, most = chosen, common
    if not best or set(best.values()) == {"{id}"}:
        return None
    shown = ", ".join(f'"{name}": "{pattern}"' for name, pattern in best.items())
    found = Counter(id_ for name in best for id_ in ways[name][best[name]])
    return "{" + shown + "}", sum(count > 1 for count in found.values())


def _ways(stems: list[str]) -> dict[str, set[str]]:
    """Return patterns that names may have, and the ids that each gives."""
    found = {"{id}": set(stems)}
    words = [re.split(r"([_\-. ]+)", stem) for stem in stems]  # words and what separates them
    common = set.intersection(*(set(parts[::2]) for parts in words)) - {""}
    length = min(len(parts) for parts in words)
    first = next((i for i in range(length) if len({p[i] for p in words}) > 1), length - 1)
    last = next((i for i in range(length) if len({p[-1 - i] for p in words}) > 1), length - 1)
    heads = ["".join(words[0][:i]) for i in range(2, first + 1, 2)]
    tails = ["".join(words[0][len(words[0]) - i :]) for i in range(2, last + 1, 2)]
    for head, tail in product(["", *heads], ["", *tails]):
        found.setdefault(f"{head}{{id}}{tail}", set())
    for word in sorted(common):
        if len(found) > 40:
            break
        for left, right in product("_-. ", repeat=2):
            if all(f"{left}{word}{right}" in stem for stem in stems):
                found.setdefault(f"{{id}}{left}{word}{right}{{id}}", set())
    for pattern in found:
        compiled = _compiled(pattern)
        ids = [_id_of(match) for stem in stems if (match := compiled.fullmatch(stem))]
        found[pattern] = set(ids) if len(set(ids)) == len(stems) else set()
    return found


def _nested(root: Path) -> str:
    """Return a pattern for pictures that lie one folder deeper; nothing where there are none."""
    inner = {
        name: [d.name for d in os.scandir(root / name) if d.is_dir() and scan(Path(d.path))]
        for name in subfolders(root)
    }
    inner = {name: below for name, below in inner.items() if below}
    if not inner:
        return ""
    outside, inside = set(inner), {name for below in inner.values() for name in below}
    if {name.lower() for name in outside} <= _SPLITS:
        pattern = "{split}/{sensor}/{id}"
    elif {name.lower() for name in inside} <= _SPLITS:
        pattern = "{sensor}/{split}/{id}"
    else:
        pattern = "*/{sensor}/{id}" if len(inside) > 1 else f"{{sensor}}/{min(inside)}/{{id}}"
    example = f"{min(outside)}/{min(inner[min(outside)])}"
    return f"pictures lie in {example} and the like: give --data.pattern '{pattern}'"


def _complete(
    root: Path, names: tuple[str, ...] | None, pattern: str | Mapping[str, str]
) -> dict[str, str]:
    """Return the pattern of each sensor, relative to the root."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; the pattern is for files below it")
    if isinstance(pattern, Mapping):
        given = {str(name): str(text) for name, text in pattern.items()}
        sensors = names or tuple(name for name in given if name != MASK)
        if not sensors:
            taken = {text.split("/")[0] for text in given.values()}
            found = _by_folder(root, None).folders
            sensors = tuple(name for name in found if name not in taken)
        patterns = {name: given.get(name, "{id}") for name in sensors}
        if MASK in given:
            patterns[MASK] = given[MASK]
    else:
        patterns = dict.fromkeys(names or _sensors_of(root, pattern), pattern)
    for name, text in patterns.items():
        parts = text.split("/")
        if "{id}" not in parts[-1] or text.startswith("/") or ".." in parts or "\\" in text:
            raise ConfigError(
                f"pattern: {text!r} of {name!r} is a path below the folder whose last part holds "
                "{id}, as '{id}_S1Hand' or '{split}/{sensor}/{id}'"
            )
    return {name: text if "/" in text else f"{name}/{text}" for name, text in patterns.items()}


def _sensors_of(root: Path, pattern: str) -> list[str]:
    """Return the sensors of a pattern for all: the folders that stand where it has {sensor}."""
    parts = pattern.split("/")[:-1]
    if not parts:
        return list(_by_folder(root, None).folders)
    if "{sensor}" not in parts:
        raise ConfigError(
            f"pattern: {pattern!r} holds no folder {{sensor}}; add it, or give a pattern a sensor, "
            'as {"s1": "a/{id}", "s2": "b/{id}"}'
        )
    folders = {
        name: files
        for name in _folders_below(root, parts)
        if (files := _matches(root, name, pattern, needed=False))
    }
    labels = label_folders(
        {name: {id_: f for (_, id_), f in files.items()} for name, files in folders.items()}
    )
    return [name for name in folders if name not in labels and name != MASK]


def _folders_below(root: Path, parts: list[str]) -> list[str]:
    """Return the names of folders that stand where the parts have {sensor}, sorted."""
    depth = parts.index("{sensor}")
    found = [root]
    for part in parts[:depth]:
        match = _compiled(part)
        found = [
            Path(d.path)
            for f in found
            for d in os.scandir(f)
            if d.is_dir() and match.fullmatch(d.name)
        ]
    return sorted({d.name for f in found for d in os.scandir(f) if d.is_dir() and d.name[0] != "."})


def _matches(
    root: Path, name: str, pattern: str, needed: bool = True
) -> dict[tuple[str, str], str]:
    """Return `{(split, id): file}` of a sensor; the split is empty where the pattern has none."""
    *parts, last = pattern.replace("{sensor}", name).split("/")
    places: list[tuple[Path, str]] = [(root, "")]
    for part in parts:
        match, deeper = _compiled(part), []
        for folder, split in places:
            for entry in os.scandir(folder):
                if entry.is_dir() and (found := match.fullmatch(entry.name)):
                    deeper.append((Path(entry.path), found.groupdict().get("split") or split))
        places = deeper
    match = _compiled(last)
    files: dict[tuple[str, str], str] = {}
    for folder, split in sorted(places):
        for stem, file in scan(folder).items():
            if (found := match.fullmatch(stem)) is None:
                continue
            key = split, as_id(_id_of(found))
            if key in files:
                raise DataError(
                    f"{file}: is {key[1]!r} by the pattern {pattern!r}, as is {files[key]}; keep "
                    "one, or make the pattern narrower"
                )
            files[key] = file
    if needed and not files:
        raise DataError(
            f"{root}: the pattern {pattern!r} of {name!r} matches no picture; correct it"
        )
    return files


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of one part of a path."""
    text, end, number = "", 0, 0
    for place in _PLACES.finditer(pattern):
        text += re.escape(pattern[end : place.start()])
        end = place.end()
        if place[2]:
            text += "[^/]*"
        elif place[1] == "id":
            number += 1
            text += f"(?P<id{number}>.+?)" if "{id}" in pattern[end:] else f"(?P<id{number}>.+)"
        else:
            text += "(?P<split>[^/]+)" if place[1] == "split" else re.escape(place[0])
    return re.compile(text + re.escape(pattern[end:]))


def _id_of(match: re.Match[str]) -> str:
    """Return the id that a name holds; of several parts, joined by _."""
    parts = {key: text for key, text in match.groupdict().items() if key.startswith("id")}
    return "_".join(parts[key] for key in sorted(parts))
