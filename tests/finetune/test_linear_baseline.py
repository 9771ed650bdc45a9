"""k-mer counts against plain Python, and what a logistic regression learns from them."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from finetune.linear_baseline import features, predict
from finetune.sequence_table import read_table

LETTERS = "ATCG"
K_RANGE = range(3, 7)
BIN = 5


def kmer_number(kmer: str) -> int:
    number = 0
    for letter in kmer:
        number = 4 * number + LETTERS.index(letter)
    return number


def counted(sequence: str, longest: int) -> Counter:
    """Column and count of each k-mer of one sequence: for each k the counts over all of it, then those by bin."""
    found, first = Counter(), 0
    for k in K_RANGE:
        n_bins = (longest - k + 1) // BIN + 1
        for place in range(min(len(sequence), longest) - k + 1):
            kmer = sequence[place : place + k]
            if set(kmer) <= set(LETTERS):
                found[first + kmer_number(kmer)] += 1
                found[first + 4**k + place // BIN * 4**k + kmer_number(kmer)] += 1
        first += (1 + n_bins) * 4**k
    return found


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list("ACGTN"), n, p=[0.24] * 4 + [0.04])) for n in (23, 23, 17, 6, 5, 30)]
    return [*drawn, "AAAAAAAAAAAA", "NNNNNNNNN", "ACGNNACGT"]


def test_features_are_the_counts_of_kmers_over_the_sequence_and_by_bin(sequences):
    matrix = features(sequences, 23)
    assert matrix.shape[0] == len(sequences)
    for row, sequence in enumerate(sequences):
        here = matrix[[row]].tocoo()
        assert dict(zip(here.coords[1].tolist(), here.data.tolist(), strict=True)) == counted(sequence, 23)


def test_each_kmer_counts_once_over_the_sequence_and_once_in_a_bin(sequences):
    kmers = sum(
        set(s[i : i + k]) <= set(LETTERS) for s in sequences for k in K_RANGE for i in range(min(len(s), 23) - k + 1)
    )
    assert features(sequences, 23).sum() == 2 * kmers


def test_lower_case_counts_as_upper_case(sequences):
    assert (features([s.lower() for s in sequences], 23) != features(sequences, 23)).nnz == 0


def test_sequences_shorter_than_the_longest_kmer_have_the_kmers_that_fit():
    assert features(["ACG", "ACGT"], 4).sum() == 2 * (1 + 2 + 1)


@pytest.fixture(scope="module")
def split(draw_promoters) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    rng = np.random.default_rng(8)
    train, test = draw_promoters(rng, 400), draw_promoters(rng, 200)
    return *map(list, zip(*train, strict=True)), *map(list, zip(*test, strict=True))


def test_probabilities_sum_to_one_and_are_repeatable(split):
    train, labels, test, _ = split
    found = predict(train, np.array(labels), test, 0)
    assert found.shape == (len(test), 2)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(predict(train, np.array(labels), test, 0), found)


def test_a_planted_motif_is_learnt(split):
    train, labels, test, truth = split
    assert roc_auc_score(truth, predict(train, np.array(labels), test, 0)[:, 1]) > 0.95


def test_where_a_motif_lies_is_learnt(draw_promoters):
    """Both classes hold the motif: class 1 at base 12, class 0 at base 24, so counts alone cannot tell them apart."""
    rng = np.random.default_rng(9)
    rows = draw_promoters(rng, 600)
    moved = [(s if label else s[:24] + "TATAAAAG" + s[32:], label) for s, label in rows]
    sequences, labels = (list(column) for column in zip(*moved, strict=True))
    found = predict(sequences[:400], np.array(labels[:400]), sequences[400:], 0)
    assert roc_auc_score(labels[400:], found[:, 1]) > 0.95


def test_human_promoters_are_told_from_other_sequence(shared_data):
    folder = shared_data / "gue" / "prom" / "prom_core_all"
    train, dev = (read_table(folder / f"{name}.csv", 2, 6) for name in ("train", "dev"))
    rows = np.arange(6000)
    found = predict(train.take(rows).sequence_of_each, train.targets[rows], dev.sequences[:2000], 0)
    assert roc_auc_score(dev.targets[:2000], found[:, 1]) > 0.80
