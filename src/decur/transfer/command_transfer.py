"""`decur transfer`: the command line of a transfer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from decur.config import Parser
from decur.data.base import PairedDataset
from decur.errors import ConfigError
from decur.recipes import find_config
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
    "what is tested on": ("folds", "fold", "test_split"),
    "how it is trained": ("fit.epochs", "fit.lr", "loader.batch_size"),
    "the run": ("config", "run", "seed", "device"),
}
_SPLITS = ("train_split", "test_split", "val_split")


def build_parser() -> Parser:
    """Return the parser of `decur transfer`: a data set, and the fields of `TransferSettings`."""
    parser = Parser("decur transfer", _ABOUT)
    parser.add_config()
    parser.add_argument("--data", type=PairedDataset, required=True, help="Labelled data set.")
    parser.add_class_arguments(TransferSettings, skip={"encoders", "modalities"})
    parser.add_argument(
        "--encoders",
        type=str,
        nargs="+",
        default=["random"],
        help="Folders of runs, encoder files, `random:RUN` for fresh weights in the networks of a "
        "run, `random` for fresh ones of `encoder.name`, `timm:NAME` for timm's pretrained weights "
        "(such as timm:resnet50.a1_in1k), or `torchgeo:NAME` for torchgeo's (such as "
        "torchgeo:ResNet50_Weights.SENTINEL2_ALL_MOCO; `torchgeo:NAME@data` keeps the data's "
        "scaling); `SENSOR=` before either where several sensors fit.",
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
    parser.add_argument(
        "--val_split",
        type=str | None,
        help="Split of the data that chooses the best epoch, in place of val_fraction.",
    )
    parser.add_argument(
        "--test_data",
        type=dict[str, Any] | None,
        help="Keys of the data to test on where they differ from those of `data`, as "
        "--test_data.root FOLDER (or class_path for another data set); null: `data` itself.",
    )
    parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    parser.show_first(_ESSENTIALS)
    return parser


@cache
def shared_parser() -> Parser:
    """Return the parser of `decur transfer`, built once: a comparison parses many command lines."""
    return build_parser()


def main(arguments: Sequence[str]) -> Transferred:
    """Run `decur transfer ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = shared_parser()
    parsed = parser.parse(_as_version_0_1(arguments))
    text = parser.to_yaml(parsed)
    data = _open_data(parser, parsed)
    for key in ("config", "data", "test_data", *_SPLITS):
        parsed.pop(key, None)
    options = vars(parser.instantiate(parsed))
    from decur.transfer.run import transfer

    settings = TransferSettings(**options)
    return transfer(
        data.train, settings, test_data=data.test, val_data=data.validation, config=text
    )


# The keys of `fit` in a configuration that version 0.1 has kept, which later ones add to.
_FIT_0_1 = {
    *("name", "lr", "weight_decay", "momentum", "epochs", "steps", "schedule", "milestones"),
    *("augment", "crop", "scales", "piece", "warmup_epochs"),
}


def _as_version_0_1(arguments: Sequence[str]) -> list[str]:
    """Return arguments by which a configuration that version 0.1 has kept does what it did.

    It wrote `augment: true` where nothing was said, and then augmented what it trained on pictures
    anyway, which is null today.
    """
    found: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        found.append(word)
        name = word if before == "--config" else word.removeprefix("--config=")
        if before != "--config" and name == word:
            continue
        kept = [layer.get("fit") for layer in find_config(name)]
        if any(isinstance(fit, dict) and fit.keys() == _FIT_0_1 and fit["augment"] for fit in kept):
            found += ["--fit.augment", "null"]
    return found


@dataclass(frozen=True)
class _Opened:
    """The data to train on, and where they are data of their own those of the other parts."""

    train: PairedDataset
    test: PairedDataset | None = None
    validation: PairedDataset | None = None


def _open_data(parser: Parser, parsed: Namespace) -> _Opened:
    """Open the data set; where splits or other data are named, each part.

    Raises:
        ConfigError: if only one split is named, or the data set has none.
    """
    splits, other = {key: parsed[key] for key in _SPLITS}, parsed.test_data
    if set(splits.values()) == {None} and other is None:
        return _Opened(parser.instantiate(parsed).data)
    own_test = other is not None
    for key in ("train_split", "test_split"):
        if splits[key] is None and not own_test and set(splits.values()) != {None}:
            raise ConfigError(f"{key}: is missing; name both splits, or neither and use folds")
    if own_test and splits["val_split"] is not None and splits["train_split"] is None:
        raise ConfigError("train_split: is missing; with val_split, name what is trained on, too")
    tested = with_data_keys(parser, parsed, other) if other else parsed
    return _Opened(
        train=_open_split(parser, parsed, "train_split"),
        test=_open_split(parser, tested, "test_split"),
        validation=(
            None if splits["val_split"] is None else _open_split(parser, parsed, "val_split")
        ),
    )


def with_data_keys(parser: Parser, parsed: Namespace, keys: Mapping[str, Any]) -> Namespace:
    """Return the configuration with other keys of its data, as `test_data` gives them.

    Raises:
        ConfigError: naming the key that is wrong.
    """
    whole = {key: keys[key] for key in ("class_path", "init_args") if key in keys}
    single = {f"data.{key}": value for key, value in keys.items() if key not in whole}
    layers = [{"data": parsed.data.as_dict()}, *([{"data": whole}] if whole else []), single]
    try:
        changed = parser.read(layers)
    except ConfigError as error:
        raise ConfigError(re.sub(r"\bdata(?=[.:])", "test_data", str(error), count=1)) from error
    other = parsed.clone()
    other.data = changed.data
    return other


def _open_split(parser: Parser, parsed: Namespace, key: str) -> PairedDataset:
    """Open one split of the data, or all of it where none is named."""
    chosen, split = parsed.clone(), parsed[key]
    if split is not None:
        if "split" not in chosen.data.init_args:
            raise ConfigError(f"{key}: {chosen.data.class_path} has no splits; leave it out")
        chosen.data.init_args.split = split
    opened: PairedDataset = parser.instantiate(chosen).data
    return opened
