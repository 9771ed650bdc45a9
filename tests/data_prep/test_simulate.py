import csv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from Bio import SeqIO
from Bio.Seq import reverse_complement
from pyjaspar import jaspardb

from data_prep import simulate
from data_prep.main import main

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "demo"
    main(["simulate", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def genome(simulated) -> dict[str, str]:
    return {record.id: str(record.seq) for record in SeqIO.parse(simulated / "simulated_genome.fa", "fasta")}


@pytest.fixture(scope="module")
def regions(simulated) -> list[tuple[str, int, int]]:
    rows = [line.split("\t") for line in (simulated / "atlas" / "regions.bed").read_text().splitlines()]
    return [(name, int(start), int(end)) for name, start, end in rows]


@pytest.fixture(scope="module")
def promoters(simulated) -> dict[str, list[tuple[str, int]]]:
    tables = {}
    for split in SPLITS:
        with open(simulated / "promoter" / f"{split}.csv") as file:
            tables[split] = [(row["sequence"], int(row["label"])) for row in csv.DictReader(file)]
    return tables


@pytest.fixture(scope="module")
def windows(promoters) -> dict[int, np.ndarray]:
    """Letters [n, 70] of all promoter windows, by label."""
    rows = [row for split in SPLITS for row in promoters[split]]
    return {label: np.array([list(sequence) for sequence, own in rows if own == label]) for label in (0, 1)}


@pytest.fixture(scope="module")
def accessible(simulated) -> dict[str, np.ndarray]:
    """bool [n_regions] by cell type: some labelled cell has a count there."""
    matrix = scipy.io.mmread(simulated / "atlas" / "matrix.mtx").toarray()
    barcodes = (simulated / "atlas" / "barcodes.tsv").read_text().split()
    rows = [line.split("\t") for line in (simulated / "atlas" / "cell_types.tsv").read_text().splitlines()[1:]]
    cell_type_of = dict(rows)
    labels = np.array([cell_type_of.get(barcode, "") for barcode in barcodes])
    return {name: (matrix[:, labels == name] > 0).any(axis=1) for name in sorted(set(labels) - {""})}


@pytest.fixture
def tiny(monkeypatch) -> Iterator[None]:
    """A genome of 300 kb in place of 8 Mb."""
    monkeypatch.setattr(simulate, "CHROMOSOMES", dict.fromkeys(simulate.CHROMOSOMES, 75_000))
    monkeypatch.setattr(simulate, "ISOCHORE", 5_000)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("tiny")
def test_a_seed_fixes_every_byte_and_another_changes_them(tmp_path):
    for out, seed in (("one", "7"), ("again", "7"), ("other", "8")):
        main(["simulate", "--out", str(tmp_path / out), "--seed", seed])
    one, again, other = (bytes_of(tmp_path / out) for out in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    same = {name for name in one if one[name] == other[name]}
    assert same == {"atlas/barcodes.tsv", "simulated_genome.fa.fai"}


@pytest.mark.usefixtures("tiny")
def test_a_second_run_changes_nothing_and_says_so(tmp_path, capsys):
    out = tmp_path / "demo"
    main(["simulate", "--out", str(out)])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    main(["simulate", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: up to date\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_negative_seed_is_refused(refused):
    assert "--seed" in refused("simulate", "--seed", "-1")


def test_regions_are_as_long_as_the_fetal_atlas_ones(regions):
    lengths = np.array([end - start for _, start, end in regions])
    assert lengths.mean() == pytest.approx(505, rel=0.05)
    assert lengths.min() >= 150
    assert lengths.max() <= 2000


def test_regions_are_sorted_apart_and_free_of_n(regions, genome):
    assert regions == sorted(regions)
    for (name, start, end), (next_name, next_start, _) in pairwise(regions):
        assert name != next_name or end < next_start
        assert 0 <= start < end <= len(genome[name])
        assert set(genome[name][start:end].upper()) <= set("ACGT")


def test_the_genome_looks_like_one(genome):
    for sequence in genome.values():
        assert sequence[:10_000].upper() == "N" * 10_000
        letters = np.frombuffer(sequence[10_000:].encode(), dtype=np.uint8)
        assert 0.05 < (letters > ord("Z")).mean() < 0.15  # soft-masked
        upper = sequence[10_000:].upper()
        assert set(upper) == set("ACGT")
        gc = [
            (upper[i : i + 50_000].count("G") + upper[i : i + 50_000].count("C")) / 50_000
            for i in range(0, 700_000, 50_000)
        ]
        assert np.std(gc) > 0.03  # isochores
        expected_cpg = upper.count("C") * upper.count("G") / len(upper)
        assert upper.count("CG") < 0.7 * expected_cpg


def test_promoter_sets_are_balanced_windows_of_70_bp(promoters):
    for split in SPLITS:
        labels = [label for _, label in promoters[split]]
        assert 2 * sum(labels) == len(labels) > 100
        assert {len(sequence) for sequence, _ in promoters[split]} == {70}
    assert len(promoters["train"]) > len(promoters["test"]) > len(promoters["dev"])


def test_promoter_windows_stand_in_their_splits_chromosomes_on_either_strand(promoters, genome):
    held = {"train": "chr1 chr2", "dev": "chr4", "test": "chr3"}
    for split, names in held.items():
        text = " ".join(genome[name].upper() for name in names.split())
        sampled = [sequence for sequence, _ in promoters[split]][:: len(promoters[split]) // 60]
        forward = [sequence in text for sequence in sampled]
        assert all(hit or reverse_complement(s) in text for hit, s in zip(forward, sampled, strict=True))
        assert 0.2 < np.mean(forward) < 0.8


def test_negatives_keep_a_kilobase_from_every_start_site(promoters, genome, regions):
    text = genome["chr4"].upper()

    def start_site(sequence: str) -> int:
        at = text.find(sequence)
        return at + 34 if at >= 0 else text.find(reverse_complement(sequence)) + 35

    positives = np.array([start_site(sequence) for sequence, label in promoters["dev"] if label])
    negatives = np.array([start_site(sequence) for sequence, label in promoters["dev"] if not label])
    assert np.abs(negatives[:, None] - positives).min() > 1000
    on_chr4 = [(start, end) for name, start, end in regions if name == "chr4"]
    assert all(any(start <= site < end for start, end in on_chr4) for site in positives)


def test_the_tata_box_stands_28_bp_upstream_of_start_sites(windows):
    """TATAAA begins some 31 bp upstream of the start site, which is column 34."""
    with_tata = {
        label: np.array([["".join(row[i : i + 4]) == "TATA" for i in range(60)] for row in rows])
        for label, rows in windows.items()
    }
    in_place = {label: found[:, :9].any(axis=1).mean() for label, found in with_tata.items()}
    assert in_place[1] > 0.3
    assert in_place[1] > 4 * in_place[0]
    elsewhere = {label: found[:, 20:29].any(axis=1).mean() for label, found in with_tata.items()}
    assert elsewhere[1] < 2 * elsewhere[0] + 0.02


def test_the_initiator_stands_on_start_sites(windows):
    """YYA+1NWYY: the A is the start site itself, column 34."""
    motif = jaspardb(release="JASPAR2018").fetch_motifs(collection="POLII", tf_name="INR")[0]
    pssm = motif.counts.normalize(pseudocounts=0.1).log_odds()
    scores = {
        label: np.array([pssm.calculate("".join(row))[:60] for row in rows[:600]]).mean(axis=0)
        for label, rows in windows.items()
    }
    assert scores[1].argmax() == 32
    assert scores[1][32] > scores[0][32] + 4
    assert scores[1][45:60].mean() < scores[0][45:60].mean() + 1
    assert (windows[1][:, 34] == "A").mean() > 0.6 > 0.4 > (windows[0][:, 34] == "A").mean()


def test_a_cell_types_motifs_are_stronger_in_its_regions(genome, regions, accessible, log_odds):
    assert accessible.keys() == simulate.CELL_TYPE_MOTIFS.keys()
    database = jaspardb(release="JASPAR2018")
    rows = np.arange(0, len(regions), 25)
    sequences = [genome[name][start:end] for name, start, end in (regions[row] for row in rows)]
    for cell_type, names in simulate.CELL_TYPE_MOTIFS.items():
        own = accessible[cell_type][rows]
        assert 0.2 < own.mean() < 0.8
        best = np.zeros((len(rows), len(names)))
        for column, name in enumerate(names):
            motif = min(database.fetch_motifs(collection="CORE", tf_name=name), key=lambda motif: motif.matrix_id)
            scores = np.array([log_odds(motif, sequence).max() for sequence in sequences])
            best[:, column] = (scores - scores.mean()) / scores.std()
            assert scores[own].mean() > scores[~own].mean() + 0.5
        # Each region of the cell type holds three sites among its three motifs, so its best one stands out.
        assert best[own].max(axis=1).mean() > best[~own].max(axis=1).mean() + 0.5


def test_some_barcodes_have_no_cell_type_and_no_region_is_closed_everywhere(simulated, accessible):
    barcodes = (simulated / "atlas" / "barcodes.tsv").read_text().split()
    labelled = (simulated / "atlas" / "cell_types.tsv").read_text().splitlines()[1:]
    assert len(set(barcodes)) == len(barcodes) == len(labelled) + 12
    assert np.mean(np.stack(list(accessible.values())).any(axis=0)) > 0.999


def test_pseudobulk_reads_the_atlas_back(simulated, accessible, regions, tmp_path):
    atlas = simulated / "atlas"
    options = {"--matrix": "matrix.mtx", "--regions": "regions.bed", "--barcodes": "barcodes.tsv"}
    arguments = [x for option, name in options.items() for x in (option, str(atlas / name))]
    main(["pseudobulk", *arguments, "--cell-types", str(atlas / "cell_types.tsv"), "--out", str(tmp_path / "peaks")])
    for name, open_here in accessible.items():
        lines = ["{}\t{}\t{}".format(*regions[row]) for row in np.flatnonzero(open_here)]
        assert (tmp_path / "peaks" / f"{name}.bed").read_text().splitlines() == lines
