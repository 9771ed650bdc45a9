"""Names for what is read: which windows are taken, and which motifs hit them more often than others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from data_prep.binding import Scanner
from data_prep.motifs import load_motifs
from finetune.motif_names import RANDOM, Window, name_windows, random_windows, top_windows, windows_of

TATA_BOX = "GTATAAAAGGCG"


def test_the_highest_windows_are_taken_first_and_none_over_another():
    scores = np.array([0, 0, 3, -4, 5, 0, 0, 1, 1, 0.0])
    assert top_windows(scores, width=3, most=2) == [2, 6]
    assert top_windows(scores, width=3, most=3) == [2, 6]
    assert top_windows(scores, width=2, most=3) == [3, 1, 7]


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40), st.integers(1, 12))
def test_windows_lie_apart_and_no_other_one_is_higher(scores, width):
    scores = np.array(scores, float)
    starts, size = top_windows(scores, width, 3), min(width, len(scores))
    means = [np.abs(scores[i : i + size]).mean() for i in range(len(scores) - size + 1)]
    assert means[starts[0]] == max(means)
    for number, start in enumerate(starts):
        before = starts[:number]
        assert all(abs(start - other) >= width for other in before)
        free = [i for i in range(len(means)) if all(abs(i - other) >= width for other in before)]
        assert means[start] == max(means[i] for i in free)


def test_windows_have_flanks_as_far_as_the_sequence_goes():
    scores = np.zeros((3, 60))
    scores[0, 2:14], scores[1, 30:42], scores[2, 48:60] = 1, 1, 1
    found = [window for window in windows_of([*scores]) if scores[window.sequence][window.start : window.end].any()]
    expected = [Window(0, 0, 22), Window(1, 22, 50), Window(2, 40, 60)]
    assert [next(one for one in found if one.sequence == number) for number in range(3)] == expected


def test_random_windows_are_as_long_and_of_the_same_sequence():
    windows = [Window(0, 3, 31), Window(1, 0, 20)]
    drawn = random_windows(windows, [100, 20], np.random.default_rng(0))
    assert [one.sequence for one in drawn] == [0] * RANDOM + [1] * RANDOM
    assert all(one.end - one.start == 28 and one.start >= 0 and one.end <= 100 for one in drawn[:RANDOM])
    assert len({one.start for one in drawn[:RANDOM]}) > 5
    assert set(drawn[RANDOM:]) == {Window(1, 0, 20)}


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], list[Window]]:
    """30 sequences of 200 bp with a TATA box at 80, and the windows over it."""
    rng = np.random.default_rng(4)
    sequences = ["".join(rng.choice(list("ACGT"), 200)) for _ in range(30)]
    return [s[:80] + TATA_BOX + s[92:] for s in sequences], [Window(number, 72, 100) for number in range(30)]


def test_the_motif_that_was_planted_comes_first(planted):
    sequences, windows = planted
    motifs = load_motifs("JASPAR2018")
    table = name_windows(windows, sequences, motifs, Scanner.of(motifs, "hits"), np.random.default_rng(0))
    assert len(table) == len(motifs)
    assert table["name"][0] == "TBP"
    assert table["q"][0] < 1e-6
    assert (table["windows"] == 30).all()
    assert (table["random"] == 30 * RANDOM).all()
    assert table["p"].is_monotonic_increasing


def test_p_is_fishers_and_q_benjamini_and_hochbergs(planted):
    sequences, windows = planted
    motifs = [motif for motif in load_motifs("JASPAR2018") if motif.name in ("TBP", "CTCF", "SP1", "GATA3")]
    table = name_windows(windows, sequences, motifs, Scanner.of(motifs, "hits"), np.random.default_rng(0))
    n, m = 30, 30 * RANDOM
    expected = [hypergeom.sf(a - 1, n + m, a + b, n) for a, b in zip(table["hit"], table["random_hit"], strict=True)]
    assert table["p"].tolist() == pytest.approx(expected)
    q = [
        min(p * len(motifs) / (later + 1) for later, p in enumerate(expected) if later >= i) for i in range(len(motifs))
    ]
    assert table["q"].tolist() == pytest.approx([min(one, 1) for one in q])


def test_windows_like_all_others_name_nothing(planted):
    sequences, _ = planted
    motifs = load_motifs("JASPAR2018")
    anywhere = [Window(number, 120, 148) for number in range(30)]
    table = name_windows(anywhere, sequences, motifs, Scanner.of(motifs, "hits"), np.random.default_rng(0))
    assert table["q"].min() > 0.05
