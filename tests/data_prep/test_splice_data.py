"""`splice` on a genome worked by hand, on the simulated one, and on real genes."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.bases import decode, encode
from data_prep.main import main
from data_prep.simulate import AccessibleRegions
from data_prep.simulated_splice import ACCEPTOR, BEFORE_ACCEPTOR, BEFORE_DONOR, DONOR, plant_genes, write_splice

# Five bp, exon, intron, exon, intron, exon, five bp: the transcript is [5, 36), its introns [10, 18) and [23, 31).
PARTS = ("TTCTT", "ACACA", "GTCCCCAG", "CATCA", "GTTTTTAG", "ACTAC", "TTTCT")
FORWARD = "".join(PARTS)
REVERSE = FORWARD.translate(str.maketrans("ACGT", "TGCA"))[::-1]
ACCEPTORS, DONORS = "13,26", "4,17"  # in the transcript, on its strand
CHROMOSOMES = ("chr1", "chr2", "chr4", "6")  # of which chr1 is the test's
PADDED = 100  # bp of C on both sides of the two genes of a chromosome


def spliceai(chromosome: str, paralog: int = 0) -> str:
    """The gene on FORWARD, then its mirror image on REVERSE, which lies behind it; 1-based."""
    plus = (6, 36), (10, 23), (19, 32)
    minus = (47, 77), (51, 64), (60, 73)
    lines = ""
    for strand, (tx, ends, starts) in (("+", plus), ("-", minus)):
        first, last = (PADDED + place for place in tx)
        lists = ["".join(f"{PADDED + place}," for place in places) for places in (ends, starts)]
        lines += "\t".join(map(str, [f"{chromosome}{strand}", paralog, chromosome, strand, first, last, *lists])) + "\n"
    return lines


def gtf(chromosome: str) -> str:
    """The same genes."""
    lines = ""
    exons = {"+": [(6, 10), (19, 23), (32, 36)], "-": [(47, 51), (60, 64), (73, 77)]}
    for strand, places in exons.items():
        for first, last in places:
            name = f"{chromosome}{strand}"
            lines += (
                f"{chromosome}\tsim\texon\t{PADDED + first}\t{PADDED + last}\t.\t{strand}\t.\t"
                f'gene_id "{name}"; transcript_id "{name}.1";\n'
            )
    return lines


@pytest.fixture
def genome(tmp_path) -> Path:
    path = tmp_path / "tiny.fa"
    sequence = "C" * PADDED + FORWARD + REVERSE + "c" * PADDED
    path.write_text("".join(f">{name}\n{sequence}\n" for name in CHROMOSOMES))
    return path


@pytest.fixture
def genes(tmp_path) -> Path:
    path = tmp_path / "genes.txt"
    path.write_text("".join(map(spliceai, ("1", *CHROMOSOMES[1:]))))
    return path


def run(out: Path, *arguments: object) -> tuple[dict[str, pd.DataFrame], dict]:
    main(["splice", "--out", str(out), *map(str, arguments)])
    tables = {
        split: pd.read_csv(out / f"{split}.tsv.gz", sep="\t", dtype=str, keep_default_na=False)
        for split in ("train", "dev", "test")
    }
    return tables, json.loads((out / "manifest.json").read_text())


def test_labels_and_sequence_of_both_strands_are_those_worked_by_hand(tmp_path, genes, genome):
    tables, manifest = run(tmp_path / "out", "--genes", genes, "--genome", genome, "--flank", 5)
    rows = pd.concat(tables.values())
    assert len(rows) == 8
    assert set(rows["sequence"]) == {FORWARD}
    assert set(rows["acceptors"]) == {ACCEPTORS}
    assert set(rows["donors"]) == {DONORS}
    places = set(zip(rows["strand"], rows["start"], rows["end"], strict=True))
    assert places == {("+", "105", "136"), ("-", "146", "177")}
    for row in rows.itertuples():
        transcript = row.sequence[5:-5]
        assert {transcript[int(place) + 1 :][:2] for place in row.donors.split(",")} == {"GT"}
        assert {transcript[: int(place)][-2:] for place in row.acceptors.split(",")} == {"AG"}
    assert manifest["sites"] == {
        "donors": 16,
        "donors reading GT": 16,
        "acceptors": 16,
        "acceptors reading AG": 16,
    }


def test_flanks_are_sequence_and_n_past_the_chromosomes_ends(tmp_path, genes, genome):
    tables, _ = run(tmp_path / "out", "--genes", genes, "--genome", genome, "--flank", 120)
    sequence = dict(zip(tables["test"]["strand"], tables["test"]["sequence"], strict=True))
    assert sequence["+"] == "N" * 15 + "C" * PADDED + FORWARD + REVERSE + "C" * 74
    assert sequence["-"] == "N" * 15 + "G" * PADDED + FORWARD + REVERSE + "G" * 74


def test_a_gtf_gives_the_same_rows_as_spliceais_table(tmp_path, genes, genome, capsys):
    annotation = tmp_path / "genes.gtf.gz"
    with gzip.open(annotation, "wt") as file:
        file.write("".join(map(gtf, ("1", *CHROMOSOMES[1:]))))
    ours, _ = run(tmp_path / "table", "--genes", genes, "--genome", genome)
    theirs, manifest = run(tmp_path / "annotation", "--genes", annotation, "--genome", genome)
    for split, rows in ours.items():
        pd.testing.assert_frame_equal(rows, theirs[split])
    assert "Ensembl_canonical" in manifest["transcripts"]
    assert "Ensembl_canonical" in capsys.readouterr().out


def test_the_test_split_is_of_its_chromosomes_and_without_paralogs(tmp_path, genome, capsys):
    genes = tmp_path / "genes.txt"
    genes.write_text(
        spliceai("chr1", paralog=1).splitlines(keepends=True)[0]
        + spliceai("chr1").splitlines(keepends=True)[1]
        + "".join(spliceai(name, paralog=1) for name in CHROMOSOMES[1:])
    )
    tables, manifest = run(tmp_path / "out", "--genes", genes, "--genome", genome)
    assert tables["test"]["gene"].tolist() == ["chr1-"]
    assert len(tables["dev"]) == 1
    assert len(tables["train"]) == 5
    assert set(tables["train"]["chrom"]) | set(tables["dev"]["chrom"]) == set(CHROMOSOMES[1:])
    assert not set(tables["train"]["gene"]) & set(tables["dev"]["gene"])
    assert manifest["left_out"]["paralogs on the test's chromosomes"] == 1
    assert "1 paralogs on the test's chromosomes" in capsys.readouterr().out


def test_another_seed_draws_another_dev_and_nothing_else(tmp_path, genes, genome):
    drawn = set()
    for seed in range(6):
        tables, _ = run(tmp_path / str(seed), "--genes", genes, "--genome", genome, "--seed", seed)
        drawn.add(tables["dev"]["gene"][0])
        assert len(pd.concat(tables.values())) == 8
        assert tables["test"]["gene"].tolist() == ["1+", "1-"]
    assert len(drawn) > 1


def test_chromosomes_of_the_test_are_chosen_with_or_without_chr(tmp_path, genes, genome):
    tables, manifest = run(tmp_path / "out", "--genes", genes, "--genome", genome, "--test-chroms", "chr6", "2")
    assert set(tables["test"]["chrom"]) == {"6", "chr2"}
    assert "chr6, 2" in manifest["split"]


def test_genes_that_cannot_be_used_are_counted(tmp_path, genome, capsys):
    with open(genome, "a") as file:
        file.write(f">chr8\n{'N' * 400}\n")
    genes = tmp_path / "genes.txt"
    genes.write_text(
        "".join(map(spliceai, CHROMOSOMES))
        + "far\t0\tchr2\t+\t250\t400\t300,\t310,\n"
        + "nowhere\t0\tchrZ\t+\t6\t36\t10,\t19,\n"
        + "masked\t0\tchr8\t+\t6\t36\t10,\t19,\n"
        + "single\t0\tchr2\t+\t106\t136\t\t\n"
    )
    _, manifest = run(tmp_path / "out", "--genes", genes, "--genome", genome)
    assert manifest["left_out"] == {
        "outside the FASTA": 2,
        "mostly N": 1,
        "without introns": 1,
        "paralogs on the test's chromosomes": 0,
    }
    assert "8 of 12 genes; left out: 2 outside the FASTA, 1 mostly N, 1 without introns" in capsys.readouterr().out


def test_the_same_command_again_is_up_to_date_and_gives_the_same_bytes(tmp_path, genes, genome, capsys):
    given = ("--genes", genes, "--genome", genome)
    run(tmp_path / "out", *given)
    run(tmp_path / "out", *given)
    assert f"{tmp_path / 'out'}: up to date" in capsys.readouterr().out
    run(tmp_path / "other", *given)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_simulated_genes_are_called_simulated(tmp_path, genes, genome, capsys):
    folder = tmp_path / "demo" / "splice"
    folder.mkdir(parents=True)
    genes.rename(folder / "genes.txt")
    (tmp_path / "demo" / "manifest.json").write_text('{"simulated": true}')
    _, manifest = run(tmp_path / "out", "--genes", folder / "genes.txt", "--genome", genome)
    assert manifest["simulated"] is True
    assert "(simulated data)" in capsys.readouterr().out


def test_an_empty_split_names_the_flag(refused, genes, genome):
    line = refused("splice", "--genes", genes, "--genome", genome, "--test-chroms", "chr9")
    assert "--test-chroms chr9: no gene is left for test" in line
    line = refused("splice", "--genes", genes, "--genome", genome, "--test-chroms", "1", "2", "4", "6")
    assert "--test-chroms" in line
    assert "no gene is left for train" in line


def test_genes_of_another_assembly_are_refused(refused, tmp_path, genes, genome):
    genome.write_text(genome.read_text().replace("C" * PADDED, "C" * (PADDED + 3), 4))
    with open(genes, "a") as file:
        file.write("".join(spliceai(name) for name in CHROMOSOMES[1:]))
    line = refused("splice", "--genes", genes, "--genome", genome)
    assert "of 28 donors read GT" in line
    assert "another assembly" in line


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--genes", "nowhere.txt", "nowhere.txt: no such file of genes"),
        ("--genome", "nowhere.fa", "nowhere.fa: no such FASTA file"),
        ("--flank", "-1", "--flank"),
    ],
)
def test_bad_arguments_are_refused(refused, genes, genome, flag, value, says):
    assert says in refused("splice", "--genes", genes, "--genome", genome, flag, value)


def test_no_usable_gene_is_refused_with_the_reasons(refused, tmp_path, genome):
    genes = tmp_path / "genes.txt"
    genes.write_text(spliceai("chrZ"))
    assert "2 outside the FASTA" in refused("splice", "--genes", genes, "--genome", genome)


@pytest.fixture
def regions() -> AccessibleRegions:
    """300 bp of every 900."""
    start = np.arange(10_000, 390_000, 900)
    n = len(start)
    return AccessibleRegions(start, start + 300, np.ones((n, 1), bool), np.full(n, -1), np.ones(n, np.int8))


def test_simulated_sites_are_planted_outside_accessible_regions_and_read_back(tmp_path, regions):
    rng = np.random.default_rng(4)
    chromosome = rng.integers(0, 4, 400_000).astype(np.uint8)
    before = chromosome.copy()
    genes = plant_genes(rng, "chr4", chromosome, regions)
    changed = np.flatnonzero(before != chromosome)
    assert not any(((changed >= s) & (changed < e)).any() for s, e in zip(regions.start, regions.end, strict=True))
    assert {gene.strand for gene in genes} == {"+", "-"}
    assert all(1500 <= gene.end - gene.start <= 4000 and 2 <= len(gene.introns) <= 5 for gene in genes)
    assert all(one.end < other.start for one, other in pairwise(genes))

    counts = write_splice(tmp_path / "splice", genes)
    assert counts == {"genes": 20, "introns": sum(len(gene.introns) for gene in genes)}
    fasta = tmp_path / "sim.fa"
    fasta.write_text(f">chr4\n{decode(chromosome)}\n>chr1\n{decode(chromosome)}\n")
    text = (tmp_path / "splice" / "genes.txt").read_text()
    table = tmp_path / "genes.txt"
    table.write_text(text + text.replace("chr4", "chr1").replace("\t1\tchr1", "\t0\tchr1"))
    tables, manifest = run(tmp_path / "out", "--genes", table, "--genome", fasta)
    assert manifest["sites"]["donors reading GT"] == manifest["sites"]["donors"] == 2 * counts["introns"]
    assert manifest["sites"]["acceptors reading AG"] == manifest["sites"]["acceptors"] == 2 * counts["introns"]

    def letters(column: str, before: int, length: int) -> np.ndarray:
        """Shares of A, C, G and T around all sites of the test, whose table starts 1,000 bp ahead of each gene."""
        windows = [
            encode(row["sequence"][1000 + int(place) - before :][:length])
            for row in tables["test"].to_dict("records")
            for place in row[column].split(",")
        ]
        return np.stack([(np.array(windows) == code).mean(axis=0) for code in encode("ACGT")], axis=1)

    assert np.abs(letters("donors", BEFORE_DONOR - 1, len(DONOR)) - DONOR).max() < 0.25
    assert np.abs(letters("acceptors", BEFORE_ACCEPTOR, len(ACCEPTOR)) - ACCEPTOR).max() < 0.25


def test_real_genes_read_gt_and_ag_at_their_sites(tmp_path, shared_data, capsys):
    """207 of the 215 donors of the 32 genes with sequence; 10 of those on chr22 have paralogs."""
    tables, manifest = run(
        tmp_path / "out",
        *("--genes", shared_data / "hg19" / "splice" / "canonical_dataset.txt", "--test-chroms", "chr22"),
        *("--genome", shared_data / "hg19" / "hg19_windows.fa.gz"),
    )
    assert manifest["left_out"] == {
        "outside the FASTA": 892,
        "mostly N": 57,
        "without introns": 0,
        "paralogs on the test's chromosomes": 10,
    }
    assert sum(map(len, tables.values())) + 10 == 981 - 892 - 57 == 32
    assert manifest["sites"] == {
        "donors": 215,
        "donors reading GT": 207,
        "acceptors": 215,
        "acceptors reading AG": 212,
    }
    assert "22 of 981 genes" in capsys.readouterr().out
