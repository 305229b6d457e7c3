"""Data sets of paired sensors: files on disk, or generated scenes, to samples and batches."""

from typing import TYPE_CHECKING

from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.data.band_statistics import BandStatistics
    from decur.data.base import DATASETS, PairedDataset, SkipBad
    from decur.data.bigearthnet import BigEarthNetMM
    from decur.data.bigearthnet_v2 import BigEarthNetV2
    from decur.data.dictionaries import from_dataset
    from decur.data.folder import PairedFolder
    from decur.data.generated.gaussian import LinearGaussianFactors
    from decur.data.generated.scenes import SyntheticScenes
    from decur.data.generated.trifeature import BimodalTrifeature
    from decur.data.geonrw import GeoNRW
    from decur.data.loader import LoaderSettings
    from decur.data.nyu import NYUDepthV2
    from decur.data.ombria import Ombria
    from decur.data.packed import PackedPairs
    from decur.data.rgbx import RGBX
    from decur.data.sample import Batch, Collate, Sample, Target
    from decur.data.scenes import PairedScenes
    from decur.data.ssl4eo import SSL4EOS12
    from decur.data.ssl4eo_v11 import SSL4EOS12v11
    from decur.data.stats import compute_stats, write_modalities
    from decur.data.sunrgbd import SUNRGBD
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DATASETS",
    "RGBX",
    "SSL4EOS12",
    "SUNRGBD",
    "BandStatistics",
    "Batch",
    "BigEarthNetMM",
    "BigEarthNetV2",
    "BimodalTrifeature",
    "Collate",
    "GeoNRW",
    "LinearGaussianFactors",
    "LoaderSettings",
    "NYUDepthV2",
    "Ombria",
    "PackedPairs",
    "PairedDataset",
    "PairedFolder",
    "PairedScenes",
    "SSL4EOS12v11",
    "Sample",
    "SkipBad",
    "SyntheticScenes",
    "Target",
    "compute_stats",
    "from_dataset",
    "write_modalities",
]
