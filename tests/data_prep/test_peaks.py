import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.peaks import Regions, cell_type_of, merge_overlapping, place, read_regions


def regions_of(rows: list[tuple[int, int, int]]) -> Regions:
    chromosome, start, end = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Regions(chromosome.astype(np.int32), start, end, ("chr1", "chr2", "chr3"))


def rows_of(regions: Regions) -> list[tuple[int, int, int]]:
    columns = (regions.chromosome, regions.start, regions.end)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def unions_base_by_base(rows: list[tuple[int, int, int]], length: int) -> list[tuple[int, int, int]]:
    """Neighbouring bases belong to one union where some region holds both."""
    unions = []
    for chromosome in range(3):
        covered, joined = np.zeros(length, bool), np.zeros(length, bool)
        for _, start, end in (row for row in rows if row[0] == chromosome):
            covered[start:end] = True
            joined[start + 1 : end] = True
        for base in np.flatnonzero(covered):
            if joined[base]:
                unions[-1] = (chromosome, unions[-1][1], int(base) + 1)
            else:
                unions.append((chromosome, int(base), int(base) + 1))
    return unions


@pytest.mark.parametrize(
    ("rows", "merged"),
    [
        ([(0, 0, 10), (0, 9, 20)], [(0, 0, 20)]),
        ([(0, 0, 10), (0, 10, 20)], [(0, 0, 10), (0, 10, 20)]),
        ([(0, 0, 30), (0, 5, 9), (0, 29, 31)], [(0, 0, 31)]),
        ([(0, 0, 10), (1, 5, 15)], [(0, 0, 10), (1, 5, 15)]),
        ([(1, 0, 5), (0, 3, 9), (0, 3, 9), (0, 1, 4)], [(0, 1, 9), (1, 0, 5)]),
        ([], []),
    ],
    ids=["overlapping", "touching", "nested", "other chromosome", "unsorted and repeated", "none"],
)
def test_only_overlapping_regions_of_one_chromosome_merge(rows, merged):
    assert rows_of(merge_overlapping(regions_of(rows))) == merged


@pytest.mark.parametrize("seed", range(20))
def test_merging_agrees_with_a_count_base_by_base(seed):
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 900, size=60)
    rows = np.stack([rng.integers(0, 3, size=60), starts, starts + rng.integers(1, 40, size=60)], axis=1).tolist()
    assert rows_of(merge_overlapping(regions_of(rows))) == unions_base_by_base(rows, 1000)


@pytest.mark.parametrize("name", ["Be2c.narrowPeak", "Be2c.bed", "Be2c.bed.gz", "Be2c.narrowPeak.gz"])
def test_a_file_names_its_cell_type(name):
    assert cell_type_of(Path("/somewhere") / name) == "Be2c"


@pytest.mark.parametrize("name", ["cells.bed", "cells.narrowPeak.gz"])
def test_regions_are_read_in_the_files_order(tmp_path, name):
    text = "#comment\ntrack name=x\nbrowser position chr7:1-2\n\nchr7\t5\t9\tpeak\t0\t.\nchr2\t0\t1\r\nchr7\t1\t3\n"
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.write(text)
    regions = read_regions(tmp_path / name)
    names = [regions.names[number] for number in regions.chromosome]
    assert list(zip(names, regions.start.tolist(), regions.end.tolist(), strict=True)) == [
        ("chr7", 5, 9),
        ("chr2", 0, 1),
        ("chr7", 1, 3),
    ]


@pytest.mark.parametrize(
    "line",
    ["chr1 5 9", "chr1\t5", "chr1\tfive\t9", "chr1\t9\t9", "chr1\t9\t5", "chr1\t-1\t5", f"chr1\t5\t{10**20}"],
    ids=["spaces", "two columns", "no number", "empty", "backwards", "negative", "beyond 64 bits"],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "bad.bed"
    path.write_text(f"#header\nchr1\t1\t2\n{line}\nchr1\t3\t4\n")
    with pytest.raises(InputError, match=rf"{path}:3: "):
        read_regions(path)


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = tmp_path / "damaged.bed.gz"
    content = bytearray(gzip.compress("".join(f"chr1\t{i * i}\t{i * i + 7}\n" for i in range(500)).encode()))
    content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        read_regions(path)


@pytest.mark.parametrize(
    ("fasta_name", "asked"),
    [("chr20", "20"), ("20", "chr20"), ("chrM", "MT"), ("MT", "chrM"), ("chrM", "M"), ("M", "chrMT"), ("chrX", "chrX")],
)
def test_chromosomes_meet_across_naming_habits(tmp_path, fasta_name, asked):
    (tmp_path / "genome.fa").write_text(f">other\nACGT\n>{fasta_name}\nACGTACGT\n")
    (tmp_path / "peaks.bed").write_text(f"{asked}\t2\t8\n")
    genome = Genome(tmp_path / "genome.fa")
    placed, renamed, _ = place(read_regions(tmp_path / "peaks.bed"), genome, "peaks.bed")
    assert rows_of(placed) == [(1, 2, 8)]
    assert renamed == ({} if asked == fasta_name else {asked: fasta_name})


def test_a_name_that_stands_in_the_fasta_is_not_mapped(tmp_path):
    (tmp_path / "genome.fa").write_text(">20\nACGT\n>chr20\nACGTACGT\n")
    genome = Genome(tmp_path / "genome.fa")
    assert (genome.resolve("20"), genome.resolve("chr20"), genome.resolve("21")) == ("20", "chr20", None)


def test_a_region_may_end_at_the_chromosomes_end_but_not_past_it(tmp_path):
    (tmp_path / "genome.fa").write_text(">chr1\nACGTACGT\n")
    genome = Genome(tmp_path / "genome.fa")
    whole = Regions(np.zeros(1, np.int32), np.array([0]), np.array([8]), ("chr1",))
    assert rows_of(place(whole, genome, "x")[0]) == [(0, 0, 8)]
    past = Regions(np.zeros(2, np.int32), np.array([0, 3]), np.array([8, 9]), ("chr1",))
    with pytest.raises(InputError, match=r"x: region chr1:3-9 lies past .*8 bp"):
        place(past, genome, "x")
