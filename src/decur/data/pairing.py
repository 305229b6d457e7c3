"""Which files belong together: by the names of files and folders, or by a pattern."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from decur.data.files import EXTENSIONS, read_header, read_image, read_mask
from decur.data.layouts import (
    compiled_part,
    elsewhere,
    id_of,
    one_file_a_band,
    propose_pattern,
    stack_bands,
    swapped,
)
from decur.data.listing import (
    MASK,
    as_id,
    folders_in,
    kinds_in,
    modality_files,
    scan,
    subfolders,
)
from decur.errors import BadSampleError, ConfigError, DataError

FEWEST_PAIRED = 0.02  # share of the samples that has two sensors: below it names do not pair
FEW_PAIRED = 0.5
# A root with more folders than this, and than file names in them, may have a folder for each place.
_USUAL_SENSORS = 4

_LABELS = re.compile(
    r"(label|mask|gt|ground_?truth|annotation|target|seg|segmentation|class|reference_map)(e?s)?"
    r"(_.*)?|.*_(label|mask|gt)s?|(qa|scl|fmask|cloud|cloud_?mask|udm2?)s?(_.*)?"
)
FEW_VALUES = 16  # whole numbers in the pictures of a folder: no sensor has so few
_LOOKED_AT = 8  # pictures of a folder whose values are counted
_LONGEST_LOOK = 1024  # pixels along a side whose values are counted, about
_BESIDE = frozenset((".xml", ".msk", ".ovr", ".tfw", ".pgw", ".jgw", ".prj", ".txt"))
# Pictures that are not read: a folder of them is rather a sensor that is lost.
_UNREAD = frozenset(
    (".vrt", ".img", ".nc", ".asc", ".grd", ".grib", ".ntf", ".ecw", ".sid", ".dat", ".bin")
    + (".ppm", ".pfm", ".tga", ".heic", ".avif", ".jxl", ".dng", ".pt", ".pth", ".pkl", ".gz")
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
        unread: folders that hold pictures, but none that is read: `{folder: which}`.
    """

    folders: dict[str, dict[str, str]]
    masks: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] | None = None
    left_out: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

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
        if names is None and root.is_dir() and (remedy := elsewhere(root)):
            raise DataError(f"{error}; {remedy}") from error
        raise
    pairing = Pairing(folders)
    if names is None:
        if pattern := swapped(folders):
            raise DataError(
                f"{root}: each folder holds a file of each sensor ({_examples(folders)}): give "
                f"--data.pattern '{pattern}', or name folders in --data.modalities if they are "
                "sensors"
            )
        pairing.labels = label_folders(folders)
        for name in pairing.labels:
            del folders[name]
        for name in subfolders(root):
            if name in folders:
                continue
            unread = _in_words(kinds_in(root / name), _UNREAD)
            if name not in pairing.labels and unread:
                pairing.unread[name] = unread
            why = pairing.labels.get(name) or (f"{unread}, not read" if unread else "no pictures")
            pairing.left_out.append(f"{name}/ ({why})")
    masks = [MASK] if (root / MASK).is_dir() else []
    for name in (*folders, *masks):
        kinds = kinds_in(root / name)
        beside = EXTENSIONS | _BESIDE | ({".img", ".dat"} if ".hdr" in kinds else set())
        if others := _in_words(kinds, set(kinds) - beside):
            pairing.left_out.append(f"{others} in {name}/")
    pairing.masks = scan(root / MASK) if masks else {}
    return pairing


def _in_words(kinds: Mapping[str, int], wanted: Collection[str]) -> str:
    """Return the number of files of each extension that is wanted, as `2 .vrt, 1 .nc`."""
    found = {kind or "without extension": n for kind, n in kinds.items() if kind in wanted}
    return ", ".join(f"{number} {kind}" for kind, number in found.items())


def _examples(folders: Mapping[str, Mapping[str, str]]) -> str:
    return ", ".join(f"{name}/{next(iter(files))}" for name, files in list(folders.items())[:4])


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
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # LabelHand is label_hand
    return _LABELS.fullmatch(re.sub(r"[-. ]", "_", words.lower())) is not None


def label_folders(folders: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the folders that hold labels rather than a sensor's pictures, and why it seems so.

    Nothing where that would leave no sensor at all.
    """
    found: dict[str, str] = {}
    for name, files in folders.items():
        if named_as_labels(name):
            found[name] = "labels by its name"
        elif few := _few_values(list(files.values())):
            found[name] = f"labels by its {few}"
    return found if len(found) < len(folders) else {}


def _few_values(files: list[str]) -> str:
    """Return which values some pictures hold, if they are few whole numbers or colours; else ""."""
    from decur.data.selection import evenly_spaced

    values: set[int] = set()
    pixels, in_colour = 0, False
    for i in evenly_spaced(len(files), _LOOKED_AT):
        try:
            codes, in_colour = _codes_of(files[i])
        except (BadSampleError, DataError):
            return ""  # fractions, other bands, or damaged: told of elsewhere
        values |= set(codes.unique().tolist())
        pixels += codes.numel()
        if len(values) > FEW_VALUES:
            return ""
    few = f"{len(values)} different {'colours' if in_colour else 'values'}"
    return few if len(values) > 1 and pixels >= 1000 else ""


def _codes_of(file: str) -> tuple[Tensor, bool]:
    """Return a number for each pixel, (H, W): its value, its index in a palette, or its colour.

    Of a large picture only some pixels, from all over it.

    Returns:
        The numbers, and whether they stand for red, green and blue.

    Raises:
        BadSampleError: for a picture of other bands, with fractions, or that cannot be read.
    """
    header = read_header(file)
    if header.bands not in (1, 3) or (header.bands == 3 and not header.is_integer):
        raise BadSampleError(file, "holds no codes")
    step = max(1, max(header.size) // _LONGEST_LOOK)
    try:
        return read_mask(file)[::step, ::step], False
    except BadSampleError:
        if header.bands == 1:
            raise
        picture = read_image(file, 3)[:, ::step, ::step]
        red, green, blue = picture.nan_to_num(0).long()
        return (red * 65_536 + green) * 65_536 + blue, True


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
        if len(folders) <= max(_USUAL_SENSORS, len(counts)) or any(map(str.isdecimal, counts)):
            return None
        return (
            f"{root}: {len(folders)} folders hold files of only {len(counts)} names "
            f"({', '.join(sorted(counts)[:4])}); if folders are places and names sensors, give "
            "--data.pattern '{id}/{sensor}'"
        )
    numbers = ", ".join(f"{len(files)} of {name}" for name, files in folders.items())
    remedy = "give the files of one place the same name in each folder"
    if proposal := propose_pattern(folders):
        pattern, would = proposal
        if would > paired:
            remedy = f"{would} would with --data.pattern '{pattern}'"
    elif len(set(map(_plain, counts))) < len(counts):
        remedy = "some names differ only in capitals or leading zeros: rename these files"
    for name, files in folders.items():
        if bands := one_file_a_band(files):
            remedy = stack_bands(name, bands)
    alone = {n: [id_ for id_ in files if counts[id_] < 2] for n, files in folders.items()}
    examples = ", ".join(f"{name}/{ids[0]}" for name, ids in alone.items() if ids)
    if share < FEWEST_PAIRED and not keep:
        what = (
            f"no id has two modalities (for example {examples})"
            if not paired
            else f"only {paired} of {len(counts)} ids have two modalities ({numbers})"
        )
        raise DataError(f"{root}: {what}; {remedy}, or say --data.missing keep")
    return (
        f"{root}: {paired} of {len(counts)} samples have two modalities ({numbers}), without a "
        f"partner are {examples} and more; {remedy}"
    )


def _plain(id_: str) -> str:
    """Return an id without capitals and leading zeros."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", id_.casefold())


def check_masks(root: Path, pairing: Pairing) -> str | None:
    """Return a warning where masks have no picture; refuse masks of which none has one.

    Raises:
        DataError: with the pattern by which they would, if there is one.
    """
    known = pairing.counts
    strangers = [id_ for id_ in pairing.masks if id_ not in known]
    if not strangers:
        return None
    what = (
        f"{root}: {len(strangers)} of {len(pairing.masks)} masks have no picture of their name, "
        f"for example {strangers[0]!r} (a picture's is {min(known)!r})"
    )
    if len(strangers) < len(pairing.masks):
        return f"{what}; they are left out"
    remedy = "give a mask the name of its picture"
    if proposal := propose_pattern({**pairing.folders, MASK: pairing.masks}):
        remedy += f", or --data.pattern '{proposal[0]}'"
    raise DataError(f"{what}; {remedy}")


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
        _check_pattern("all", pattern)
        patterns = dict.fromkeys(names or _sensors_of(root, pattern), pattern)
        masks = pattern.replace("{sensor}", MASK)
        if "/" in pattern and masks != pattern and any(_walk(root, masks.split("/"))):
            patterns[MASK] = pattern
    for name, text in patterns.items():
        _check_pattern(name, text)
    return {
        name: text if "/" in text or not (root / name).is_dir() else f"{name}/{text}"
        for name, text in patterns.items()
    }


def _check_pattern(name: str, text: str) -> None:
    if "{id}" not in text or text.startswith("/") or ".." in text.split("/") or "\\" in text:
        raise ConfigError(
            f"pattern: {text!r} of {name!r} must be a path below the folder that holds {{id}}, as "
            "'{id}_S1Hand' or '{split}/{sensor}/{id}'"
        )


def _sensors_of(root: Path, pattern: str) -> list[str]:
    """Return the sensors of a pattern for all: what stands where it has {sensor}."""
    if "/" not in pattern:
        try:
            return list(_by_folder(root, None).folders)
        except DataError:
            if "{sensor}" not in pattern:
                raise  # else the files may lie in the root itself
    if "{sensor}" not in pattern:
        raise ConfigError(
            f"pattern: {pattern!r} holds no {{sensor}}; add it, or give a pattern a sensor, as "
            '{"s1": "a/{id}", "s2": "b/{id}"}'
        )
    folders: dict[str, dict[str, str]] = {}
    for found, file in _walk(root, pattern.split("/")):
        folders.setdefault(found["sensor"], {})[f"{found['split']}/{found['id']}"] = file
    if not folders:
        raise DataError(f"{root}: the pattern {pattern!r} matches no picture; correct it")
    labels = label_folders({name: files for name, files in folders.items() if name != MASK})
    return sorted(name for name in folders if name not in labels)


def _matches(root: Path, name: str, pattern: str) -> dict[tuple[str, str], str]:
    """Return `{(split, id): file}` of a sensor; the split is empty where the pattern has none."""
    files: dict[tuple[str, str], str] = {}
    for found, file in _walk(root, pattern.replace("{sensor}", name).split("/")):
        key = found["split"], as_id(found["id"])
        if key in files:
            raise DataError(
                f"{file}: is {key[1]!r} by the pattern {pattern!r}, as is {files[key]}; keep "
                "one, or make the pattern narrower, or * into {id}"
            )
        files[key] = file
    if not files:
        raise DataError(
            f"{root}: the pattern {pattern!r} of {name!r} matches no picture; correct it"
        )
    return files


def _walk(
    folder: Path, parts: list[str], known: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, str], str]]:
    """Yield what a pattern tells of each file that it matches, and the file.

    Args:
        folder: where to look.
        parts: of the pattern, one for each folder and the last for names of files.
        known: what the folders above tell: id, split and sensor, each empty where none does.
    """
    known = known or {"id": "", "split": "", "sensor": ""}
    part = parts[0].replace("{sensor}", known["sensor"] or "{sensor}")
    match, last = compiled_part(part), len(parts) == 1
    names = scan(folder) if last else dict.fromkeys(folders_in(folder), "")
    for name, file in names.items():
        if (found := match.fullmatch(name)) is None:
            continue
        told = dict(known)
        told["id"] = "_".join(filter(None, (known["id"], id_of(found))))
        for key in ("split", "sensor"):
            told[key] = found.groupdict().get(key) or known[key]
        if last:
            yield told, file
        else:
            yield from _walk(folder / name, parts[1:], told)
