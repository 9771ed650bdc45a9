"""The simulated cohort: its files are as real ones are, and what it says of itself holds."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pysam
import pytest

from data_prep.bases import decode, encode, reverse_complement
from data_prep.binding import Scanner
from data_prep.motifs import Motif, motifs_by_name
from data_prep.simulate import RELEASE
from data_prep.simulated_hscr import CAUSAL_MOTIFS, CELL_TYPE, CHROMOSOME, N_REGIONS, POPULATIONS, auc, write_hscr

STARTS = np.arange(500, 19_500, 600)


@pytest.fixture(scope="module")
def motifs() -> dict[str, Motif]:
    return motifs_by_name(RELEASE, list(CAUSAL_MOTIFS))


@pytest.fixture(scope="module")
def chromosome(motifs) -> np.ndarray:
    """Random letters, with the best site of each motif 100 bp into every region, on either strand."""
    codes = np.random.default_rng(1).integers(0, 4, 20_000).astype(np.uint8)
    for number, start in enumerate(STARTS):
        for place, motif in enumerate(motifs.values()):
            site = encode("".join("ACGT"[row] for row in motif.counts.argmax(axis=0)))
            at = start + 100 * (place + 1)
            codes[at : at + len(site)] = reverse_complement(site) if (number // 2 + place) % 2 else site
    return codes


def write(folder: Path, chromosome: np.ndarray, motifs: dict[str, Motif], seed: int = 0) -> dict:
    regions = {CHROMOSOME: SimpleNamespace(start=STARTS, end=STARTS + 400)}
    accessible = {CHROMOSOME: {CELL_TYPE: np.arange(len(STARTS)) % 2 == 0}}
    return write_hscr(np.random.default_rng(seed), folder, {CHROMOSOME: chromosome}, regions, accessible, motifs)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, chromosome, motifs) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("simulated") / "hscr"
    return folder, write(folder, chromosome, motifs)


@pytest.fixture(scope="module")
def people(cohort) -> pd.DataFrame:
    return pd.read_csv(cohort[0] / "samples.tsv", sep="\t")


@pytest.fixture(scope="module")
def locus(cohort) -> pd.DataFrame:
    return pd.read_csv(cohort[0] / "locus.bed", sep="\t", names=["chromosome", "start", "end", "name"])


def test_the_locus_is_of_neighbouring_regions_open_in_the_cell_type(locus):
    assert len(locus) == N_REGIONS
    assert set(locus["start"].diff().dropna()) == {1200}
    assert ((locus["start"] - 500) % 1200 == 0).all()


def test_the_genotypes_are_of_a_bgzip_file_without_chr_at_sites_of_the_fasta(cohort, people, locus, chromosome):
    with pysam.VariantFile(str(cohort[0] / "genotypes.vcf.gz")) as file:
        assert file.compression == "BGZF"
        assert list(file.header.samples) == people["sample.id"].tolist()
        records = list(file)
    assert len(records) == cohort[1]["sites"] > 50
    assert all(first.stop <= second.start for first, second in pairwise(records))
    for record in records:
        assert record.chrom == CHROMOSOME.removeprefix("chr")
        assert record.ref == decode(chromosome[record.start : record.stop])
        assert ((locus["start"] <= record.start) & (record.stop <= locus["end"])).any()
    assert {len(record.alts) for record in records} >= {1}
    assert any(len(record.ref) > 1 for record in records)
    assert any(len(alt) > 1 for record in records for alt in record.alts)


def test_families_are_of_two_parents_and_two_children_who_inherit_from_them(cohort, people):
    sizes = people.groupby("family.id").size().value_counts().to_dict()
    unrelated, families = (sum(counts) for counts in zip(*POPULATIONS.values(), strict=True))
    assert sizes == {1: unrelated, 4: families}
    with pysam.VariantFile(str(cohort[0] / "genotypes.vcf.gz")) as file:
        alleles = np.array([[call.allele_indices for call in record.samples.values()] for record in file], object)
    member = people[people["family.id"] == "north00"].index
    father, mother, *children = (alleles[:, number] for number in member)
    for child in children:
        for copy, parent in enumerate((father, mother)):
            known = [all(None not in row for row in rows) for rows in zip(child, parent, strict=True)]
            own = child[known, copy]
            assert any((own == parent[known, side]).all() for side in (0, 1))


def test_causal_variants_break_sites_of_their_factors(cohort, chromosome, motifs):
    causal = pd.read_csv(cohort[0] / "causal_variants.tsv", sep="\t")
    assert sorted(causal["motif"].str.upper()) == sorted(CAUSAL_MOTIFS)
    by_name = {motif.name: motif for motif in motifs.values()}
    for row in causal.itertuples():
        at = row.position - 1
        changed = chromosome.copy()
        changed[at] = encode(row.alt)[0]
        assert decode(chromosome[[at]]) == row.ref
        around = slice(at - 12, at + 13)
        before, after = Scanner.of([by_name[row.motif]]).scan([chromosome[around], changed[around]])[:, 0]
        assert before > 0.8
        assert after < before - 0.1


def test_status_follows_the_causal_variants_as_far_as_it_is_said(cohort, people):
    with pysam.VariantFile(str(cohort[0] / "genotypes.vcf.gz")) as file:
        causal = set(pd.read_csv(cohort[0] / "causal_variants.tsv", sep="\t")["position"])
        copies = sum(
            np.array([sum(map(bool, call.allele_indices)) for call in record.samples.values()])
            for record in file
            if record.pos in causal
        )
    found = auc(copies, people["status"].to_numpy() == 1)
    assert found == pytest.approx(cohort[1]["reachable_auc"], abs=0.01)  # some genotypes are missing
    assert 0.68 < found < 0.82
    assert people["status"].mean() == pytest.approx(0.4, abs=0.05)


def test_the_auc_of_a_worked_example():
    assert auc(np.array([1, 2, 2, 3]), np.array([False, True, False, True])) == 3.5 / 4


def test_the_same_seed_writes_the_same_bytes_and_another_one_others(cohort, chromosome, motifs, tmp_path):
    write(tmp_path / "again", chromosome, motifs)
    write(tmp_path / "other", chromosome, motifs, seed=1)
    for path in cohort[0].iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "other" / "samples.tsv").read_bytes() != (cohort[0] / "samples.tsv").read_bytes()
