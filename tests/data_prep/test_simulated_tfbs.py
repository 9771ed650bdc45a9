from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from pyjaspar import jaspardb

from data_prep import simulate
from data_prep.main import main
from data_prep.peaks import read_regions
from data_prep.simulated_tfbs import EXPERIMENTS, BindingSite, is_whole, kept_apart


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """An atlas on a genome of 1.2 Mb in place of 8."""
    out = tmp_path_factory.mktemp("simulated") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "CHROMOSOMES", dict.fromkeys(simulate.CHROMOSOMES, 300_000))
        patch.setattr(simulate, "ISOCHORE", 10_000)
        main(["simulate", "--out", str(out)])
    return out


def test_each_experiment_has_a_narrow_peak_file_of_ten_columns(simulated):
    files = sorted((simulated / "tfbs").iterdir())
    assert [path.name for path in files] == sorted(f"{cell_type}_{tf}.narrowPeak" for tf, cell_type in EXPERIMENTS)
    for path in files:
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        assert len(rows) > 20
        assert {row[0] for row in rows} == set(simulate.CHROMOSOMES)
        assert all(len(row) == 10 and 0 <= int(row[4]) <= 1000 for row in rows)
        assert all(0 < int(row[9]) < int(row[2]) - int(row[1]) for row in rows)


def test_summits_lie_near_sites_of_the_factor(simulated, log_odds):
    genome = {record.id: str(record.seq) for record in SeqIO.parse(simulated / "simulated_genome.fa", "fasta")}
    database = jaspardb(release="JASPAR2018")
    for name, cell_type in EXPERIMENTS:
        motif = min(database.fetch_motifs(collection="CORE", tf_name=name), key=lambda motif: motif.matrix_id)
        rows = [line.split("\t") for line in (simulated / "tfbs" / f"{cell_type}_{name}.narrowPeak").open()][:60]
        summits = [(row[0], int(row[1]) + int(row[9])) for row in rows]
        here = [log_odds(motif, genome[name][summit - 50 : summit + 51]).max() for name, summit in summits]
        aside = [log_odds(motif, genome[name][summit + 400 : summit + 501]).max() for name, summit in summits]
        assert np.median(here) > np.median(aside) + 5


def test_peaks_of_an_experiment_lie_on_open_regions_apart_from_each_other(simulated):
    regions = [line.split("\t") for line in (simulated / "atlas" / "regions.bed").read_text().splitlines()]
    for path in (simulated / "tfbs").iterdir():
        peaks = read_regions(path)
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        for row in rows:
            summit = int(row[1]) + int(row[9])
            assert any(name == row[0] and int(a) - 60 < summit < int(b) + 60 for name, a, b in regions)
        assert peaks.by_position
        middles = [(row[0], int(row[1]) + int(row[9])) for row in rows]
        for (one, first), (other, second) in pairwise(middles):
            assert one != other or second - first > 150


def test_a_site_written_over_is_no_longer_whole():
    chromosome = np.array([0, 1, 2, 3, 0, 1], np.uint8)
    assert is_whole(BindingSite("X", 0, 2, np.array([2, 3], np.uint8)), chromosome)
    assert not is_whole(BindingSite("X", 0, 2, np.array([2, 2], np.uint8)), chromosome)


def test_sites_are_kept_that_lie_apart():
    assert kept_apart([10, 200, 310, 400, 609, 610]) == [10, 310, 610]


def test_the_atlas_is_the_same_whatever_is_done_with_its_sites(tmp_path, monkeypatch):
    """Reading the sites must draw nothing from the generator of the genome and the atlas."""
    monkeypatch.setattr(simulate, "CHROMOSOMES", dict.fromkeys(simulate.CHROMOSOMES, 75_000))
    monkeypatch.setattr(simulate, "ISOCHORE", 5_000)
    main(["simulate", "--out", str(tmp_path / "with")])
    monkeypatch.setattr(simulate, "write_tfbs", lambda *_: {})
    main(["simulate", "--out", str(tmp_path / "without")])
    for name in ("simulated_genome.fa", "atlas/matrix.mtx", "atlas/regions.bed", "promoter/train.csv"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
