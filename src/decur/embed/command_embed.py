"""`decur embed`: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decur.config import Parser
from decur.data.base import PairedDataset
from decur.embed.settings import EmbedSettings
from decur.pretrain.settings import TrainerSettings

if TYPE_CHECKING:
    from decur.embed.embedding import Embedded

_ABOUT = (
    "Embeddings of a data set as Parquet, a row a sample and sensor: decur embed --encoders "
    "runs/mine --data.root FOLDER --out embeddings. An interrupted command goes on where it was."
)
# of Lightning's Trainer: what concerns training alone
_TRAINING = {
    *("max_epochs", "max_steps", "max_time", "limit_train_batches", "log_every_n_steps"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("detect_anomaly", "profiler", "logger", "callbacks"),
}
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what is embedded, by what": ("encoders", "data.root", "data", "modalities", "size"),
    "what is written, and where": ("out", "projector", "missing_bands"),
    "where it runs": (
        "loader.batch_size",
        "loader.workers",
        "trainer.accelerator",
        "trainer.devices",
        "trainer.precision",
        "config",
    ),
}


def embed_parser() -> Parser:
    """Return the parser of `decur embed`: fields of `EmbedSettings`, options of Lightning."""
    parser = Parser("decur embed", _ABOUT)
    parser.add_config(shipped=False)
    parser.add_argument("--data", type=PairedDataset, required=True, help="Data set to embed.")
    parser.add_class_arguments(EmbedSettings, skip={"modalities"})
    parser.add_argument(
        "--encoders",
        type=str,
        nargs="+",
        required=True,
        help="Folders of runs, encoder files, `timm:NAME` for timm's pretrained weights, "
        "`torchgeo:NAME` for torchgeo's, `SENSOR=` before either where several sensors fit, "
        "`hf-hub:USER/REPO`, `random` for fresh weights, or `random:RUN` for fresh weights in the "
        "networks of a run. Folders of runs give the embedding besides the features.",
    )
    parser.add_argument(
        "--modalities",
        type=str,
        nargs="+",
        help="Sensors to use; by default all of the data that there is an encoder for.",
    )
    parser.add_class_arguments(TrainerSettings, "trainer", instantiate=False, skip=_TRAINING)
    parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    parser.show_first(_ESSENTIALS)
    return parser


def main(arguments: Sequence[str]) -> Embedded:
    """Run `decur embed ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = embed_parser()
    settings = parser.parse(arguments)
    settings.pop("config", None)
    made = vars(parser.instantiate(settings))
    from decur.embed.embedding import embed

    data, encoders, trainer = (made.pop(key) for key in ("data", "encoders", "trainer"))
    return embed(data, encoders, settings=EmbedSettings(**made), trainer=trainer.as_dict())
