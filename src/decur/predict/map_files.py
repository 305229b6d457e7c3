"""The files of a map: their names, what of another map is there, and the joining of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from decur import plotting
from decur.data.map_rasters import read_raster_header
from decur.errors import ConfigError
from decur.locks import LOCK
from decur.predict.raster_files import MapLayout, tag_of, tag_of_virtual, write_virtual
from decur.predict.settings import PredictSettings

MAP, PROBABILITIES = "map", "probabilities"  # kinds of rasters that a map has
UNFINISHED = ".unfinished"  # behind the name of a map: the folder of what is done of it
_SUFFIXES = (".tif", ".tiff")
_READ_WITH = (".aux.xml", ".ovr", ".msk")  # what GDAL reads with a raster of the same name


@dataclass(frozen=True)
class MapFiles:
    """The names of the files of a map, or of one of its parts.

    Args:
        whole: of the map, whichever part of it is made.
        number: which part of how many is made, from 1: (1, 1) for the whole.
        probabilities: whether those of the classes are written.
    """

    whole: Path
    number: tuple[int, int] = (1, 1)
    probabilities: bool = False

    @property
    def parts(self) -> list[Path]:
        """Return the names of all parts of the map."""
        of = self.number[1]
        return [
            self.whole.with_name(f"{self.whole.stem}-{which}of{of}{self.whole.suffix}")
            for which in range(1, of + 1)
        ]

    @property
    def made(self) -> Path:
        """Return the map, or the part that is made."""
        which, of = self.number
        return self.whole if of == 1 else self.parts[which - 1]

    @property
    def work(self) -> Path:
        """Return the folder of what is done before the map is complete."""
        return self.made.with_name(self.made.name + UNFINISHED)

    @property
    def picture(self) -> Path:
        """Return the picture to look at."""
        return self.made.with_suffix(".png")

    @property
    def joined(self) -> list[Path]:
        """Return the virtual rasters that join all parts: of the map, and of probabilities."""
        joined = self.whole.with_suffix(".vrt")
        return [joined, beside(joined, PROBABILITIES)]

    @property
    def rasters(self) -> list[Path]:
        """Return the rasters that are written once the map is complete."""
        return self._of_kinds(self.made)

    @property
    def virtual(self) -> list[Path]:
        """Return the virtual rasters that are written once all parts are there."""
        return [] if self.number[1] == 1 else self.joined[: 2 if self.probabilities else 1]

    def _of_kinds(self, raster: Path) -> list[Path]:
        return [raster, beside(raster, PROBABILITIES)] if self.probabilities else [raster]


def beside(raster: Path, kind: str) -> Path:
    """Return the name of what lies beside a map, such as its probabilities."""
    return raster.with_name(f"{raster.stem}-{kind}{raster.suffix}")


def name_files(settings: PredictSettings, scene: Iterable[Path]) -> MapFiles:
    """Return the names of the files of a map.

    Args:
        settings: of the map.
        scene: the rasters that it is made from.

    Raises:
        ConfigError: for a name that is no GeoTIFF's, a folder, or one of the scene's own files.
    """
    out = Path(settings.out or "map.tif")
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--out {out}: a map is a GeoTIFF; name it .tif")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    files = MapFiles(out, settings.number, settings.probabilities)
    own = {file.resolve() for file in scene}
    # files of the other kind are deleted where they are of an earlier map
    rasters = [files.made, beside(files.made, PROBABILITIES)]
    if files.number[1] > 1:
        rasters += [out, beside(out, PROBABILITIES), *files.joined]
    for name in (*rasters, files.picture, files.made.with_name(f"{files.made.name}.aux.xml")):
        if name.resolve() in own:
            raise ConfigError(
                f"--out {out}: would write {name}, a raster of the scene; choose another name"
            )
    return files


def tell_replaced(files: MapFiles, content: str, console: Console) -> None:
    """Say that another map is replaced, and which files of another one stay beside it.

    Args:
        files: of the map.
        content: what tells it from others.
        console: to print to.

    Raises:
        ConfigError: if what has one of the names that are written is not of decur.
    """
    own: dict[Path, Callable[[Path], object]] = dict.fromkeys(files.rasters, tag_of)
    own |= dict.fromkeys(files.virtual, tag_of_virtual)
    if plotting.available():
        own[files.picture] = plotting.is_drawn
    for path, is_own in own.items():
        if path.exists() and not is_own(path):
            raise ConfigError(
                f"--out {path}: is there and is no map of decur; choose another name, or delete it"
            )
    if files.made.exists() and tag_of(files.made) != content:
        console.print(f"replacing {files.made}, a map of something else", highlight=False)
    if others := _of_others(files, content):
        names = ", ".join(path.name for path in others)
        console.print(
            f"beside    {files.made}: {names} stay, of another map; delete what is of no use",
            highlight=False,
        )


def _of_others(files: MapFiles, content: str) -> list[Path]:
    """Return the whole, the parts and what joins them, as far as they are of another map."""
    whole, others = files.whole, [*files.joined, files.whole]
    others += sorted(whole.parent.glob(f"{_literal(whole.stem)}-*of*{whole.suffix}"))
    written = {*files.rasters, *files.virtual}
    found = []
    for path in others:
        tag = _tag(path) if path.is_file() and path not in written else None
        if tag not in (None, content):
            found.append(path)
    return found + _left_undone(files)


def _left_undone(files: MapFiles) -> list[Path]:
    """Return the folders of unfinished work on other parts of the map, on which nobody works."""
    names = [_literal(files.whole.name), f"{_literal(files.whole.stem)}-*of*{files.whole.suffix}"]
    left = [path for name in names for path in files.whole.parent.glob(f"{name}{UNFINISHED}")]
    own = {part.name + UNFINISHED for part in (files.made, *files.parts)}
    return sorted(p for p in left if p.name not in own and not (p / LOCK).exists())


def _literal(name: str) -> str:
    """Return a name such that no character of it stands for others in a pattern of files."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def remove_stale(files: MapFiles, content: str, console: Console) -> None:
    """Delete what an earlier map has left under names that are read with this one.

    These are its probabilities, its picture where none is drawn now, and what GDAL reads with a
    raster of the same name: overviews, masks and metadata.

    Args:
        files: of the map, which is about to get its final name.
        content: what tells it from others.
        console: to print to.
    """
    stale = [] if plotting.available() else [files.picture]
    probabilities = beside(files.made, PROBABILITIES)
    if not files.probabilities and tag_of(probabilities) is not None:
        stale += [probabilities, *_read_with(probabilities)]
    for raster in files.rasters:
        stale += _read_with(raster)
    names = []
    for path in stale:
        if path.is_file() and (path.suffix != ".png" or plotting.is_drawn(path)):
            path.unlink()
            names += [path.name] if path.suffix != ".xml" else []
    if names:
        console.print(f"deleting  {', '.join(names)}, of an earlier map", highlight=False)
    if files.number[1] > 1:
        _remove_joined(files, content)


def _remove_joined(files: MapFiles, content: str) -> None:
    """Delete what joins the parts of another map, now that one of them is replaced."""
    for path in files.joined:
        if (tag := tag_of_virtual(path)) is not None and tag != content:
            for old in (path, *_read_with(path)):
                old.unlink(missing_ok=True)


def _read_with(raster: Path) -> list[Path]:
    return [raster.with_name(raster.name + ending) for ending in _READ_WITH]


def _tag(path: Path) -> str | None:
    return tag_of_virtual(path) if path.suffix == ".vrt" else tag_of(path)


def join_parts(
    files: MapFiles, content: str, layout: MapLayout, probabilities: MapLayout | None
) -> Path | None:
    """Write the virtual rasters over all parts of a map, once the last of them is there.

    Each part looks for the others after it has its own name, so that of parts which end at the
    same time at least one finds all of them.

    Args:
        files: of the map.
        content: what tells it from others.
        layout: of the parts.
        probabilities: of their probabilities; None: there are none.

    Returns:
        The virtual raster; None where there are no parts, or some are still to be made.
    """
    if files.number[1] == 1 or not all(tag_of(part) == content for part in files.parts):
        return None
    grids = [read_raster_header(part).grid for part in files.parts]
    whole = grids[0].window(0, 0, sum(grid.height for grid in grids), grids[0].width)
    joined, of_classes = files.joined
    write_virtual(
        joined, whole, layout, [(p.name, g) for p, g in zip(files.parts, grids, strict=True)]
    )
    if probabilities is not None:
        names = [beside(part, PROBABILITIES).name for part in files.parts]
        write_virtual(of_classes, whole, probabilities, list(zip(names, grids, strict=True)))
    return joined
