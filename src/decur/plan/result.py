"""A plan: what a run will cost, and what to do where a device has not the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from decur.bench.device import Rates
from decur.plan.calibration import Calibration, main_memory
from decur.plan.costs import Memory, Part, Shape
from decur.plan.reading import LEAST, Reading

ROOM = 0.9  # of a device's memory that is filled: kernels work in the rest, and it has gaps


@dataclass(frozen=True)
class Share:
    """A run on some devices.

    Args:
        gpus: number of devices, among which the batch divides.
        samples: of a batch, on each.
        memory: on each.
        compute: seconds of a step without what follows.
        exchange: seconds in which a step's gradients and embeddings go from device to device.
        reading: seconds in which the samples of a step are read.
        step: seconds of a step, whichever of computing and reading takes longer.
        hours: of the run.
    """

    gpus: int
    samples: int
    memory: Memory
    compute: float
    exchange: float
    reading: float
    step: float
    hours: float


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    Args:
        device: that was measured.
        precision: Lightning's name of it.
        compiled: whether the run compiles its networks, which makes it faster than planned.
        samples: of the data set.
        batch: samples of a step, on all devices.
        epochs: of the run.
        steps: of the run.
        parts: parameters and operations of a step.
        shape: what memory follows from.
        rates: what the device can do at best.
        calibration: what its steps take.
        reading: what reading takes.
        capacity: bytes of a device that a run may take.
        ahead: bytes of main memory in which a device's workers keep batches ready.
        monitor: seconds after an epoch in which encoders are looked at, on average.
        link: bytes a second between devices, assumed.
        shares: the run on one and on many devices.
    """

    device: str
    precision: str
    compiled: bool
    samples: int
    batch: int
    epochs: float
    steps: int
    parts: list[Part]
    shape: Shape
    rates: Rates
    calibration: Calibration
    reading: Reading
    capacity: int
    ahead: int
    monitor: float
    link: float
    shares: list[Share]

    @property
    def operations(self) -> int:
        """Floating-point operations of a step."""
        return sum(part.forward + part.backward for part in self.parts)

    @property
    def reached(self) -> float:
        """Share of the device's best matrix product that the calibrated step reaches."""
        samples, seconds = self.calibration.steps[-1]
        return self.operations * samples / self.batch / seconds / self.rates.matrix

    def warnings(self) -> Iterator[str]:
        """What will not do, each with what would."""
        room = ROOM * self.capacity
        for share in self.shares:
            if share.memory.total <= room:
                continue
            devices = "one device" if share.gpus == 1 else f"{share.gpus} devices"
            yield (
                f"memory: on {devices} a step needs about {gigabytes(share.memory.total)}, of "
                f"{gigabytes(self.capacity)} that there are on each; try "
                + "; or ".join(self._remedies(share, room))
            )
        total = main_memory()
        if self.ahead > total / 2:
            yield (
                f"main memory: workers keep {gigabytes(self.ahead)} of batches ready, of "
                f"{gigabytes(total)}; try loader.workers {self.reading.workers // 2}"
            )

    def _remedies(self, share: Share, room: float) -> Iterator[str]:
        memory = share.memory
        if memory.fixed > room:
            yield "a smaller encoder.name or projector.width: weights alone take too much"
            return
        each = (memory.total - memory.fixed) / share.samples
        fits = int((room - memory.fixed) / each)
        if fits >= LEAST:
            yield f"loader.batch_size {fits * share.gpus}"
        if self.precision.startswith("32"):
            less = memory.total - memory.activations / 2
            does = "fits" if less <= room else "is still too much"
            yield f"trainer.precision bf16-mixed: about {gigabytes(less)}, which {does}"
        yield "encoder.checkpointing true, which keeps the inputs of an encoder's blocks alone"
        yield "more devices, among which a batch divides (--gpus)"


def gigabytes(number: float) -> str:
    """Bytes for people, as far as they matter for a device's memory."""
    return f"{number / 1e9:.3g} GB"
