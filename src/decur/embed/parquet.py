"""A folder of embeddings: a header and Parquet files, each with a fixed range of the samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decur.bounded_yaml import parse_json
from decur.embed.geography import GEOMETRY, geo_metadata
from decur.errors import DataError, needing, reading

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

HEADER = "embeddings.json"
FORMAT = 1  # format of the folder; raised when it would come out otherwise
WHOLE = "embedding"  # column of an embedding that is not in parts; all parts together
BAD = "bad"  # key of a part's list of what could not be read


def require_pyarrow() -> None:
    """See that pyarrow is there.

    Raises:
        ConfigError: naming what to install.
    """
    with needing("a folder of embeddings", "embed"):
        import pyarrow.parquet  # noqa: F401


def read_folder_header(folder: Path) -> dict[str, Any]:
    """Return what a folder of embeddings says of itself.

    Raises:
        DataError: if it is none, or of a newer decur.
    """
    path = folder / HEADER
    if not path.is_file():
        raise DataError(f"{folder}: holds no embeddings; `decur embed` writes them")
    with reading(path, "embed anew"):
        header = dict(parse_json(path.read_text()))
        if header["format"] > FORMAT:
            raise DataError(
                f"{path}: written by a newer decur (format {header['format']}); upgrade"
            )
        header["part"] = int(header["part"])
        for column in ("features", *header["parts"]):
            for name in header["modalities"]:
                int(header["widths"][column][name])
    return header


def part_file(folder: Path, number: int) -> Path:
    """Return where a part lies."""
    return folder / f"part-{number:06}.parquet"


def is_current(path: Path, content: str | None) -> bool:
    """Return whether a part was made of data with this digest; also of one that is cut off.

    Args:
        path: the part.
        content: digest of the data; None: no part is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = parse_json((pq.read_schema(path).metadata or {}).get(b"decur", b"{}"))
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowInvalid):
        return True
    return content is not None and about.get("content") == content


@contextmanager
def open_part(path: Path) -> Iterator[ParquetFile]:
    """Open a part to read it; what is read of it is compared with its checksums.

    Raises:
        DataError: if it is missing, cut off or damaged, also within the block.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: {reason}; delete it and embed again") from error


def bad_of(part: ParquetFile) -> list[tuple[str, str]]:
    """Return files that could not be read for a part, each with the reason."""
    with reading("a part of the embeddings", "delete the folder and embed again"):
        found = parse_json(part.metadata.metadata[BAD.encode()])
        return [(name, reason) for name, reason in found]


def schema(widths: Mapping[str, Mapping[str, int]], about: Mapping[str, object]) -> pa.Schema:
    """Return the columns of a part; with footprints it is GeoParquet.

    Args:
        widths: `{column: {modality: dimensions}}`; a column is of fixed width where all sensors
            have the same.
        about: kept with each part under the key "decur", as JSON; `geometry` says whether there
            are footprints.
    """
    import pyarrow as pa

    fields = [("id", pa.string()), ("modality", pa.string())]
    for column, dims in widths.items():
        alike = len(set(dims.values())) == 1
        fields.append((column, pa.list_(pa.float32(), next(iter(dims.values())) if alike else -1)))
    metadata = {"decur": json.dumps(about)}
    if about.get(GEOMETRY):
        fields.append((GEOMETRY, pa.binary()))
        metadata["geo"] = geo_metadata()
    return pa.schema(fields, metadata=metadata)
