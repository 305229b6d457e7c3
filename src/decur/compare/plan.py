"""From a comparison's settings to its cells: commands with their configurations and folders."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from decur.compare.cells import Cell
from decur.compare.configurations import Configurations, ordered_layers
from decur.compare.seen import (
    earlier_run_sees,
    is_split,
    samples_of,
    sees_what_tests,
)
from decur.compare.settings import (
    Changes,
    CompareSettings,
    MethodSettings,
    check_comparison,
    encoder_name,
)
from decur.errors import ConfigError, reading
from decur.layers import flatten

if TYPE_CHECKING:
    from jsonargparse import Namespace

log = logging.getLogger(__name__)

# Settings of an encoder that say which network it is, and not where its weights come from.
_ARCHITECTURE = ("name", "attention", "geometry", "options")


def plan_cells(settings: CompareSettings) -> list[Cell]:
    """Return all cells, each after those it needs, seed by seed: an early table has whole lines.

    Methods whose pretraining is the same share it.

    Raises:
        ConfigError: naming the method or task whose configuration is wrong.
    """
    from decur.pretrain.configuration import shared_parser as pretrain_parser
    from decur.transfer.command_transfer import shared_parser as transfer_parser

    check_comparison(settings)
    planner = _Planner(
        settings, Configurations(pretrain_parser()), Configurations(transfer_parser())
    )
    found: dict[Path, Cell] = {}
    for seed in settings.seeds:
        for method in settings.methods:
            for backbone, changes in planner.backbones(method).items():
                line = _Line(method, backbone, changes, seed)
                for cell in planner.cells(line):
                    # methods may share a pretraining: it is the first one's
                    found.setdefault(cell.folder, cell)
    if 0 < planner.folds < len(settings.seeds):
        log.warning(
            "seeds: %d seeds share %d folds, so some test on the same samples and spread too "
            "little; give --transfer.folds %d, or fewer seeds",
            len(settings.seeds),
            planner.folds,
            len(settings.seeds),
        )
    for method, network in planner.untrained:
        log.warning(
            "methods.%s: its fresh weights are the %r that its transfer names, which no method "
            "trains",
            method,
            network,
        )
    for (method, task), keys in planner.elsewhere.items():
        log.warning(
            "unseen_test: %s is pretrained on other data than %s tests on, and nothing is left out "
            "of it"
            if not keys
            else "unseen_test: no fold is left out of the pretraining of %s, which may see the "
            "pictures that %s tests on: it reads the same data otherwise; give both the same %s",
            *(method, task, *filter(None, [keys])),
        )
    return list(found.values())


@dataclass(frozen=True)
class _Line:
    """A method with a backbone at one seed, and what the backbone changes."""

    method: str
    backbone: str
    changes: Changes
    seed: int


class _Planner:
    """Makes the cells of each line.

    Args:
        settings: of the comparison.
        pretraining: configurations of `decur pretrain`.
        transfer: configurations of `decur transfer`.

    Attributes:
        folds: the fewest folds of a task whose folds go by seed; 0 where there is none.
        elsewhere: methods and tasks, in order, where `unseen_test` leaves nothing out, as the
            pretraining is on other data, and the keys in which it reads the same data otherwise.
        untrained: methods with fresh weights, and the networks that their transfers name, which no
            method trains.
    """

    def __init__(
        self, settings: CompareSettings, pretraining: Configurations, transfer: Configurations
    ) -> None:
        self.settings = settings
        self.pretraining = pretraining
        self.transfer = transfer
        self.folds = 0
        self.elsewhere: dict[tuple[str, str], str] = {}
        self.untrained: dict[tuple[str, str], None] = {}

    def backbones(self, method: str) -> dict[str, Changes]:
        """Return the backbones of a method, and what each changes in its pretraining."""
        from decur.encoders.settings import EncoderSettings

        settings = self.settings
        if settings.named_backbones is not None:
            return settings.named_backbones
        with _naming(f"methods.{method}"):
            own = settings.methods[method].pretrain or {}
            layers = ordered_layers(settings.pretrain, own, data={})
            encoder = encoder_name(layers) or EncoderSettings().name
        if _is_fresh(settings.methods[method]):
            changes = [settings.transfer, settings.methods[method].transfer]
            fresh = self._fresh_architecture(method, {}, *changes)
            encoder = encoder_name([*fresh, *changes]) or encoder
        name = encoder if isinstance(encoder, str) else "+".join(dict.fromkeys(encoder.values()))
        return {name: {"encoder.name": encoder}}

    def cells(self, line: _Line) -> Iterator[Cell]:
        """Yield the pretraining of a line, then all its transfers."""
        with _naming(f"methods.{line.method}"):
            trained = self._pretraining(line)
        yield from trained
        sources = [cell.folder for cell in trained]
        for task in self.settings.tasks_of(line.method):
            yield from self._transfers(line, task, sources)

    def _pretraining(self, line: _Line) -> list[Cell]:
        """Return the pretraining of a line: none, one, or one a sensor."""
        settings, method = self.settings, self.settings.methods[line.method]
        if method.pretrain is None:
            return []
        layers = self._pretraining_layers(method.pretrain, line.changes)
        self.pretraining.objective(layers)  # which refuses options before hours of work
        cells = []
        own = {"seed": line.seed, **self._left_out(line, layers)}
        for sensor in settings.sensors() if method.apart else [""]:
            alone: list[Changes] = [{"modalities": [sensor]}] if sensor else []
            folder, text = self.pretraining.place(
                [*layers, *alone],
                own=own,
                home=settings.pretrained_folder,
                name=_folder_name(line.method, line.backbone, sensor, f"seed{line.seed}"),
                shared=True,
            )
            cell = Cell(
                command="pretrain",
                folder=folder,
                config=text,
                needs=(),
                method=line.method,
                backbone=line.backbone,
                seed=line.seed,
                modalities=(sensor,) if sensor else (),
            )
            cells.append(cell)
        return cells

    def _pretraining_layers(self, own: Changes, backbone: Changes) -> list[Changes]:
        """Return the configuration of a pretraining: what all have, the backbone's, its own."""
        return ordered_layers(self.settings.pretrain, backbone, own, data=self.settings.data)

    def _fresh_architecture(
        self, method: str, backbone: Changes, *transfers: Changes
    ) -> list[Changes]:
        """Return the network of fresh weights, which is that of the trained rows beside them.

        Where methods train different networks it is the one of those that name no encoder of their
        own, or the one that has what the backbone and the transfer say of it. A transfer may also
        name one that no method trains; a warning says so.

        Args:
            method: the method that has fresh weights.
            backbone: changes that the backbone makes.
            transfers: changes to the transfer, the later ones over the earlier.

        Raises:
            ConfigError: if the trained rows do not tell which network it is.
        """
        networks: dict[str, Changes] = {}
        plain: dict[str, Changes] = {}  # of methods that name no encoder of their own
        for name, other in self.settings.methods.items():
            if other.pretrain is None:
                continue
            with _naming(f"methods.{name}"):
                layers = self._pretraining_layers(other.pretrain, backbone)
                networks[name] = _architecture(self.pretraining.complete(layers)["encoder"])
            if not _named_architecture([other.pretrain]):
                plain[name] = networks[name]
        own = _named_architecture(transfers)
        given = _named_architecture([backbone])
        found = _that_have(plain, [*given, *own]) or _that_have(networks, [*given, *own])
        if not found:
            if networks and (named := encoder_name(own)) is not None:
                self.untrained[method, str(named)] = None
            layers = [backbone] if given else ordered_layers(self.settings.pretrain, data={})
            return _named_architecture(layers)
        first = next(iter(found.values()))
        if any(other != first for other in found.values()):
            key = next(k for k in first if any(each[k] != first[k] for each in found.values()))
            each = ", ".join(f"{network[key]!r} ({name})" for name, network in found.items())
            raise ConfigError(
                f"methods.{method}: cannot tell which network its fresh weights are, as {key} of "
                f"those that are trained is {each}; give one of these in "
                f"methods.{method}.transfer, or compare them in backbones"
            )
        return [{key: value} for key, value in first.items()]

    def _left_out(self, line: _Line, layers: Sequence[Changes]) -> Changes:
        """Return the fold that a line's pretraining must not see, as keys of `decur pretrain`.

        Raises:
            ConfigError: if its tasks test on several folds.
        """
        if not self.settings.unseen_test:
            return {}
        data, found = self._trained_on(layers), []
        for task in self.settings.tasks_of(line.method):
            _, common, own = self._read_task(line, task)
            if is_split(common):
                continue
            tested = samples_of(flatten(common.data.as_dict()))
            if tested != data:
                differ = sorted(k for k in {*data, *tested} if data.get(k) != tested.get(k))
                keys = ", ".join(k.removeprefix("init_args.") for k in differ)
                seen = sees_what_tests(data, common)
                self.elsewhere[line.method, task] = keys if seen else ""
                continue
            found.append(_fold_of(common, own))
        if any(other != found[0] for other in found):
            raise ConfigError(
                f"unseen_test: the tasks of {line.method} split the data by different folds; give "
                "all the same, in the comparison's transfer"
            )
        return found[0] if found else {}

    def _trained_on(self, layers: Sequence[Changes]) -> Changes:
        """Return what says which samples a pretraining has."""
        return samples_of(flatten(self.pretraining.read(layers).data.as_dict()))

    def _read_task(self, line: _Line, task: str) -> tuple[list[Changes], Namespace, Changes]:
        """Return a task's layers, the configuration that they give, and a line's keys of folds."""
        settings, method = self.settings, self.settings.methods[line.method]
        changes = [settings.transfer, settings.tasks[task].transfer, method.transfer]
        if _is_fresh(method):
            named = line.changes if settings.named_backbones is not None else {}
            changes = [*self._fresh_architecture(line.method, named, *changes), *changes]
        else:
            changes.append({k: v for k, v in line.changes.items() if k.startswith("encoder")})
        with _naming(f"tasks.{task} of {line.method}"):
            layers = ordered_layers(*changes, data=settings.data)
            common = self.transfer.read(layers)
        own: Changes = {}
        if not is_split(common) and not any("fold" in layer for layer in layers):
            own["fold"] = line.seed % max(1, common.folds)
            self.folds = min(self.folds or common.folds, common.folds)
        if settings.unseen_test and not is_split(common):
            own["folds_of"] = "all"  # one partition for all seeds, whatever is labelled
        return layers, common, own

    def _refuse_unknown_part(self, layers: Sequence[Changes], representation: str) -> None:
        """Refuse to probe a part of the embedding that a pretraining does not make.

        Raises:
            ConfigError: naming the parts that it makes.
        """
        from decur.pretrain.share import wants_share

        if representation == "features":
            return
        objective = self.pretraining.objective(layers)
        # a share that is to be counted makes these parts, mostly
        if not (wants_share(objective) and representation in ("common", "unique")):
            objective.dimensions_of(representation)

    def _transfers(self, line: _Line, task: str, sources: Sequence[Path]) -> Iterator[Cell]:
        """Yield a line's transfers to a task: all shares of the labels with all sets of sensors."""
        settings, method = self.settings, self.settings.methods[line.method]
        layers, common, folds = self._read_task(line, task)
        own: Changes = {
            "encoders": [str(folder) for folder in sources] or method.encoders,
            "seed": line.seed,
            "cache": common.cache or str(Path(settings.run) / "cache"),
            **folds,
        }
        if method.pretrain is None:
            # whose fold is one of all samples, as a pretraining leaves it out
            whole = not is_split(common) and folds.get("folds_of", common.folds_of) == "all"
            left_out = _fold_of(common, folds) if whole else {}
            seen = earlier_run_sees(method.encoders, common, left_out)
        else:
            without = self._pretraining_layers(method.pretrain, line.changes)
            with _naming(f"tasks.{task} of {line.method}"):
                self._refuse_unknown_part(without, common.representation)
            folds_apart = settings.unseen_test and not is_split(common)
            left_out_here = folds_apart and (line.method, task) not in self.elsewhere
            seen = not left_out_here and sees_what_tests(self._trained_on(without), common)
        apart: Changes = {}
        if "fold" in own and common.fold_seed is None and line.seed and not settings.unseen_test:
            apart["fold_seed"] = 0  # the folds of all seeds are one partition
        for subset in settings.subsets(task):
            for fraction in settings.fractions(task):
                share, seed = f"{100 * fraction:g}pc", f"seed{line.seed}"
                place = partial(
                    self.transfer.place,
                    layers,
                    home=Path(settings.run) / "transfer",
                    name=_folder_name(task, line.method, line.backbone, *subset, share, seed),
                    encoders=settings.pretrained_folder,
                )
                mine = {**own, "modalities": subset or None, "label_fraction": fraction}
                folder, text = place(own=mine)
                if apart and not _is_split_by_groups(folder):
                    folder, text = place(own={**mine, **apart})
                yield Cell(
                    command="transfer",
                    folder=folder,
                    config=text,
                    needs=tuple(sources),
                    method=line.method,
                    backbone=line.backbone,
                    seed=line.seed,
                    task=task,
                    modalities=tuple(subset),
                    label_fraction=fraction,
                    transductive=seen,
                )


def _is_fresh(method: MethodSettings) -> bool:
    """Return whether the encoders of a method have fresh weights."""
    return method.pretrain is None and list(method.encoders) == ["random"]


def _named_architecture(layers: Sequence[Changes]) -> list[Changes]:
    """Return what layers say of the network of encoders, each key by itself."""
    from decur.encoders.header import without_starts  # timm takes seconds to import

    found: list[Changes] = []
    for layer in layers:
        whole = layer.get("encoder")
        inside = {f"encoder.{k}": v for k, v in whole.items()} if isinstance(whole, dict) else {}
        for key, value in {**inside, **layer}.items():
            outer, _, inner = key.partition(".")
            name, _, option = inner.partition(".")
            if outer != "encoder" or name not in _ARCHITECTURE or not without_starts({option: 0}):
                continue
            found.append({key: without_starts(value) if inner == "options" else value})
    return found


def _architecture(encoder: Changes) -> Changes:
    """Return the network of a complete configuration's encoder, without weights to start from."""
    from decur.encoders.header import without_starts

    network = {f"encoder.{key}": encoder[key] for key in _ARCHITECTURE}
    return network | {"encoder.options": without_starts(encoder["options"])}


def _that_have(networks: dict[str, Changes], wanted: Sequence[Changes]) -> dict[str, Changes]:
    """Return the networks of which what is wanted is true, single options among it."""
    keys = {key: value for layer in wanted for key, value in layer.items()}  # the last one holds

    def has(network: Changes) -> bool:
        single = {f"encoder.options.{k}": v for k, v in network["encoder.options"].items()}
        return all({**network, **single}.get(key) == value for key, value in keys.items())

    return {name: network for name, network in networks.items() if has(network)}


def _fold_of(transfer: Namespace, own: Changes) -> Changes:
    """Return the fold that a transfer tests on, as keys of a pretraining that leaves it out.

    Args:
        transfer: its configuration.
        own: keys of folds that a line adds.
    """
    fold, seed = own.get("fold", transfer.fold), transfer.fold_seed or 0
    return {"without_fold": fold, "folds": transfer.folds, "fold_seed": seed}


def _is_split_by_groups(folder: Path) -> bool:
    """Return whether a finished cell of version 0.1 has folds of groups, which no seed shuffles."""
    results = folder / "results.json"
    with reading(results, "delete its folder, and it is done again"):
        return results.is_file() and json.loads(results.read_text()).get("groups") is not None


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Name the method or task whose configuration is wrong."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _folder_name(*parts: str) -> str:
    """Return the readable part of a folder's name, made of names that people chose."""
    return "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part)
