import numpy as np
import pytest

from data_prep.peaks import Regions
from data_prep.samples import choose_validation, distinct_regions, group


def regions_of(rows: list[tuple[int, int, int]]) -> Regions:
    chromosome, start, end = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Regions(chromosome.astype(np.int32), start, end, ("chr1", "chr2", "chr3"))


def test_distinct_regions_stand_once_and_are_found_again():
    by_cell_type = [[(0, 1, 9), (0, 20, 30), (2, 5, 6)], [], [(0, 1, 9), (0, 1, 10), (1, 0, 4)]]
    distinct, rows = distinct_regions([regions_of(own) for own in by_cell_type])
    table = np.stack([distinct.chromosome, distinct.start, distinct.end], axis=1).tolist()
    assert table == [[0, 1, 9], [0, 1, 10], [0, 20, 30], [1, 0, 4], [2, 5, 6]]
    assert [[tuple(table[row]) for row in own] for own in rows] == by_cell_type


def test_tens_do_not_cross_chromosomes_or_hold_unusable_regions():
    chromosome = np.repeat([0, 1, 2], [25, 9, 21]).astype(np.int32)
    usable = np.ones(55, dtype=bool)
    usable[[3, 40]] = False
    samples = group(chromosome, [np.arange(55), np.arange(30, 55)], usable)
    full = [row for row in range(55) if usable[row]]
    expected = [full[:10], full[10:20], full[33:43], full[43:53], full[33:43], full[43:53]]
    assert samples.region.tolist() == expected
    assert samples.cell_type.tolist() == [0, 0, 0, 0, 1, 1]
    assert samples.chromosome.tolist() == [0, 0, 2, 2, 2, 2]
    assert samples.index.tolist() == [0, 1, 2, 3, 0, 1]


def test_no_ten_makes_no_sample():
    assert len(group(np.zeros(9, np.int32), [np.arange(9)], np.ones(9, bool))) == 0
    assert len(group(np.zeros(0, np.int32), [], np.ones(0, bool))) == 0


@pytest.mark.parametrize(
    ("tens", "held_out"),
    [((90, 6, 4), ["chr2"]), ((94, 2, 4), ["chr3"]), ((4, 89, 7), ["chr1"]), ((5, 5, 0), ["chr1"]), ((9, 0, 0), [])],
)
def test_the_chromosome_nearest_to_a_twentieth_is_held_out(tens, held_out):
    chromosome = np.repeat([0, 1, 2], 10 * np.array(tens)).astype(np.int32)
    samples = group(chromosome, [np.arange(len(chromosome))], np.ones(len(chromosome), bool))
    assert choose_validation(samples, ("chr1", "chr2", "chr3")) == held_out
