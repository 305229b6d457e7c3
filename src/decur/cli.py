"""The `decur` command: thin, and quick to answer: each command imports what it needs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

COMMANDS = {
    "demo": "generate paired scenes, pretrain, probe, write a report: three minutes on two cores",
    "plan": "what a pretraining run will cost in hours and memory, on one GPU and on many",
    "pretrain": "unlabelled pairs of pictures in, one encoder for each sensor out",
    "transfer": "encoders and labels in, scores out: frozen or fine-tuned, few labels or all",
    "compare": "methods x label fractions x sensors x seeds: the whole table, resumable",
    "explain": "what is common and what is unique in a run: pictures, arrays, a report",
    "import": "weights of others, the DeCUR authors' among them, as encoder files",
    "export": "an encoder for timm, torchgeo, ONNX or torch.export, with its scaling",
    "embed": "a run or encoders and data in, embeddings out as Parquet; resumable, on many GPUs",
    "neighbors": "search embeddings across sensors: radar in, optical out, with a picture",
    "pack": "any data set into a few large files, read fast from a disk or an object store",
    "bench": "how fast data, views, loss and a step are, and how far from what the device can do",
    "stats": "band statistics of a folder, as YAML for --data.modalities",
    "recipes": "list the configurations that ship with decur, or print one",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: `decur COMMAND ...`. Exits 0, 2 for what a person can mend, 3 for divergence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from decur import __version__

        print(f"decur {__version__}")
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        _fail(f"no command {command!r}; choose from {', '.join(COMMANDS)}", 2)
    # OpenMP threads that spin for long while they wait for each other starve whatever shares the
    # cores with them, the loader's workers first; not to spin at all slows small pictures down.
    # Read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    _run(globals()[f"_{command}"], rest)


def _run(command: Callable[[list[str]], Any], arguments: list[str]) -> None:
    from decur.errors import DecurError

    try:
        command(arguments)
    except DecurError as error:
        _fail(" ".join(str(error).split()), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:  # `decur recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        code = getattr(error, "exit_code", None)  # a run that was told to stop, and saved itself
        if code is None:
            raise
        print(f"stopped by {error}; the same command goes on from here", file=sys.stderr)
        sys.exit(code)


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _help() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: decur COMMAND [--help] [--config FILE-OR-RECIPE] [--key value ...]",
            "",
            "Multimodal self-supervised learning: what sensors share, what only one of them sees.",
            "",
            *lines,
            "",
            "Start with `decur demo`. With your own pairs in FOLDER/<sensor>/<id>.tif|png|jpg|npy:",
            "`decur pretrain --data.root FOLDER`. Each command explains itself with --help.",
        ]
    )


def _pretrain(arguments: list[str]) -> None:
    from decur.pretrain.command_pretrain import main as pretrain

    pretrain(arguments)


def _plan(arguments: list[str]) -> None:
    from decur.bench.command_plan import main as plan

    plan(arguments)


def _transfer(arguments: list[str]) -> None:
    from decur.transfer.command_transfer import main as transfer

    transfer(arguments)


def _compare(arguments: list[str]) -> None:
    from decur.compare.command_compare import main as compare

    compare(arguments)


def _explain(arguments: list[str]) -> None:
    from decur.explain.command_explain import main as explain

    explain(arguments)


def _embed(arguments: list[str]) -> None:
    from decur.embed.command_embed import main as embed

    embed(arguments)


def _neighbors(arguments: list[str]) -> None:
    from decur.embed.command_embed import neighbors

    neighbors(arguments)


def _demo(arguments: list[str]) -> None:
    from decur.demo import main as demo

    demo(arguments)


def _import(arguments: list[str]) -> None:
    from decur.exchange.command_exchange import import_

    import_(arguments)


def _export(arguments: list[str]) -> None:
    from decur.exchange.command_exchange import export

    export(arguments)


def _pack(arguments: list[str]) -> None:
    from decur.data.packed.command_pack import main as pack

    pack(arguments)


def _bench(arguments: list[str]) -> None:
    # Or torch's profiler calls it an error that there is no GPU. Read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from decur.bench.command_bench import main as bench

    bench(arguments)


def _stats(arguments: list[str]) -> None:
    from decur.data.command_stats import stats

    stats(arguments)


def _recipes(arguments: list[str]) -> None:
    from decur.config import Parser, command_of, describe, recipes
    from decur.errors import ConfigError

    parser = Parser("decur recipes", "List the configurations that ship with decur, or print one.")
    parser.add_argument("name", nargs="?", type=str, help="The recipe to print.")
    name = parser.parse(arguments).name
    found = recipes()
    if name is None:
        width = max(map(len, found))
        for command in dict.fromkeys(map(command_of, found.values())):
            print(f"decur {command} --config ...")
            for key, text in found.items():
                if command_of(text) == command:
                    print(f"  {key:<{width}}  {describe(text)}")
    elif name in found:
        print(found[name], end="")
    else:
        raise ConfigError(f"no recipe {name!r}; `decur recipes` lists them")


if __name__ == "__main__":
    main()
