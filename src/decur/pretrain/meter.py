"""Means over an epoch that survive an interruption."""

from __future__ import annotations

import torch
from torch import Tensor


class Meter:
    """Running means by name, kept on the device so that nothing waits for them.

    NaN stands for "nothing to measure in this batch" and does not count.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add one value."""
        value = value.detach().float()
        there = (~value.isnan()).float()
        value = value.nan_to_num(0.0)
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts[name] + there if name in self.counts else there

    def means(self) -> dict[str, float]:
        """The mean of each name that was measured at all."""
        measured = {name: float(count) for name, count in self.counts.items() if count > 0}
        return {name: float(self.sums[name]) / count for name, count in measured.items()}

    def reset(self) -> None:
        """Forget everything."""
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, tuple[float, float]]:
        """Plain numbers."""
        return {name: (float(self.sums[name]), float(self.counts[name])) for name in self.sums}

    def load_state_dict(self, state: dict[str, tuple[float, float]]) -> None:
        """Go on from `state`."""
        self.sums = {name: torch.tensor(total) for name, (total, _) in state.items()}
        self.counts = {name: torch.tensor(count) for name, (_, count) in state.items()}
