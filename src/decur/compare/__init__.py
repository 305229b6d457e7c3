"""Methods side by side: cells that run by themselves, tables with spread, published rows."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.compare.run import Compared, compare
    from decur.compare.settings import (
        ClusterSettings,
        CompareSettings,
        MethodSettings,
        TaskSettings,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

__all__ = [
    "ClusterSettings",
    "CompareSettings",
    "Compared",
    "MethodSettings",
    "TaskSettings",
    "compare",
]
