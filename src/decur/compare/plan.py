"""From a comparison's YAML to its cells: command lines, each of which anyone could type."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace

from decur.config import Parser, find_config, flatten
from decur.errors import ConfigError
from decur.pretrain.command import build_parser as pretrain_parser
from decur.transfer.command import build_parser as transfer_parser
from decur.transfer.results import SIGNS

Changes = dict[str, Any]
# What a cell's configuration may hold without being another cell.
_FREE = re.compile(
    r"(run|cache|device|loader\.workers|checkpoint\..*|trainer\.(devices|num_nodes))$"
)


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
        backbones: `{name: changes to pretraining}`, whose `encoder` holds for fresh weights, too.
        data: the data set, for pretraining and transfer alike.
        pretrain: what all pretraining runs have in common.
        transfer: what all transfers have in common.
        modalities: subsets of the sensors; an empty one stands for all.
        label_fractions: shares of the labels.
        seeds: of everything random. Where the data is split by folds, seed s tests on fold s.
        along: what the numbers `at` of the methods are; empty where they have none.
    """

    run: Path
    methods: dict[str, MethodPlan]
    tasks: dict[str, TaskPlan]
    backbones: dict[str, Changes]
    data: Changes
    pretrain: Changes
    transfer: Changes
    modalities: list[list[str]]
    label_fractions: list[float]
    seeds: list[int]
    along: str = ""

    @property
    def axis(self) -> Axis | None:
        """What the pictures show scores along; None for the shares of the labels, or nothing."""
        at = {name: plan.at for name, plan in self.methods.items() if plan.at is not None}
        return Axis(self.along, at) if at else None

    def cells(self) -> list[Cell]:
        """All cells, each after what it needs, seed by seed: an early table has whole lines.

        Raises:
            ConfigError: naming the method or task whose configuration is wrong.
        """
        self._check()
        pretraining, transfer = _Parse(pretrain_parser()), _Parse(transfer_parser())
        found: dict[Path, Cell] = {}
        for seed in self.seeds:
            for method in self.methods:
                for backbone in self.backbones:
                    with _naming(f"methods.{method}"):
                        trained = self._pretraining(pretraining, method, backbone, seed)
                    sources = [str(cell.folder) for cell in trained]
                    for task in self._tasks(method):
                        trained += self._transfers(transfer, method, backbone, task, seed, sources)
                    found.update((cell.folder, cell) for cell in trained)
        return list(found.values())

    def subsets(self, task: str) -> list[list[str]]:
        """The subsets of sensors that a task is tried with."""
        return self.tasks[task].modalities or self.modalities or [[]]

    def fractions(self, task: str) -> list[float]:
        """The shares of the labels that a task is tried with."""
        return self.tasks[task].label_fractions or self.label_fractions

    def _tasks(self, method: str) -> list[str]:
        """The tasks that a method takes part in."""
        wanted = self.methods[method].tasks
        return [
            name
            for name, task in self.tasks.items()
            if (wanted is None or name in wanted)
            and (task.methods is None or method in task.methods)
        ]

    def _check(self) -> None:
        for key in ("methods", "tasks", "backbones", "seeds"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: is empty; name one at least")
        if bool(self.along) != (self.axis is not None):
            raise ConfigError(
                "along: goes with methods.NAME.at: name the axis here, and there each method's "
                "place on it"
            )
        for name, task in self.tasks.items():
            _refuse_unknown(f"tasks.{name}.methods", task.methods, self.methods)
            _refuse_unknown(f"tasks.{name}.metric", [*filter(None, task.metrics)], SIGNS)
            for fraction in self.fractions(name):
                if not 0 < fraction <= 1:
                    raise ConfigError(
                        f"tasks.{name}: label_fractions are shares in (0, 1], not {fraction:g}"
                    )
        for name, method in self.methods.items():
            _refuse_unknown(f"methods.{name}.tasks", method.tasks, self.tasks)
            if method.apart and not self._sensors():
                raise ConfigError(
                    f"methods.{name}.apart: name the sensors in modalities, as in [[s1], [s2]]"
                )

    def _sensors(self) -> list[str]:
        """All sensors that are named anywhere, in order."""
        named = [name for task in self.tasks for subset in self.subsets(task) for name in subset]
        return list(dict.fromkeys(named))

    def _pretraining(self, parse: _Parse, method: str, backbone: str, seed: int) -> list[Cell]:
        plan = self.methods[method]
        if plan.pretrain is None:
            return []
        layers = _layers(self.pretrain, self.backbones[backbone], plan.pretrain, data=self.data)
        cells = []
        for sensor in self._sensors() if plan.apart else [""]:
            alone: list[Changes] = [{"modalities": [sensor]}] if sensor else []
            settings = parse([*layers, *alone])
            settings.seed = seed
            name = _slug(method, backbone, sensor, f"seed{seed}")
            folder, text = _finish(parse.parser, settings, self.run / "pretrain", name)
            sensors = (sensor,) if sensor else ()
            cells.append(
                Cell("pretrain", folder, text, (), method, backbone, seed, modalities=sensors)
            )
        return cells

    def _transfers(
        self,
        parse: _Parse,
        method: str,
        backbone: str,
        task: str,
        seed: int,
        sources: Sequence[str],
    ) -> Iterator[Cell]:
        """One line's transfers to one task: all shares of the labels with all sets of sensors."""
        plan = self.methods[method]
        encoder = {k: v for k, v in self.backbones[backbone].items() if k.startswith("encoder")}
        with _naming(f"tasks.{task} of {method}"):
            layers = _layers(
                *(self.transfer, self.tasks[task].transfer, plan.transfer, encoder), data=self.data
            )
            settings = parse(layers)
        settings.encoders = list(sources) or plan.encoders
        settings.cache = settings.cache or str(self.run / "cache")
        settings.seed = seed
        if settings.train_split is None and not any("fold" in layer for layer in layers):
            settings.fold = seed % max(1, settings.folds)
        for subset in self.subsets(task):
            for fraction in self.fractions(task):
                made = settings.clone()
                made.modalities, made.label_fraction = subset or None, fraction
                name = _slug(
                    *(task, method, backbone, *subset, f"{100 * fraction:g}pc", f"seed{seed}")
                )
                folder, text = _finish(parse.parser, made, self.run / "transfer", name)
                yield Cell(
                    *("transfer", folder, text, tuple(map(Path, sources)), method, backbone, seed),
                    *(task, tuple(subset), fraction),
                )


class _Parse:
    """Layers to settings, each only once: it takes a tenth of a second, and seeds have the same.

    Args:
        parser: of the command.
    """

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self._known: dict[str, Namespace] = {}

    def __call__(self, layers: Sequence[Changes]) -> Namespace:
        """Settings that may be changed."""
        key = repr(layers)
        if key not in self._known:
            self._known[key] = self.parser.parse_layers(layers)
        return self._known[key].clone()


def _refuse_unknown(key: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{key}: there is no {name!r}; choose from {', '.join(known)}")


def _layers(*changes: Changes, data: Changes) -> list[Changes]:
    """What is built on first, then the data, then the changes, the later ones over the earlier."""
    names = [change["base"] for change in changes if change.get("base")]
    bases = [layer for name in names for layer in find_config(name)]
    own = [layer for change in changes for layer in _one_by_one(change) if "base" not in layer]
    whole = {key: data[key] for key in ("class_path", "init_args") if key in data}
    single = {f"data.{key}": value for key, value in data.items() if key not in whole}
    common = [{"data": whole} if whole else {}, *_one_by_one(single)]
    return [layer for layer in (*bases, *common, *own) if layer]


def _one_by_one(change: Changes) -> list[Changes]:
    """Each key as a layer: `trainer.max_epochs` would not get on with `trainer` beside it."""
    return [{key: value} for key, value in sorted(change.items(), key=lambda item: "." in item[0])]


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say of a wrong configuration whose it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _finish(parser: Parser, settings: Namespace, home: Path, name: str) -> tuple[Path, str]:
    """A cell's folder, named by its configuration's digest, and the configuration with it.

    The digest is of what differs from the defaults: an option that a later version adds does not
    make a new cell of one that is done.
    """
    for order in ("resume", "overwrite"):  # to the command; no part of a run's configuration
        settings.pop(order, None)
    differing = parser.dump(settings, skip_none=False, skip_default=True, skip_validation=True)
    values = flatten(yaml.safe_load(differing))
    matters = {key: value for key, value in values.items() if not _FREE.match(key)}
    if "encoders" in matters:  # a comparison that is moved stays what it is
        own = home.parent / "pretrain"
        matters["encoders"] = [source.removeprefix(f"{own}/") for source in matters["encoders"]]
    text = json.dumps(matters, sort_keys=True, default=str)
    folder = home / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    settings.run = str(folder)
    return folder, parser.dump(settings, skip_none=False, skip_validation=True)


def _slug(*parts: str) -> str:
    return "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part)


def named(backbones: Sequence[str] | Mapping[str, Changes]) -> dict[str, Changes]:
    """Backbones by name; a bare name is an encoder's, as `decur pretrain --encoder.name` takes."""
    if isinstance(backbones, Mapping):
        return {name: dict(changes) for name, changes in backbones.items()}
    return {name: {"encoder.name": name} for name in backbones}
