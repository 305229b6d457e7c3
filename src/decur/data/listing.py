"""The files of a folder of pairs, by modality and id."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from decur.data.files import EXTENSIONS
from decur.errors import DataError

MASK = "mask"  # the folder of masks, and the name of their target

_LAYOUT = "expected ROOT/<modality>/<id>.tif|png|jpg|jp2|npy"
_HIDDEN = (".", "~$")  # how names begin that systems and programs leave behind
_SYSTEM = {"@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"}


def modality_files(
    root: str | Path, names: Sequence[str] | None = None
) -> dict[str, dict[str, str]]:
    """List the picture files of each modality below a root.

    Args:
        root: the folder.
        names: of the modalities; None takes every sub-folder with pictures but `mask`.

    Returns:
        `{modality: {id: file}}`, ids sorted.

    Raises:
        DataError: if the root or a folder is missing or empty, or a modality has two files of
            one id.
    """
    root = Path(root)
    there = subfolders(root)
    if names is not None:
        for name in names:
            if not (root / name).is_dir():
                others = ", ".join(there) or "no folders at all"
                raise DataError(
                    f"{root / name}: modality {name!r} has no folder; there is {others}"
                )
        return {name: scan(root / name, needed=True) for name in names}
    folders = {}
    for name in there:
        # An empty folder is a download that failed; one with other files is somebody's notes.
        files = scan(root / name, needed=not any((root / name).iterdir()))
        if files:
            folders[name] = files
    if not folders:
        raise DataError(f"{root}: no sub-folder with pictures; {_LAYOUT}")
    return folders


def subfolders(root: str | Path) -> list[str]:
    """Return the names of the folders that may be modalities, sorted.

    Raises:
        DataError: if the root is missing.
    """
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; {_LAYOUT}")
    return [name for name in folders_in(root) if name != MASK]


def folders_in(folder: str | Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without what systems leave behind."""
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries if _is_folder(entry)]
    return sorted(n for n in found if n not in _SYSTEM and not n.startswith(_HIDDEN))


def kinds_in(folder: str | Path) -> Counter[str]:
    """Return how many files of each extension a folder holds, "" of those that have none."""
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if not _is_folder(entry)]
    shown = (name for name in files if not name.startswith(_HIDDEN))
    return Counter(sorted(os.path.splitext(name)[1].lower() for name in shown))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; a link that leads nowhere, or in circles, is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def as_id(name: str) -> str:
    """Return a file's name or a table's cell as id; Macs write é as two characters, not one."""
    return unicodedata.normalize("NFC", name)


def scan(folder: Path, needed: bool = False) -> dict[str, str]:
    """List picture files by id, sorted.

    Args:
        folder: the folder.
        needed: refuse it if it has none.

    Raises:
        DataError: if there are two files of one id, a name that is no UTF-8, or none and `needed`.
    """
    files: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            id_, extension = os.path.splitext(entry.name)
            if extension.lower() not in EXTENSIONS or entry.name.startswith(_HIDDEN):
                continue
            id_ = as_id(id_)
            try:
                id_.encode()
            except UnicodeEncodeError as error:  # it could be neither printed nor written down
                raise DataError(
                    f"{folder}: the name {entry.name!r} is no UTF-8; rename the file"
                ) from error
            if id_ in files:
                both = " and ".join(sorted((os.path.basename(files[id_]), entry.name)))
                raise DataError(f"{folder}: two files for id {id_!r}, {both}; keep one")
            files[id_] = entry.path
    if needed and not files:
        raise DataError(f"{folder}: holds no pictures; fill it or remove it; {_LAYOUT}")
    return dict(sorted(files.items()))
