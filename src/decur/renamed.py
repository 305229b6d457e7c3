"""Modules of version 0.1 that have moved: scripts that import them by the old name still work."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The old name of a module to the new one, or to the new place of each of its names.
MOVED: dict[str, str | dict[str, str]] = {
    "decur.bench.traffic": "decur.pretrain.distributed",
    "decur.checkpoint": {
        "RunFolder": "decur.runs:RunFolder",
        "load_encoder": "decur.encoders.files:load_encoder",
        "save_encoder": "decur.encoders.files:save_encoder",
    },
    "decur.encoders.adapted": "decur.encoders.base",
    "decur.encoders.backbone": {
        "TimmEncoder": "decur.encoders.timm_models:TimmEncoder",
        "build_encoder": "decur.encoders.build:build_encoder",
        "list_encoders": "decur.encoders.build:list_encoders",
    },
    "decur.encoders.projected": "decur.encoders.projector",
    "decur.data.bands": "decur.data.stats",
    "decur.compare.figures": "decur.compare.rendering",
    "decur.compare.published": "decur.compare.tables",
    "decur.compare.table": {
        "Scores": "decur.compare.tables:Scores",
        "_mark_best": "decur.compare.tables:mark_best",
        "tabulate": "decur.compare.tables:tabulate",
    },
    "decur.data.gaussian": "decur.data.generated.gaussian",
    "decur.data.synthetic": "decur.data.generated.scenes",
    "decur.data.trifeature": "decur.data.generated.trifeature",
    "decur.data.opening": "decur.data.base",
    "decur.data.packing": "decur.data.packed",
    "decur.explain.keeping": {"digest_of": "decur.explain.section:arrays_digest"},
    "decur.explain.loading": {
        "Encoded": "decur.features:Features",
        "SampleLoader": "decur.features:SampleLoader",
        "encoded": "decur.explain.model:encoded",
    },
    "decur.embed.figures": "decur.embed.neighbors",
    "decur.explain.browser_cards": "decur.explain.browser",
    "decur.explain.held_out": {
        "Halves": "decur.agreement:Halves",
        "canonical": "decur.agreement:canonical",
        "coordinates": "decur.agreement:coordinates",
        "places": "decur.agreement:places",
        "predicted": "decur.agreement:predicted",
        "split": "decur.scores:split",
        "standardised": "decur.scores:standardised",
    },
    "decur.explain.maps": "decur.explain.saliency",
    "decur.explain.opening": {
        "configuration": "decur.explain.settings:configuration",
        "own_data": "decur.explain.settings:own_data",
        "size_of_views": "decur.explain.settings:size_of_views",
    },
    "decur.explain.shared_advice": "decur.explain.advice",
    "decur.explain.shared_figures": "decur.explain.shared",
    "decur.explain.spatial_figures": "decur.explain.spatial",
    "decur.explain.spatial_findings": "decur.explain.spatial",
    "decur.explain.spectral_figures": "decur.explain.spectral",
    "decur.explain.style": "decur.plotting",
    "decur.transfer.keeping": "decur.features.cache",
    "decur.transfer.survey": {
        "MAPS": "decur.features:LAST_MAPS",
        "fingerprint": "decur.digest:digest",
        "map_names": "decur.features:map_names",
        "scaled": "decur.features:scaled",
        "weights_digest": "decur.digest:digest",
    },
    "decur.pretrain.engine": "decur.pretrain.trainer",
    "decur.pretrain.probe": {
        "METRICS": "decur.scores:METRICS",
        "probe": "decur.probes:quick_probe",
    },
    "decur.progress": "decur.terminal",
    "decur.pretrain.sharding": "decur.pretrain.distributed",
    "decur.data.resizing": "decur.data.files",
    "decur.transfer.averaging": "decur.transfer.augment",
    "decur.transfer.fusion": "decur.transfer.heads",
    "decur.transfer.models": "decur.transfer.heads",
    "decur.transfer.outside": {"MissingBands": "decur.transfer.settings:MissingBands"},
    "decur.transfer.probe": {
        "LOGISTIC": "decur.probes:LOGISTIC",
        "PATIENCE": "decur.probes:PATIENCE",
        "RIDGE": "decur.probes:RIDGE",
        "_fit_chosen": "decur.probes:fit_chosen",
        "_solve_logistic": "decur.probes:solve_logistic",
        "_solve_ridge": "decur.probes:solve_ridge",
        "fit_logistic": "decur.probes:fit_logistic",
        "fit_ridge": "decur.probes:fit_ridge",
    },
}


class MovedModules(MetaPathFinder, Loader):
    """Find a module of `MOVED` that the rest of Python does not find."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module that has moved; None for every other."""
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Let a module look up its names where they are now."""
        old = module.__name__
        now = MOVED[old]
        warnings.warn(f"{old} has moved; see decur.renamed", DeprecationWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            place = f"{now}:{name}" if isinstance(now, str) else now.get(name, ":")
            home, _, there = place.partition(":")
            if not home or (isinstance(now, str) and name.startswith("__")):
                raise AttributeError(f"module {old!r} has no attribute {name!r}")
            return getattr(import_module(home), there)

        module.__dict__["__getattr__"] = look_up


def install_import_hook() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
