"""Losses and metrics against torch, scikit-learn, torchmetrics, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    r2_score,
)
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from decur.data import Target
from decur.errors import DataError
from decur.transfer.evaluate import doubts, intervals
from decur.transfer.intervals import effective, interval, measure_intervals
from decur.transfer.tasks import TASKS, choose_task, make_task
from decur.transfer.tasks.segmentation import SAVED_PIXELS

CLASSES = ("a", "b", "c")


def kept_in_parts(task, output, labels, parts):
    kept = [task.keep(o, y) for o, y in zip(output.split(parts), labels.split(parts), strict=True)]
    return {key: np.concatenate([k[key] for k in kept]) for key in kept[0]}


def test_single_label_metrics_are_those_of_sklearn():
    task = make_task("kind", Target("class", CLASSES))
    torch.manual_seed(0)
    output, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    kept = task.keep(output, labels)
    truth, guess = labels.numpy(), output.argmax(1).numpy()
    found = task.metrics(kept)
    assert found["accuracy"] == accuracy_score(truth, guess)
    assert found["balanced_accuracy"] == balanced_accuracy_score(truth, guess)
    assert found["macro_F1"] == f1_score(truth, guess, average="macro")
    assert task.by_class(kept)["b"]["F1"] == f1_score(truth == 1, guess == 1)
    assert task.loss(output, labels) == nn.CrossEntropyLoss()(output, labels)
    assert task.known(np.array([0, -1, 2])).tolist() == [True, False, True]


def test_the_score_of_each_class_is_drawn_once():
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    output, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    task = make_task("kind", Target("class", ("a", "$b", "c")))
    kept = task.keep(output, labels)
    (axis,) = task.draw_classes(kept).axes
    widths = [bar.get_width() for bar in axis.patches][::-1]  # the first class on top
    assert widths == [row["F1"] for row in task.by_class(kept).values()]
    assert axis.get_xlabel() == "F1"
    several = make_task("cover", Target("multilabel", CLASSES))
    assert several.draw_classes(several.keep(output, (output > 0).float())) is None
    number = make_task("height", Target("scalar"))
    assert number.draw_classes(number.keep(output[:, :1], output[:, 0])) is None


def test_multilabel_metrics_leave_out_classes_that_nothing_shows():
    task = make_task("cover", Target("multilabel", CLASSES))
    torch.manual_seed(0)
    output, labels = torch.randn(50, 3), (torch.rand(50, 3) < 0.4).float()
    labels[:, 2] = 0
    kept = task.keep(output, labels)
    y, s = labels.numpy(), output.numpy()
    found = task.metrics(kept)
    each = [average_precision_score(y[:, i], s[:, i]) for i in (0, 1)]
    assert found["mAP_macro"] == pytest.approx(np.mean(each))
    assert found["mAP_micro"] == pytest.approx(average_precision_score(y.ravel(), s.ravel()))
    assert np.isnan(task.by_class(kept)["c"]["AP"])
    assert task.missing_classes(y) == ["c"]
    assert task.loss(output, labels) == nn.MultiLabelSoftMarginLoss()(output, labels)
    assert task.known(np.array([[0, 1, 0], [0, np.nan, 0]])).tolist() == [True, False]


def test_a_scalar_is_learned_standardised_and_given_in_its_units():
    task = make_task("moisture", Target("scalar"))
    labels = torch.tensor([100.0, 300.0, 200.0, 400.0])
    task.prepare(labels.numpy())
    head = nn.Linear(1, 1)
    with torch.no_grad():
        head.weight.fill_(1)
        head.bias.zero_()
    head.requires_grad_(False)
    z = ((labels - labels.mean()) / labels.std(correction=0))[:, None]  # (4, 1)
    assert float(task.loss(head(z), labels)) == pytest.approx(0, abs=1e-12)
    task.finish(head)
    kept = task.keep(head(z) + torch.tensor([[10.0], [-10], [10], [-10]]), labels)
    assert task.metrics(kept) == pytest.approx(
        {"R2": r2_score(labels, kept["output"]), "MAE": 10.0}, rel=1e-5
    )


def test_mask_metrics_are_over_all_pixels_and_not_over_batches():
    task = make_task("mask", Target("mask", CLASSES))
    torch.manual_seed(0)
    output, labels = torch.randn(7, 3, 9, 11), torch.randint(0, 3, (7, 9, 11))
    labels[0, :5], labels[3] = 255, 0
    kept = kept_in_parts(task, output, labels, 3)
    guess, known = output.argmax(1), labels != 255
    each = MulticlassJaccardIndex(3, average="none", ignore_index=255)(guess, labels)
    found = task.metrics(kept)
    assert found["mIoU"] == pytest.approx(float(each.mean()), rel=1e-6)
    assert found["overall_accuracy"] == accuracy_score(labels[known], guess[known])
    assert [row["IoU"] for row in task.by_class(kept).values()] == pytest.approx(each.tolist())
    assert (kept["confusion"].sum((1, 2)) == known.sum((1, 2)).numpy()).all()
    assert set(task.keep(output, labels, samples=SAVED_PIXELS)) == {"confusion"}


def test_unknown_pixels_give_no_gradient_and_a_mask_of_them_no_nan():
    task = make_task("mask", Target("mask", CLASSES))
    output = torch.randn(2, 3, 4, 4, requires_grad=True)
    known = output[1:].detach()
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0] = 255
    loss = task.loss(output, labels)
    assert loss.item() == pytest.approx(float(nn.CrossEntropyLoss()(known, labels[1:])), rel=1e-6)
    loss.backward()
    assert (output.grad[0] == 0).all() and (output.grad[1] != 0).any()
    nothing = task.loss(torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), 255))
    assert nothing == 0


def test_an_iou_by_hand():
    task = make_task("mask", Target("mask", CLASSES))
    truth = torch.tensor([[[0, 0, 1, 255]]])
    output = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 2]]]), 3).permute(0, 3, 1, 2)
    kept = task.keep(output.float(), truth)
    # class 0: 1 of 2, class 1: 1 of 2; class 2 is only guessed where nothing is known
    assert task.metrics(kept) == pytest.approx({"mIoU": 0.5, "overall_accuracy": 2 / 3})
    assert np.isnan(task.by_class(kept)["c"]["IoU"])


def test_the_interval_of_an_accuracy_is_that_of_its_binomial():
    task = make_task("kind", Target("class", ("a", "b")))
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    right = rng.random(400) < 0.8
    output = np.eye(2)[np.where(right, truth, 1 - truth)]
    low, high = measure_intervals(task, {"output": output, "truth": truth}).limits["accuracy"]
    share, spread = right.mean(), 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert low == pytest.approx(share - spread, abs=0.01)
    assert high == pytest.approx(share + spread, abs=0.01)


def test_whole_groups_are_left_out():
    """By hand: groups of one size, half right on average; t of two degrees of freedom is 4.303."""
    task = make_task("kind", Target("class", ("a", "b")))
    truth = np.zeros(300, dtype=np.int64)
    output = np.eye(2)[np.repeat([0, 1, 0, 1], [100, 100, 50, 50])]  # right 1, 0 and 0.5 of them
    kept = {"output": output, "truth": truth}
    groups = np.repeat(["right", "wrong", "half"], 100).tolist()
    samples = 0.25 / (2 / 3 * (0.25**2 + 0.25**2))  # independent ones with that spread
    z2 = 4.302653**2 / samples
    half = np.sqrt(z2 / 4 + z2**2 / 4) / (1 + z2)
    found = measure_intervals(task, kept, groups).limits
    assert found["accuracy"] == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert intervals(task, kept, 0) == {} and intervals(task, kept, 1, groups=groups) == found
    alone = measure_intervals(task, kept).limits[
        "accuracy"
    ]  # samples on their own seem to know far more
    assert alone[1] - alone[0] < 0.3 * 2 * half


@pytest.mark.parametrize("right", [0, 5, 37, 60])
def test_the_interval_of_an_accuracy_is_wilsons(right):
    """Of single samples: for one sample less, with Student's t in place of the normal."""
    task = make_task("kind", Target("class", ("a", "b")))
    output = np.eye(2)[(np.arange(60) >= right).astype(int)]
    kept = {"output": output, "truth": np.zeros(60, int)}
    share, count, z2 = right / 60, 59 if 0 < right < 60 else 60, 2.0010**2
    middle = (share + z2 / 2 / count) / (1 + z2 / count)
    half = np.sqrt(z2 * share * (1 - share) / count + z2**2 / 4 / count**2) / (1 + z2 / count)
    expected = (max(0, middle - half), min(1, middle + half))
    assert measure_intervals(task, kept).limits["accuracy"] == pytest.approx(expected, abs=2e-3)


def shares_right(rng, units):
    """Ten samples a group, of which it has its own share right, 0.8 on average."""
    right = rng.binomial(10, rng.beta(6.4, 1.6, units))
    return right.mean() / 10, (right.sum() - right) / (10 * units - 10)


def explained(rng, units):
    """An R2 of ten numbers a group, all of them with one error: its true value is 0.8."""
    y = rng.normal(size=(units, 10))
    error = 0.2 * rng.normal(size=y.shape) ** 2
    sums = np.stack([y.sum(1), (y**2).sum(1), error.sum(1)], 1)  # (units, 3)

    def r2(total, count):
        return 1 - total[..., 2] / (total[..., 1] - total[..., 0] ** 2 / count)

    return r2(sums.sum(0), 10 * units), r2(sums.sum(0) - sums, 10 * units - 10)


def precision(rng, units):
    """The average precision of ten decisions a group, 0.5 of them yes: it is 0.854 in the end."""
    truth = rng.random((units, 10)) < 0.5
    output = 1.5 * truth + rng.normal(size=truth.shape)

    def average_precision(keep):
        right = truth[keep].ravel()[np.argsort(-output[keep].ravel())]
        return (np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean()

    each = [average_precision(np.arange(units) != unit) for unit in range(units)]
    return average_precision(np.arange(units) >= 0), np.array(each)


@pytest.mark.parametrize(
    ("draw", "scale", "true"),
    [(shares_right, "share", 0.8), (explained, "explained", 0.8), (precision, "share", 0.854)],
)
@pytest.mark.parametrize("units", [3, 5, 20])
def test_intervals_hold_the_truth_with_few_groups(draw, scale, true, units):
    """95 % are claimed; the percentiles of a bootstrap gave 72 % with three groups."""
    rng = np.random.default_rng(0)
    limits = np.array([interval(*draw(rng, units), scale) for _ in range(400)])
    assert 0.91 <= ((limits[:, 0] <= true) & (true <= limits[:, 1])).mean() <= 0.99


def test_what_sums_err_by_is_no_spread():
    """Average precision where all are right comes out as 1 in all but the last digits."""
    right = interval(1.0, np.ones(30), "share")
    for value in (1.0, 1 + 2e-16, 1 - 1e-16):
        errs = 1 + 2e-16 * np.random.default_rng(0).integers(-2, 3, 30)
        assert interval(value, errs, "share") == right
    rng = np.random.default_rng(0)
    for count in range(12, 40):
        truth = (rng.random((count, 6)) < 0.3).astype(np.float32)
        truth[0] = 1
        task = make_task("y", Target("multilabel", tuple("abcdef")))
        output = torch.from_numpy(truth + 0.1 * rng.random(truth.shape).astype(np.float32))
        kept = task.keep(output, torch.from_numpy(truth))
        assert 1 - 1e-12 < task.metrics(kept)["mAP_micro"] <= 1
        low, high = measure_intervals(task, kept).limits["mAP_micro"]
        assert 0.7 < low < 0.95 and high == pytest.approx(1)


def test_groups_that_differ_in_size_count_as_fewer():
    """By their plain number, intervals held the truth in 0.9 of parts where sizes differ much."""
    task, sizes = make_task("label", Target("class", ("a", "b"))), np.array([10, 10, 20])
    right = np.concatenate([np.arange(size) % 5 > 0 for size in sizes]) ^ (np.arange(40) == 39)
    truth, groups = np.arange(40) % 2, np.repeat(list("xyz"), sizes)
    kept = {"truth": truth, "output": np.eye(2)[np.where(right, truth, 1 - truth)]}
    without = np.array([right[groups != group].mean() for group in "xyz"])
    expected = interval(right.mean(), without, "share", 40**2 / (10**2 + 10**2 + 20**2) - 1)
    found = measure_intervals(task, kept, groups.tolist()).limits["accuracy"]
    assert found == pytest.approx(expected)
    few = interval(right.mean(), without, "share")
    assert found[0] < few[0] and few[1] < found[1]

    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        sizes = np.maximum(1, rng.lognormal(3, 1.5, 10).astype(int))
        hits, count = rng.binomial(sizes, rng.beta(6.4, 1.6, 10)), sizes.sum()
        without = (hits.sum() - hits) / (count - sizes)
        low, high = interval(hits.sum() / count, without, "share", effective(sizes) - 1)
        held.append(low <= 0.8 <= high)
    assert 0.94 <= np.mean(held) <= 0.99


def of_a_rare_class(rng):
    """40 samples, one in ten of the second class, 0.8 of both are right."""
    truth, right = (rng.random(40) < 0.1).astype(int), rng.random(40) < 0.8
    return {"truth": truth, "output": np.eye(2)[np.where(right, truth, 1 - truth)]}, None


def of_a_rare_mask(rng):
    """40 groups of one mask: one in ten shows the second class, 0.8 of which is right on average.

    The first class is right throughout, so that the IoU are 1 of 1.02 and 0.8.
    """
    rare = 500 * (rng.random(40) < 0.1)
    right = (rare * rng.beta(3.2, 0.8, 40)).astype(int)
    first = np.stack([np.full(40, 500), np.zeros(40, int)], 1)
    confusion = np.stack([first, np.stack([rare - right, right], 1)], 1)  # (40, 2, 2)
    return {"confusion": confusion}, np.arange(40).tolist()


@pytest.mark.parametrize(
    ("kind", "metric", "draw", "true"),
    [
        ("class", "balanced_accuracy", of_a_rare_class, 0.8),
        ("mask", "mIoU", of_a_rare_mask, (1 / 1.02 + 0.8) / 2),
    ],
)
def test_means_over_classes_hold_the_truth_where_one_is_rare(kind, metric, draw, true):
    """The jackknife alone holds it in 73 and 86 %, whether or not a class is too rare."""
    task, rng, held = make_task("label", Target(kind, ("a", "b"))), np.random.default_rng(0), []
    for _ in range(100):
        if metric in (limits := measure_intervals(task, *draw(rng)).limits):
            low, high = limits[metric]
            held.append(low <= true <= high)
    assert 40 < len(held) < 90 and np.mean(held) > 0.92


def test_the_interval_of_a_mean_over_classes_by_hand():
    """All of both classes are right: each has Wilson's interval, the ends add up as errors do."""
    task = make_task("kind", Target("class", ("a", "b")))
    truth = np.repeat([0, 1], [30, 4])
    low, high = measure_intervals(task, {"truth": truth, "output": np.eye(2)[truth]}).limits[
        "balanced_accuracy"
    ]
    lacks = [q**2 / (n + q**2) for n, q in ((30, 2.04523), (4, 3.18245))]  # t of n - 1
    assert (low, high) == pytest.approx((1 - np.hypot(*lacks) / 2, 1.0), abs=1e-5)


def test_a_mean_over_classes_has_no_interval_where_too_few_show_one():
    task = make_task("kind", Target("class", ("a", "b", "c")))
    truth = np.repeat([0, 1], [30, 2])
    kept = {"truth": truth, "output": np.eye(3)[truth]}
    found = measure_intervals(task, kept, never_shown=["c"])
    assert set(found.limits) == {"accuracy"}
    assert (
        "None for balanced_accuracy and macro_F1, a mean over classes each of which 3 samples of "
        "the test part have to show: 2 show 'b'."
    ) in found.about
    groups = np.arange(32) // 8  # the second class is in one group; the third in none
    assert "3 groups of the test part have to show: 1 show 'b' and 0 show 'c'." in (
        measure_intervals(task, kept, groups.tolist()).about
    )
    enough = {"truth": np.repeat([0, 1], 16), "output": np.eye(3)[np.repeat([0, 1], 16)]}
    assert len(measure_intervals(task, enough, never_shown=["c"]).limits) == 3
    assert set(measure_intervals(task, enough).limits) == {"accuracy"}  # others may show "c"


def test_an_r2_and_an_error_have_intervals_of_their_own():
    task, rng = make_task("y", Target("scalar")), np.random.default_rng(0)
    truth = rng.normal(size=500)
    kept = {"truth": truth, "output": 0.8 * truth + 0.3 * rng.normal(size=500)}
    found, metrics = measure_intervals(task, kept).limits, task.metrics(kept)
    draws = [rng.integers(0, 500, 500) for _ in range(300)]  # of many samples a bootstrap is right
    again = [task.metrics({k: v[rows] for k, v in kept.items()}) for rows in draws]
    for name, (low, high) in found.items():
        expected = np.percentile([m[name] for m in again], [2.5, 97.5])
        assert (low, high) == pytest.approx(expected, abs=0.02) and low < metrics[name] < high


def test_what_is_undefined_without_a_group_has_no_interval_and_the_reason():
    task = make_task("cover", Target("multilabel", ("a", "b")))
    truth = np.array([[1, 0]] * 3 + [[0, 0]] * 6, np.float32)  # only the first group shows any
    kept = {"truth": truth, "output": np.random.default_rng(0).random((9, 2))}
    found = measure_intervals(task, kept, list("aaabbbccc"))
    assert not found.limits and "None for mAP_micro, mAP_macro, which is undefined" in found.about


# The floor of each kind of label, worked out by hand.
FLOORS = [
    ("class", [0, 0, 0, 1], {"accuracy": 0.75, "balanced_accuracy": 0.5, "macro_F1": 3 / 7}),
    ("multilabel", [[1, 0], [1, 0], [0, 0], [1, 1]], {"mAP_macro": 0.5, "mAP_micro": 0.6875}),
    ("scalar", [0.0, 0.0, 0.0, 8.0], {"R2": 0.0, "MAE": 2.0}),  # of the mean, of the median
    ("mask", [[[0, 0], [0, 1]]] * 4, {"mIoU": 0.375, "overall_accuracy": 0.75}),
]


@pytest.mark.parametrize(("kind", "truth", "floor"), FLOORS)
def test_the_floor_is_what_a_constant_guess_gives(kind, truth, floor):
    task = make_task("label", Target(kind, () if kind == "scalar" else ("a", "b")))
    labels = torch.tensor(truth)
    shape = (4, 1) if kind == "scalar" else (4, 2, *labels.shape[1:])
    torch.manual_seed(0)
    kept = task.keep(torch.randn(shape[:2] if kind != "mask" else shape), labels)
    assert task.floors(kept) == pytest.approx(floor, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "classes", "probe"),
    [
        ("class", ("a", "b"), "logistic"),
        ("multilabel", ("a", "b"), "ridge"),
        ("scalar", (), "ridge"),
    ],
)
def test_a_kind_made_of_another_is_learned_and_measured_alike(kind, classes, probe):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    y = {"class": x[:, 0] > 0, "multilabel": x[:, :2] > 0, "scalar": x[:, 0]}[kind]
    y = y.astype(np.int64 if kind == "class" else np.float32)
    y[0] = -1 if kind == "class" else np.nan
    found = []
    for made in (TASKS.get(kind), type("Own", (TASKS.get(kind),), {})):
        task = made("label", Target(kind if made.__name__ != "Own" else "own", classes))
        rows = task.known(y)
        assert rows.sum() == 59 and not rows[0]
        head, strength = task.fit_head(probe, x[rows], labels=y[rows], groups=None, seed=0)
        kept = task.keep(head(torch.from_numpy(x[rows])).detach(), torch.from_numpy(y[rows]))
        found.append({"strength": strength, **task.metrics(kept)})
    assert found[0] == found[1] and np.isfinite(list(found[0].values())).all()


def test_doubts_are_said_where_they_are_due():
    task = make_task("kind", Target("class", ("a", "b")))
    truth = np.array([0, 0, 0, 1])

    def said(guess, **metrics):
        found = {"accuracy": {"value": 0.75, "floor": 0.75, "interval": (0.3, 0.9)} | metrics}
        return " ".join(doubts(task, {"truth": truth, "output": np.eye(2)[guess]}, found))

    everywhere = said([0, 0, 0, 0])
    assert "predicts 'a' everywhere" in everywhere and "0.75 is not above 0.75" in everywhere
    assert "the interval of accuracy holds 0.75" in said([0, 0, 1, 1], value=0.8)
    assert not said([0, 0, 0, 1], value=0.9, interval=(0.8, 1.0))
    number = make_task("y", Target("scalar"))
    assert "worse than the test part's mean" in doubts(number, {}, {"R2": {"value": -0.2}})[0]
    assert "R2 is undefined" in doubts(number, {}, {"R2": {"value": float("nan")}})[0]


def test_masks_of_more_classes_than_can_be_learned_are_refused_before_they_are_read():
    masks = {"mask": Target("mask", tuple(map(str, range(40_001))))}
    with pytest.raises(DataError, match=r"40,001 classes, and up to 1,024 .*classes\.txt"):
        choose_task(masks, "mask")
