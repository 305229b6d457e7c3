"""decur: what sensors share, and what only one of them sees, learned from unlabelled pairs."""

from typing import TYPE_CHECKING

from decur import renamed
from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.data.folder import PairedFolder
    from decur.data.generated.scenes import SyntheticScenes
    from decur.data.packed import PackedPairs
    from decur.encoders.backbone import build_encoder, list_encoders
    from decur.encoders.files import load_encoder, save_encoder
    from decur.modality import Modality
    from decur.objectives.barlow_twins import BarlowTwins
    from decur.objectives.clip import CLIP
    from decur.objectives.decur import DeCUR
    from decur.objectives.simclr import SimCLR
    from decur.objectives.vicreg import VICReg
    from decur.pretrain.module import Pretrainer
else:
    __getattr__, __dir__ = lazy_names(__name__)

renamed.install()

__version__ = "0.1.0"
__all__ = [
    "CLIP",
    "BarlowTwins",
    "DeCUR",
    "Modality",
    "PackedPairs",
    "PairedFolder",
    "Pretrainer",
    "SimCLR",
    "SyntheticScenes",
    "VICReg",
    "__version__",
    "build_encoder",
    "list_encoders",
    "load_encoder",
    "save_encoder",
]
