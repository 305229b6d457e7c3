"""Rates, times, memory, and the operations and bytes that floors are made of."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from decur.bench import Rates, Timing, bench_loss, bench_views, measure_device, traffic
from decur.bench.loss import correlated, cost
from decur.bench.timing import peak_memory
from decur.bench.views import moved_by_views
from decur.data import Collate, SyntheticScenes
from decur.errors import ConfigError
from decur.objectives import CLIP, BarlowTwins, DeCUR, SimCLR, VICReg
from decur.views import Views

CPU = torch.device("cpu")
RATES = Rates(1e15, 1e15)


def test_a_device_is_measured():
    found = measure_device("cpu", torch.float32, 0.02)
    assert 1e8 < found.matrix < 1e14 and 1e8 < found.copy < 1e13
    sizes, rates = zip(*found.copies, strict=True)
    assert list(sizes) == sorted(sizes) and found.copy == rates[-1]
    with pytest.raises(ConfigError, match="bool"):
        measure_device("cpu", torch.bool, 0.01)


def test_a_floor_is_the_slower_of_arithmetic_and_memory():
    rates = Rates(100.0, 10.0, ((8, 40.0), (64, 20.0), (512, 10.0)))
    assert rates.floor(1000, 10) == 10 and rates.floor(10, 1000) == 100
    assert rates.moving(8) == 40 and rates.moving(9) == 20 and rates.moving(1000) == 10


def test_timings_are_median_and_quartiles():
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert Timing.of([2.0]) == Timing(2.0, 2.0, 2.0, 1)


def test_peak_memory_counts_what_is_there_at_once():
    def work():
        a = torch.ones(250_000)  # 1 MB
        b = a + 1
        del a
        return b + 1

    work()
    assert 2_000_000 <= peak_memory(work, CPU) < 2_000_100  # and the numbers 1


@pytest.mark.parametrize("kind", [DeCUR, BarlowTwins, VICReg, SimCLR, CLIP])
def test_operations_of_an_objective_are_those_that_it_makes(kind):
    objective, names = kind(dim=48), ["a", "b"]
    views = correlated(objective, names, 8, CPU)
    with FlopCounterMode(display=False) as counter:
        objective(views)["loss"].backward()
    compared = sum(z.grad is not None for pair in views.values() for z in pair)
    operations, moved, found = cost(objective, names, 8)
    assert operations == counter.get_total_flops() > 0
    assert found == compared and moved == 2 * compared * 8 * 48 * 4


def test_decur_grows_linearly():
    one, two = (cost(DeCUR(dim=k), ["a", "b"], 64)[0] for k in (8192, 16384))
    # four views: one product of N x K x N forward, one backward, 2 operations each
    assert one == 4 * 2 * 2 * 64 * 64 * 8192 and two == 2 * one


def test_the_loss_is_measured_at_each_width():
    rows = list(bench_loss([DeCUR(dim=16), DeCUR(dim=32)], ["a", "b"], 8, CPU, RATES, 0.01))
    assert [row.about["dim"] for row in rows] == [16, 32]
    assert rows[0].about["growth"] == 1
    assert rows[1].about["growth"] == pytest.approx(rows[1].time.median / rows[0].time.median / 2)
    for row in rows:
        gradients = 4 * 8 * row.about["dim"] * 4
        assert gradients <= row.memory < 40 * gradients + 50_000


def test_views_are_measured_by_sensor_and_together():
    data = SyntheticScenes(samples=4, size=32, modalities=["optical", "sar"])
    batch = Collate(data.modalities, {})([data[i] for i in range(4)])
    views = Views(data.modalities, 16)
    rows = list(bench_views(data.modalities, views, batch, CPU, RATES, 0.01))
    assert [row.name for row in rows] == ["optical", "sar", "all sensors"]
    assert (
        rows[2].moved == rows[0].moved + rows[1].moved == moved_by_views(batch["images"], (16, 16))
    )
    images = batch["images"]
    assert rows[1].moved == images["sar"].nbytes + 2 * 4 * 2 * 16 * 16 * 4
    made = 2 * 4 * (6 + 2) * 16 * 16 * 4
    assert rows[2].memory >= made and rows[2].pairs == 4
    one = {"sar": data.modalities["sar"]}
    assert [row.name for row in bench_views(one, Views(one, 16), batch, CPU, RATES, 0.01)] == [
        "all sensors"
    ]


def test_traffic_is_linear_in_what_is_sent_and_never_k_times_k():
    found = traffic(objective_dim=8192, modalities=2, batch=1024, parameters=10**6, world=4)
    one = 256 * 8192 * 4  # a view of a sensor: samples of a process, K, bytes
    assert found["embeddings"] == found["embedding_gradients"] == 3 * 2 * 2 * one
    assert found["gradients"] == 2 * 3 * 10**6 * 4 // 4
    assert found["total"] == sum(n for key, n in found.items() if key != "total")
    wide = traffic(16384, 2, 1024, 10**6, 4)
    assert wide["embeddings"] == 2 * found["embeddings"]
    assert traffic(8192, 2, 1024, 10**6, 4, views=1)["embeddings"] == found["embeddings"] // 2
    assert not any(traffic(8192, 2, 1024, 10**6, 1).values())
