import numpy as np

from data_prep.shard_statistics import by_chance, composition, specificity


def test_specificity_is_zero_where_nothing_varies_and_undefined_for_one_cell_type():
    regions = np.array([10, 20, 0])
    total = np.array([[5.0, 10], [10, 20], [0, 0]])
    squares = np.array([[2.5, 12], [5, 24], [0, 0]])
    difference = specificity(regions, total, squares)
    assert (difference[:2] == 0).all()
    assert np.isnan(difference[2]).all()
    assert np.isnan(specificity(regions[:1], total[:1], squares[:1])).all()


def test_chance_is_exceeded_once_in_twenty_where_nothing_differs():
    rng = np.random.default_rng(0)
    regions, n_motifs = np.array([40, 160]), 30
    largest = []
    for _ in range(1000):
        values = rng.normal(size=(200, n_motifs))
        parts = np.split(values, [40])
        sums = (np.array([f(part).sum(axis=0) for part in parts]) for f in (np.asarray, np.square))
        largest.append(np.abs(specificity(regions, *sums)).max())
    exceeded = np.mean(np.array(largest) > by_chance(regions, n_motifs)[0])
    assert 0.03 < exceeded < 0.08


def test_composition_counts_each_region_alone():
    bases = np.array([2, 3, 0, 1, 4, 4, 4, 3], dtype=np.uint8)  # CG A TNN NG
    gc, other = composition(bases, np.array([2, 1, 3, 2]))
    assert gc.tolist() == [2, 0, 0, 1]
    assert other.tolist() == [0, 0, 2, 1]
