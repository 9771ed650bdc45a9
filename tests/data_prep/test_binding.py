import lightmotif
import numpy as np
import pytest
from Bio.Seq import reverse_complement

from data_prep.bases import encode
from data_prep.binding import Scanner, batches_by_length, padded_length
from data_prep.motifs import Motif


def scanner(motifs, affinity: str = "max") -> Scanner:
    counts = [np.array([motif.counts[letter] for letter in "ACGT"], dtype=np.float64) for motif in motifs]
    return Scanner.of([Motif(m.matrix_id, m.name, c) for m, c in zip(motifs, counts, strict=True)], affinity)


@pytest.fixture(scope="module")
def regions(few_motifs) -> list[str]:
    """Random regions of 1 to 700 bp: a third soft-masked in part, a third with N, some with consensus sites."""
    rng = np.random.default_rng(2)
    lengths = [1, 4, 5, 6, 12, 15, 16, 20, 21, 22, 31, 32, 33, *rng.integers(50, 700, size=27).tolist()]
    regions = []
    for number, length in enumerate(lengths):
        letters = rng.choice(list("ACGT"), size=length)
        if number % 3 == 0:
            letters[length // 4 : length // 2] = np.char.lower(letters[length // 4 : length // 2])
        if number % 3 == 1:
            letters[rng.random(length) < 0.03] = "N"
            letters[length // 2 : length // 2 + 9] = "n"
        if number % 4 == 2 and length > 30:
            site = few_motifs[number % len(few_motifs)].consensus
            letters[-len(site) :] = list(str(site))
        regions.append("".join(letters))
    return [*regions, "N" * 40, "ACGTNACGTN" * 5]


def test_max_is_biopythons_best_score_over_the_motifs_own(few_motifs, regions, relative_maximum):
    affinities = scanner(few_motifs).scan([encode(region) for region in regions])
    by_biopython = [[relative_maximum(motif, region) for motif in few_motifs] for region in regions]
    np.testing.assert_allclose(affinities.astype(float), by_biopython, atol=1e-3)
    assert np.mean(affinities == 1) > 0.005  # the planted consensus sites


def test_occupancy_is_the_log_of_the_summed_odds(few_motifs, regions, log_odds):
    affinities = scanner(few_motifs, "occupancy").scan([encode(region) for region in regions])
    odds = np.array([[np.exp2(log_odds(motif, region)).sum() for motif in few_motifs] for region in regions])
    np.testing.assert_allclose(affinities.astype(float), np.log2(np.maximum(odds, 1)), rtol=1e-3, atol=1e-3)
    assert 0.05 < np.mean(affinities == 0) < 0.95


def test_hits_are_the_scores_at_or_above_the_threshold(few_motifs, regions, log_odds):
    affinities = scanner(few_motifs, "hits").scan([encode(region) for region in regions])
    for column, motif in enumerate(few_motifs):
        rows = motif.counts.normalize(pseudocounts=0.1).log_odds()
        threshold = lightmotif.ScoringMatrix({x: rows[x] for x in "ACGT"} | {"N": [-np.inf] * motif.length}).score(1e-4)
        for region, hits in zip(regions, affinities[:, column], strict=True):
            scores = log_odds(motif, region)
            assert (scores >= threshold + 1e-3).sum() <= hits <= (scores >= threshold - 1e-3).sum()
    assert affinities.max() >= 2


def test_hits_are_as_rare_as_their_p_value_says(few_motifs):
    wide = [motif for motif in few_motifs if motif.length >= 10]
    rng = np.random.default_rng(3)
    hits = scanner(wide, "hits").scan(list(rng.integers(0, 4, size=(200, 1000), dtype=np.uint8)))
    assert 0.5e-4 < hits.astype(float).mean() / 2000 < 1.1e-4


@pytest.mark.parametrize("affinity", ["max", "occupancy", "hits"])
def test_the_reverse_complement_of_a_region_has_the_same_row(few_motifs, regions, affinity):
    scan = scanner(few_motifs, affinity).scan
    there = scan([encode(region) for region in regions]).astype(float)
    back = scan([encode(reverse_complement(region)) for region in regions]).astype(float)
    np.testing.assert_allclose(back, there, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("affinity", ["max", "occupancy", "hits"])
def test_a_regions_row_does_not_depend_on_its_company(few_motifs, regions, affinity):
    scan = scanner(few_motifs, affinity).scan
    codes = [encode(region) for region in regions]
    together = scan(codes + codes[::-1] * 2)
    np.testing.assert_array_equal(together[: len(codes)], np.concatenate([scan([region]) for region in codes]))
    np.testing.assert_array_equal(together[len(codes) : 2 * len(codes)], together[len(codes) - 1 :: -1])


@pytest.mark.parametrize("affinity", ["max", "occupancy", "hits"])
def test_a_region_without_a_window_free_of_n_has_affinity_0(few_motifs, affinity):
    rows = scanner(few_motifs, affinity).scan([encode(region) for region in ("N", "ACGTN" * 20, "ACG", "N" * 100)])
    assert not rows.any()


def test_a_motifs_consensus_has_affinity_1_on_either_strand(few_motifs):
    for column, motif in enumerate(few_motifs):
        site = str(motif.counts.consensus)
        rows = scanner(few_motifs).scan([encode("T" + site), encode(reverse_complement(site) + "A")])
        np.testing.assert_allclose(rows[:, column].astype(float), 1, atol=1e-3)


def test_batches_hold_every_region_once_in_columns_of_bounded_length():
    lengths = np.random.default_rng(4).integers(1, 3000, size=5000)
    batches = batches_by_length(lengths)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(5000))
    for batch in batches:
        padded = padded_length(lengths[batch].max())
        assert padded > lengths[batch].max()
        assert -(-len(batch) // 32) * padded <= max(1024, padded)
