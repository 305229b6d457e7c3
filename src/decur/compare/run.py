"""A whole comparison: cells run, tables and pictures written, whatever fails on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TimeElapsedColumn

from decur.compare.beside import add_published
from decur.compare.differences import differences
from decur.compare.formats import markdown
from decur.compare.plan import Cell, MethodPlan, Plan, TaskPlan, named
from decur.compare.published import PublishedTable, published_table
from decur.compare.table import Table, read_scores, tabulate
from decur.compare.workers import Workers, is_done, seconds
from decur.compare.writing import write
from decur.errors import ConfigError, DecurError
from decur.progress import progress_bar
from decur.runs import RunFolder, atomic, make_folder


class CellsFailedError(DecurError):
    """Some cells of a comparison failed; the others are in the tables."""

    exit_code = 1


@dataclass(frozen=True)
class Compared:
    """What a comparison leaves: its folder, and its tables in memory."""

    folder: RunFolder
    tables: list[Table]
    failed: dict[Path, str]


def compare(
    methods: dict[str, MethodPlan],
    tasks: dict[str, TaskPlan],
    run: str = "runs/compare",
    backbones: dict[str, dict[str, Any]] | list[str] | None = None,
    data: dict[str, Any] = {},  # noqa: B006
    pretrain: dict[str, Any] = {},  # noqa: B006
    transfer: dict[str, Any] = {},  # noqa: B006
    modalities: list[list[str]] = [],  # noqa: B006
    label_fractions: list[float] = [1.0],  # noqa: B006
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    along: str = "",
    against: str | None = None,
    pretrained: str | None = None,
    devices: int | str | list[int | str] | None = None,
    only: str | None = None,
    dry_run: bool = False,
    config: str | None = None,
) -> Compared:
    """Pretrain and transfer methods x backbones x label fractions x sensors x seeds; make tables.

    Each cell is one `decur pretrain` or `decur transfer`, in a folder of its own that is named by
    its configuration: what is done is not done again, what was interrupted goes on, what failed
    is tried again, and a changed configuration is another cell. A failed cell is named in the
    table with its reason; the others finish.

    Args:
        methods: lines of the tables, by name.
        tasks: what the encoders are tried on, by name.
        run: folder to write.
        backbones: names as `decur pretrain --encoder.name` takes them, or `{name: changes}` with
            changes to pretraining, of which `encoder` holds for fresh weights, too; null: the one
            that the pretraining names.
        data: the data set, for pretraining and transfer alike: `{root: FOLDER}`.
        pretrain: what all pretraining runs have in common, keys of `decur pretrain`; `base` names
            a file or a recipe to build on.
        transfer: what all transfers have in common, keys of `decur transfer`, and `base`.
        modalities: sets of sensors to try, as in `[[s1], [s2], [s1, s2]]`; none: all sensors.
        label_fractions: shares of the labels to try.
        seeds: of everything random; where data is split by folds, seed s tests on fold s.
        along: what the methods' numbers `at` are, as "common dimensions (%)"; pictures then show
            the scores along it.
        against: a method; below each table stands how far the others are above it, seed by seed,
            as what seeds share (the fold, the labels drawn) cancels out in differences.
        pretrained: folder of the pretraining runs; null: RUN/pretrain. Comparisons with the same
            folder, also at the same time, pretrain what they have in common only once.
        devices: GPUs to use, one cell each at a time, by number, as 0 or [0, 1], or `cpu`; null:
            all there are.
        only: run only cells whose label contains this, as `--dry_run true` prints it.
        dry_run: print the cells and what is done, and run nothing.
        config: the complete configuration as YAML, kept as `config.yaml`.

    Returns:
        The folder, the tables, and which cells failed.

    Raises:
        ConfigError: if a configuration is wrong, before anything runs.
        Interrupted: if told to stop; the same call goes on from there.
    """
    plan = Plan(
        *(Path(run), methods, tasks, named(backbones), data, pretrain, transfer),
        *(modalities, label_fractions, seeds, along, Path(pretrained) if pretrained else None),
        against,
    )
    published = {name: _published(name, task.published) for name, task in tasks.items()}
    cells, folder, console = plan.cells(), RunFolder(Path(run)), Console(soft_wrap=True)
    chosen = [cell for cell in cells if only is None or only in cell.label]
    todo = _with_needs([cell for cell in chosen if not is_done(cell)], cells)
    console.print(f"compare   {folder.path}", highlight=False)
    console.print(
        f"cells     {len(cells)}: {sum(map(is_done, cells))} done, {len(todo)} to do",
        highlight=False,
    )
    if dry_run:
        for cell in cells:
            console.print(f"{'done' if is_done(cell) else '    '}  {cell.label}", highlight=False)
        return Compared(folder, [], {})
    _begin(folder, config)
    failed: dict[Path, str] = {}
    try:
        _run(todo, _devices(devices), console, failed)
    finally:  # what there is, is shown, also when told to stop
        tables = tabulate(cells, failed, tasks)
        for table in tables:
            add_published(table, cells, published)
        if against is not None:
            pairs = [(table, differences(table, against)) for table in tables]
            tables = [table for pair in pairs for table in pair if table is not None]
        write(folder, tables, cells, len(seeds), plan.axis)
    console.print()
    console.print(markdown(tables, len(seeds)), highlight=False, markup=False)
    console.print(f"tables    {folder.path / 'tables.md'}", highlight=False)
    console.print(f"report    {folder.report}", highlight=False)
    return Compared(folder, tables, failed)


def _published(task: str, names: Sequence[str]) -> list[PublishedTable]:
    try:
        return [published_table(name) for name in names]
    except ConfigError as error:
        raise ConfigError(f"tasks.{task}.published: {error}") from error


def _with_needs(todo: Sequence[Cell], cells: Sequence[Cell]) -> list[Cell]:
    """Cells to run and the unfinished ones that they need, in order."""
    wanted = {cell.folder for cell in todo} | {folder for cell in todo for folder in cell.needs}
    return [cell for cell in cells if cell.folder in wanted and not is_done(cell)]


def _begin(folder: RunFolder, config: str | None) -> None:
    if folder.checkpoints.exists() or (folder.path / "encoders").exists():
        raise ConfigError(f"--run {folder.path}: holds a pretraining run; choose another folder")
    make_folder(folder.path, "--run")
    if config is not None:
        with atomic(folder.config) as temporary:
            temporary.write_text(config)


def _devices(wanted: int | str | Sequence[int | str] | None) -> list[str]:
    """Names of GPUs as `CUDA_VISIBLE_DEVICES` takes them; "" for the CPU."""
    names = [wanted] if isinstance(wanted, int | str) else wanted
    if names:
        return ["" if name == "cpu" else str(name) for name in names]
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name] or [""]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())] or [""]


def _run(
    todo: Sequence[Cell], devices: Sequence[str], console: Console, failed: dict[Path, str]
) -> None:
    bar = progress_bar(console, "{task.description}", "", TimeElapsedColumn(), wide=True)
    task, ended = bar.add_task("", total=len(todo)), 0
    running: list[str] = []

    def on_start(cell: Cell) -> None:
        running.append(cell.label)
        bar.update(task, description=" | ".join(running))

    def on_end(cell: Cell, reason: str | None) -> None:
        nonlocal ended
        ended += 1
        if cell.label in running:
            running.remove(cell.label)
        bar.update(task, completed=ended, description=" | ".join(running))
        if reason is not None:
            failed[cell.folder] = reason
        bar.console.print(
            f"{ended:>4}/{len(todo)}  {cell.label}: {_outcome(cell, reason)}",
            highlight=False,
            markup=False,
        )

    with bar:
        Workers(devices).run(todo, on_start, on_end)


def _outcome(cell: Cell, reason: str | None) -> str:
    if reason is not None:
        return f"failed: {reason}"
    took = f"{seconds(cell):.0f} s"
    if cell.command == "pretrain":
        return took
    metric, value = next(iter(read_scores(cell.folder).items()))
    return f"{metric} {'undefined' if value is None else f'{value:.3f}'}, {took}"
