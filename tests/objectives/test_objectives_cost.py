"""Wider embeddings cost in proportion: operations and memory of every objective are linear in K."""

import pytest
from objective_references import draw, leaves
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from decur.objectives import list_objectives

OBJECTIVES = list_objectives()
SAMPLES = 16


def operations(method, k):
    embeddings, _ = draw(SAMPLES, k)
    objective = OBJECTIVES[method](dim=k)
    with FlopCounterMode(display=False) as counter:
        objective(embeddings)["loss"].backward()
    return counter.get_total_flops()


def peak(method, k):
    """Bytes of tensors at the peak of forward and backward, beyond what goes in."""
    embeddings, _ = draw(SAMPLES, k)
    objective = OBJECTIVES[method](dim=k)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        objective(embeddings)["loss"].backward()
    held = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("method", OBJECTIVES)
def test_operations_are_linear_in_the_width(method):
    assert operations(method, 2048) == pytest.approx(2 * operations(method, 1024), rel=0.01)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_widest_embeddings_need_a_few_times_their_own_memory(method):
    """K of 65,536: one K x K matrix would take 17 GB."""
    k = 65_536
    views = draw(SAMPLES, 4)[0]
    own = len(leaves(views)) * SAMPLES * k * 4  # bytes
    most = peak(method, k)
    assert most < 6 * own
    assert most == pytest.approx(2 * peak(method, k // 2), rel=0.05)
