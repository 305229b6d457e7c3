"""decur: what sensors share, and what only one of them sees, learned from unlabelled pairs.

Names and packages are imported when they are first used. `decur.pretrain`, `decur.transfer`,
`decur.embed`, `decur.explain` and `decur.compare` are packages that are also called like functions:
`decur.pretrain(data, decur.DeCUR(dim=1024), run="runs/mine")`.
"""

from typing import TYPE_CHECKING

from decur import renamed
from decur.lazy import lazy_names

if TYPE_CHECKING:
    from decur.data import PackedPairs, PairedFolder, SyntheticScenes
    from decur.encoders import build_encoder, list_encoders, load_encoder, save_encoder
    from decur.modality import Modality
    from decur.objectives import CLIP, BarlowTwins, DeCUR, SimCLR, VICReg
    from decur.pretrain import Pretrainer
else:
    __getattr__, __dir__ = lazy_names(__name__)

renamed.install_import_hook()

__version__ = "0.2.0.dev0"
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
