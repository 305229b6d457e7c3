"""What is common and what is unique in a run: arrays, figures and sections of its report.

To add an analysis, add a file that registers it.
"""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.explain.base import ANALYSES, Analysis, Arrays, DoesNotApply, unwatched
    from decur.explain.model import Checkpoint, encoded
    from decur.explain.run import Explained, explain
    from decur.explain.settings import ExplainSettings
    from decur.features import Features, SampleLoader
else:
    __getattr__, __dir__ = lazy_names(__name__, call=True)

__all__ = [
    "ANALYSES",
    "Analysis",
    "Arrays",
    "Checkpoint",
    "DoesNotApply",
    "ExplainSettings",
    "Explained",
    "Features",
    "SampleLoader",
    "encoded",
    "explain",
    "unwatched",
]
