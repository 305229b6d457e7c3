"""`decur pack`: any data set to a few large files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from decur.config import Parser
from decur.data.base import PairedDataset
from decur.data.packed.metadata import HEADER
from decur.data.packed.reading import PackedPairs, verify
from decur.data.packed.writing import pack
from decur.errors import ConfigError
from decur.terminal import is_quiet, tell_result

_LISTED = 20  # bad samples that are printed

_ABOUT = (
    "Pack any data set into a few large files that are read fast, from a folder or an object "
    "store: `decur pack FOLDER OUT` for a folder of pairs, `decur pack --data CLASS --data.root "
    "FOLDER --out OUT` for any data set. The result is read with `--data PackedPairs "
    "--data.root OUT`. An interrupted command goes on where it was. `decur pack --verify OUT` "
    "compares packed data with its checksums."
)


def main(arguments: Sequence[str]) -> None:
    """Run `decur pack ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    arguments = list(arguments)
    folders: list[str] = []
    while len(folders) < 2 and arguments and not arguments[0].startswith("-"):
        folders.append(arguments.pop(0))
    if "--verify" in arguments:
        others = [a for a in arguments if a != "--verify"]
        if not folders and len(others) == 1 and not others[0].startswith("-"):
            folders, others = others, []
        if len(folders) == 1 and not others:
            return _verify(folders[0], os.cpu_count() or 1)
    if len(folders) == 1:
        raise ConfigError(f"decur pack {folders[0]}: where to? decur pack DATA OUT")
    if folders:
        arguments = ["--data.root", folders[0], "--out", folders[1], *arguments]
    parser = build_parser()
    made = parser.instantiate(parser.parse(arguments))
    data: PairedDataset = made.data
    print(f"data        {data.describe()}")
    before = (Path(made.out) / HEADER).is_file()
    with _bar("packing") as progress:
        complete = pack(
            data,
            made.out,
            compression=made.compression,
            quantize=made.quantize,
            chunk_mb=made.chunk_mb,
            workers=made.workers,
            part=made.part,
            max_bad=made.max_bad,
            progress=progress,
        )
    if not complete:
        print("this part is done; the last one to end makes the whole readable")
        return
    packed = PackedPairs(made.out)
    size = sum(chunk.size for chunk in packed.chunks)
    mean = size / len(packed) / 1e6
    if before:
        print("packed already; nothing read; delete the folder to pack anew")
    print(f"packed      {len(packed)} samples, {size / 1e9:.3g} GB, {mean:.3g} MB each")
    for _, path, reason in packed.bad[:_LISTED]:
        print(f"left out    {path}: {reason}")
    if len(packed.bad) > _LISTED:
        print(f"left out    {len(packed.bad) - _LISTED} more, listed in {Path(made.out) / HEADER}")
    tell_result("read with   --data PackedPairs --data.root ", made.out)
    if made.verify:
        _verify(made.out, made.workers)


def build_parser() -> Parser:
    """Return the parser of `decur pack`."""
    parser = Parser("decur pack", _ABOUT)
    parser.usage = "decur pack DATA OUT [--key value ...]  |  decur pack --verify OUT"
    parser.add_config(shipped=False)
    parser.add_argument("--data", type=PairedDataset, help="Data set to pack.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write.")
    parser.add_argument(
        "--compression",
        type=Literal["zstd"] | None,
        help="Compression: zstd is smaller, and slower to read; each sample can still be read "
        "alone.",
    )
    parser.add_argument(
        "--quantize",
        action="store_true",
        help="Store 8 bits of what the modality's scaling makes of the images, as the paper does: "
        "a quarter of float32. Encoders trained on it know it as their scale of values.",
    )
    parser.add_argument("--chunk_mb", type=float, default=64.0, help="Size of a file in MB.")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="Number of reading processes."
    )
    parser.add_argument(
        "--part",
        type=str | None,
        help="Share that this machine packs, as i/n for machine i of n, all writing to one folder; "
        "taken from a SLURM array by itself.",
    )
    parser.add_argument(
        "--max_bad", type=float, default=0.05, help="Share of samples that may be unreadable."
    )
    parser.add_argument(
        "--verify", action="store_true", help="Compare every sample with its checksum at the end."
    )
    parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    parser.show_first(
        {
            "what is packed, and where to": ("data.root", "data", "out"),
            "how": ("compression", "quantize", "chunk_mb", "max_bad", "verify"),
            "who reads": ("workers", "part"),
        }
    )
    return parser


def _verify(folder: str, workers: int) -> None:
    packed = PackedPairs(folder)
    with _bar("verifying") as progress:
        verify(packed, workers=workers, progress=progress)
    print(f"verified    {len(packed)} samples: all as they were written")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = console.is_terminal and not is_quiet()  # elsewhere rich would leave an empty line
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(f"{what} chunks")
        yield lambda done, total: bar.update(task, completed=done, total=total)
