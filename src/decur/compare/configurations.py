"""The configurations of a comparison's cells: layers merged, parsed once, each with its folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from decur.bounded_yaml import LOADER
from decur.compare.settings import Changes
from decur.config import as_yaml
from decur.layers import flatten
from decur.recipes import find_config

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from decur.config import Parser
    from decur.objectives.base import Objective

# Keys that may change without making another cell: they do not change the result.
_FREE = re.compile(
    r"(run|cache|device|keep_model|loader\.workers|checkpoint\..*|trainer\.(devices|num_nodes))$"
)


@dataclass(frozen=True)
class _Parsed:
    """A configuration as the command gets it, complete, and without the defaults."""

    namespace: Namespace
    complete: Changes
    differing: Changes


class Configurations:
    """Makes the configurations of a command's cells, and names their folders.

    Args:
        parser: of the command.
    """

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._defaults = parser.get_defaults()
        self._parsed: dict[str, _Parsed] = {}
        self._shared: dict[tuple[Path, str], Path] = {}

    def read(self, layers: Sequence[Changes]) -> Namespace:
        """Return the configuration that layers give, which must not be changed."""
        return self._parse(layers).namespace

    def complete(self, layers: Sequence[Changes]) -> Changes:
        """Return the configuration that layers give as plain values, which must not be changed."""
        return self._parse(layers).complete

    def objective(self, layers: Sequence[Changes]) -> Objective:
        """Return the method of a pretraining, made anew.

        Raises:
            ConfigError: for options that make no sense together.
        """
        from jsonargparse import Namespace

        alone = Namespace(objective=self.read(layers).objective)
        objective: Objective = self._parser.instantiate(alone).objective
        return objective

    def place(
        self,
        layers: Sequence[Changes],
        *,
        own: Changes,
        home: Path,
        name: str,
        encoders: Path | None = None,
        shared: bool = False,
    ) -> tuple[Path, str]:
        """Return a cell's folder, which ends in its configuration's digest, and that as YAML.

        The digest is of what differs from the defaults: an option that a later version adds does
        not make a new cell of one that is done.

        Args:
            layers: what many cells have in common.
            own: plain values of the cell's own, over all layers.
            home: where the folder lies.
            name: what the folder's begins with.
            encoders: where the encoders lie, so that a comparison that is moved stays what it is.
            shared: a folder of the same digest is taken whatever its name: methods, of this
                comparison or of others with the same home, may have it in common.
        """
        parsed = self._parse(layers)
        differing = {key: value for key, value in parsed.differing.items() if key not in own}
        differing |= {key: value for key, value in own.items() if value != self._defaults[key]}
        matters = {key: value for key, value in differing.items() if not _FREE.match(key)}
        if encoders is not None and "encoders" in matters:
            prefix = f"{encoders}/"
            matters["encoders"] = [path.removeprefix(prefix) for path in matters["encoders"]]
        text = json.dumps(matters, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = home / f"{name}-{digest}"
        if shared and not folder.exists():
            known = self._shared.setdefault((home, digest), folder)
            folder = min(home.glob(f"*-{digest}"), default=known)
        complete = {**parsed.complete, **own, "run": str(folder)}
        return folder, as_yaml(complete)

    def _parse(self, layers: Sequence[Changes]) -> _Parsed:
        """Parse each list of layers once: it takes a while, and a comparison has many cells."""
        from decur.pretrain.configuration import ORDERS

        key = repr(layers)
        if key not in self._parsed:
            settings = self._parser.read(layers)
            for order in ORDERS:
                settings.pop(order, None)
            complete, differing = (
                yaml.load(self._parser.to_yaml(settings, skip_default=skip), LOADER)
                for skip in (False, True)
            )
            self._parsed[key] = _Parsed(settings, complete, flatten(differing))
        return self._parsed[key]


def ordered_layers(*changes: Changes, data: Changes) -> list[Changes]:
    """Return what changes build on, then the data, then the changes, each key by itself.

    Args:
        changes: the later ones over the earlier; `base` in any names a file or a recipe.
        data: keys of the data set.

    Returns:
        Layers of a configuration, the later ones over the earlier.
    """
    bases = [
        layer for change in changes if change.get("base") for layer in find_config(change["base"])
    ]
    own = [layer for change in changes for layer in _one_by_one(change) if "base" not in layer]
    whole = {key: data[key] for key in ("class_path", "init_args") if key in data}
    single = {f"data.{key}": value for key, value in data.items() if key not in whole}
    common = [{"data": whole} if whole else {}, *_one_by_one(single)]
    return [layer for layer in (*bases, *common, *own) if layer]


def _one_by_one(change: Changes) -> list[Changes]:
    """Return each key as a layer of its own.

    `trainer.max_epochs` cannot stand in one layer with `trainer`.
    """
    return [{key: value} for key, value in sorted(change.items(), key=lambda item: "." in item[0])]
