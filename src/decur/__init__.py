"""decur: what sensors share, and what only one of them sees, learned from unlabelled pairs."""

from decur.modality import Modality

__version__ = "0.1.0"
__all__ = ["Modality", "__version__"]
