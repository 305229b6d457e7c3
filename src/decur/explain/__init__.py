"""What is common and what is unique in a run: arrays, figures and sections of its report.

To add an analysis, add a file that registers it.
"""

from decur.explain.base import ANALYSES, Analysis, Arrays, DoesNotApply, unwatched
from decur.explain.model import Checkpoint, encoded
from decur.features import Features, SampleLoader

__all__ = [
    "ANALYSES",
    "Analysis",
    "Arrays",
    "Checkpoint",
    "DoesNotApply",
    "Features",
    "SampleLoader",
    "encoded",
    "unwatched",
]
