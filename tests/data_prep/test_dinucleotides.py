import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from data_prep.bases import decode, encode
from data_prep.dinucleotides import shuffled


def shuffle(sequence: str, rng: np.random.Generator) -> str:
    return decode(shuffled(encode(sequence), rng))


def all_shuffles(sequence: str) -> set[str]:
    """Every sequence with the first letter and the dinucleotides of this one, found by trying each next letter."""

    def continued(walk: str, left: Counter) -> set[str]:
        if not left.total():
            return {walk}
        onward = [pair for pair in left if pair[0] == walk[-1] and left[pair]]
        return set().union(*(continued(walk + pair[1], left - Counter([pair])) for pair in onward))

    return continued(sequence[0], Counter(a + b for a, b in pairwise(sequence)))


@settings(max_examples=300, deadline=None)
@given(st.text("ACGTN", max_size=60), st.integers(0, 2**32 - 1))
@example("", 0)
@example("G", 0)
@example("NNACGTNNN", 1)
@example("A" * 20 + "C" * 20 + "G" * 20 + "T", 2)
def test_dinucleotides_ends_and_every_n_stay_as_they_are(sequence, seed):
    drawn = shuffle(sequence, np.random.default_rng(seed))
    assert Counter(pairwise(drawn)) == Counter(pairwise(sequence))
    assert [place for place, letter in enumerate(drawn) if letter == "N"] == [
        place for place, letter in enumerate(sequence) if letter == "N"
    ]
    assert drawn[:1] == sequence[:1]
    assert drawn[-1:] == sequence[-1:]


@pytest.mark.parametrize("sequence", ["ACAGATACCA", "AACAAGAC", "ACGTACGTCAG", "ATTGCAATCGA", "GATTTAGAATG"])
def test_every_shuffle_is_as_likely_as_any_other(sequence):
    possible = sorted(all_shuffles(sequence))
    assert len(possible) > 5
    rng = np.random.default_rng(17)
    drawn = Counter(shuffle(sequence, rng) for _ in range(60 * len(possible)))
    assert drawn.keys() == set(possible)
    assert chisquare([drawn[one] for one in possible]).pvalue > 0.005


def test_a_sequence_that_hardly_mixes_takes_no_longer():
    """Of 400 edges of each letter one leads on: last edges drawn at random would be a tree once in 64 million."""
    sequence = "A" * 400 + "C" * 400 + "G" * 400 + "T"
    started = time.monotonic()
    assert shuffle(sequence, np.random.default_rng(0)) == sequence
    assert time.monotonic() - started < 5


def test_a_long_sequence_is_mixed():
    rng = np.random.default_rng(5)
    sequence = "".join(rng.choice(list("ACGT"), 2000))
    same = np.mean([a == b for a, b in zip(sequence, shuffle(sequence, rng), strict=True)])
    assert 0.2 < same < 0.3


def test_the_generator_decides():
    sequence = "ACGTTGCAAGCTTACGGATC" * 3
    assert shuffle(sequence, np.random.default_rng(1)) == shuffle(sequence, np.random.default_rng(1))
    assert shuffle(sequence, np.random.default_rng(1)) != shuffle(sequence, np.random.default_rng(2))
