"""The best, the median and the worst mask of a test part."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from decur.transfer.examples import choose_examples, sample_ious
from decur.transfer.tasks.segmentation import confusion_of_masks


@pytest.fixture
def masks():
    import torch

    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (7, 8, 8), generator=generator)
    guess = truth.clone()
    for sample in range(7):  # the further down, the more is wrong
        guess[sample, :sample] = (truth[sample, :sample] + 1) % 3
    return truth, guess


def test_the_iou_of_a_sample_is_scikit_learns(masks):
    truth, guess = masks
    found = sample_ious(confusion_of_masks(guess, truth, 4).numpy())  # a class that nobody shows
    expected = [
        jaccard_score(t.ravel(), g.ravel(), average="macro")
        for t, g in zip(truth, guess, strict=True)
    ]
    np.testing.assert_allclose(found, expected)


def test_best_median_and_worst_are_chosen_without_those_that_are_not_labelled(masks):
    truth, guess = masks
    truth[3] = 255
    kept = {"confusion": confusion_of_masks(guess, truth, 3).numpy()}
    chosen = choose_examples(kept, np.arange(100, 107))
    assert [(one.rank, one.row) for one in chosen] == [
        ("best", 100),
        ("median", 104),
        ("worst", 106),
    ]
    alone = choose_examples({"confusion": kept["confusion"][:1]}, np.array([5]))
    assert [(one.rank, one.row, one.iou) for one in alone] == [("best", 5, 1.0)]
