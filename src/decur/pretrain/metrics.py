"""What is measured of training: means over an epoch, `metrics.csv`, values that stop a run."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from decur.devices import send
from decur.encoders.stored import is_finite
from decur.errors import DivergedError
from decur.objectives.alignment import spread
from decur.objectives.blocks import COMMON, UNIQUE, is_shared_by
from decur.runs import RunFolder, atomic

CONSTANT = 1e-5  # spread of embeddings, relative to their size, below which they are constant
_cuda: Any = torch.cuda  # torch does not annotate its events


class Meter:
    """Running means by name, kept on the device so that nothing waits for them.

    NaN stands for "nothing to measure in this batch" and does not count.
    """

    def __init__(self) -> None:
        # Values that come together are kept together: few kernels a step, however many there are.
        self._totals: dict[tuple[str, ...], Tensor] = {}  # sums and counts of n names: (2, n)
        self._loaded: dict[str, tuple[float, float]] = {}  # of names that did not come up again

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value for each name.

        Args:
            values: scalars on one device.
        """
        names = tuple(values)
        new = torch.stack([value.detach().float() for value in values.values()])  # (n,)
        new = torch.stack((new.nan_to_num(0.0), (~new.isnan()).float()))
        if names not in self._totals:
            before = [self._loaded.pop(name, (0.0, 0.0)) for name in names]
            sums = torch.tensor(before, dtype=torch.float32).T.contiguous()  # (2, n)
            self._totals[names] = send(sums, new.device)
        self._totals[names] = self._totals[names] + new

    def means(self) -> dict[str, float]:
        """Return the mean over all processes of each name that any of them has measured."""
        return {name: total / count for name, (total, count) in self.whole().items() if count}

    def whole(self) -> dict[str, tuple[float, float]]:
        """Return `state_dict` summed over all processes, which must call this together.

        One exchange of whole dictionaries: a process may have measured what another has not.
        """
        own = self.state_dict()
        if not (dist.is_available() and dist.is_initialized()):
            return own
        everyone: list[dict[str, tuple[float, float]]] = [{}] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
        found: dict[str, tuple[float, float]] = {}
        for state in everyone:
            for name, (total, count) in state.items():
                before = found.get(name, (0.0, 0.0))
                found[name] = (before[0] + total, before[1] + count)
        return found

    def reset(self) -> None:
        """Forget everything."""
        self._totals, self._loaded = {}, {}

    def state_dict(self) -> dict[str, tuple[float, float]]:
        """Return the sum and the number of values of each name, as plain numbers."""
        state: dict[str, tuple[float, float]] = {}
        for names, totals in self._totals.items():
            for name, total, count in zip(names, *totals.tolist(), strict=True):
                before = state.get(name, (0.0, 0.0))
                state[name] = (before[0] + total, before[1] + count)
        return {**state, **self._loaded}

    def load_state_dict(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Go on from `state`."""
        self._totals, self._loaded = {}, {name: (s, n) for name, (s, n) in state.items()}


class Divergence:
    """Refuse non-finite losses and constant embeddings.

    On a GPU the values of a step are read during a later one, once they have arrived.
    """

    def __init__(self) -> None:
        # Step, names, values, and the event after which the values are there; oldest first.
        self._unchecked: deque[tuple[str, list[str], Tensor, Any]] = deque()

    def watch(self, step: str, values: Mapping[str, Tensor]) -> None:
        """Refuse the values of a step, or of an earlier one whose values have arrived since.

        Args:
            step: for the message.
            values: scalars on one device: loss terms by name, and "spread/MODALITY" of `spreads`.

        Raises:
            DivergedError: naming the step and the term.
        """
        packed = torch.stack(list(values.values()))
        host = packed.to("cpu", non_blocking=packed.is_cuda)
        arrived = None
        if packed.is_cuda:
            arrived = _cuda.Event()
            arrived.record(_cuda.current_stream(packed.device))
        self._unchecked.append((step, list(values), host, arrived))
        self.check(wait=False)

    def check(self, wait: bool = True) -> None:
        """Refuse the values of steps that have not been checked yet.

        Args:
            wait: whether to wait for values that are still on their way from the device.

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


def spreads(
    embeddings: Mapping[str, tuple[Tensor, Tensor]], present: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return how much the embeddings of each modality vary, relative to their size.

    Args:
        embeddings: `{name: two tensors (B, K)}`.
        present: `{name: (B,) bool}` on the CPU: samples that have the modality.

    Returns:
        `{"spread/NAME": scalar}` of the modalities that two samples or more have.
    """
    found = {}
    with torch.no_grad():
        for name, (z, _) in embeddings.items():  # z: (B, K)
            rows = present[name].nonzero()[:, 0]
            if len(rows) > 1:
                z = z if len(rows) == len(z) else z.index_select(0, send(rows, z.device))
                found[f"spread/{name}"] = spread(z.float())
    return found


def refuse_non_finite_weights(module: nn.Module, step: str) -> None:
    """Refuse weights that the last step has spoilt: its loss was computed before.

    Args:
        module: whose parameters and buffers are looked at.
        step: for the message.

    Raises:
        DivergedError: naming the first one.
    """
    for name, x in chain(module.named_parameters(), module.named_buffers()):
        mine: Tensor = x.to_local() if hasattr(x, "to_local") else x  # this process's shard
        if not is_finite(mine):
            raise DivergedError(
                f"{name} is not finite after {step}; lower optimizer.lr, or set "
                "trainer.gradient_clip_val"
            )


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


def read_metrics(run: RunFolder) -> list[dict[str, float]]:
    """Return the rows of `metrics.csv`, one an epoch, without the values that an epoch lacks."""
    if not run.metrics.is_file():
        return []
    with run.metrics.open(newline="") as file:
        return [
            {k: int(v) if v.isdigit() else float(v) for k, v in row.items() if v}
            for row in csv.DictReader(file)
        ]


def write_metrics(run: RunFolder, rows: list[dict[str, float]]) -> None:
    """Write `metrics.csv` anew: it has few rows, and later epochs may add columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(run.metrics) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def agreements(row: Mapping[str, float]) -> dict[str, list[float]]:
    """Return the mean diagonals of an epoch by what their dimensions are for.

    Returns:
        "common": of dimensions that the two sensors share, as common ones or in a block; "unique":
        of all others; "intra": of two views of one sensor. What there is none of is left out.
    """
    found: dict[str, list[float]] = {}
    for key, value in row.items():
        if key.startswith("diagonal/"):
            _, part, pair = key.split("/", 2)
            shared = COMMON if is_shared_by(part, pair) else UNIQUE
            found.setdefault(part if part == "intra" else shared, []).append(value)
    return found


def offdiag_by_chance(name: str, row: Mapping[str, float]) -> float | None:
    """Return what an `offdiag_rms/A-B` of a run is by chance; None where it has not told.

    Args:
        name: of a value in the row.
        row: of the metrics.
    """
    kind, _, pair = name.partition("/")
    return row.get(f"offdiag_chance/{pair}") if kind == "offdiag_rms" else None
