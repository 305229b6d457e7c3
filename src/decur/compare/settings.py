"""What a person writes to describe a comparison, and what is refused before anything runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from decur.errors import ConfigError

Changes = dict[str, Any]  # of a command's configuration: keys, dotted or nested, to values

# Keys that a cell's own values override, and where to give the values instead.
_OWN_KEYS = {
    "run": "the folder of all is the comparison's run",
    "seed": "give the comparison's seeds",
}
_OWN_KEYS_OF_TRANSFER = _OWN_KEYS | {
    "encoders": "give methods.NAME.encoders, with pretrain: null",
    "label_fraction": "give label_fractions, of the comparison or of the task",
    "modalities": "give modalities, of the comparison or of the task",
}


@dataclass
class MethodSettings:
    """How the encoders of one line of the table come to be.

    Args:
        pretrain: Changes to the comparison's pretraining, keys of `decur pretrain`, `base` among
            them; null: nothing is pretrained.
        encoders: Encoders of a method that pretrains none, as `decur transfer --encoders` takes
            them.
        apart: Pretrain each sensor by itself, without the others.
        transfer: Changes to each transfer, keys of `decur transfer`.
        tasks: Tasks that the method takes part in; null: all.
        at: Place of the method on the axis `along` of the pictures; null: a level across it.
    """

    pretrain: Changes | None = field(default_factory=dict)
    encoders: list[str] = field(default_factory=lambda: ["random"])
    apart: bool = False
    transfer: Changes = field(default_factory=dict)
    tasks: list[str] | None = None
    at: float | None = None


@dataclass
class TaskSettings:
    """What encoders are tried on.

    Args:
        transfer: Changes to the comparison's transfer, keys of `decur transfer`.
        modalities: Subsets of the sensors, in place of the comparison's.
        label_fractions: Shares of the labels, in place of the comparison's.
        metric: Metric that the table shows, or several side by side, of those in `results.json`;
            null: the first there.
        table: Name of the table; tasks of one table stand side by side. null: each has a table of
            its own, but those that make a single column stand together.
        methods: Methods that take part; null: all.
        published: Tables of the paper whose rows are printed beside it, as "table1-sar".
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
        """The metrics of the table, each a column of its own; None stands for the first there."""
        return [self.metric] if isinstance(self.metric, str) else self.metric or [None]


@dataclass
class ClusterSettings:
    """Where the cells run.

    Args:
        name: Where the cells run. "local": processes of this machine, one for each device. "slurm":
            jobs of SLURM, submitted from here by `sbatch`; the folder of the comparison must be
            visible to all nodes. "debug": this process, one cell after another.
        partition: Partition of SLURM; null takes SLURM's default.
        timeout_min: Minutes that a job of SLURM may take; one that reaches them is queued again and
            goes on from its last checkpoint.
        gpus: GPUs of a job of SLURM; 0: none.
        cpus: CPU cores of a job of SLURM.
        mem_gb: Memory of a job of SLURM in GB; null takes the partition's default.
        extra: Further options of `sbatch` by name, as {account: mine, qos: long}.
    """

    name: Literal["local", "slurm", "debug"] = "local"
    partition: str | None = None
    timeout_min: int = 24 * 60
    gpus: int = 1
    cpus: int = 8
    mem_gb: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodAxis:
    """A number in which methods differ; pictures show the scores along it.

    Args:
        name: what the number is, with its unit.
        at: `{method: number}` of the methods that have one.
    """

    name: str
    at: Mapping[str, float]


@dataclass
class CompareSettings:
    """What is compared with what.

    Args:
        methods: Lines of the tables, by name.
        tasks: Tasks that the encoders are tried on, by name.
        run: Folder to write.
        backbones: Backbones by name, as `decur pretrain --encoder.name` takes them, or `{name:
            changes}` with changes to pretraining, of which `encoder` holds for fresh weights, too;
            null: the one that the pretraining names.
        data: Data set, for pretraining and transfer alike: `{root: FOLDER}`.
        pretrain: Keys of `decur pretrain` that all pretraining runs have in common; `base` names a
            file or a recipe to build on.
        transfer: Keys of `decur transfer` that all transfers have in common, and `base`.
        modalities: Sets of sensors to try, as in `[[s1], [s2], [s1, s2]]`; none: all sensors.
        label_fractions: Shares of the labels to try.
        seeds: Seeds, each of which fixes everything random in a cell; where data is split by folds,
            seed s tests on fold s of one partition that all seeds share.
        unseen_test: Let each pretraining leave out the fold that its encoders are tested on, with
            all pictures of its groups; folds then divide all of the data, labelled or not. False,
            as version 0.1 did: it sees the pictures that test, though never their labels.
        along: Name of the axis that the methods' numbers `at` lie on, as "common dimensions (%)";
            pictures then show the scores along it.
        against: Method that the others are compared with: below each table stands how far they are
            above it, seed by seed, as what seeds share (the fold, the labels drawn) cancels out in
            differences.
        pretrained: Folder of the pretraining runs; null: RUN/pretrain. Comparisons with the same
            folder, also at the same time, pretrain what they have in common only once.
    """

    methods: dict[str, MethodSettings]
    tasks: dict[str, TaskSettings]
    run: str = "runs/compare"
    backbones: dict[str, Changes] | list[str] | None = None
    data: Changes = field(default_factory=dict)
    pretrain: Changes = field(default_factory=dict)
    transfer: Changes = field(default_factory=dict)
    modalities: list[list[str]] = field(default_factory=list)
    label_fractions: list[float] = field(default_factory=lambda: [1.0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    unseen_test: bool = False
    along: str = ""
    against: str | None = None
    pretrained: str | None = None

    @property
    def named_backbones(self) -> dict[str, Changes] | None:
        """Return `{name: changes}`; None where each method names its own backbone."""
        if self.backbones is None or isinstance(self.backbones, dict):
            return self.backbones
        return {name: {"encoder.name": name} for name in self.backbones}

    @property
    def pretrained_folder(self) -> Path:
        """Return the folder of the pretraining runs."""
        return Path(self.pretrained) if self.pretrained else Path(self.run) / "pretrain"

    @property
    def axis(self) -> MethodAxis | None:
        """Return what the figures show scores along; None where no method stands on an axis."""
        at = {name: method.at for name, method in self.methods.items() if method.at is not None}
        return MethodAxis(self.along, at) if at else None

    def subsets(self, task: str) -> list[list[str]]:
        """Return the subsets of sensors that a task is tried with."""
        return self.tasks[task].modalities or self.modalities or [[]]

    def fractions(self, task: str) -> list[float]:
        """Return the shares of the labels that a task is tried with."""
        return self.tasks[task].label_fractions or self.label_fractions

    def sensors(self) -> list[str]:
        """Return all sensors that are named anywhere, in order."""
        found = [name for task in self.tasks for subset in self.subsets(task) for name in subset]
        return list(dict.fromkeys(found))

    def tasks_of(self, method: str) -> list[str]:
        """Return the names of the tasks that a method takes part in."""
        wanted = self.methods[method].tasks
        return [
            name
            for name, task in self.tasks.items()
            if (wanted is None or name in wanted)
            and (task.methods is None or method in task.methods)
        ]


def check_comparison(settings: CompareSettings) -> None:
    """Refuse settings that no cell can be made of.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    for key in ("methods", "tasks", "seeds"):
        if not getattr(settings, key):
            raise ConfigError(f"{key}: is empty; name one at least")
    _check_own_keys(settings)
    _check_backbones(settings)
    for seed in settings.seeds:
        if seed < 0:
            raise ConfigError(f"seeds: must not be negative, {seed} is")
        if settings.seeds.count(seed) > 1:
            raise ConfigError(f"seeds: {seed} is there twice; name each once")
    if bool(settings.along) != (settings.axis is not None):
        raise ConfigError(
            "along: goes with methods.NAME.at: name the axis here, and there each method's "
            "place on it"
        )
    if settings.against is not None:
        _refuse_unknown("against", [settings.against], settings.methods)
    _check_tasks(settings)
    for name, method in settings.methods.items():
        _refuse_unknown(f"methods.{name}.tasks", method.tasks, settings.tasks)
        if method.pretrain is not None and method.encoders != ["random"]:
            raise ConfigError(
                f"methods.{name}.encoders: {', '.join(method.encoders)} would not be used, as the "
                "method pretrains its own; give it pretrain: null, too"
            )
        if method.apart and not settings.sensors():
            raise ConfigError(
                f"methods.{name}.apart: name the sensors in modalities, as in [[s1], [s2]]"
            )


def check_cluster(
    cluster: ClusterSettings, devices: int | str | Sequence[int | str] | None
) -> None:
    """Refuse settings of a cluster, and devices, that do not go with where the cells run.

    Args:
        cluster: where the cells run.
        devices: of this machine, None where they are not given.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    for name in [devices] if isinstance(devices, int | str) else devices or ():
        if not re.fullmatch(r"\d+|cpu|(GPU|MIG)-.+", str(name)):
            raise ConfigError(f"devices: {name!r} is none; give a GPU's number, as 0, or cpu")
    if cluster.name == "slurm":
        if devices is not None:
            raise ConfigError(
                "devices: are this machine's; give --cluster.gpus with --cluster slurm"
            )
        for program in ("sbatch", "srun"):
            if shutil.which(program) is None:
                raise ConfigError(
                    f"cluster.name: slurm, but there is no {program} on this machine; start the "
                    "comparison where SLURM's commands are, or leave --cluster out"
                )
        if cluster.timeout_min < 1 or cluster.gpus < 0 or cluster.cpus < 1:
            raise ConfigError("cluster: timeout_min and cpus must be at least 1, gpus at least 0")
    elif cluster.partition is not None or cluster.extra:
        key = "partition" if cluster.partition is not None else "extra"
        raise ConfigError(f"cluster.{key}: goes with --cluster slurm")


def encoder_name(layers: Sequence[Changes]) -> str | dict[str, str] | None:
    """Return the encoder of the last layer that names one: a name, or a name for each sensor."""
    for layer in reversed(layers):
        whole = layer.get("encoder")
        inside = whole.get("name") if isinstance(whole, dict) else None
        found: str | dict[str, str] | None = layer.get("encoder.name", inside)
        if found:
            return found
    return None


def _check_tasks(settings: CompareSettings) -> None:
    from decur.transfer.tasks.base import known_metrics

    for name, task in settings.tasks.items():
        _refuse_unknown(f"tasks.{name}.methods", task.methods, settings.methods)
        _refuse_unknown(f"tasks.{name}.metric", [*filter(None, task.metrics)], known_metrics())
        if not settings.fractions(name):
            raise ConfigError("label_fractions: is empty; name one at least, as [1.0]")
        for fraction in settings.fractions(name):
            if not 0 < fraction <= 1:
                raise ConfigError(
                    f"tasks.{name}: label_fractions are shares in (0, 1], not {fraction:g}"
                )


def _check_own_keys(settings: CompareSettings) -> None:
    """Refuse keys that every cell has of its own: they would be overridden in silence."""
    for written, own in (
        (_changes_of_pretraining(settings), _OWN_KEYS),
        (_changes_of_transfer(settings), _OWN_KEYS_OF_TRANSFER),
    ):
        for where, changes in written:
            if not isinstance(changes, dict):
                raise ConfigError(
                    f"{where}: must be a mapping of keys; leave it out if it has none"
                )
            for key, right in own.items():
                if key in changes:
                    raise ConfigError(f"{where}.{key}: each cell has its own; {right}")


def _changes_of_pretraining(settings: CompareSettings) -> Iterator[tuple[str, Changes]]:
    """Yield the changes of pretraining that a person writes, and the key that they stand under."""
    yield "pretrain", settings.pretrain
    for name, changes in (settings.named_backbones or {}).items():
        yield f"backbones.{name}", changes
    for name, method in settings.methods.items():
        if method.pretrain is not None:
            yield f"methods.{name}.pretrain", method.pretrain


def _changes_of_transfer(settings: CompareSettings) -> Iterator[tuple[str, Changes]]:
    """Yield the changes of transfer that a person writes, and the key that they stand under."""
    yield "transfer", settings.transfer
    for name, method in settings.methods.items():
        yield f"methods.{name}.transfer", method.transfer
    for name, task in settings.tasks.items():
        yield f"tasks.{name}.transfer", task.transfer


def _check_backbones(settings: CompareSettings) -> None:
    """Refuse an encoder that the backbones would override; one of a recipe below may differ."""
    backbones = settings.named_backbones
    if backbones is None:
        return
    if not backbones:
        raise ConfigError("backbones: is empty; name one at least, or leave it out")
    # a method's own pretraining overrides backbones
    for where, below in [("pretrain", settings.pretrain), *_changes_of_transfer(settings)]:
        wanted = encoder_name([below])
        for name, changes in backbones.items():
            other = encoder_name([changes])
            if wanted and other and other != wanted:
                raise ConfigError(
                    f"{where}.encoder.name: is {wanted!r}, and {other!r} in backbones ({name}); "
                    f"give --backbones '[{wanted}]', or leave one of them out"
                )


def _refuse_unknown(key: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{key}: there is no {name!r}; choose from {', '.join(known)}")
