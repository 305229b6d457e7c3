"""From layers of changes to one cell's settings, and to the folder that is named by them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from decur.config import Parser, find_config, flatten

Changes = dict[str, Any]
# In C where PyYAML has it, which is ten times faster.
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# What a cell's configuration may hold without being another cell.
_FREE = re.compile(
    r"(run|cache|device|keep_model|loader\.workers|checkpoint\..*|trainer\.(devices|num_nodes))$"
)


@dataclass(frozen=True)
class _Parsed:
    """What layers come to: as the command gets them, complete, and without what is default."""

    namespace: Namespace
    complete: Changes
    differing: Changes


class Settings:
    """From layers of changes to the settings of a command's cells and to their folders.

    Args:
        parser: of the command.
    """

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._defaults = parser.get_defaults()
        self._known: dict[str, _Parsed] = {}
        self._placed: dict[tuple[Path, str], Path] = {}

    def read(self, layers: Sequence[Changes]) -> Namespace:
        """The settings that layers give, the later ones over the earlier; not to be changed."""
        return self._parse(layers).namespace

    def place(
        self,
        layers: Sequence[Changes],
        own: Changes,
        home: Path,
        name: str,
        encoders: Path | None = None,
        shared: bool = False,
    ) -> tuple[Path, str]:
        """A cell's folder, which ends in its configuration's digest, and the configuration, YAML.

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
            own_encoders = f"{encoders}/"
            matters["encoders"] = [e.removeprefix(own_encoders) for e in matters["encoders"]]
        text = json.dumps(matters, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = home / f"{name}-{digest}"
        if shared and not folder.exists():
            known = self._placed.setdefault((home, digest), folder)
            folder = min(home.glob(f"*-{digest}"), default=known)
        complete = {**parsed.complete, **own, "run": str(folder)}
        return folder, yaml.dump(complete, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def _parse(self, layers: Sequence[Changes]) -> _Parsed:
        """Each only once: parsing takes a tenth of a second, and a comparison has many cells."""
        key = repr(layers)
        if key not in self._known:
            settings = self._parser.read(layers)
            for order in ("resume", "overwrite"):  # to the command; no part of a configuration
                settings.pop(order, None)
            complete, differing = (
                yaml.safe_load(
                    self._parser.dump(
                        settings, skip_none=False, skip_default=skip, skip_validation=True
                    )
                )
                for skip in (False, True)
            )
            self._known[key] = _Parsed(settings, complete, flatten(differing))
        return self._known[key]


def layered(*changes: Changes, data: Changes) -> list[Changes]:
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


def slug(*parts: str) -> str:
    """A part of a folder's name, of what people call things."""
    return "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts if part)


def encoder_name(layers: Sequence[Changes]) -> str | dict[str, str] | None:
    """The encoder that layers name, one or one a sensor, the later ones over the earlier."""
    for layer in reversed(layers):
        whole = layer.get("encoder")
        inside = whole.get("name") if isinstance(whole, dict) else None
        found: str | dict[str, str] | None = layer.get("encoder.name", inside)
        if found:
            return found
    return None
