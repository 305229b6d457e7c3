"""Losses and metrics against torch, scikit-learn, torchmetrics, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, r2_score
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from decur.data import Target
from decur.transfer.evaluate import intervals
from decur.transfer.tasks import make_task
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
    assert found["macro_F1"] == f1_score(truth, guess, average="macro")
    assert task.by_class(kept)["b"]["F1"] == f1_score(truth == 1, guess == 1)
    assert task.loss(output, labels) == nn.CrossEntropyLoss()(output, labels)
    assert task.known(np.array([0, -1, 2])).tolist() == [True, False, True]


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
    low, high = intervals(task, {"output": output, "truth": truth}, 1000)["accuracy"]
    share, spread = right.mean(), 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert low == pytest.approx(share - spread, abs=0.01)
    assert high == pytest.approx(share + spread, abs=0.01)


def test_whole_groups_are_resampled():
    task = make_task("kind", Target("class", ("a", "b")))
    truth = np.zeros(400, dtype=np.int64)
    output = np.eye(2)[np.repeat([0, 1], 200)]  # one group all right, one all wrong
    kept = {"output": output, "truth": truth}
    groups = ["right"] * 200 + ["wrong"] * 200
    assert intervals(task, kept, 200, groups=groups)["accuracy"] == (0, 1)
    assert intervals(task, kept, 0) == {}
