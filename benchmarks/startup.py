"""CPU time until a command answers, as a ratio to `python -c "import torch"` in the same run.

    python benchmarks/startup.py

The aim is at most 1.6 for whatever a person waits for before work begins. Each command is run in
turn with the reference, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

COMMANDS = {
    "decur --help": ["--help"],
    "decur pretrain --help": ["pretrain", "--help"],
    "decur pretrain, a wrong key": ["pretrain", "--encoder.nam", "resnet18"],
    "decur pretrain, a missing folder": ["pretrain", "--data.root", "nowhere"],
    "decur transfer --help": ["transfer", "--help"],
    "decur explain --help": ["explain", "--help"],
    "decur neighbors --help": ["neighbors", "--help"],
    "decur stats --help": ["stats", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system seconds of one process of Python."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, used = os.wait4(process.pid, 0)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each; the median counts")
    args = parser.parse_args()
    cpu_seconds(["-c", "import torch"])  # reads the files once
    for name, arguments in COMMANDS.items():
        pairs = [
            (cpu_seconds(["-m", "decur", *arguments]), cpu_seconds(["-c", "import torch"]))
            for _ in range(args.runs)
        ]
        ratio = statistics.median(own / reference for own, reference in pairs)
        own = statistics.median(own for own, _ in pairs)
        print(f"{name:<36}{own:6.2f} s  {ratio:5.2f} x import torch", flush=True)


if __name__ == "__main__":
    main()
