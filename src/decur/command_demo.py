"""`decur demo`: the command line of the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

from decur.data import SyntheticScenes
from decur.errors import ConfigError
from decur.pretrain.command_pretrain import parse
from decur.pretrain.configuration import build_parser
from decur.runs import RunFolder

_ABOUT = (
    "Pretrain on generated optical and radar scenes, probe the encoders on scenes that they have "
    "not seen, and write a report. It is the recipe `structure` with fewer epochs and a higher "
    "learning rate; every option of `decur pretrain` changes it."
)
# Two minutes on two cores, in place of six: the higher rate finds factors sooner, if fewer of them.
# One device: several GPUs are no faster with so little, and their number may not divide the batch.
_RECIPE = (
    *("--config", "structure", "--run", "runs/demo"),
    *("--optimizer.lr", "0.012", "--trainer.max_epochs", "12", "--trainer.devices", "1"),
)
# What `--help` lists; `--help-all` lists all.
_ESSENTIALS = {
    "what people change": (
        "run",
        "objective",
        "objective.common",
        "data.samples",
        "encoder.name",
        "projector.width",
        "trainer.max_epochs",
        "seed",
        "overwrite",
    )
}


def main(arguments: Sequence[str]) -> None:
    """Run `decur demo ARGUMENTS`, where the arguments are options of `decur pretrain`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    if "--help-all" in arguments:
        build_parser("decur demo", _ABOUT).parse(["--help-all"])
    if {"-h", "--help"} & set(arguments):
        parser = build_parser("decur demo", _ABOUT)
        parser.show_first(_ESSENTIALS, parser.parse(_RECIPE))
        parser.print_help()
        return
    arguments = [*_RECIPE, *arguments]
    settings = parse(arguments)[1]
    data = settings.data
    if resolve_name(data.class_path) is not SyntheticScenes:
        raise ConfigError(
            "--data: the demo probes SyntheticScenes; use `decur pretrain` for others"
        )
    from decur.demo import demo  # only now: it takes seconds

    with RunFolder(Path(settings.run)).owned():
        demo(arguments, data.init_args.as_dict())
