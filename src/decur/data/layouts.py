"""Patterns of names, and those that fit folders of another layout than ROOT/<sensor>/<id>."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from pathlib import Path

from decur.data.files import read_header
from decur.data.listing import folders_in, scan, subfolders
from decur.errors import DataError

SPLITS = frozenset(
    ("train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing")
)
SEPARATORS = "_-. "  # between the parts of a name
_PLACES = re.compile(r"\{(id|split|sensor)\}|(\*)")
_DATE = re.compile(r"(19|20)\d{6}(T\d+)?")
_MOST_SENSORS = 12
_LOOKED_AT = 4  # folders of one level whose files are looked at
_BAND = re.compile(
    rf"(?:(?P<rest>.*)[{re.escape(SEPARATORS)}])?(?:B\d{{1,2}}A?|VV|VH|HH|HV)(?:_\d+m)?",
    re.IGNORECASE,
)


def elsewhere(root: Path) -> str:
    """Return where the pictures of a folder lie whose sub-folders hold none, and the remedy.

    Nothing where there are none in the folder itself either, nor two folders deep.
    """
    try:
        stems = list(scan(root))
        return _in_itself(root, stems) if stems else _two_deep(root)
    except DataError:
        return ""  # the reader of the folder says what is wrong


def one_file_a_band(stems: Iterable[str]) -> list[str]:
    """Return the names of one picture's files where most names end in a band, as `a_B02`."""
    pictures: dict[str, list[str]] = {}
    count = 0
    for stem in stems:
        count += 1
        if found := _BAND.fullmatch(stem):
            pictures.setdefault(found["rest"] or "", []).append(stem)
    apart = [names for names in pictures.values() if len(names) > 1]
    return sorted(apart[0]) if 2 * sum(map(len, apart)) > count else []


def stack_bands(where: str, names: list[str]) -> str:
    """Return what to do about a folder that holds one file a band."""
    return (
        f"{where} holds one file a band ({', '.join(names[:3])}, ...): make one file of those of a "
        f"place, as `rio stack {names[0]}.tif {names[1]}.tif -o PLACE.tif`"
    )


def swapped(folders: Mapping[str, Mapping[str, str]]) -> str:
    """Return the pattern for folders that are places, with a file of each sensor in every one.

    Nothing where folders are sensors. They are places where they hold files of the same few names,
    and files of one name are of a kind, those of a folder are not; or where kinds tell nothing and
    there are more folders than anybody has sensors.

    Args:
        folders: `{folder: {name: file}}`.
    """
    few = dict(list(folders.items())[:_LOOKED_AT])
    if len(few) < 2:
        return ""
    first = min(few)
    named = all(stem.startswith(first) for stem in few[first])  # as p1/p1_s1.tif
    by_word: dict[str, dict[str, str]] = {}
    for folder, files in few.items():
        for stem, file in files.items():
            word = stem.removeprefix(folder).lstrip(SEPARATORS) if named else stem
            by_word.setdefault(word, {})[folder] = file
    if not _are_sensors(by_word, len(folders), few):
        return ""
    between = min(few[first])[len(first) :][:1]
    return f"{{id}}/*{between}{{sensor}}" if named else "{id}/{sensor}"


def _are_sensors(
    by_word: Mapping[str, Mapping[str, str]], count: int, few: Collection[str]
) -> bool:
    """Return whether names of files, `{name: {folder: file}}`, are those of sensors."""
    everywhere = all(set(few) <= set(files) for files in by_word.values())
    if not (2 <= len(by_word) <= _MOST_SENSORS and everywhere) or any(map(str.isdecimal, by_word)):
        return False
    by_folder = {folder: [files[folder] for files in by_word.values()] for folder in few}
    by_name = {word: [files[folder] for folder in few] for word, files in by_word.items()}
    if _told_apart(by_name) != _told_apart(by_folder):
        return _told_apart(by_name)
    return count > max(_MOST_SENSORS, len(by_word))


def _told_apart(files: Mapping[str, Iterable[str]]) -> bool:
    """Return whether all files of a group are of one kind, and groups differ in it."""
    kinds = [set(map(_kind, of_group)) for of_group in files.values()]
    return all(len(found) == 1 for found in kinds) and len(set.union(*kinds)) > 1


def _kind(file: str) -> object:
    """Return what pictures of one sensor have in common; None of one that cannot be read."""
    try:
        header = read_header(file)
    except DataError:
        return None
    return header.bands, header.is_byte, header.is_integer


def _in_itself(root: Path, stems: list[str]) -> str:
    """Return the remedy for pictures that lie in the root itself."""
    if bands := one_file_a_band(stems):
        return stack_bands(str(root), bands)
    for separator, first in product(SEPARATORS, (False, True)):
        ids: dict[str, set[str]] = {}
        for stem in stems:
            head, _, tail = stem.partition(separator) if first else stem.rpartition(separator)
            word, id_ = (head, tail) if first else (tail, head)
            ids.setdefault(word if id_ else "", set()).add(id_)
        shared = set.intersection(*ids.values())
        named = "" not in ids and not any(map(str.isdecimal, ids))
        if named and 2 <= len(ids) <= _MOST_SENSORS and 2 * len(shared) * len(ids) >= len(stems):
            parts = ("{sensor}", "{id}") if first else ("{id}", "{sensor}")
            return (
                f"pictures lie in the folder itself: {len(shared)} would pair with --data.pattern "
                f"'{separator.join(parts)}'"
            )
    return "pictures lie in the folder itself: make a folder for those of each sensor"


def _two_deep(root: Path) -> str:
    """Return the remedy for pictures that lie one folder deeper."""
    inner: dict[str, dict[str, dict[str, str]]] = {}  # {outer folder: {inner one: {id: file}}}
    for name in subfolders(root):
        below = {deeper: scan(root / name / deeper) for deeper in folders_in(root / name)}
        if below := {deeper: files for deeper, files in below.items() if files}:
            inner[name] = below
    if not inner:
        full = (Path(path) for path, _, files in os.walk(root) if files)
        deep = next((f for f in full if f.parent not in (root, root.parent) and scan(f)), None)
        where = f"pictures lie in {deep}: give the folder above it as the root, or a pattern"
        return where if deep else ""
    outside, inside = sorted(inner), sorted({name for below in inner.values() for name in below})
    example = f"{outside[0]}/{min(inner[outside[0]])}"
    stems = inner[outside[0]][min(inner[outside[0]])]
    if bands := one_file_a_band(stems):
        return stack_bands(example, bands)
    if {name.lower() for name in outside} <= SPLITS:
        pattern = "{split}/{sensor}/{id}"
    elif {name.lower() for name in inside} <= SPLITS:
        pattern = "{sensor}/{split}/{id}"
    elif len(inside) == 1:
        pattern = f"{{sensor}}/{inside[0]}/{{id}}"
    elif len(outside) == 1:
        pattern = f"{outside[0]}/{{sensor}}/{{id}}"
    else:
        turned = {i: {o: inner[o][i] for o in outside if i in inner[o]} for i in inside}
        sensors_inside = _level(turned) < _level(inner)
        by_sensor = turned if sensors_inside else inner
        twice = any(  # then a name is only told by the other folder
            len({stem for files in of.values() for stem in files}) < sum(map(len, of.values()))
            for of in by_sensor.values()
        )
        other = "{id}" if twice else "*"
        pattern = f"{other}/{{sensor}}/{{id}}" if sensors_inside else f"{{sensor}}/{other}/{{id}}"
    return f"pictures lie in {example} and the like: give --data.pattern '{pattern}'"


def _level(folders: Mapping[str, Mapping[str, Mapping[str, str]]]) -> tuple[bool, bool, int]:
    """Return how unlikely it is that folders are sensors: by kinds of files, names, number."""
    looked = {
        name: [next(iter(files.values())) for files in list(of.values())[:_LOOKED_AT]]
        for name, of in list(folders.items())[:_MOST_SENSORS]
    }
    return not _told_apart(looked), any(map(str.isdecimal, folders)), len(folders)


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
    for place, pattern in ((0, "*{}{{id}}"), (-1, "{{id}}{}*")):  # dates of sensors differ
        separators = {parts[1 if place == 0 else -2] for parts in words if len(parts) > 2}
        if len(separators) == 1 and all(_DATE.fullmatch(parts[place]) for parts in words):
            found[pattern.format(*separators)] = set()
    for word in sorted(common):
        if len(found) > 40:
            break
        for left, right in product("_-. ", repeat=2):
            if all(f"{left}{word}{right}" in stem for stem in stems):
                found.setdefault(f"{{id}}{left}{word}{right}{{id}}", set())
    for pattern in found:
        compiled = compiled_part(pattern)
        ids = [id_of(match) for stem in stems if (match := compiled.fullmatch(stem))]
        found[pattern] = set(ids) if len(set(ids)) == len(stems) else set()
    return found


def compiled_part(pattern: str) -> re.Pattern[str]:
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
        elif f"(?P<{place[1]}>" in text:
            text += f"(?P={place[1]})"
        elif pattern == place[0]:
            text += f"(?P<{place[1]}>.+)"
        else:
            text += f"(?P<{place[1]}>[^/{re.escape(SEPARATORS)}]+)"
    return re.compile(text + re.escape(pattern[end:]))


def id_of(match: re.Match[str]) -> str:
    """Return the id that a name holds; of several parts, joined by _."""
    parts = {key: text for key, text in match.groupdict().items() if key.startswith("id")}
    return "_".join(parts[key] for key in sorted(parts))
