import gzip
import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from Bio import SeqIO

from data_prep.main import main

COLUMNS = ["sequence", "label", "chrom", "start", "end"]
LENGTH = 20_000
REPEAT, UNKNOWN = 12_000, 15_000  # where chr1 has 200 bp of AC, and 200 bp of N
Peak = tuple[str, int, int, str]


def table(folder: Path, split: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{split}.tsv.gz", sep="\t")


def narrow_peaks(path: Path, peaks: list[Peak]) -> Path:
    lines = (f"{name}\t{start}\t{end}\t.\t0\t.\t1\t-1\t-1\t{summit}\n" for name, start, end, summit in peaks)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.writelines(lines)
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    with open(path, "w") as file:
        for name in ("chr1", "chr2", "chr3", "chr4"):
            letters = rng.choice(list("ACGTacgt"), LENGTH)
            if name == "chr1":
                letters[REPEAT : REPEAT + 200] = list("AC" * 100)
                letters[UNKNOWN : UNKNOWN + 200] = "N"
            file.write(f">{name}\n{''.join(letters)}\n")
    return path


@pytest.fixture(scope="module")
def letters(genome) -> dict[str, str]:
    return {record.id: str(record.seq).upper() for record in SeqIO.parse(genome, "fasta")}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> list[Path]:
    """Two factors with peaks on all four chromosomes, one of them gzipped, with chromosomes named without `chr`."""
    folder, rng = tmp_path_factory.mktemp("peaks"), np.random.default_rng(2)
    files = []
    for name, prefix in (("K562_CTCF.narrowPeak", "chr"), ("GM12878_YY1.narrowPeak.gz", "")):
        rows = []
        for chromosome in "1234":
            for start in range(500, 11_000, 1000):
                rows.append((f"{prefix}{chromosome}", start, start + 300, str(rng.integers(300))))
        files.append(narrow_peaks(folder / name, rows))
    return files


@pytest.fixture(scope="module")
def command(genome, peaks) -> list[str]:
    return ["tfbs", "--peaks", *map(str, peaks), "--genome", str(genome)]


@pytest.fixture(scope="module")
def made(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tfbs"
    main([*command, "--out", str(out)])
    return out


def test_windows_are_centred_on_summits_and_split_by_chromosome(made, peaks, letters):
    chromosomes = {"train": ("chr1", "chr2"), "dev": ("chr4",), "test": ("chr3",)}
    for path, name in zip(peaks, ("K562_CTCF", "GM12878_YY1"), strict=True):
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        given = [line.split("\t") for line in text.splitlines()]
        for split, names in chromosomes.items():
            rows = table(made / name, split)
            assert list(rows.columns) == COLUMNS
            summits = [
                (f"chr{row[0].removeprefix('chr')}", int(row[1]) + int(row[9]))
                for row in given
                if f"chr{row[0].removeprefix('chr')}" in names
            ]
            bound = rows[rows.label == 1]
            assert list(zip(bound.chrom, bound.start + 50, strict=True)) == summits
            for row in bound.itertuples():
                assert row.sequence == letters[row.chrom][row.start : row.end]
                assert len(row.sequence) == 101


def test_each_negative_has_its_windows_dinucleotides_and_place(made):
    for split in ("train", "dev", "test"):
        rows = table(made / "K562_CTCF", split)
        assert rows.label.tolist() == [1, 0] * (len(rows) // 2)
        for (_, window), (_, shuffle) in zip(rows[::2].iterrows(), rows[1::2].iterrows(), strict=True):
            assert Counter(pairwise(shuffle.sequence)) == Counter(pairwise(window.sequence))
            assert shuffle.sequence != window.sequence
            assert shuffle[["chrom", "start", "end"]].tolist() == window[["chrom", "start", "end"]].tolist()


def test_what_becomes_of_each_peak_is_counted(genome, letters, tmp_path, capsys):
    rows = [
        *(("chr1", 1000, 1100, "50"), ("chr1", 1000, 1100, "90"), ("chr1", 1020, 1080, "30")),  # the last is the first
        *(("chr1", 3000, 3101, "-1"), ("chr1", 0, 100, "49"), ("chr1", 0, 100, "50")),  # a middle; one base too far up
        *(("chr1", LENGTH - 60, LENGTH, "9"), ("chr1", LENGTH - 60, LENGTH, "10")),  # the last window; one base too far
        *(("chr1", UNKNOWN, UNKNOWN + 100, "5"), ("chr1", REPEAT, REPEAT + 200, "100"), ("chrUn", 5, 9, "1")),
        *(("chr3", 4000, 4100, "20"), ("chr4", 4000, 4100, "20")),
    ]
    path = narrow_peaks(tmp_path / "x.narrowPeak", rows)
    main(["tfbs", "--peaks", str(path), "--genome", str(genome), "--out", str(tmp_path / "out")])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["tables"]["x"]["counts"] == {
        **{"peaks": 13, "unknown_chromosome": 1, "duplicate": 1, "off_chromosome": 2, "over_n": 1, "unshufflable": 1},
        **{"windows": 7, "overlapping": 1, "without_summit": 1},
    }
    bound = table(tmp_path / "out" / "x", "train").query("label == 1")
    assert bound.start.tolist() == [0, 1000, 1040, 3000, LENGTH - 101]
    said = capsys.readouterr().out
    assert "without summit: the window lies around the peak's middle" in said
    assert said.splitlines()[2].split() == ["x", *map(str, (13, 1, 2, 1, 1, 1, 7, 1, 1, 10, 2, 2))]


def test_peaks_without_a_summit_are_centred_on_their_middle(genome, letters, tmp_path):
    path = tmp_path / "three.bed"
    path.write_text("".join(f"{name}\t{start}\t{start + 400}\n" for name in letters for start in (2000, 5000)))
    out = tmp_path / "out"
    main(["tfbs", "--peaks", str(path), "--genome", str(genome), "--out", str(out), "--window", "20"])
    bound = table(out / "three", "test").query("label == 1")
    assert bound.start.tolist() == [2190, 5190]
    assert bound.sequence.tolist() == [letters["chr3"][start : start + 20] for start in (2190, 5190)]


def test_a_table_depends_on_its_own_peaks_alone(made, peaks, genome, tmp_path):
    main(["tfbs", "--peaks", str(peaks[1]), "--genome", str(genome), "--out", str(tmp_path / "alone")])
    for split in ("train", "dev", "test"):
        name = f"GM12878_YY1/{split}.tsv.gz"
        assert (tmp_path / "alone" / name).read_bytes() == (made / name).read_bytes()


def test_a_seed_fixes_every_byte_and_another_shuffles_anew(made, command, tmp_path):
    main([*command, "--out", str(tmp_path / "again")])
    main([*command, "--out", str(tmp_path / "other"), "--seed", "1"])
    assert bytes_of(tmp_path / "again") == bytes_of(made)
    one, other = table(made / "K562_CTCF", "train"), table(tmp_path / "other" / "K562_CTCF", "train")
    assert one[one.label == 1].equals(other[other.label == 1])
    assert not (one[one.label == 0].sequence == other[other.label == 0].sequence).any()


def test_a_second_run_changes_nothing_and_says_so(command, tmp_path, capsys):
    main([*command, "--out", str(tmp_path / "out")])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    main([*command, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: up to date\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_file_too_small_for_the_split_is_left_out_and_named(command, genome, tmp_path, capsys):
    few = narrow_peaks(tmp_path / "few.narrowPeak", [("chr1", 100, 300, "50"), ("chr4", 100, 300, "60")])
    out = tmp_path / "out"
    main([*command[:3], str(few), *command[3:], "--out", str(out)])
    assert "few: left out: no window for test" in capsys.readouterr().out
    assert not (out / "few").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out"] == {"few": "no window for test"}
    assert sorted(manifest["tables"]) == ["GM12878_YY1", "K562_CTCF"]
    assert manifest["split"] == "by chromosome; dev: chr4; test: chr3; train: all others"


def test_no_table_at_all_is_an_error(genome, refused, tmp_path):
    few = narrow_peaks(tmp_path / "few.narrowPeak", [("chr1", 100, 300, "50")])
    also = narrow_peaks(tmp_path / "also.narrowPeak", [])
    line = refused("tfbs", "--peaks", few, also, "--genome", genome)
    assert f"{also}: no window for train and dev and test, and so it is with 1 other" in line
    assert "--test-chroms" in line


@pytest.mark.parametrize(
    ("peak", "said"),
    [
        (("chr1", 100, 200, "100"), ":2: summit '100' in column 10 is not inside a peak of 100 bp"),
        (("chr1", 100, 200, "-2"), ":2: summit '-2'"),
        (("chr1", 100, 200, "5.5"), ":2: summit '5.5'"),
        (("chr1", 200, 200, "0"), ":2: start 200 and end 200"),
        (("chr1", 200, LENGTH + 1, "0"), "past the chromosome's end"),
    ],
)
def test_a_bad_peak_is_named(genome, refused, tmp_path, peak, said):
    bad = narrow_peaks(tmp_path / "bad.narrowPeak", [("chr1", 100, 200, "50"), peak])
    line = refused("tfbs", "--peaks", bad, "--genome", genome)
    assert str(bad) in line
    assert said in line


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--test-chroms", "chr9"], "--test-chroms"),
        (["--dev-chroms", "3"], "both name chr3"),
        (["--window", "5"], "--window 5"),
        (["--seed", "-1"], "--seed"),
        (["--peaks", "nowhere.narrowPeak"], "nowhere.narrowPeak: no such peak file"),
        (["--genome", "nowhere.fa"], "nowhere.fa: no such FASTA file"),
    ],
)
def test_bad_usage_is_named(command, refused, changed, said):
    assert said in refused(*command, *changed)


def test_peaks_and_a_genome_are_needed_together(genome, peaks, refused):
    assert "give both" in refused("tfbs", "--peaks", peaks[0])
    assert "give both" in refused("tfbs", "--genome", genome)


def test_two_files_of_one_name_are_refused(command, peaks, refused, tmp_path):
    twin = shutil.copy(peaks[0], tmp_path / "K562_CTCF.bed")
    line = refused(*command[:3], twin, *command[3:])
    assert "K562_CTCF.bed" in line
    assert "rename one" in line


def test_without_simulated_peaks_it_names_the_command_that_makes_them(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("tfbs")
    assert "data/demo/tfbs" in line
    assert "python data_prep/main.py simulate" in line


def test_with_no_argument_it_takes_the_simulated_peaks_and_says_so(genome, peaks, tmp_path, monkeypatch, capsys):
    demo = tmp_path / "data" / "demo"
    (demo / "tfbs").mkdir(parents=True)
    shutil.copy(genome, demo / "simulated_genome.fa")
    shutil.copy(peaks[0], demo / "tfbs")
    (demo / "manifest.json").write_text('{"simulated": true}')
    monkeypatch.chdir(tmp_path)
    main(["tfbs"])
    assert "1 tables; simulated" in capsys.readouterr().out
    for folder in ("data/tfbs", "data/tfbs/K562_CTCF"):
        assert json.loads(Path(folder, "manifest.json").read_text())["simulated"]


def test_real_peaks_become_a_table_for_each_file(shared_data, tmp_path):
    hg19 = shared_data / "hg19"
    files = sorted((hg19 / "tfbs").glob("*.narrowPeak"))
    command = ["tfbs", "--peaks", *map(str, files), "--genome", str(hg19 / "hg19_windows.fa.gz")]
    main([*command, "--out", str(tmp_path / "out"), "--dev-chroms", "none", "--test-chroms", "22"])
    tables = json.loads((tmp_path / "out" / "manifest.json").read_text())["tables"]
    assert list(tables) == [path.stem for path in files]
    for path in files:
        lines = path.read_text().splitlines()
        counts = tables[path.stem]["counts"]
        assert counts["peaks"] == len(lines)
        assert counts["windows"] == len(lines) - counts["duplicate"] - counts["over_n"]
        on_22 = sum(line.startswith("chr22") for line in lines)
        assert len(table(tmp_path / "out" / path.stem, "test")) == pytest.approx(2 * on_22, abs=4)
