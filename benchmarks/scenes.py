"""Scenes of 64 px a second from `SyntheticScenes`: in one process, and through two workers.

python benchmarks/scenes.py [--scenes N] [--size PIXELS]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.utils.data import DataLoader

from decur.data import Collate, SyntheticScenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=4096)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = SyntheticScenes(arguments.scenes, size=arguments.size)
    dataset[0]  # builds the filters

    start = time.perf_counter()
    for index in range(len(dataset) // 4):
        dataset[index]
    alone = (len(dataset) // 4) / (time.perf_counter() - start)
    print(f"one process:  {alone:6.0f} scenes/s of {arguments.size} px, 3 modalities")

    loader = DataLoader(
        dataset,
        batch_size=64,
        num_workers=2,
        collate_fn=Collate(dataset.modalities, dataset.targets),
    )
    start = time.perf_counter()
    for _ in loader:
        pass
    loaded = len(dataset) / (time.perf_counter() - start)
    print(f"two workers:  {loaded:6.0f} scenes/s, batches of 64, workers' start included")


if __name__ == "__main__":
    main()
