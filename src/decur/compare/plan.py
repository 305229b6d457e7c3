"""From a comparison's YAML to its cells: command lines, each of which anyone could type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from decur.compare.checks import check
from decur.compare.settings import Changes, Settings, encoder_name, layered, slug
from decur.encoders import EncoderSettings
from decur.errors import ConfigError
from decur.pretrain.command_pretrain import build_parser as pretrain_parser
from decur.transfer.command_transfer import build_parser as transfer_parser

_Line = tuple[str, str, Changes]  # method, backbone, and what the backbone changes


@dataclass
class MethodPlan:
    """How the encoders of one line of the table come to be.

    Args:
        pretrain: changes to the comparison's pretraining, keys of `decur pretrain`, `base` among
            them; null: nothing is pretrained.
        encoders: without pretraining: what `decur transfer --encoders` takes.
        apart: pretrain each sensor by itself, without the others.
        transfer: changes to each transfer, keys of `decur transfer`.
        tasks: the tasks that it takes part in; null: all.
        at: where it stands on the axis `along` of the pictures; null: a level across it.
    """

    pretrain: Changes | None = field(default_factory=dict)
    encoders: list[str] = field(default_factory=lambda: ["random"])
    apart: bool = False
    transfer: Changes = field(default_factory=dict)
    tasks: list[str] | None = None
    at: float | None = None


@dataclass
class TaskPlan:
    """What encoders are tried on.

    Args:
        transfer: changes to the comparison's transfer, keys of `decur transfer`.
        modalities: subsets of the sensors, in place of the comparison's.
        label_fractions: shares of the labels, in place of the comparison's.
        metric: the one that the table shows, or several side by side, of those in `results.json`;
            null: the first there.
        table: tasks of one table stand side by side; null: each has a table of its own, but those
            that make a single column stand together.
        methods: the methods that take part; null: all.
        published: tables of the paper whose rows are printed beside it, as "table1-sar".
    """

    transfer: Changes = field(default_factory=dict)
    modalities: list[list[str]] | None = None
    label_fractions: list[float] | None = None
    metric: str | list[str] | None = None
    table: str | None = None
    methods: list[str] | None = None
    published: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> Sequence[str | None]:
        """The metrics of the table, each a column for itself; None stands for the first there."""
        return [self.metric] if isinstance(self.metric, str) else self.metric or [None]


@dataclass(frozen=True)
class Axis:
    """A number in which methods differ, for pictures.

    Args:
        name: what it is, with its unit.
        at: `{method: number}`, of those that have one.
    """

    name: str
    at: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One command of a comparison.

    Args:
        command: of `decur`.
        folder: the run's; its name ends in a digest of the configuration.
        config: the whole configuration, YAML.
        needs: folders of the pretraining runs whose encoders it takes.
        method: its name.
        backbone: its name.
        seed: its seed.
        task: the task's name; empty for pretraining.
        modalities: the sensors; empty for all.
        label_fraction: share of the labels.
    """

    command: Literal["pretrain", "transfer"]
    folder: Path
    config: str
    needs: tuple[Path, ...]
    method: str
    backbone: str
    seed: int
    task: str = ""
    modalities: tuple[str, ...] = ()
    label_fraction: float = 1.0

    @property
    def label(self) -> str:
        """What it is, for people."""
        what = [self.task or "pretraining", self.method, self.backbone, "+".join(self.modalities)]
        if self.task:
            what.append(f"{100 * self.label_fraction:g} %")
        return ", ".join([*filter(None, what), f"seed {self.seed}"])


@dataclass
class Plan:
    """A whole comparison.

    Args:
        run: its folder.
        methods: lines of the table.
        tasks: what the encoders are tried on.
        backbones: `{name: changes to pretraining}`, whose `encoder` holds for fresh weights, too;
            None: for each method one, the encoder that its pretraining names.
        data: the data set, for pretraining and transfer alike.
        pretrain: what all pretraining runs have in common.
        transfer: what all transfers have in common.
        modalities: subsets of the sensors; an empty one stands for all.
        label_fractions: shares of the labels.
        seeds: of everything random. Where the data is split by folds, seed s tests on fold s.
        along: what the numbers `at` of the methods are; empty where they have none.
        pretrained: folder of the pretraining runs, which comparisons may share; null: in `run`.
        against: the method that others are held against; None: none.
    """

    run: Path
    methods: dict[str, MethodPlan]
    tasks: dict[str, TaskPlan]
    backbones: dict[str, Changes] | None
    data: Changes
    pretrain: Changes
    transfer: Changes
    modalities: list[list[str]]
    label_fractions: list[float]
    seeds: list[int]
    along: str = ""
    pretrained: Path | None = None
    against: str | None = None

    @property
    def encoders(self) -> Path:
        """Where the pretraining runs are."""
        return self.pretrained or self.run / "pretrain"

    @property
    def axis(self) -> Axis | None:
        """What the pictures show scores along; None for the shares of the labels, or nothing."""
        at = {name: plan.at for name, plan in self.methods.items() if plan.at is not None}
        return Axis(self.along, at) if at else None

    def cells(self) -> list[Cell]:
        """All cells, each after what it needs, seed by seed: an early table has whole lines.

        Methods whose pretraining is the same, such as one tried in two ways, have it in common.

        Raises:
            ConfigError: naming the method or task whose configuration is wrong.
        """
        check(self)
        pretraining, transfer = Settings(pretrain_parser()), Settings(transfer_parser())
        found: dict[Path, Cell] = {}
        for seed in self.seeds:
            for method in self.methods:
                for backbone, changes in self._backbones(method).items():
                    line = (method, backbone, changes)
                    with _naming(f"methods.{method}"):
                        trained = self._pretraining(pretraining, line, seed)
                    sources = [str(cell.folder) for cell in trained]
                    for task in self._tasks(method):
                        trained += self._transfers(transfer, line, task, seed, sources)
                    for cell in trained:  # methods may share a pretraining: it is the first's
                        found.setdefault(cell.folder, cell)
        return list(found.values())

    def subsets(self, task: str) -> list[list[str]]:
        """The subsets of sensors that a task is tried with."""
        return self.tasks[task].modalities or self.modalities or [[]]

    def fractions(self, task: str) -> list[float]:
        """The shares of the labels that a task is tried with."""
        return self.tasks[task].label_fractions or self.label_fractions

    def sensors(self) -> list[str]:
        """All sensors that are named anywhere, in order."""
        named = [name for task in self.tasks for subset in self.subsets(task) for name in subset]
        return list(dict.fromkeys(named))

    def _tasks(self, method: str) -> list[str]:
        """The tasks that a method takes part in."""
        wanted = self.methods[method].tasks
        return [
            name
            for name, task in self.tasks.items()
            if (wanted is None or name in wanted)
            and (task.methods is None or method in task.methods)
        ]

    def _backbones(self, method: str) -> dict[str, Changes]:
        """The backbones of a method."""
        if self.backbones is not None:
            return self.backbones
        with _naming(f"methods.{method}"):
            layers = layered(self.pretrain, self.methods[method].pretrain or {}, data={})
        encoder = encoder_name(layers) or EncoderSettings().name
        name = encoder if isinstance(encoder, str) else "+".join(dict.fromkeys(encoder.values()))
        return {name: {"encoder.name": encoder}}

    def _pretraining(self, known: Settings, line: _Line, seed: int) -> list[Cell]:
        method, backbone, changes = line
        plan = self.methods[method]
        if plan.pretrain is None:
            return []
        layers = layered(self.pretrain, changes, plan.pretrain, data=self.data)
        cells = []
        for sensor in self.sensors() if plan.apart else [""]:
            alone: list[Changes] = [{"modalities": [sensor]}] if sensor else []
            name = slug(method, backbone, sensor, f"seed{seed}")
            folder, text = known.place(
                *([*layers, *alone], {"seed": seed}, self.encoders, name), shared=True
            )
            sensors = (sensor,) if sensor else ()
            cells.append(
                Cell("pretrain", folder, text, (), method, backbone, seed, modalities=sensors)
            )
        return cells

    def _transfers(
        self,
        known: Settings,
        line: _Line,
        task: str,
        seed: int,
        sources: Sequence[str],
    ) -> Iterator[Cell]:
        """One line's transfers to one task: all shares of the labels with all sets of sensors."""
        method, backbone, changes = line
        plan = self.methods[method]
        encoder = {k: v for k, v in changes.items() if k.startswith("encoder")}
        with _naming(f"tasks.{task} of {method}"):
            layers = layered(
                *(self.transfer, self.tasks[task].transfer, plan.transfer, encoder), data=self.data
            )
            settings = known.read(layers)
        own: Changes = {"encoders": list(sources) or plan.encoders, "seed": seed}
        own["cache"] = settings.cache or str(self.run / "cache")
        if settings.train_split is None and not any("fold" in layer for layer in layers):
            own["fold"] = seed % max(1, settings.folds)
        for subset in self.subsets(task):
            for fraction in self.fractions(task):
                name = slug(
                    *(task, method, backbone, *subset, f"{100 * fraction:g}pc", f"seed{seed}")
                )
                of_cell = {**own, "modalities": subset or None, "label_fraction": fraction}
                home = self.run / "transfer"
                folder, text = known.place(layers, of_cell, home, name, self.encoders)
                yield Cell(
                    *("transfer", folder, text, tuple(map(Path, sources)), method, backbone, seed),
                    *(task, tuple(subset), fraction),
                )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say of a wrong configuration whose it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def named(
    backbones: Sequence[str] | Mapping[str, Changes] | None,
) -> dict[str, Changes] | None:
    """Backbones by name; a bare name is an encoder's, as `decur pretrain --encoder.name` takes."""
    if backbones is None:
        return None
    if isinstance(backbones, Mapping):
        return dict(backbones)
    return {name: {"encoder.name": name} for name in backbones}
