import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.atlas import peak_files, read_atlas, read_blacklist
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.peaks import Regions, overlapping


@pytest.fixture
def genome(tmp_path) -> Genome:
    (tmp_path / "genome.fa").write_text(f">chr1\n{'ACGT' * 500}\n>chr2\n{'ACGT' * 250}\n")
    return Genome(tmp_path / "genome.fa")


def bed(path: Path, rows: list[tuple], columns: str = "") -> Path:
    text = "".join(f"{name}\t{start}\t{end}{columns}\n" for name, start, end in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def intervals(regions: Regions) -> list[tuple[str, int, int]]:
    names = [regions.names[number] for number in regions.chromosome]
    return list(zip(names, regions.start.tolist(), regions.end.tolist(), strict=True))


def read(genome: Genome, *paths: Path, blacklist: Path | None = None, workers: int = 1) -> list[tuple]:
    """Regions and account of each file, in the order of their names."""
    files = peak_files([str(path) for path in paths])
    return list(zip(*read_atlas(files, genome, read_blacklist(blacklist, genome), workers), strict=True))


MANY = [("chr1", start, start + 9) for start in range(0, 1990, 10)]


def test_every_peak_has_one_fate(genome, tmp_path):
    rows = [("chr1", 5, 20), ("chr1", 15, 30), ("chr1", 5, 20), ("chr1", 40, 50), ("chr1", 45, 48), ("chr2", 7, 9)]
    blacklist = bed(tmp_path / "black.list.bed", [("1", 46, 47), ("chrUn", 0, 99)])
    far = [("chr1", 100 + 10 * i, 104 + 10 * i) for i in range(94)]
    [(regions, peaks)] = read(genome, bed(tmp_path / "a.bed", [*rows, *far, ("chrUn", 0, 5)]), blacklist=blacklist)
    assert intervals(regions) == [("chr1", 5, 30), *far, ("chr2", 7, 9)]
    fates = (peaks.duplicate, peaks.unknown_chromosome, peaks.blacklisted, peaks.merged)
    assert fates == (1, 1, 2, 1)
    assert peaks.peaks == sum(fates) + peaks.regions == 101
    assert peaks.regions == len(regions)
    assert peaks.bp == 15 + 15 + 15 + 10 + 3 + 2 + 94 * 4 + 5


@pytest.mark.parametrize("seed", range(10))
def test_overlap_agrees_with_a_comparison_of_all_pairs(seed):
    rng = np.random.default_rng(seed)

    def some(n):
        start = rng.integers(0, 300, n)
        return Regions(rng.integers(0, 3, n).astype(np.int32), start, start + rng.integers(1, 12, n), ("a", "b", "c"))

    regions, others = some(40), some(15)
    pairs = (
        (regions.chromosome[:, None] == others.chromosome)
        & (regions.start[:, None] < others.end)
        & (others.start < regions.end[:, None])
    )
    np.testing.assert_array_equal(overlapping(regions, others), pairs.any(axis=1))


@pytest.mark.parametrize("columns", ["", "\tp", "\tp\t5\t+", "\tp\t5\t+\t1\t2\t0\t1\t9\t0"], ids=[3, 4, 6, 12])
@pytest.mark.parametrize("name", ["x.bed", "x.bed.gz"])
def test_bed_of_any_number_of_columns_is_read(genome, tmp_path, columns, name):
    [(regions, _)] = read(genome, bed(tmp_path / name, MANY, columns))
    assert intervals(regions) == MANY


@pytest.mark.parametrize(
    ("name", "columns"),
    [("x.narrowPeak", "\t.\t0\t.\t1.5\t-1\t-1\t7"), ("x.broadPeak.gz", "\t.\t0\t.\t1.5\t-1\t-1")],
)
def test_encode_peak_files_are_read_and_name_their_cell_type(genome, tmp_path, name, columns):
    path = bed(tmp_path / name, MANY, columns)
    assert list(peak_files([str(path)])) == ["x"]
    [(regions, _)] = read(genome, path)
    assert intervals(regions) == MANY


@pytest.mark.parametrize("workers", [1, 2])
def test_files_come_in_the_order_of_their_cell_types(genome, tmp_path, workers):
    paths = [bed(tmp_path / f"{name}.bed", MANY[: 3 + i]) for i, name in enumerate("dacb")]
    assert [one.peaks for _, one in read(genome, *paths, workers=workers)] == [4, 6, 5, 3]


def test_unsorted_peaks_are_sorted_and_it_is_said(genome, tmp_path, capsys):
    together = bed(tmp_path / "sorted.bed", [("chr2", 1, 5), ("chr2", 8, 9), ("chr1", 1, 5), ("chr1", 1, 4)])
    apart = bed(tmp_path / "unsorted.bed", MANY[::-1])
    (sorted_, _), (unsorted, _) = read(genome, together, apart)
    assert intervals(unsorted) == MANY
    assert intervals(sorted_) == [("chr1", 1, 5), ("chr2", 1, 5), ("chr2", 8, 9)]
    assert f"sorted by position here: 1 of 2 peak files, the first {apart}\n" in capsys.readouterr().out


UNKNOWN = [("chrUn_1", 0, 9), ("chr7", 3, 4)]


def test_a_hundredth_of_the_peaks_may_lie_on_chromosomes_that_the_fasta_lacks(genome, tmp_path, capsys):
    _, (_, peaks) = read(genome, bed(tmp_path / "a.bed", MANY[:99]), bed(tmp_path / "b.bed", [*UNKNOWN, *MANY[:99]]))
    assert (peaks.peaks, peaks.unknown_chromosome) == (101, 2)
    said = "left out: 2 of 200 peaks on chromosomes that the FASTA lacks: chrUn_1 (1), chr7 (1)\n"
    assert said in capsys.readouterr().out


def test_more_than_a_hundredth_is_another_assembly(genome, tmp_path):
    paths = bed(tmp_path / "a.bed", MANY[:99]), bed(tmp_path / "b.bed", [*MANY[:98], *UNKNOWN])
    with pytest.raises(
        InputError, match=rf"{paths[1]}: 2 of all 199 peaks .*chrUn_1 \(1\), chr7 \(1\); give the FASTA"
    ):
        read(genome, *paths)


def test_a_file_of_another_assembly_is_named_beside_those_that_fit(genome, tmp_path):
    fits = bed(tmp_path / "fits.bed", MANY)
    past = bed(tmp_path / "past.bed", [("chr2", 990, 1001)])
    with pytest.raises(
        InputError, match=rf"{past}: .*990-1001.*; 1 of 2 peak files can be used: are assemblies mixed\?"
    ):
        read(genome, fits, past)
    with pytest.raises(InputError, match=rf"{past}: .*FASTA that the peaks were called on$"):
        read(genome, past)


def test_an_empty_cell_type_is_refused(genome, tmp_path):
    path = bed(tmp_path / "empty.bed", [])
    with pytest.raises(InputError, match=rf"{path}: holds no peak"):
        read(genome, bed(tmp_path / "full.bed", MANY), path)


def test_a_bad_blacklist_is_named(genome, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.bed"):
        read_blacklist(str(tmp_path / "nowhere.bed"), genome)
    bed(tmp_path / "b.bed", [("chr2", 900, 1001)])
    with pytest.raises(InputError, match="past the chromosome's end"):
        read_blacklist(str(tmp_path / "b.bed"), genome)


def test_a_small_file_of_another_assembly_is_found_among_many_peaks(genome, tmp_path):
    large = [bed(tmp_path / f"a{number}.bed", MANY) for number in range(6)]
    foreign = bed(tmp_path / "b.bed", [*UNKNOWN, MANY[0]])
    with pytest.raises(InputError, match=rf"{foreign}: most of its peaks .*assemblies mixed\?"):
        read(genome, *large, foreign)


def test_a_blacklist_that_fits_nowhere_is_refused(genome, tmp_path, capsys):
    with pytest.raises(InputError, match=r"black\.bed: no region lies on a chromosome of .*genome\.fa"):
        read_blacklist(str(bed(tmp_path / "black.bed", UNKNOWN)), genome)
    read_blacklist(str(bed(tmp_path / "black.bed", [*UNKNOWN, MANY[0]])), genome)
    assert "black.bed: 2 regions on chromosomes that the FASTA lacks are of no effect" in capsys.readouterr().out
