"""From a cohort's files to its tables: haplotypes, binding, genotypes and the split."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.bases import encode
from data_prep.binding import Scanner
from data_prep.main import main
from data_prep.motifs import load_motifs

N = 120
FAMILY = 3  # people in each of the first families
REGIONS = [(100, 160), (200, 260), (400, 450)]
# Position, letters of REF, ALT; none overlaps another, two alleles at the third, the last in no region.
SITES = [(110, 1, "T"), (130, 3, "-"), (205, 1, "+GATAAG,T"), (230, 1, "+C"), (300, 1, "T")]
MOTIFS = """>MA0001.1 one
A [ 0 9 0 9 1 ]
C [ 0 0 1 0 1 ]
G [ 9 0 0 0 9 ]
T [ 1 1 9 1 0 ]
>MA0002.1 two
A [ 1 9 9 0 ]
C [ 8 0 0 1 ]
G [ 0 1 0 0 ]
T [ 1 0 1 9 ]
"""


def letters(ref: str, alt: str) -> str:
    """`-` deletes all but the first letter; `+X` inserts X after it; X is another letter, or the one after it."""
    if alt == "-":
        return ref[0]
    if alt.startswith("+"):
        return ref + alt[1:]
    return alt if alt != ref else "ACGT"["ACGT".index(alt) - 1]


class Cohort:
    """Files of N people in `folder`, and what is true of them."""

    def __init__(self, folder: Path):
        rng = np.random.default_rng(5)
        self.folder = folder
        self.sequence = "".join(rng.choice(list("ACGT"), 600))
        self.refs = [self.sequence[position : position + n] for position, n, _ in SITES]
        self.alts = [
            [letters(ref, alt) for alt in alts.split(",")] for ref, (*_, alts) in zip(self.refs, SITES, strict=True)
        ]
        self.alleles = rng.integers(0, [len(alts) + 1 for alts in self.alts], size=(N, 2, len(SITES)))
        self.status = (np.arange(N) % 3 == 0).astype(int)
        self.population = np.where(np.arange(N) < 80, "X", "Y")
        self.family = np.where(np.arange(N) < 60, 1 + np.arange(N) // FAMILY, np.arange(N) + 1000)
        self.names = [f"p{i}" for i in range(N)]
        (folder / "genome.fa").write_text(f">chr10\n{self.sequence}\n>chr2\n{'N' * 500}\n")
        (folder / "locus.bed").write_text("".join(f"chr10\t{start}\t{end}\n" for start, end in REGIONS))
        (folder / "motifs.txt").write_text(MOTIFS)
        self.write_people(self.status.tolist())
        self.write_vcf()

    def write_people(self, status: list) -> None:
        rows = zip(self.names, self.family, self.population, status, strict=True)
        lines = ["IID\tFID\tpopulation\tstatus", *("\t".join(map(str, row)) for row in rows)]
        (self.folder / "samples.tsv").write_text("\n".join(lines) + "\n")

    def write_vcf(self, chromosome: str = "10") -> None:
        lines = ["##fileformat=VCFv4.2", '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
        header = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *self.names]
        lines.append("\t".join(header))
        for number, (position, *_) in enumerate(SITES):
            calls = [f"{first}|{second}" for first, second in self.alleles[:, :, number].tolist()]
            place = [chromosome, str(position + 1), ".", self.refs[number], ",".join(self.alts[number])]
            lines.append("\t".join([*place, ".", ".", ".", "GT", *calls]))
        (self.folder / "cohort.vcf.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))

    def haplotype(self, person: int, copy: int, start: int, end: int) -> str:
        """A region's sequence, changed from its end on so that earlier positions stay."""
        sequence = self.sequence[:end]
        for number in range(len(SITES))[::-1]:
            position, allele = SITES[number][0], self.alleles[person, copy, number]
            if allele and start <= position < end:
                rest = sequence[position + len(self.refs[number]) :]
                sequence = sequence[:position] + self.alts[number][allele - 1] + rest
        return sequence[start:]

    def arguments(self, out: Path) -> list[str]:
        names = {"vcf": "cohort.vcf.gz", "phenotypes": "samples.tsv", "regions": "locus.bed"}
        names |= {"genome": "genome.fa", "motifs": "motifs.txt"}
        files = [word for option, name in names.items() for word in (f"--{option}", str(self.folder / name))]
        return ["hscr", *files, "--out", str(out)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return Cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def out(cohort, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hscr") / "out"
    main(cohort.arguments(folder))
    return folder


@pytest.fixture(scope="module")
def haplotypes(out) -> pd.DataFrame:
    return pd.read_csv(out / "haplotypes.tsv.gz", sep="\t")


@pytest.fixture(scope="module")
def tables(out) -> dict[str, pd.DataFrame]:
    return {name: read(out / f"{name}.tsv.gz") for name in ("train", "dev", "test")}


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def ids(cell: str) -> list[int]:
    return [int(number) for number in cell.split(",")]


def test_each_person_has_both_haplotypes_over_every_region(cohort, haplotypes, tables):
    people = pd.concat(tables.values()).set_index("sample")
    assert sorted(people.index) == sorted(cohort.names)
    for person, name in enumerate(cohort.names):
        for copy in (0, 1):
            found = haplotypes["sequence"].iloc[ids(people.at[name, f"haplotype_{copy + 1}"])].tolist()
            assert found == [cohort.haplotype(person, copy, start, end) for start, end in REGIONS]
    assert people.loc[cohort.names, "label"].astype(int).tolist() == cohort.status.tolist()
    assert people.loc[cohort.names, "population"].tolist() == cohort.population.tolist()


def test_a_haplotype_of_a_region_stands_once_the_reference_first(cohort, haplotypes):
    assert haplotypes["id"].tolist() == list(range(len(haplotypes)))
    assert not haplotypes.duplicated(["region", "sequence"]).any()
    first = haplotypes.groupby("region", sort=False)["sequence"].first()
    assert first.to_dict() == {f"chr10:{start}-{end}": cohort.sequence[start:end] for start, end in REGIONS}


def test_the_matrix_is_what_scanning_each_haplotype_gives(cohort, out, haplotypes):
    motifs = load_motifs(str(cohort.folder / "motifs.txt"))
    scanner = Scanner.of(motifs)
    binding = np.load(out / "binding.npy")
    assert binding.dtype == np.float16
    assert manifest(out)["motifs"] == [motif.matrix_id for motif in motifs] == ["MA0001.1", "MA0002.1"]
    for row, sequence in zip(binding, haplotypes["sequence"], strict=True):
        np.testing.assert_array_equal(row, scanner.scan([encode(sequence)])[0])


def test_genotypes_are_copies_of_each_allele_that_falls_into_a_region(cohort, out, tables):
    expected = {
        f"chr10:{position + 1}:{cohort.refs[number]}:{alt}": (cohort.alleles[:, :, number] == allele).sum(axis=1)
        for number, (position, *_) in enumerate(SITES[:4])
        for allele, alt in enumerate(cohort.alts[number], 1)
    }
    assert manifest(out)["alleles"] == list(expected)
    people = pd.concat(tables.values()).set_index("sample").loc[cohort.names]
    for number, copies in enumerate(expected.values()):
        assert [int(row[number]) for row in people["genotypes"]] == copies.tolist()


def test_families_stay_together_and_status_and_population_are_spread_alike(cohort, tables):
    split_of = {name: split for split, rows in tables.items() for name in rows["sample"]}
    by_family: dict[int, set[str]] = {}
    for name, family in zip(cohort.names, cohort.family, strict=True):
        by_family.setdefault(family, set()).add(split_of[name])
    assert all(len(splits) == 1 for splits in by_family.values())
    assert {name: len(rows) for name, rows in tables.items()} == pytest.approx(
        {"train": 0.7 * N, "dev": 0.1 * N, "test": 0.2 * N}, abs=4
    )
    for status in (0, 1):
        for population in "XY":
            here = (cohort.status == status) & (cohort.population == population)
            in_test = sum(split_of[name] == "test" for name, of in zip(cohort.names, here, strict=True) if of)
            assert in_test == pytest.approx(0.2 * here.sum(), abs=3)


def test_the_same_input_gives_the_same_bytes_and_nothing_is_done_twice(cohort, out, tmp_path, capsys):
    main(cohort.arguments(tmp_path / "again"))
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((out / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    capsys.readouterr()
    main(cohort.arguments(out))
    assert capsys.readouterr().out == f"{out}: up to date\n"


def test_other_motifs_under_the_same_name_are_not_up_to_date(tmp_path):
    cohort = Cohort(tmp_path)
    out = tmp_path / "out"
    main(cohort.arguments(out))
    (tmp_path / "motifs.txt").write_text(MOTIFS.replace("9", "8"))
    before = np.load(out / "binding.npy")
    main([*cohort.arguments(out), "--overwrite"])
    assert (np.load(out / "binding.npy") != before).any()


def test_another_seed_splits_otherwise(cohort, tables, tmp_path):
    main([*cohort.arguments(tmp_path / "other"), "--seed", "1"])
    assert set(read(tmp_path / "other" / "test.tsv.gz")["sample"]) != set(tables["test"]["sample"])


def test_long_widens_the_regions_and_merges_those_that_overlap(cohort, tmp_path, capsys):
    main([*cohort.arguments(tmp_path / "long"), "--long", "60"])
    assert manifest(tmp_path / "long")["regions"] == ["chr10:40-320", "chr10:340-510"]
    assert manifest(tmp_path / "long")["alleles"][-1].startswith("chr10:301:")
    assert "1 regions overlap others: merged with them" in capsys.readouterr().out


def test_what_is_assumed_and_left_out_is_said_and_written_down(cohort, out, tmp_path, capsys):
    other = Cohort(tmp_path)
    other.write_people([*["NA"] * 2, *cohort.status[2:].tolist()])
    text = gzip.decompress((tmp_path / "cohort.vcf.gz").read_bytes()).decode().replace("0|1", "0/1", 1)
    text = text.replace("p119", "stranger")
    (tmp_path / "cohort.vcf.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "locus.bed").write_text(
        "".join(f"10\t{a}\t{b}\n" for a, b in REGIONS) + "10\t5\t8\nchr2\t1\t90\nX\t1\t9\n"
    )
    main(other.arguments(tmp_path / "out"))
    said = capsys.readouterr().out
    for line in (
        "sample in 'IID', status in 'status', population in 'population', family in 'FID'; 0 = control, 1 = case",
        "people: 117 used; left out: 1 without genotypes, 2 of unknown status, 3 without a phenotype",
        "regions: 3 used; left out: 1 on chromosomes that the FASTA lacks, 1 shorter than 6 bp, 1 mostly N",
        "sites: 4 used of 5 records; left out: none",
        "1 heterozygous genotypes have no phase: taken as written, first allele on haplotype 1",
    ):
        assert line in said
    counts = manifest(tmp_path / "out")["counts"]
    assert (counts["people"], counts["of unknown status"], counts["sites"]) == (117, 2, 4)
    assert manifest(out)["simulated"] is False


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    """Runs a cohort where the program must end with one line and exit code 2, leaving nothing; gives the line."""

    def run(cohort: Cohort, *changed: object) -> str:
        out = tmp_path / "refused"
        with pytest.raises(SystemExit) as exit_:
            main([*cohort.arguments(out), *map(str, changed)])
        line = capsys.readouterr().err
        assert exit_.value.code == 2
        assert (line.startswith("error: "), line.count("\n"), out.exists()) == (True, 1, False)
        return line

    return run


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            ["--vcf", "none.vcf"],
            "none.vcf: no such file; give yours, or make the demo's with: data_prep/main.py simulate",
        ),
        (["--vcf", "a.vcf", "a.vcf"], "--vcf a.vcf a.vcf: names a file twice"),
        (["--phenotypes", "none.tsv"], "none.tsv: no such file"),
        (["--regions", "none.bed"], "none.bed: no such file"),
        (["--genome", "none.fa"], "none.fa: no such file"),
        (["--status-column", "outcome"], "has no column 'outcome'"),
        (["--motifs", "JASPAR1999"], "not a JASPAR release"),
        (["--long", "-1"], "--long must be 0 or more"),
        (["--seed", "-1"], "--seed a whole number"),
    ],
)
def test_bad_arguments_are_refused(cohort, refused, changed, message):
    assert message in refused(cohort, *changed)


def test_bad_cohorts_are_refused(tmp_path, refused):
    cohort = Cohort(tmp_path)
    (tmp_path / "locus.bed").write_text("chr10\t400\t450\nchr10\t200\t204\n")
    assert "none of 5 records lies in the regions" in refused(cohort)
    (tmp_path / "locus.bed").write_text("chr2\t100\t160\nchr9\t5\t70\n")
    assert "no region is left: 1 on chromosomes that" in refused(cohort)
    (tmp_path / "locus.bed").write_text("chr10\t100\t160\n")
    cohort.write_people([1] * 9 + [0] * (N - 9))
    assert "3 families have cases with genotypes; a split takes 10 at least" in refused(cohort)
    cohort.write_people(cohort.status.tolist())
    cohort.alleles[:] = 0
    cohort.write_vcf()
    assert "no two people differ in the regions of the locus" in refused(cohort)
    cohort.refs = ["N" * len(ref) for ref in cohort.refs]
    cohort.write_vcf()
    assert "REF is not what" in refused(cohort)
    cohort.names = [f"q{i}" for i in range(N)]
    cohort.write_vcf()
    assert "none of the 120 samples with a phenotype is in it (first: q0, against p0)" in refused(cohort)


def test_real_genotypes_over_real_regions(shared_data, cohort, tmp_path):
    folder = shared_data / "hg19"
    main(
        [
            *("hscr", "--vcf", *(str(folder / "vcf" / f"1kg_chr{number}.vcf.gz") for number in (20, 22))),
            *("--phenotypes", str(folder / "vcf" / "samples.tsv"), "--genome", str(folder / "hg19_windows.fa.gz")),
            *("--regions", str(folder / "dnase" / "Be2c.narrowPeak"), "--long", "1000"),
            *("--motifs", str(cohort.folder / "motifs.txt"), "--out", str(tmp_path / "real")),
        ]
    )
    described = manifest(tmp_path / "real")
    assert (described["counts"]["people"], described["counts"]["sites"]) == (1126, 7)
    assert described["counts"]["mismatched"] == 0
    assert sum(split["rows"] for split in described["splits"].values()) == 1126
    assert described["cases"] == {"train": 75, "dev": 11, "test": 22}
