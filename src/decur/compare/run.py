"""Run a whole comparison: its cells, then its tables, figures and report, whatever fails."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.progress import TimeElapsedColumn

from decur import plotting, report
from decur.bounded_yaml import LOADER
from decur.compare import rendering
from decur.compare.cells import Cell, is_done, read_floors, read_scores, seconds
from decur.compare.execute import Execution
from decur.compare.plan import plan_cells
from decur.compare.settings import ClusterSettings, CompareSettings, MethodAxis, check_cluster
from decur.compare.tables import Table, check_names, make_tables
from decur.digest import digest
from decur.errors import ConfigError, DataError, DecurError, reading
from decur.runs import RunFolder, make_folder, write_json, write_text
from decur.terminal import progress_bar, tell_result

if TYPE_CHECKING:
    from decur.data.base import PairedDataset

log = logging.getLogger(__name__)


class CellsFailedError(DecurError):
    """Some cells of a comparison failed; the others are in the tables."""

    exit_code = 1


@dataclass(frozen=True)
class Compared:
    """What a comparison leaves: its folder, its tables, and why cells failed, by folder."""

    folder: RunFolder
    tables: list[Table]
    failed: dict[Path, str]

    def __repr__(self) -> str:
        titles = "; ".join(table.title for table in self.tables)
        return f"<tables {titles}; {len(self.failed)} cells failed; {self.folder.report}>"


def compare(
    settings: CompareSettings,
    *,
    cluster: ClusterSettings | None = None,
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
        settings: what is compared with what.
        cluster: where the cells run; None: on this machine.
        devices: GPUs of this machine to use, one job each at a time, by number, as 0 or [0, 1], or
            `cpu`; null: all there are.
        only: run only cells whose label contains this, as `--dry_run` prints it.
        dry_run: print the cells and what is done, and run nothing.
        config: the complete configuration as YAML, kept as `config.yaml`.

    Returns:
        The folder, the tables, and which cells failed.

    Raises:
        ConfigError: if a configuration is wrong, before anything runs; also if the data has not
            the label or a sensor of a task, or if `only` names no cell.
        Interrupted: if told to stop; the same call goes on from there.
    """
    cluster = cluster or ClusterSettings()
    check_cluster(cluster, devices)
    for name, task in settings.tasks.items():
        check_names(f"tasks.{name}.published", task.published)
    cells, folder = plan_cells(settings), RunFolder(Path(settings.run))
    console = Console(soft_wrap=True, highlight=False)
    chosen = [cell for cell in cells if only is None or only in cell.label]
    if only is not None and not chosen:
        raise ConfigError(f"--only {only}: no cell's label contains it; --dry_run prints them")
    todo = _with_needs([cell for cell in chosen if not is_done(cell)], cells)
    console.print(f"compare   {folder.path}")
    console.print(f"cells     {len(cells)}: {sum(map(is_done, cells))} done, {len(todo)} to do")
    if dry_run:
        for cell in (cell for cell in cells if cell in chosen or cell in todo):
            console.print(f"{'done' if is_done(cell) else '    '}  {cell.label}")
        return Compared(folder, [], {})

    inputs: dict[str, Opened] = {}
    if cluster.name != "slurm":  # whose nodes may see data that this machine does not
        inputs = open_inputs(todo)
    for data in inputs.values():
        console.print(f"data      {data.about}", markup=False)
    failed: dict[Path, str] = {}
    with folder.owned():
        _begin(folder, config)
        _note_inputs(folder, inputs, done=any(map(is_done, cells)))
        try:
            _run(todo, folder, cluster, devices, console, failed)
        finally:  # what there is, is shown, also when told to stop
            made = make_tables(cells, failed, settings.tasks, settings.against)
            write(folder, made, cells, len(settings.seeds), settings.axis)
    console.print()
    console.print(rendering.markdown(made, len(settings.seeds)), markup=False)
    tell_result("tables    ", folder.path / "tables.md")
    tell_result("report    ", folder.report)
    return Compared(folder, made, failed)


def _with_needs(todo: Sequence[Cell], cells: Sequence[Cell]) -> list[Cell]:
    """Return cells to run and the unfinished ones that they need, in order."""
    wanted = {cell.folder for cell in todo} | {folder for cell in todo for folder in cell.needs}
    return [cell for cell in cells if cell.folder in wanted and not is_done(cell)]


def _begin(folder: RunFolder, config: str | None) -> None:
    """Make the folder of a comparison, unless another kind of run is there."""
    folder.refuse_pretraining()
    make_folder(folder.path, "--run")
    if config is not None:
        write_text(folder.config, config)


def _note_inputs(folder: RunFolder, inputs: Mapping[str, Opened], done: bool) -> None:
    """Note which files the cells read, and warn where finished cells have read others.

    Args:
        folder: of the comparison.
        inputs: data sets that are read from now on, by their configuration.
        done: whether any cell is done.
    """
    path = folder.path / "data.json"
    before: dict[str, str] = {}
    if path.is_file() and done:
        with reading(path, "delete it, and the files of today are noted"):
            before = dict(json.loads(path.read_text()))
    changed = [
        data for key, data in inputs.items() if before.get(key, data.content) != data.content
    ]
    for data in changed:
        log.warning(
            "the files of the data (%s) have changed, in size or time, or its labels, since cells "
            "of this comparison were done, and those stay as they are; delete their folders, or "
            "give another --run, so that all cells see the same",
            data.about,
        )
    write_json(path, {key: data.content for key, data in inputs.items()} | before)


@dataclass(frozen=True)
class Opened:
    """A data set that cells are still to read.

    Args:
        about: what it holds, in a line.
        content: digest of its files and labels.
    """

    about: str
    content: str


def open_inputs(cells: Sequence[Cell]) -> dict[str, Opened]:
    """Open the data of all transfers, that to test on as well, each once.

    Args:
        cells: that are still to run.

    Returns:
        The data sets by their configuration.

    Raises:
        ConfigError: naming a task whose label or sensor the data has not.
        DataError: if a data set cannot be opened, or what a task tests on has another label or
            other sensors than what it trains on.
    """
    from decur.data.selection import join_columns
    from decur.transfer.command_transfer import shared_parser, with_data_keys
    from decur.transfer.matching import match_label
    from decur.transfer.splits import join
    from decur.transfer.tasks import choose_task

    parser = shared_parser()
    opened: dict[str, PairedDataset] = {}
    looked_at: set[tuple[str, str | None, str, str | None, tuple[str, ...]]] = set()
    for cell in cells:
        if cell.command != "transfer":
            continue
        config = yaml.load(cell.config, LOADER)
        key, target, other = json.dumps(config["data"]), config["target"], config["test_data"]
        test_key = json.dumps([config["data"], other]) if other else None
        if (one := (key, test_key, cell.task, target, cell.modalities)) in looked_at:
            continue
        looked_at.add(one)
        given = parser.read([{"data": config["data"]}])
        if key not in opened:
            opened[key] = parser.instantiate(given).data
        data = opened[key]
        try:
            if test_key is not None and test_key not in opened:
                tested = with_data_keys(parser, given, other)
                opened[test_key] = parser.instantiate(tested).data
            labelled = join_columns(data, target)
            task = choose_task(labelled.targets, target)
            if test_key is not None:
                test_data = match_label(opened[test_key], task, "test_data")
                join(labelled.only(targets=[task.name]), test_data)
        except (ConfigError, DataError) as error:
            kind = ConfigError if isinstance(error, ConfigError) else DataError
            raise kind(f"tasks.{cell.task}: {error}") from error
        for name in cell.modalities:
            if name not in data.modalities:
                raise ConfigError(
                    f"tasks.{cell.task}: modalities: the data has no sensor {name!r}; choose from "
                    f"{', '.join(data.modalities)}"
                )
    _refuse_unknown_sensors(cells, opened)
    return {
        key: Opened(data.describe(), digest(data.file_digest(), data.labels))
        for key, data in opened.items()
    }


def _refuse_unknown_sensors(cells: Sequence[Cell], opened: Mapping[str, PairedDataset]) -> None:
    """Refuse pretraining whose method does not take the sensors of data that has been opened.

    Raises:
        ConfigError: naming the method, such as one with a block of a sensor that is not there.
    """
    from decur.compare.configurations import Configurations
    from decur.pretrain.configuration import shared_parser

    looked_at: set[tuple[str, ...]] = set()
    for cell in cells:
        if cell.command != "pretrain":
            continue
        config = yaml.load(cell.config, LOADER)
        data = opened.get(json.dumps(config["data"]))
        one = tuple(json.dumps(config[key]) for key in ("objective", "data", "modalities"))
        if data is None or one in looked_at:
            continue
        looked_at.add(one)
        alone = {key: config[key] for key in ("objective", "projector", "data")}
        try:
            objective = Configurations(shared_parser()).objective([alone])
            objective.check_modalities(config["modalities"] or list(data.modalities))
        except ConfigError as error:
            raise ConfigError(f"methods.{cell.method}: {error}") from error


def visible_devices(wanted: int | str | Sequence[int | str] | None) -> list[str]:
    """Return names of GPUs as `CUDA_VISIBLE_DEVICES` takes them; "" for the CPU.

    Args:
        wanted: by number or name, or "cpu", or several of these; None: all there are.
    """
    names = [wanted] if isinstance(wanted, int | str) else wanted
    if names:
        return ["" if name == "cpu" else str(name) for name in names]
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name] or [""]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())] or [""]


def _run(
    todo: Sequence[Cell],
    folder: RunFolder,
    cluster: ClusterSettings,
    devices: int | str | list[int | str] | None,
    console: Console,
    failed: dict[Path, str],
) -> None:
    """Run cells under a progress bar, and note in `failed` why cells failed."""
    if not todo:
        return
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

    execution = Execution(
        # a name that no file can lie under already: submitit reads its files as pickles
        folder.path / "jobs" / f"{cluster.name}-{os.getpid()}-{secrets.token_hex(4)}",
        cluster,
        [] if cluster.name == "slurm" else visible_devices(devices),
        started=on_start,
        ended=on_end,
    )
    with bar:
        execution.run(todo)


def _outcome(cell: Cell, reason: str | None) -> str:
    """Return how a cell ended: its first score and its floor, how long it took, why it failed."""
    if reason is not None:
        return f"failed: {reason}"
    took = f"{seconds(cell):.0f} s"
    if cell.command == "pretrain":
        return took
    metric, value = next(iter(read_scores(cell).items()))
    floor = read_floors(cell)[metric]
    beside = "" if floor is None else f" ({rendering.FLOOR} {floor:.3f})"
    return f"{metric} {'undefined' if value is None else f'{value:.3f}'}{beside}, {took}"


def write(
    folder: RunFolder,
    made: Sequence[Table],
    cells: Sequence[Cell],
    seeds: int,
    axis: MethodAxis | None = None,
) -> None:
    """Write `tables.md`, `.tex`, `.csv`, `cells.csv`, pictures, and the section of `report.html`.

    Args:
        folder: of the comparison.
        made: the tables.
        cells: of the comparison.
        seeds: how many there are to be.
        axis: what pictures show scores along; None for the shares of the labels.
    """
    for name, text in (
        ("tables.md", rendering.markdown(made, seeds)),
        ("tables.tex", rendering.latex(made, seeds)),
        ("tables.csv", rendering.tables_csv(made)),
        ("cells.csv", rendering.cells_csv(cells)),
    ):
        write_text(folder.path / name, text)
    body = []
    drawn = 0
    for table in made:
        shown = rendering.as_text(table, seeds, bold=lambda text: f"{text} *")
        caption = rendering.caption(table, seeds).replace("Bold", "With *")
        body += [
            report.paragraph(f"{table.title}. {caption}"),
            report.table(list(shown.columns), shown.to_numpy().tolist()),
            *(report.paragraph(f"Failed: {reason}") for reason in rendering.failures(table)),
        ]
        if table.against or not plotting.available():
            continue
        drawn += 1
        if any(scores.by_seed for scores in table.cells.values()):
            name = "compare.png" if drawn == 1 else f"compare-{drawn}.png"
            path = plotting.save(rendering.draw_table(table, axis), folder.figures / name)
            body.append(report.figure(path, f"{table.title}, as in the table above."))
    if not plotting.available():
        body.append(report.paragraph(plotting.MISSING))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(
        folder, 0, name="summary", title="", body=_summary(folder, made, cells, seeds)
    )
    report.add_section(folder, 10, name="compare", title="Comparison", body="\n".join(body))


def _summary(folder: RunFolder, made: Sequence[Table], cells: Sequence[Cell], seeds: int) -> str:
    """Write the first screen: what was compared, three scores, how far it is, how to go on."""
    methods, done = {cell.method for cell in cells}, sum(map(is_done, cells))
    rest = " The same command runs what is missing." if done < len(cells) else ""
    then = [f"decur compare --config {folder.config}"] if rest else []
    trained = [cell.folder for cell in cells if cell.command == "pretrain"]
    then += [f"decur explain {trained[0]}"] if trained and not rest else []
    return report.summary(
        f"{len(methods)} methods were compared over {seeds} seed{'s' if seeds > 1 else ''}: "
        f"{done} of {len(cells)} cells are done.{rest}",
        rendering.best_scores(made, seeds)[:3],
        then=then,
    )
