"""Kill, starve, damage and fuzz the commands, and count how often they hold.

    python benchmarks/chaos.py --seed 0 --json chaos.json

Each trial is a command on a few tiny pairs, in a process of its own that is forked from this one.

- kills: the process is killed (SIGKILL) at a random moment and started again; it must end with
  what an undisturbed one has written, to the bit.
- full disk: the command writes to a small disk of its own (a tmpfs, where this process may mount
  one; elsewhere, or with --no-mount, no file may grow beyond a random size, and the table calls it
  "file limit"); it must end in one line, and once there is room end as if nothing had been.
- flipped bits: a byte of one file is changed; commands that read it must end well.
- fuzz: inputs and options of random nonsense; commands must end well.

To end well is to end in time with 0, or with another code and one line that begins with "error:",
and never in a traceback or by a signal. The same seed makes the same trials, but kills come when
the machine is where it is.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT = 300.0  # seconds, after which a command counts as hanging
COMMANDS = ("pretrain", "embed", "pack", "transfer", "compare", "predict", "explain")
NEEDED = (
    "pretrain",
    "embed",
    "pack",
    "transfer",
    "predict",
)  # by what reads flipped and fuzzed files
PAIRS = 16
ROOM = 500_000_000  # bytes of a disk that is large enough
SIZES = (100, 10_000, 50_000, 200_000)  # bytes that a full disk takes, or a file


@dataclass(frozen=True)
class Trial:
    """What was tried, and whether it held; `why` not."""

    kind: str
    what: str
    held: bool
    why: str = ""


@dataclass(frozen=True)
class Ended:
    """How a command has ended: its exit code, negative for a signal, and what it has printed."""

    code: int
    text: str

    def wrong(self) -> str:
        """Return what is wrong with the way it has ended; nothing where it is well."""
        if self.code < 0:
            return f"signal {-self.code}"
        if "Traceback" in self.text:
            return "traceback: " + self.text.strip().splitlines()[-1][:200]
        if self.code and "error: " not in self.text:
            return f"code {self.code} without an error's line: {self.text[-200:]}"
        return ""


def run(
    arguments: Sequence[str], *, kill_after: float | None = None, largest: int | None = None
) -> Ended:
    """Run `decur ARGUMENTS` in a forked process.

    Args:
        arguments: the words after `decur`.
        kill_after: seconds after which it is killed, with all that it has started.
        largest: bytes beyond which no file may grow.
    """
    reader, writer = os.pipe()  # which, unlike a file, may grow
    os.set_blocking(reader, False)
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _become(arguments, writer, largest)
    os.close(writer)
    limit = time.monotonic() + (LIMIT if kill_after is None else kill_after)
    found, status, text = 0, 0, b""
    while not found and time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        text += _there(reader)
        time.sleep(0.005)
    if not found:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    text += _there(reader)
    os.close(reader)
    return Ended(os.waitstatus_to_exitcode(status), text.decode(errors="replace"))


def _there(reader: int) -> bytes:
    """Return what a pipe holds by now."""
    found = b""
    with suppress(BlockingIOError):
        while more := os.read(reader, 65_536):
            found += more
    return found


def _become(arguments: Sequence[str], output: int, largest: int | None) -> None:
    """Be the process that runs a command, to its end."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        from decur.cli import main

        main(list(arguments))
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        print(f"Traceback of {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Chaos:
    """Trials in a folder.

    Args:
        home: an empty folder.
        seed: of the trials.
    """

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.rng = home, random.Random(seed)
        self.trials: list[Trial] = []
        self.seconds: dict[str, float] = {}
        self.wanted: dict[str, str] = {}
        make_pairs(home / "pairs")
        make_scene(home / "scene")

    def reference(self, commands: Sequence[str]) -> None:
        """Run each command undisturbed, and keep what it has written."""
        for command in commands:
            start = time.monotonic()
            ended = run(self.arguments(command, self.home / "reference"))
            assert not ended.code, f"{command}: {ended.text}"
            self.seconds[command] = time.monotonic() - start
            self.wanted[command] = digest(self.home / "reference" / command)

    def arguments(self, command: str, out: Path) -> list[str]:
        """Return the command line of a command that writes `out/command`."""
        pairs, run_folder = self.home / "pairs", self.home / "reference" / "pretrain"
        data, workers = f"--data.root={pairs}", "--loader.workers=0"
        tiny = ["--encoder.name=mlp", "--encoder.options={width: 16, layers: 1}", "--views.size=16"]
        tiny += ["--projector.width=16", "--loader.batch_size=8", "--trainer.max_epochs=3"]
        tiny += ["--trainer.accelerator=cpu", "--monitor.every_epochs=0", workers]
        words = {
            "pretrain": [data, f"--run={out / command}", *tiny],
            "embed": [data, f"--encoders={run_folder}", f"--out={out / command}", workers],
            "pack": [data, f"--out={out / command}", "--workers=1"],
            "transfer": [data, f"--encoders={run_folder}", f"--run={out / command}", workers]
            + ["--target=kind", "--folds=2", "--device=cpu"],
            "compare": [f"--config={self.comparison(tiny)}", f"--run={out / command}"],
            "predict": [str(self.home / "reference" / "transfer"), "--scene"]
            + [f"{name}={self.home / 'scene' / name}.tif" for name in ("a", "b")]
            + [f"--out={out / command / 'map.tif'}", "--window=16", "--tile=64", workers],
            "explain": [str(run_folder), f"--out={out / command}", "--only", "alignment", "shared"]
            + [workers],
        }
        return [command, *words[command]]

    def comparison(self, tiny: Sequence[str]) -> Path:
        """Write the configuration of a comparison of two methods."""
        keys = dict(word.removeprefix("--").split("=", 1) for word in tiny)
        pretrain = "".join(f"  {key}: {value}\n" for key, value in keys.items())
        file = self.home / "compare.yaml"
        file.write_text(
            f"data: {{root: {self.home / 'pairs'}}}\npretrain:\n{pretrain}"
            "methods: {random: {pretrain: null}, decur: {}}\nseeds: [0]\nlabel_fractions: [1.0]\n"
            "tasks: {kind: {transfer: {target: kind, folds: 2, loader.workers: 0}}}\n"
        )
        return file

    def note(self, kind: str, what: str, why: str) -> None:
        """Keep a trial, and print it where it did not hold."""
        self.trials.append(Trial(kind, what, not why, why))
        if why:
            print(f"{kind}, {what}: {why}", flush=True)

    def disturb(self, kind: str, count: int, commands: Sequence[str]) -> None:
        """Disturb commands, and let them end afterwards.

        Args:
            kind: "kills", a "full disk" that is mounted, or a "file limit".
            count: of trials.
            commands: that take turns.
        """
        for number in range(count):
            command = commands[number % len(commands)]
            out = self.home / f"{kind.replace(' ', '-')}-{number}"
            words = self.arguments(command, out)
            size = self.rng.choice(SIZES)
            with small_disk(out) if kind == "full disk" else nullcontext() as grow:
                why = ""
                if kind == "kills":
                    run(words, kill_after=self.rng.uniform(0, self.seconds[command]))
                elif kind == "file limit":
                    why = run(words, largest=size).wrong()
                elif grow is not None:
                    grow(size)
                    why = run(words).wrong()
                    grow(ROOM)
                self.note(kind, f"{command} {number}", why or self.ends(command, words, out))
            shutil.rmtree(out, ignore_errors=True)

    def ends(self, command: str, words: Sequence[str], out: Path) -> str:
        """Run a command that was disturbed again; return what is wrong with what it leaves."""
        again = run(words)
        if again.code or again.wrong():
            return f"then code {again.code}: {again.wrong() or again.text[-200:]}"
        if digest(out / command) != self.wanted[command]:
            return "other results than those of an undisturbed one"
        left = [path.name for path in (out / command).rglob(".*.tmp")]
        return f"left behind: {left}" if left else ""

    def flip(self, count: int) -> None:
        """Change a byte of a file, and run what reads it."""
        for number in range(count):
            file, words = self.readers()[number % len(self.readers())]
            before = file.read_bytes()
            after = bytearray(before)
            after[self.rng.randrange(len(after))] ^= 1 << self.rng.randrange(8)
            self.changed("flipped bits", file, bytes(after), words)

    def readers(self) -> list[tuple[Path, list[str]]]:
        """Return a file of each kind, and a command that reads it."""
        kept, pairs = self.home / "reference", self.home / "pairs"
        run_folder, out = kept / "pretrain", self.home / "out"
        workers = "--loader.workers=0"
        embed = ["embed", f"--data.root={pairs}", f"--encoders={run_folder}", f"--out={out}"]
        embed.append(workers)
        packed = ["embed", "--data=PackedPairs", f"--data.root={kept / 'pack'}", workers]
        packed += [f"--encoders={run_folder}", f"--out={out}"]
        transfer = self.arguments("transfer", out)
        neighbors = ["neighbors", str(kept / "embed"), "--part=features"]
        predict = self.arguments("predict", out)
        found = [
            (run_folder / "encoders" / "a.safetensors", embed),
            (run_folder / "config.yaml", embed),
            (max((run_folder / "checkpoints").iterdir()), embed),
            (pairs / "a" / "00.png", embed),
            (pairs / "b" / "00.npy", embed),
            (pairs / "labels.csv", transfer),
            (pairs / "modalities.yaml", embed),
            (kept / "transfer" / "model.safetensors", predict),
            (self.home / "scene" / "a.tif", predict),
            *((file, neighbors) for file in sorted((kept / "embed").glob("*"))),
            *((file, packed) for file in sorted((kept / "pack").glob("*"))),
        ]
        return [(file, words) for file, words in found if file.is_file()]

    def changed(self, kind: str, file: Path, content: bytes, words: Sequence[str]) -> None:
        """Run a command while a file has another content."""
        before, state = file.read_bytes(), file.stat()
        file.write_bytes(content)
        try:
            self.note(kind, f"{file.name} {words[0]}", run(words).wrong())
        finally:
            file.write_bytes(before)
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
            shutil.rmtree(self.home / "out", ignore_errors=True)

    def fuzz(self, count: int) -> None:
        """Give commands files and options of random nonsense."""
        for number in range(count):
            if number % 2:
                file, words = self.rng.choice(self.readers())
                self.changed("fuzz", file, nonsense(self.rng, file.read_bytes()), words)
                continue
            words = self.arguments(self.rng.choice(NEEDED), self.home / "out")
            options = [n for n, word in enumerate(words) if word.startswith("--") and "=" in word]
            place = self.rng.choice(options)
            key = words[place].partition("=")[0]
            words[place] = f"{key}={self.rng.choice(VALUES)}"
            if key.startswith(("--run", "--out")):
                words[place] = f"--loader.batch_size={self.rng.choice(VALUES)}"
            self.note("fuzz", " ".join(words[:1] + [words[place][:80]]), run(words).wrong())
            shutil.rmtree(self.home / "out", ignore_errors=True)

    def table(self) -> dict[str, dict[str, int]]:
        """Return how many trials of each kind there were, and how many held."""
        tried = Counter(trial.kind for trial in self.trials)
        held = Counter(trial.kind for trial in self.trials if trial.held)
        return {kind: {"tried": tried[kind], "held": held[kind]} for kind in tried}


VALUES = [
    "",
    "-1",
    "0",
    "1e30",
    ".nan",
    "null",
    "[]",
    "{}",
    "[[[[",
    "{a: 1, a: 2}",
    "\u202e",
    "../x",
]
VALUES += ["9" * 400, "x" * 5000, "os.system", "a:b:c", "!!python/name:os.system", "&a [*a]", "%s"]


def nonsense(rng: random.Random, content: bytes) -> bytes:
    """Return a content that is cut, filled, doubled, emptied or mixed up."""
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    ways: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: content[:start],
        lambda: content[:start] + rng.randbytes(stop - start) + content[stop:],
        lambda: content + content[start:],
        lambda: content[:start] + content[stop:],
        lambda: content.replace(b"1", b"99999999999"),
        lambda: content.replace(b":", b": ["),
        lambda: rng.randbytes(1000),
        lambda: b"[" * 100_000,
    ]
    return rng.choice(ways)()


def import_once() -> None:
    """Import what commands import, which the forked processes then have."""
    import decur.embed.embedding
    import decur.embed.neighbors
    import decur.explain.run
    import decur.predict.scene
    import decur.pretrain.run
    import decur.transfer.run  # noqa: F401


def make_pairs(root: Path) -> None:
    """Write a few pairs of pictures with labels and a file of modalities."""
    made = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for number in range(PAIRS):
        picture = made.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "a" / f"{number:02}.png")
        np.save(root / "b" / f"{number:02}.npy", picture[..., 0].astype(np.float32))
    with (root / "labels.csv").open("w", newline="") as file:
        rows = [(f"{number:02}", "xy"[number % 2]) for number in range(PAIRS)]
        csv.writer(file).writerows([("id", "kind"), *rows])
    (root / "modalities.yaml").write_text(
        "a: {bands: [R, G, B], scaling: range}\nb: {bands: [z], scaling: range}\n"
    )


def make_scene(folder: Path) -> None:
    """Write a raster of each sensor, 192 pixels a side: nine tiles of the map."""
    import rasterio

    folder.mkdir()
    made = np.random.default_rng(1)
    for name, bands, dtype in (("a", 3, "uint8"), ("b", 1, "float32")):
        pixels = made.integers(0, 255, (bands, 192, 192)).astype(dtype)
        place = rasterio.Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
        profile = {"count": bands, "height": 192, "width": 192, "dtype": dtype, "transform": place}
        file = rasterio.open(folder / f"{name}.tif", "w", "GTiff", crs="EPSG:32632", **profile)
        with file:
            file.write(pixels)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """Mount a disk in memory at a folder; yield what gives it as many bytes.

    Raises:
        OSError: if this process may not.
    """
    folder.mkdir()

    def mount(size: int, *more: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *more]), "tmpfs"]
        subprocess.run([*words, str(folder)], check=True, capture_output=True)

    try:
        mount(ROOM)
    except subprocess.CalledProcessError as error:
        raise PermissionError(error.stderr.decode(errors="replace").strip()) from error
    try:
        yield lambda size: mount(size, "remount")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def may_mount() -> bool:
    """Return whether this process may mount small disks."""
    with suppress(OSError), tempfile.TemporaryDirectory() as home, small_disk(Path(home) / "disk"):
        return True
    return False


def digest(folder: Path) -> str:
    """Return a digest of the results in a folder: weights, vectors, scores and packed samples."""
    wanted = (
        "*.safetensors",
        "*.parquet",
        "results.json",
        "*.bin",
        "results.csv",
        "*.tif",
        "*.npz",
    )
    found = hashlib.sha256()
    for file in sorted(f for pattern in wanted for f in folder.rglob(pattern)):
        content = file.read_bytes()
        if file.suffix == ".json":  # without what a clock has measured
            values = json.loads(content)
            content = json.dumps(values.get("metrics"), sort_keys=True).encode()
        if file.suffix == ".npz":  # without the time at which it was written
            with np.load(file) as arrays:
                content = b"".join(name.encode() + arrays[name].tobytes() for name in arrays.files)
        found.update(str(file.relative_to(folder)).encode() + content)
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=21)
    parser.add_argument("--full", type=int, default=14, help="trials with a full disk")
    parser.add_argument(
        "--no-mount", dest="mount", action="store_false", help="limit files in place of a disk"
    )
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--fuzz", type=int, default=200)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--json", type=Path, default=Path("chaos.json"))
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import_once()
    with tempfile.TemporaryDirectory() as home:
        chaos = Chaos(Path(home), given.seed)
        chaos.reference([c for c in COMMANDS if c in (*given.commands, *NEEDED)])
        chaos.disturb("kills", given.kills, given.commands)
        full = "full disk" if given.mount and may_mount() else "file limit"
        chaos.disturb(full, given.full, given.commands)
        chaos.flip(given.flips)
        chaos.fuzz(given.fuzz)
    for kind, counts in chaos.table().items():
        print(f"{kind:<13} {counts['tried']:>4} tried {counts['held']:>4} held")
    trials = [asdict(trial) for trial in chaos.trials]
    given.json.write_text(json.dumps({"counts": chaos.table(), "trials": trials}, indent=2) + "\n")
    sys.exit(any(not trial.held for trial in chaos.trials))


if __name__ == "__main__":
    main()
