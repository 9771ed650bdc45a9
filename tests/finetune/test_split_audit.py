"""What recurs across splits, by hand and against a comparison of every row with every earlier one."""

import itertools

import numpy as np
import pytest

from finetune.split_audit import audit

COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


def opposite(sequence: str) -> str:
    return sequence.translate(COMPLEMENT)[::-1]


def same(one: str, other: str) -> bool:
    return one in (other, opposite(other))


def by_comparison(splits: dict[str, list[tuple[str, int]]]) -> dict[str, dict[str, int]]:
    """The counts, from their definitions."""
    counts, earlier = {}, []
    for name, rows in splits.items():
        repeated = seen = seen_rc = conflicting = 0
        for place, (sequence, label) in enumerate(rows):
            here = [(s, y) for s, y in rows[:place] if same(sequence, s)]
            there = [(s, y) for s, y in earlier if same(sequence, s)]
            as_it_is = sequence in [s for s, _ in there]
            repeated += bool(here)
            seen += as_it_is
            seen_rc += bool(there) and not as_it_is
            conflicting += any(y != label for _, y in here + there)
        counts[name] = {
            "rows": len(rows),
            "repeated": repeated,
            "seen": seen,
            "seen_rc": seen_rc,
            "conflicting": conflicting,
        }
        earlier += rows
    return counts


def counts_of(labelled, splits: dict, name: str) -> dict[str, int]:
    return audit({split: labelled(rows) for split, rows in splits.items()}, dedup=False)[1][name]


# AACC and GGTT, AAAA and TTTT are reverse complements; ACGT is its own.
@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([("AACC", 0)], [("AAAA", 0)], (0, 0, 0, 0)),
        ([("AACC", 0)], [("AACC", 0)], (0, 1, 0, 0)),
        ([("AACC", 0)], [("GGTT", 0)], (0, 0, 1, 0)),
        ([("AACC", 0), ("GGTT", 0)], [("GGTT", 0)], (0, 1, 0, 0)),
        ([("ACGT", 0)], [("ACGT", 0)], (0, 1, 0, 0)),
        ([("AACC", 0)], [("AACC", 1)], (0, 1, 0, 1)),
        ([("AACC", 0)], [("GGTT", 1)], (0, 0, 1, 1)),
        ([("AACC", 0)], [("AAAA", 0), ("AAAA", 0), ("TTTT", 0)], (2, 0, 0, 0)),
        ([("AACC", 0)], [("AAAA", 0), ("TTTT", 1)], (1, 0, 0, 1)),
        ([("AACC", 0)], [("AACC", 0), ("AACC", 0)], (1, 2, 0, 0)),
        ([("AACC", 0)], [("CCAA", 0), ("TTGG", 0)], (1, 0, 0, 0)),
    ],
)
def test_what_recurs_is_counted(labelled, train, test, expected):
    counts = counts_of(labelled, {"train": train, "test": test}, "test")
    names = ("repeated", "seen", "seen_rc", "conflicting")
    assert counts == {"rows": len(test), **dict(zip(names, expected, strict=True))}


def test_a_row_conflicts_with_any_earlier_row_of_its_split(labelled):
    rows = [("AACC", 0), ("AACC", 1), ("AACC", 0)]
    assert counts_of(labelled, {"train": rows}, "train")["conflicting"] == 2


def test_a_row_conflicts_with_any_earlier_split(labelled):
    splits = {"train": [("AACC", 0)], "dev": [("AACC", 1)], "test": [("AACC", 1)]}
    assert counts_of(labelled, splits, "test")["conflicting"] == 1


def test_a_sequence_with_ambiguity_codes_meets_its_reverse_complement(labelled):
    assert counts_of(labelled, {"train": [("ACRT", 0)], "test": [("AYGT", 0)]}, "test")["seen_rc"] == 1


def drawn(seed: int) -> dict[str, list[tuple[str, int]]]:
    rng = np.random.default_rng(seed)
    return {
        name: [("".join(rng.choice(list("ACGTN"), 4, p=[0.24] * 4 + [0.04])), int(rng.integers(2))) for _ in range(n)]
        for name, n in (("train", 60), ("dev", 30), ("test", 30))
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_equal_a_comparison_of_all_rows(labelled, seed):
    splits = drawn(seed)
    unchanged, counts = audit({name: labelled(rows) for name, rows in splits.items()}, dedup=False)
    expected = by_comparison(splits)
    assert counts == expected
    assert min(sum(row[name] for row in expected.values()) for name in expected["train"]) > 0
    assert {name: split.sequences for name, split in unchanged.items()} == {
        name: [sequence for sequence, _ in rows] for name, rows in splits.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_dedup_leaves_each_sequence_once_on_either_strand(labelled, seed):
    splits = drawn(seed)
    kept, _ = audit({name: labelled(rows) for name, rows in splits.items()}, dedup=True)
    left = [sequence for split in kept.values() for sequence in split.sequence_of_each]
    assert not any(same(one, other) for one, other in itertools.combinations(left, 2))
    before = [sequence for rows in splits.values() for sequence, _ in rows]
    assert all(any(same(sequence, one) for one in left) for sequence in before)


def test_dedup_keeps_the_first_row_and_takes_later_splits_apart(labelled):
    train, test = [("AACC", 0), ("GGTT", 1), ("AAAA", 1)], [("TTTT", 0), ("CCCC", 1)]
    kept, _ = audit({"train": labelled(train), "test": labelled(test)}, dedup=True)
    assert (kept["train"].sequence_of_each, kept["train"].targets.tolist()) == (["AACC", "AAAA"], [0, 1])
    assert (kept["test"].sequence_of_each, kept["test"].targets.tolist()) == (["CCCC"], [1])
