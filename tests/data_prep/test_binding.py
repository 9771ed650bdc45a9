import functools
import gzip

import lightmotif
import MOODS.scan
import MOODS.tools
import numpy as np
import pytest
from Bio import SeqIO
from Bio.Seq import reverse_complement

from data_prep.bases import encode
from data_prep.binding import HIT_P_VALUE, Scanner
from data_prep.motifs import Motif, load_motifs


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


@pytest.mark.parametrize("affinity", ["max", "occupancy", "hits"])
def test_a_batch_may_hold_regions_of_any_lengths(few_motifs, regions, affinity):
    letters = np.random.default_rng(5).choice(list("ACGTacgt"), size=100_000)
    letters[50_000:60_000] = "N"
    long = encode("".join(letters))
    short = [encode(region) for region in regions]
    scan = scanner(few_motifs, affinity).scan
    rows = scan([*short, long, np.zeros(0, np.uint8), *short[::-1]])
    np.testing.assert_array_equal(rows[: len(short)], scan(short))
    np.testing.assert_array_equal(rows[-len(short) :], scan(short)[::-1])
    assert not rows[len(short) + 1].any()
    # The same from halves that share what the widest motif spans, less its share of both.
    halves = scan([long[:30_020], long[30_000:], long[30_000:30_020]]).astype(float)
    if affinity == "max":
        np.testing.assert_array_equal(rows[len(short)], halves[:2].max(axis=0))
    elif affinity == "hits":
        np.testing.assert_array_equal(rows[len(short)], halves[0] + halves[1] - halves[2])
    assert scan([]).shape == (0, len(few_motifs))


@pytest.mark.parametrize("affinity", ["max", "occupancy", "hits"])
def test_a_long_regions_pieces_leave_no_window_out_and_count_none_twice(few_motifs, affinity, log_odds):
    """Lengths about the cut after 4,096 window starts, with a consensus site of the widest motif across it."""
    rng = np.random.default_rng(4)
    widest = max(few_motifs, key=lambda motif: motif.length)
    regions = []
    for length in (4095, 4096, 4097, 4096 + widest.length - 1, 4096 + widest.length, 8192, 8193 + widest.length):
        letters = rng.choice(list("ACGT"), size=length)
        site = list(str(widest.consensus))
        at = min(4096 - len(site) // 2, length - len(site))
        letters[at : at + len(site)] = site
        regions.append("".join(letters))
    rows = scanner(few_motifs, affinity).scan([encode(region) for region in regions]).astype(float)
    thresholds = scanner(few_motifs, "hits").thresholds
    for column, motif in enumerate(few_motifs):
        scores = [log_odds(motif, region) for region in regions]
        best = motif.counts.normalize(pseudocounts=0.1).log_odds().max
        expected = {
            "max": [max(0, score.max()) / best for score in scores],
            "occupancy": [np.log2(max(1, np.exp2(score).sum())) for score in scores],
            "hits": [(score >= thresholds[column]).sum() for score in scores],
        }[affinity]
        np.testing.assert_allclose(rows[:, column], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("affinity", "value"), [("max", 0.0), ("occupancy", np.log2(2 * 17)), ("hits", 0.0)])
def test_a_flat_motif_tells_nothing(affinity, value):
    flat = Motif("flat", "flat", np.full((4, 4), 5.0))
    rows = Scanner.of([flat], affinity).scan([encode("ACGT" * 5), encode("NNNN")])
    np.testing.assert_allclose(rows.astype(float), [[value], [0.0]], rtol=1e-3)


@pytest.mark.filterwarnings("error")
def test_a_region_of_n_alone_has_affinity_0_for_the_widest_motif():
    conserved = Motif("wide", "wide", np.eye(4)[:, [0, 1, 2, 3] * 16] * 1000)
    for affinity in ("max", "occupancy", "hits"):
        assert (Scanner.of([conserved], affinity).scan([encode("N" * 100), encode("ACGT")]) == 0).all()


@pytest.mark.filterwarnings("error")
def test_hits_stop_at_the_largest_number_of_their_type():
    poly_a = Motif("polyA", "polyA", np.array([[100.0], [0.0], [0.0], [0.0]]).repeat(9, axis=1))
    assert Scanner.of([poly_a], "hits").scan([encode("A" * 80_000)]) == np.finfo(np.float16).max


def test_an_occupancy_of_64_conserved_columns_is_finite():
    site = "".join(np.random.default_rng(6).choice(list("ACGT"), size=64))
    counts = 10_000.0 * (np.array(list("ACGT"))[:, None] == np.array(list(site)))
    row = Scanner.of([Motif("MA1", "wide", counts)], "occupancy").scan([encode(site + "ACGT" + site)])
    np.testing.assert_allclose(row.astype(float), 129, atol=0.1)


# Against MOODS and Biopython, on real regions of hg19 with the whole of JASPAR 2018's vertebrates


@pytest.fixture(scope="module")
def hg19_regions(shared_data) -> list[str]:
    """Real peaks of two cell types; stretches half and wholly of N; some shorter than a motif; 100 kb. A third of their
    letters are lower-case."""
    with gzip.open(shared_data / "hg19" / "hg19_windows.fa.gz", "rt") as file:
        sequence = {record.id: str(record.seq) for record in SeqIO.parse(file, "fasta")}
    regions = []
    for name in ("Aoaf.narrowPeak", "E003.bed"):
        lines = (shared_data / "hg19" / "dnase" / name).read_text().splitlines()[::6]
        regions += [sequence[c][int(s) : int(e)] for c, s, e in (line.split("\t")[:3] for line in lines)]
    gap = sequence["chr22"].index("N", 20_000_000)
    regions += [sequence["chr22"][gap - 150 : gap + 150], sequence["chr22"][gap : gap + 200]]
    regions += [sequence["chr20"][1_000_000 : 1_000_000 + length] for length in (1, 5, 6, 12, 20, 21, 22, 100_000)]
    return [region[: len(region) // 3].lower() + region[len(region) // 3 :] for region in regions]


@pytest.fixture(scope="module")
def hg19_affinities(hg19_regions) -> dict[str, np.ndarray]:
    codes = [encode(region) for region in hg19_regions]
    motifs = load_motifs("JASPAR2018")
    return {affinity: Scanner.of(motifs, affinity).scan(codes) for affinity in ("max", "occupancy", "hits")}


class Moods:
    """MOODS's scores of motifs at every position free of N, on both strands, at or above a threshold for each."""

    def __init__(self, motifs):
        self.uniform = MOODS.tools.flat_bg(4)
        counts = [[list(motif.counts[letter]) for letter in "ACGT"] for motif in motifs]
        self.forward = [MOODS.tools.log_odds(matrix, self.uniform, 0.4, 2) for matrix in counts]
        self.strands = [both for one in self.forward for both in (one, MOODS.tools.reverse_complement(one))]

    def scores(self, region: str, thresholds: list[float]) -> list[np.ndarray]:
        # The last argument, its index's k, is below every width: from a width of k - 1 on it would miss positions.
        of_strands = np.repeat(thresholds, 2).tolist()
        found = MOODS.scan.scan_dna(region, self.strands, self.uniform, of_strands, 5)
        scores = [np.array([match.score for match in matches]) for matches in found]
        return [np.concatenate(both) for both in zip(scores[::2], scores[1::2], strict=True)]


def test_real_affinities_are_biopythons(vertebrate_motifs, hg19_regions, hg19_affinities, log_odds):
    for column, motif in list(enumerate(vertebrate_motifs))[::12]:
        scores = [log_odds(motif, region) for region in hg19_regions]
        best = motif.counts.normalize(pseudocounts=0.1).log_odds().max
        highest = np.clip([score.max(initial=-np.inf) / best for score in scores], 0, 1)
        np.testing.assert_allclose(hg19_affinities["max"][:, column].astype(float), highest, atol=5e-4)
        odds = np.array([np.exp2(score).sum() for score in scores])
        occupancy = np.log2(np.maximum(odds, 1))
        np.testing.assert_allclose(
            hg19_affinities["occupancy"][:, column].astype(float), occupancy, rtol=6e-4, atol=1e-3
        )


def test_real_affinities_are_moodss(few_motifs, vertebrate_motifs, hg19_regions, hg19_affinities):
    columns = [[motif.matrix_id for motif in vertebrate_motifs].index(motif.matrix_id) for motif in few_motifs]
    moods = Moods(few_motifs)
    best = [MOODS.tools.max_score(matrix) for matrix in moods.forward]
    rows = [row for row, region in enumerate(hg19_regions) if len(region) < 1000]
    for row in rows[::3]:
        scores = moods.scores(hg19_regions[row], [-1000.0] * len(few_motifs))
        highest = [np.clip(score.max(initial=-np.inf) / top, 0, 1) for score, top in zip(scores, best, strict=True)]
        occupancy = [np.log2(max(1.0, np.exp2(score).sum())) for score in scores]
        np.testing.assert_allclose(hg19_affinities["max"][row, columns].astype(float), highest, atol=5e-4)
        np.testing.assert_allclose(
            hg19_affinities["occupancy"][row, columns].astype(float), occupancy, rtol=6e-4, atol=1e-3
        )


def test_real_hits_are_moodss(vertebrate_motifs, hg19_regions, hg19_affinities):
    thresholds = Scanner.of(load_motifs("JASPAR2018"), "hits").thresholds.astype(float)
    thresholds = np.minimum(thresholds, 1000.0)  # infinite where no site is rare enough
    moods, rounding, ambiguous = Moods(vertebrate_motifs), 1e-3, 0
    for region, hits in zip(hg19_regions, hg19_affinities["hits"], strict=True):
        scores = moods.scores(region, (thresholds - rounding).tolist())
        at_least = [(s >= t + rounding).sum() for s, t in zip(scores, thresholds, strict=True)]
        at_most = np.array([len(score) for score in scores])
        assert (np.float16(at_least) <= hits).all()
        assert (hits <= np.float16(at_most)).all()
        ambiguous += (np.float16(at_least) != np.float16(at_most)).sum()
    assert ambiguous < 2e-3 * hg19_affinities["hits"].size
    assert hg19_affinities["hits"].max() > 100


def test_thresholds_of_hits_are_moodss(vertebrate_motifs):
    """Both round scores to a grid; ours are exact up to 8 columns."""
    wide = [motif for motif in load_motifs("JASPAR2018") if motif.counts.shape[1] > 8]
    moods = Moods([motif for motif in vertebrate_motifs if motif.length > 8])
    there = [MOODS.tools.threshold_from_p(matrix, moods.uniform, HIT_P_VALUE) for matrix in moods.forward]
    np.testing.assert_allclose(Scanner.of(wide, "hits").thresholds, there, atol=0.06)
    assert len(wide) > 490


def test_thresholds_of_hits_are_where_p_passes_one_in_ten_thousand():
    """Of all 4**width sites, for motifs narrow enough to score each: exact up to 8 columns, rounded beyond."""
    narrow = [motif for motif in load_motifs("JASPAR2018") if motif.counts.shape[1] <= 10]
    without = 0  # motifs whose best site is no rarer than that
    for motif, threshold in zip(narrow, Scanner.of(narrow, "hits").thresholds, strict=True):
        scores = functools.reduce(
            lambda sums, column: np.add.outer(sums, column).ravel(), motif.log_odds.T, np.zeros(1)
        )
        exact = motif.counts.shape[1] <= 8
        rounding = 1e-3 if exact else 0.07
        assert (scores >= threshold + rounding).mean() <= HIT_P_VALUE
        below = scores[scores < threshold - rounding].max()
        assert (scores >= below).mean() >= HIT_P_VALUE * (1.0 if exact else 0.6)
        none_is_rare = (scores >= scores.max() - 1e-9).mean() >= HIT_P_VALUE
        assert np.isinf(threshold) == (exact and none_is_rare)
        without += none_is_rare
    assert without > 5


@pytest.mark.parametrize("affinity", ["max", "occupancy", "hits"])
def test_real_regions_have_the_rows_of_their_reverse_complements(hg19_regions, hg19_affinities, affinity):
    back = [encode(reverse_complement(region)) for region in hg19_regions]
    rows = Scanner.of(load_motifs("JASPAR2018"), affinity).scan(back)
    if affinity == "occupancy":
        np.testing.assert_allclose(rows.astype(float), hg19_affinities[affinity].astype(float), rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_array_equal(rows, hg19_affinities[affinity])
