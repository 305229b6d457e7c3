"""decur: what sensors share, and what only one of them sees, learned from unlabelled pairs."""

from decur import renamed
from decur.modality import Modality

renamed.install()

__version__ = "0.1.0"
__all__ = ["Modality", "__version__"]
