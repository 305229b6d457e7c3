"""`decur transfer`: the command line of a transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from decur.config import Parser
from decur.data.base import PairedDataset
from decur.errors import ConfigError
from decur.transfer.settings import TransferSettings

if TYPE_CHECKING:
    from decur.transfer.run import Transferred

_ABOUT = (
    "What are encoders worth for a task? Trains a head on labels, frozen or fine-tuned, and tests "
    "it: decur transfer --encoders runs/mine --data.root FOLDER --target LABEL"
)
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what is tried, on which labels": ("encoders", "data.root", "data", "target", "modalities"),
    "how": ("freeze", "probe", "head", "label_fraction", "size"),
    "what is tested on": ("folds", "fold", "train_split", "test_split"),
    "how it is trained": ("fit.epochs", "fit.lr", "loader.batch_size"),
    "the run": ("config", "run", "seed", "device"),
}
_SPLITS = ("train_split", "test_split")


def build_parser() -> Parser:
    """Return the parser of `decur transfer`: a data set, and the fields of `TransferSettings`."""
    parser = Parser("decur transfer", _ABOUT)
    parser.add_config()
    parser.add_argument("--data", type=PairedDataset, required=True, help="The labelled data set.")
    parser.add_class_arguments(TransferSettings, skip={"encoders", "modalities"})
    parser.add_argument(
        "--encoders",
        type=str,
        nargs="+",
        default=["random"],
        help="Folders of runs, encoder files, `timm:NAME` for timm's pretrained weights (such as "
        "timm:resnet50.a1_in1k), `torchgeo:NAME` for torchgeo's (such as "
        "torchgeo:ResNet50_Weights.SENTINEL2_ALL_MOCO; `torchgeo:NAME@data` keeps the data's "
        "scaling), `SENSOR=` before either where several sensors fit, or `random` for fresh ones.",
    )
    parser.add_argument(
        "--modalities",
        type=str,
        nargs="+",
        help="Sensors to use; by default all of the data that there is an encoder for.",
    )
    parser.add_argument(
        "--train_split", type=str | None, help="Split of the data to train on, in place of folds."
    )
    parser.add_argument(
        "--test_split", type=str | None, help="Split of the data to test on, in place of folds."
    )
    parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    parser.show_first(_ESSENTIALS)
    return parser


def main(arguments: Sequence[str]) -> Transferred:
    """Run `decur transfer ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = build_parser()
    parsed = parser.parse(arguments)
    text = parser.dump(parsed, skip_none=False, skip_validation=True)
    data = _open_data(parser, parsed)
    for key in ("config", "data", *_SPLITS):
        parsed.pop(key, None)
    options = vars(parser.instantiate_classes(parsed))
    from decur.transfer.run import transfer

    settings = TransferSettings(**options)
    return transfer(data[0], settings, test_data=data[1] if len(data) > 1 else None, config=text)


def _open_data(parser: Parser, parsed: Namespace) -> list[PairedDataset]:
    """Open the data set; where splits are named, that to train on and that to test on.

    Raises:
        ConfigError: if only one split is named, or the data set has none.
    """
    splits = {key: parsed[key] for key in _SPLITS}
    if set(splits.values()) == {None}:
        return [parser.instantiate_classes(parsed).data]
    opened = []
    for key, split in splits.items():
        if split is None:
            raise ConfigError(f"{key}: is missing; name both splits, or neither and use folds")
        chosen = parsed.clone()
        if "split" not in chosen.data.init_args:
            raise ConfigError(f"{key}: {chosen.data.class_path} has no splits; leave it out")
        chosen.data.init_args.split = split
        opened.append(parser.instantiate_classes(chosen).data)
    return opened
