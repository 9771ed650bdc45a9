"""Scores against small examples worked by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, precision_score, recall_score, roc_auc_score

from finetune.metrics import classification


def of_class_1(*scores: float) -> np.ndarray:
    score = np.array(scores)
    return np.stack([1 - score, score], axis=1)


def test_two_classes_by_hand():
    """Predicted 1 0 0 1 1 0 1, true 0 0 0 1 1 1 1: TP 3, FP 1, FN 1, TN 2; of 12 pairs 10 are in order, one is tied."""
    scores = classification(np.array([0, 0, 0, 1, 1, 1, 1]), of_class_1(0.8, 0.2, 0.1, 0.9, 0.8, 0.4, 0.85))
    assert scores["precision"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert scores["recall"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert scores["auc"] == pytest.approx(10.5 / 12)
    assert scores["mcc"] == pytest.approx((3 * 2 - 1 * 1) / math.sqrt(4 * 4 * 3 * 3))
    assert scores["collapsed"] is False


def test_macro_means_weigh_classes_alike_however_many_rows_they_have():
    """Nine of class 0 all right, one of two of class 1 right: recalls 1 and 1/2, precisions 9/10 and 1."""
    labels = np.array([0] * 9 + [1] * 2)
    scores = classification(labels, of_class_1(*[0.1] * 9, 0.9, 0.2))
    assert scores["recall"] == pytest.approx(0.75)
    assert scores["precision"] == pytest.approx(0.95)


def test_three_classes_by_hand():
    """Predicted 0 0 1 1 2 0, true 0 0 1 1 2 2."""
    probabilities = np.array(
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.7, 0.05, 0.25]]
    )
    scores = classification(np.array([0, 0, 1, 1, 2, 2]), probabilities)
    assert scores["precision"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert scores["recall"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    # One against the rest: of 8 pairs each, class 0 misorders one (0.6 < 0.7), class 1 none, class 2 one (0.25 < 0.3).
    assert scores["auc"] == pytest.approx((7 / 8 + 1 + 7 / 8) / 3)
    # R_K (Gorodkin 2004): (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), c = 5 right of s = 6.
    assert scores["mcc"] == pytest.approx((5 * 6 - (3 * 2 + 2 * 2 + 1 * 2)) / math.sqrt((36 - 14) * (36 - 12)))


def test_auc_depends_on_the_order_of_scores_alone():
    labels, score = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert classification(labels, of_class_1(*score))["auc"] == classification(labels, of_class_1(*score**3))["auc"]


@pytest.mark.parametrize("throughout", [0, 1])
def test_a_collapsed_classifier_is_named(throughout):
    scores = classification(np.array([0, 0, 1, 1]), of_class_1(*(np.array([0.1, 0.2, 0.3, 0.4]) + 0.5 * throughout)))
    assert scores["collapsed"] is True
    assert (scores["precision"], scores["recall"], scores["mcc"]) == (0.25, 0.5, 0.0)
    assert scores["auc"] == 1.0


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(n_classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % n_classes)
    probabilities = rng.integers(1, 5, (60, n_classes)).astype(float)  # with ties
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    of_auc = probabilities[:, 1] if n_classes == 2 else probabilities
    assert classification(labels, probabilities) == pytest.approx(
        {
            "precision": precision_score(labels, predicted, average="macro", zero_division=0),
            "recall": recall_score(labels, predicted, average="macro", zero_division=0),
            "auc": roc_auc_score(labels, of_auc, multi_class="ovr"),
            "mcc": matthews_corrcoef(labels, predicted),
            "collapsed": False,
        }
    )
