"""The command `decur`: it finds the command that is asked for and imports no other."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, NoReturn

from decur import completion
from decur.errors import (
    DecurError,
    WorkerLostError,
    did_you_mean,
    lacks_memory,
    printable,
    reason_of,
)
from decur.signals import interruptible, refuse_pipes, running_command, told_of
from decur.temporary import temporary_folder

# What each command runs, as "module:function", and what it does.
COMMANDS = {
    "demo": (
        "decur.command_demo:main",
        "generate paired scenes, pretrain, probe, write a report: two minutes on two cores",
    ),
    "plan": (
        "decur.bench.commands:plan_command",
        "what a pretraining run will cost in hours and memory, on one GPU and on many",
    ),
    "pretrain": (
        "decur.pretrain.command_pretrain:main",
        "unlabelled pairs of pictures in, one encoder for each sensor out",
    ),
    "transfer": (
        "decur.transfer.command_transfer:main",
        "encoders and labels in, scores out: frozen or fine-tuned, few labels or all",
    ),
    "predict": (
        "decur.predict.command_predict:main",
        "a trained model over a whole scene: a georeferenced map out, resumable",
    ),
    "compare": (
        "decur.compare.command_compare:main",
        "methods x label fractions x sensors x seeds: the whole table, resumable",
    ),
    "explain": (
        "decur.explain.command_explain:main",
        "what is common and what is unique in a run: pictures, arrays, a report",
    ),
    "runs": (
        "decur.command_runs:main",
        "existing runs on one page: curves overlaid, settings that differ, scores",
    ),
    "import": (
        "decur.exchange.command_import:main",
        "weights of others, the DeCUR authors' among them, as encoder files",
    ),
    "export": (
        "decur.exchange.command_export:main",
        "an encoder for timm, torchgeo, ONNX or torch.export, with its scaling",
    ),
    "embed": (
        "decur.embed.command_embed:main",
        "a run or encoders and data in, embeddings out as Parquet; resumable, on many GPUs",
    ),
    "neighbors": (
        "decur.embed.command_neighbors:main",
        "search embeddings across sensors: radar in, optical out, with a picture",
    ),
    "explore": (
        "decur.explore.command_explore:main",
        "one page to look through a data set by its embeddings: map, pictures, neighbours",
    ),
    "pack": (
        "decur.data.packed.command_pack:main",
        "any data set into a few large files, read fast from a disk or an object store",
    ),
    "bench": (
        "decur.bench.commands:bench_command",
        "how fast data, views, loss and a step are, and how far from what the device can do",
    ),
    "stats": (
        "decur.data.command_stats:main",
        "band statistics of a folder, as YAML for --data.modalities",
    ),
    "recipes": (
        "decur.command_recipes:main",
        "list the configurations that ship with decur, or print one",
    ),
}

Command = Callable[[list[str]], Any]

# Commands whose output is what was asked for: --quiet would leave nothing of it.
PRINTING = ("plan", "bench", "neighbors", "recipes")

# Options of every command, and the environment variables by which processes hand them on.
EVERYWHERE = {"--debug": "DECUR_DEBUG", "--trust": "DECUR_TRUST"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `decur COMMAND ...`.

    The process exits with 0; with 1 for a fault of decur's; with 2 for what a person can mend; with
    3 for a training that diverged; with 4 for a process that was lost; with 128 and the number of a
    signal if it is interrupted: 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        arguments: the words after `decur`; by default those of this process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    while len(arguments) > 1 and arguments[0] in (*EVERYWHERE, "--quiet"):
        arguments.append(arguments.pop(0))  # options of every command may stand before it
    if completion.asked():
        arguments = completion.words_to_complete(COMMANDS)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from decur import __version__

        print(f"decur {__version__}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, f"choose from {', '.join(COMMANDS)}")
        _fail(f"no command {name!r}; {hint}", 2)
    for word in rest:
        if word != word.encode(errors="replace").decode():  # reports and tables could not name it
            _fail(f"{word!r}: is no UTF-8; rename that file or folder", 2)
    given = {*rest} & EVERYWHERE.keys()
    silent = "--quiet" in rest
    if silent and name in PRINTING:
        _fail(f"--quiet: what decur {name} prints is its result; leave --quiet out", 2)
    rest = [word for word in rest if word not in (*EVERYWHERE, "--quiet")]
    _set_environment(name)
    refuse_pipes()
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    with (
        _said_to_processes(given),
        temporary_folder(),
        running_command(),
        interruptible() as asked,
        _short_warnings(),
    ):
        number: int = signal.SIGINT
        try:
            with _quiet() if silent else nullcontext():
                _run(name, rest)
            return
        except KeyboardInterrupt:
            number = asked[0] if asked else number
        except (Exception, SystemExit) as error:  # libraries may make one of Ctrl-C
            if not asked:
                _end(error)
            number = asked[0]
        # Only now, since what the exception held has been destroyed.
        _fail(told_of(number), 128 + number)


class _Printable(logging.Formatter):
    """Lines without control characters, which names of files and labels may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))


def _quiet() -> AbstractContextManager[None]:
    from decur.terminal import quiet  # only now: it imports rich

    return quiet()


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Let warnings of libraries be a line each, without the code that they come from.

    A lost reading process is told by the command, also where torch raises within a destructor.
    """
    before, before_unraisable = warnings.showwarning, sys.unraisablehook
    sys.unraisablehook = lambda told: (
        None if _lost_worker(told.exc_value) else before_unraisable(told)
    )
    # Lightning replaces how warnings are formatted, but not how they are shown.
    warnings.showwarning = lambda message, *_, **__: print(
        f"WARNING: {printable(' '.join(str(message).split()))}", file=sys.stderr
    )
    try:
        yield
    finally:
        warnings.showwarning, sys.unraisablehook = before, before_unraisable


def _lost_worker(error: BaseException | None) -> WorkerLostError | None:
    """Return what an error tells of a reading process that has died; None if it tells nothing."""
    if not isinstance(error, RuntimeError):
        return None
    from decur.data.loader import lost_worker  # only now: it imports torch

    return lost_worker(error)


@contextmanager
def _said_to_processes(options: Iterable[str]) -> Iterator[None]:
    """Hand options on to the processes that a command starts, and take them back afterwards."""
    before = dict(os.environ)
    os.environ.update({EVERYWHERE[option]: "1" for option in options})
    try:
        yield
    finally:
        for variable in EVERYWHERE.values():
            os.environ.pop(variable, None)
            if variable in before:
                os.environ[variable] = before[variable]


def _set_environment(command: str) -> None:
    """Set what libraries read when torch is imported."""
    # OpenMP threads that spin for long while they wait for each other starve whatever shares the
    # cores with them, the loader's workers first; not to spin at all slows small pictures down.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if command == "bench":  # or torch's profiler calls it an error that there is no GPU
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _run(name: str, arguments: list[str]) -> None:
    """Run a command."""
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        command: Command = getattr(import_module(module), function)
        command(arguments)
    except BrokenPipeError:  # `decur recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(error: Exception | SystemExit) -> NoReturn:
    """End the process as an error demands, with a traceback only for what is decur's fault."""
    if isinstance(error, SystemExit):
        raise error
    if os.environ.get(EVERYWHERE["--debug"]) == "1":
        raise error
    if isinstance(error, DecurError):
        _fail(" ".join(str(error).split()), error.exit_code)
    code = getattr(error, "exit_code", None)  # a run that was told to stop, and saved itself
    if code is not None:
        print(f"stopped by {error}; the same command goes on from here", file=sys.stderr)
        sys.exit(code)
    if (lost := _lost_worker(error)) is not None:
        _fail(str(lost), lost.exit_code)
    if lacks_memory(error):
        _fail(
            "more memory is needed than there is; lower --loader.batch_size, --loader.workers or "
            f"the sizes of pictures and networks ({reason_of(error)})",
            2,
        )
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        _fail(f"{file}{reason_of(error)}; see that it is there and may be read and written", 2)
    if (place := _own_place(error)) is not None:
        _fail(
            f"{place}: {type(error).__name__}: {reason_of(error)}; mend that module of yours "
            "(--debug shows how it was called)",
            2,
        )
    traceback.print_exception(error)
    _fail(
        f"this is a fault of decur's, not yours ({type(error).__name__}); please report it with "
        "the command and the lines above, as CONTRIBUTING.md says",
        1,
    )


def _own_place(error: Exception) -> str | None:
    """Return the last file and line in a person's own module that an error came through, if any."""
    from decur.registry import is_own  # only now: it imports YAML

    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if is_own(str(frame.f_globals.get("__name__"))) and "site-packages" not in file:
            place = f"{file}, line {line}"
    return place


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def _help() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
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
            "",
            "Every command takes --quiet, with which it prints only warnings, errors and the paths",
            "of what it wrote; --debug, which shows where an error comes from; and --trust, with",
            "which the configuration that a run has kept may import any module (SECURITY.md).",
            'Completion in bash: eval "$(register-python-argcomplete decur)"',
        ]
    )


if __name__ == "__main__":
    main()
