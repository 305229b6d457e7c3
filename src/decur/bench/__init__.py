"""What is fast, what is slow, and how far each is from what the device can do: `decur bench`."""

from decur.bench.data import Speed, bench_data
from decur.bench.device import Rates, measure_device
from decur.bench.loss import bench_loss
from decur.bench.step import StepBench, bench_step
from decur.bench.timing import Row, Timing
from decur.bench.traffic import traffic
from decur.bench.views import bench_views

__all__ = [
    "Rates",
    "Row",
    "Speed",
    "StepBench",
    "Timing",
    "bench_data",
    "bench_loss",
    "bench_step",
    "bench_views",
    "measure_device",
    "traffic",
]
