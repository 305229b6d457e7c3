"""A checkpoint and data to arrays, to pictures, to a report: what is common, what is unique.

To add an analysis, add a file that registers it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from decur.explain.base import ANALYSES, Analysis, Arrays, DoesNotApply, unwatched
from decur.explain.loading import Encoded, SampleLoader, encoded
from decur.explain.model import Checkpoint

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
for _name in sorted(ANALYSES, key=lambda name: ANALYSES[name].order):  # as the report has them
    ANALYSES[_name] = ANALYSES.pop(_name)

__all__ = [
    "ANALYSES",
    "Analysis",
    "Arrays",
    "Checkpoint",
    "DoesNotApply",
    "Encoded",
    "SampleLoader",
    "encoded",
    "unwatched",
]
