"""Stopping a run that has gone wrong numerically, without waiting for the device at each step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from decur.errors import DivergedError

CONSTANT = 1e-5  # spread of embeddings, relative to their size, below which they are constant


class Divergence:
    """Refuses non-finite losses and constant embeddings.

    On a GPU the values of a step are read during a later one, once they have arrived.
    """

    def __init__(self) -> None:
        # Step, names, values, and the event after which the values are there; oldest first.
        self._unchecked: deque[tuple[str, list[str], Tensor, torch.cuda.Event | None]] = deque()

    def watch(self, step: str, values: Mapping[str, Tensor]) -> None:
        """Refuse the values of a step, or of earlier ones.

        Args:
            step: for the message.
            values: scalars on one device: loss terms by name, and "spread/MODALITY", how much of
                its embeddings varies.

        Raises:
            DivergedError: naming the step and the term.
        """
        packed = torch.stack(list(values.values()))
        host, arrived = packed.to("cpu", non_blocking=packed.is_cuda), None
        if packed.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(packed.device))
        self._unchecked.append((step, list(values), host, arrived))
        self.check(wait=False)

    def check(self, wait: bool = True) -> None:
        """Refuse the values of steps that are not checked yet.

        Args:
            wait: for those that are still on their way from the device.

        Raises:
            DivergedError: naming the step and the term.
        """
        while self._unchecked:
            step, names, values, arrived = self._unchecked[0]
            if arrived is not None and wait:
                arrived.synchronize()
            elif arrived is not None and not arrived.query():
                return
            self._unchecked.popleft()
            _refuse(step, dict(zip(names, values.tolist(), strict=True)))


def _refuse(step: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if name.startswith("spread/"):
            if value < CONSTANT:
                raise DivergedError(
                    f"collapse at {step}: the embeddings of {name[7:]!r} are constant; lower "
                    "optimizer.lr, or look at figures/views.png whether the pictures are empty"
                )
        elif value != value or abs(value) == float("inf"):
            raise DivergedError(
                f"non-finite loss at {step}: term {name!r} is {value}; lower optimizer.lr, "
                "or use trainer.precision bf16-mixed or 32-true instead of 16-mixed"
            )
