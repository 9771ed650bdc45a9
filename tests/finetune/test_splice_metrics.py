"""Top-k accuracy and PR-AUC against examples worked by hand, and against SpliceAI's own lines where nothing ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.examples import NO_LABEL
from finetune.splice_metrics import COLUMNS, pr_auc, splice, top_k


def test_top_k_by_hand():
    """Three sites; the three highest scores are of a site, no site, a site."""
    is_site = np.array([0, 1, 0, 1, 0, 1], bool)
    assert top_k(is_site, np.array([0.1, 0.9, 0.8, 0.7, 0.2, 0.3])) == pytest.approx(2 / 3)


def test_pr_auc_by_hand():
    """Sites rank 1st, 3rd and 4th: the mean of precisions 1/1, 2/3 and 3/4."""
    is_site = np.array([0, 1, 0, 1, 0, 1], bool)
    assert pr_auc(is_site, np.array([0.1, 0.9, 0.8, 0.7, 0.2, 0.3])) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_ties_for_the_last_places_count_as_expected_wherever_they_stand():
    """k = 2: one place is taken by a site; one site in four ties for the other."""
    is_site, score = np.array([1, 1, 0, 0, 0], bool), np.array([0.9, 0.5, 0.5, 0.5, 0.5])
    assert top_k(is_site, score) == top_k(is_site[::-1], score[::-1]) == pytest.approx((1 + 1 / 4) / 2)


def test_a_constant_scores_as_chance():
    is_site = np.arange(100) < 5
    assert top_k(is_site, np.zeros(100)) == pytest.approx(0.05)
    assert pr_auc(is_site, np.zeros(100)) == pytest.approx(0.05)


def of_spliceai(is_site: np.ndarray, score: np.ndarray) -> float:
    """The definition in SpliceAI's training code (`print_topl_statistics`), for top_length 1."""
    idx_true = np.nonzero(is_site)[0]
    idx_pred = np.argsort(score)[-len(idx_true) :]
    return np.size(np.intersect1d(idx_true, idx_pred)) / min(len(idx_pred), len(idx_true))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**9)), min_size=1, max_size=60, unique_by=lambda one: one[1]))
def test_without_ties_top_k_is_spliceais(rows):
    is_site, score = np.array([one for one, _ in rows]), np.array([two for _, two in rows], float)
    if is_site.any():
        assert top_k(is_site, score) == pytest.approx(of_spliceai(is_site, score))
    else:
        assert np.isnan(top_k(is_site, score))


def test_each_class_is_scored_over_all_rows_together_and_unlabelled_nucleotides_nowhere():
    labels = np.array([[0, 1, 0, 2], [1, 0, NO_LABEL, NO_LABEL]])
    acceptor = np.array([[0.1, 0.9, 0.2, 0.3], [0.25, 0.4, 1.0, 1.0]])
    donor = np.array([[0.1, 0.1, 0.2, 0.8], [0.3, 0.4, 1.0, 1.0]])
    scores = splice(labels, np.stack([1 - acceptor, acceptor, donor], axis=-1))
    # Acceptors rank 1st and 4th of six: .9, .4, .3, .25; the two highest hold one. The donor is the highest.
    assert scores["topk_acceptor"] == pytest.approx(1 / 2)
    assert scores["pr_auc_acceptor"] == pytest.approx((1 + 2 / 4) / 2)
    assert (scores["topk_donor"], scores["pr_auc_donor"]) == (1.0, 1.0)
    assert scores["topk"] == pytest.approx(3 / 4)
    assert scores["pr_auc"] == pytest.approx(7 / 8)
    assert set(scores) == set(COLUMNS)


def test_a_class_that_does_not_occur_has_no_score():
    scores = splice(np.array([[0, 1]]), np.full((1, 2, 3), 1 / 3))
    assert scores["topk_acceptor"] == pytest.approx(1 / 2)
    assert np.isnan([scores["topk_donor"], scores["pr_auc_donor"], scores["topk"], scores["pr_auc"]]).all()
