"""`decur transfer`: the command line of a transfer."""

from __future__ import annotations

from collections.abc import Sequence

from decur.config import Parser
from decur.errors import ConfigError
from decur.transfer.run import Transferred, transfer

_ABOUT = (
    "What are encoders worth for a task? Trains a head on labels, frozen or fine-tuned, and tests "
    "it: decur transfer --encoders runs/mine --data.root FOLDER --target LABEL"
)
_SPLITS = ("train_split", "test_split")


def build_parser() -> Parser:
    """The parser of `decur transfer`: the arguments of `transfer`."""
    parser = Parser("decur transfer", _ABOUT)
    parser.add_config()
    lists = {"encoders", "modalities"}
    parser.add_function_arguments(transfer, skip={*lists, "test_data", "config"})
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
    return parser


def main(arguments: Sequence[str]) -> Transferred:
    """Run `decur transfer ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = build_parser()
    settings = parser.parse(arguments)
    text = parser.dump(settings, skip_none=False, skip_validation=True)
    settings.pop("config", None)
    splits = {key: settings.pop(key) for key in _SPLITS}
    if splits["train_split"] is None and splits["test_split"] is None:
        return transfer(**vars(parser.instantiate_classes(settings)), config=text)
    parts = []
    for key, split in splits.items():
        if split is None:
            raise ConfigError(f"{key}: is missing; name both splits, or neither and use folds")
        chosen = settings.clone()
        if "split" not in chosen.data.init_args:
            raise ConfigError(f"{key}: {chosen.data.class_path} has no splits; leave it out")
        chosen.data.init_args.split = split
        parts.append(parser.instantiate_classes(chosen))
    made = vars(parts[0])
    return transfer(**made, test_data=parts[1].data, config=text)
