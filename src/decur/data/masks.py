"""Masks of a folder of pairs: which value of a file is which class, and which mean "unknown"."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from decur.data import pictures, rasters
from decur.data.decoding import decoding
from decur.data.files import MAX_PIXELS, read_image, read_mask
from decur.data.sample import VOID, Target
from decur.data.selection import spaced
from decur.errors import BadSampleError, DataError

log = logging.getLogger(__name__)

CLASSES_FILE = "classes.txt"  # in the folder of masks

_LOOKED_AT = 200  # masks that are read to tell how many classes there are
EMPTY = -(2**31)  # in raw values: the file itself says that nothing is there
_UNKNOWN = frozenset({"unknown", "void"})  # names in classes.txt that are no class
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_CODES = re.compile(  # what may stand behind a name: a value, three of them, or #rrggbb
    r"(?P<name>.*?)(?:\s*[,;\t]\s*(?P<value>-?\d+)|\s*[,;\s]\s*"
    r"(?P<colour>\d+\s*[,;\s]\s*\d+\s*[,;\s]\s*\d+|#[0-9a-fA-F]{6}))\s*"
)
_VALUE_FIRST = re.compile(r"(-?\d+)\s*[:;,\s]\s*(\D.*)")
_HEADER = re.compile(
    r"(class|name|label|id|value|index|code|r|g|b|red|green|blue|colou?r|hex|rgb|[,;\s])+", re.I
)
_SPARSE = 32  # classes from which on most of them must be seen
_MOST = 2**16  # classes that numbers may stand for


@dataclass(frozen=True)
class MaskCodes:
    """What the values, or the colours, of the masks in a folder mean.

    Args:
        folder: of the masks, for messages.
        classes: their names.
        nodata: values that mean "unknown".
        table: `{value: index of its class}`, None as the index of what is unknown; a colour is red
            * 65536 + green * 256 + blue. None: a value is the index of its class.
        colours: whether the table is of colours.
        max_pixels: height times width that is read at most.
    """

    folder: Path
    classes: tuple[str, ...]
    nodata: tuple[int, ...] = (VOID,)
    table: Mapping[int, int | None] | None = None
    colours: bool = False
    max_pixels: int = MAX_PIXELS

    @property
    def target(self) -> Target:
        """The masks as a label."""
        return Target("mask", self.classes)

    def read(self, file: str | Path) -> Tensor:
        """Read a mask at its own size.

        Returns:
            (H, W) int64, the class of each pixel; `Target.void` where it is unknown.

        Raises:
            BadSampleError: naming the file, if it cannot be read or a value is no class.
        """
        read = _read_colours if self.colours else read_raw_mask
        raw = read(file, max_pixels=self.max_pixels)  # (H, W)
        mask, stray = self.decode(raw)
        if bool(stray.any()):
            raise BadSampleError(file, self._stray(int(raw[stray][0])))
        return mask

    def decode(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes that values mean, and which values mean none.

        Args:
            raw: (H, W) int64 values, or colours; `EMPTY` where nothing is there.

        Returns:
            (H, W) int64 classes, `Target.void` where they are unknown; (H, W) bool.
        """
        unknown = raw == EMPTY
        for value in self.nodata if not self.colours else ():
            unknown |= raw == value
        if self.table is None:
            mask, known = raw, (raw >= 0) & (raw < len(self.classes))
        else:
            mask, known = torch.zeros_like(raw), torch.zeros_like(unknown)
            for value, index in self.table.items():
                here = raw == value
                known |= here
                if index is None:
                    unknown |= here
                else:
                    mask[here] = index
        return mask.masked_fill(unknown, self.target.void), ~(known | unknown)

    def _stray(self, value: int) -> str:
        """Return what is wrong with a value, or colour, that is no class."""
        table = self.folder / CLASSES_FILE
        if self.colours:
            colour = ", ".join(str(value >> shift & 255) for shift in (16, 8, 0))
            return (
                f"has the colour {colour}, which is no class; add a line `name, {colour}` to "
                f"{table}, with the name `unknown` where it means that"
            )
        remedy = f"if it means unknown, give --data.mask_nodata {value} " + " ".join(
            map(str, self.nodata)
        )
        if self.table is not None:
            return f"has value {value}, which is no class of {table}; add its line, or {remedy}"
        if value >= 0:
            remedy = f"list all classes in {table}; {remedy}"
        return f"has value {value}, known are 0 to {len(self.classes) - 1}; {remedy}"


def read_class_list(folder: Path) -> MaskCodes:
    """Return what `classes.txt` says of a folder's masks, see `read_codes`; no classes without it.

    Raises:
        DataError: if it cannot be read, or contradicts itself.
    """
    lines = _class_lines(folder / CLASSES_FILE)
    coded = _coded(folder / CLASSES_FILE, lines)
    if not coded:
        return MaskCodes(folder, lines)
    classes = tuple(name for name, _ in coded if name.lower() not in _UNKNOWN)
    table = {code: classes.index(name) if name in classes else None for name, code in coded}
    colours = any(_code_parts(line)[1] > 1 for line in lines)
    nodata = tuple(value for value in (VOID,) if value not in table)
    return MaskCodes(folder, classes, nodata, table, colours)


def read_codes(
    folder: Path,
    masks: Sequence[str],
    nodata: int | Sequence[int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> MaskCodes:
    """Return what the values of some masks mean: by `classes.txt`, or else by what they hold.

    A line of `classes.txt` is a class: `name`, and then the first line is class 0; or on all lines
    `name, value`, `name, red, green, blue` or `name, #rrggbb`, where the name `unknown` is no
    class. Without that file there are as many classes as up to 200 masks show.

    Args:
        folder: of the masks.
        masks: the files, at least one.
        nodata: values that mean "unknown"; None: 255, unless `classes.txt` has it.
        max_pixels: height times width that is read at most.

    Raises:
        DataError: naming the file that is wrong.
    """
    given = [VOID] if nodata is None else [nodata] if isinstance(nodata, int) else nodata
    unknown = tuple(dict.fromkeys(int(value) for value in given))
    if lossy := next((mask for mask in masks if Path(mask).suffix.lower() in (".jpg", ".jpeg")), 0):
        raise DataError(str(BadSampleError(lossy, _LOSSY.format("JPEG"))))
    listed = replace(read_class_list(folder), max_pixels=max_pixels)
    lines = listed.classes
    if listed.table is not None:
        return listed if nodata is None else replace(listed, nodata=unknown)
    enough = 1 if lines else None
    values, voids, example = _values(spaced(masks, _LOOKED_AT), unknown, enough, max_pixels)
    if values == {0} and example:  # the other classes may be rare: look at all before refusing
        values, voids, _ = _values(masks, unknown, enough, max_pixels)
    highest = max(values, default=-1)
    if highest == 0 and example and len(lines) != 1 and VOID in unknown:
        raise DataError(
            f"{example}: the masks hold only 0 and 255; 255 means unknown: write the foreground as "
            f"1, or the lines `background, 0` and `foreground, 255` to {folder / CLASSES_FILE}"
        )
    remedy = f"give --data.mask_nodata {highest} {' '.join(map(str, unknown))} if that is unknown"
    classes = lines or number_classes(folder, values, remedy)
    if nodata is None and VOID in voids and len(classes) > VOID:
        log.warning(
            "%s: masks hold %d beside classes up to %d, and it means unknown; if it is a class, "
            "give --data.mask_nodata -1",
            folder,
            VOID,
            len(classes) - 1,
        )
    return MaskCodes(folder, classes, unknown, max_pixels=max_pixels)


def number_classes(folder: Path, values: Collection[int], remedy: str) -> tuple[str, ...]:
    """Return the numbers from 0 to the highest value of masks as names of classes.

    Args:
        folder: of the masks, for messages.
        values: that the masks hold.
        remedy: what to do if the highest means "unknown".

    Raises:
        DataError: if there would be more than 65,536 classes.
    """
    highest = max(values, default=0)
    told = f"{folder}: the masks hold {len(values)} different values up to {highest}"
    remedy = f"{remedy}, or a line `name, value` for each in {folder / CLASSES_FILE}"
    if highest >= _MOST:
        raise DataError(f"{told}, and classes are at most {_MOST:,}; {remedy}")
    if highest >= _SPARSE and 4 * len(values) <= highest:
        log.warning("%s, taken for %d classes; %s", told, highest + 1, remedy)
    return tuple(map(str, range(highest + 1)))


def read_raw_mask(file: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read the values of a mask as they are: (H, W) int64.

    Raises:
        BadSampleError: as `read_mask`, and for a file whose compression changes classes.
    """
    refuse_lossy(file)
    return read_mask(file, empty=EMPTY, max_pixels=max_pixels)


_LOSSY = (
    "is compressed as {}, which changes the classes along edges; save masks as PNG, or as TIFF "
    "without loss"
)


def refuse_lossy(file: str | Path) -> None:
    """Refuse a mask whose compression has changed its classes.

    Raises:
        BadSampleError: naming the compression.
    """
    if how := _lossy(Path(file)):
        raise BadSampleError(file, _LOSSY.format(how))


def _lossy(file: Path) -> str:
    """Return the compression of a file that changes values; nothing for any other."""
    if file.suffix.lower() in pictures.EXTENSIONS:
        return pictures.lossy_format(file)
    if file.suffix.lower() not in rasters.DRIVERS:
        return ""
    try:
        with decoding(file), rasters.open_raster(file) as source:
            about = source.tags(ns="IMAGE_STRUCTURE")
    except BadSampleError:
        return ""  # told of by who reads it
    compression = str(about.get("COMPRESSION", ""))
    lossy = "JPEG" in compression.replace("JPEG2000", "") or "MAX_Z_ERROR" in about
    lossy |= str(about.get("COMPRESSION_REVERSIBILITY", "")).startswith("LOSSY")
    return f"{compression or 'JPEG 2000'} with loss" if lossy else ""


def _read_colours(file: str | Path, *, max_pixels: int) -> Tensor:
    """Read a picture's colours, as numbers: (H, W) int64."""
    refuse_lossy(file)
    picture = read_image(file, max_pixels=max_pixels)
    if len(picture) < 3:
        raise BadSampleError(
            file,
            f"has no colours, and {Path(file).with_name(CLASSES_FILE)} gives the colour of each "
            "class; give values in their place, or convert the file",
        )
    unknown = picture[:3].isnan().any(0)  # (H, W)
    red, green, blue = picture[:3].nan_to_num(0).long()
    colour: Tensor = (red * 256 + green) * 256 + blue
    return colour.masked_fill(unknown, EMPTY)


def _class_lines(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error}); save it as UTF-8") from error
    lines = [line.strip() for line in lines if line.strip()]
    if _HEADER.fullmatch(lines[0] if lines else "") and any(map(_CODES.fullmatch, lines[1:])):
        del lines[0]
    return tuple(lines)


def _code_parts(line: str) -> tuple[str, int, int]:
    """Return the name in a line, how many numbers follow it (0, 1 or 3), and their code."""
    found = _CODES.fullmatch(line)
    if found is None:
        return line, 0, 0
    if found["value"]:
        return found["name"], 1, int(found["value"])
    if _COLOUR.fullmatch(found["colour"]):
        return found["name"], 3, int(found["colour"][1:], 16)
    red, green, blue = map(int, re.findall(r"\d+", found["colour"]))
    return found["name"], 3, (red * 256 + green) * 256 + blue


def _coded(file: Path, lines: Sequence[str]) -> list[tuple[str, int]]:
    """Return names and codes of the lines; nothing if a line has none, as a name may hold any."""
    parts = [_code_parts(line) for line in lines]
    counts = {count for _, count, _ in parts}
    if counts == {0}:
        first = [found for line in lines if (found := _VALUE_FIRST.fullmatch(line))]
        if len(first) < len(lines):
            return []
        log.info("%s: the numbers before its names are taken for the values of masks", file)
        parts = [(found[2], 1, int(found[1])) for found in first]
        counts = {1}
    if not parts:
        return []
    if len(counts) > 1:
        if 3 not in counts:
            return []  # "grass, type 1" may be a name
        odd = next(line for line, (_, count, _) in zip(lines, parts, strict=True) if count != 3)
        raise DataError(
            f"{file}: {odd!r} has no colour, other lines have; write each as "
            "`name, red, green, blue`"
        )
    codes = [code for _, _, code in parts]
    for name, _, code in parts:
        if codes.count(code) > 1:
            raise DataError(f"{file}: two lines have the value of {name!r}; keep one of them")
    if all(name.lower() in _UNKNOWN for name, _, _ in parts):
        raise DataError(f"{file}: names no class; write a line for each")
    return [(name, code) for name, _, code in parts]


def _values(
    files: Sequence[str], unknown: Sequence[int], enough: int | None, max_pixels: int
) -> tuple[set[int], set[int], str | None]:
    """Return the classes that masks hold, what else, and the first file with unknown pixels.

    From the class `enough` on no more masks are read.

    Raises:
        DataError: if none of the masks can be read.
    """
    values: set[int] = set()
    voids: set[int] = set()
    example, first_bad, bad = None, None, 0
    for file in files:
        try:
            mask = read_raw_mask(file, max_pixels=max_pixels)
        except BadSampleError as error:
            first_bad, bad = first_bad or error, bad + 1
            continue  # comes up again when it is read as a sample
        found = set(mask.unique().tolist())
        known = {value for value in found - set(unknown) if value >= 0}
        values |= known
        voids |= found - known
        example = example or (file if known != found else None)
        if enough is not None and max(values, default=-1) >= enough:
            break
    if first_bad and bad == len(files):
        raise DataError(f"none of {bad} masks that were looked at can be read; first: {first_bad}")
    return values, voids, example
