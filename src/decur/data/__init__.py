"""Data sets of paired sensors: files on disk, or generated scenes, to samples and batches."""

from decur.data.base import Batch, Collate, PairedDataset, Sample, SkipBad, Target
from decur.data.folder import PairedFolder
from decur.data.stats import BandStatistics, compute_stats, write_modalities
from decur.data.synthetic import SyntheticScenes

__all__ = [
    "BandStatistics",
    "Batch",
    "Collate",
    "PairedDataset",
    "PairedFolder",
    "Sample",
    "SkipBad",
    "SyntheticScenes",
    "Target",
    "compute_stats",
    "write_modalities",
]
