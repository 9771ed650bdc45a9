"""Bad input through the command line: one line that names the file, exit code 2, nothing left."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data_prep.main
from data_prep.main import COMMANDS, main

PEAKS = "".join(f"chr20\t{start}\t{start + 200}\n" for start in range(500, 7000, 500))
MOTIF = ">MA0001.1\tX\nA [ 5 0 1 9 ]\nC [ 1 9 1 0 ]\nG [ 1 0 9 0 ]\nT [ 3 1 0 1 ]\n"


@pytest.fixture
def genome(tmp_path) -> Path:
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), size=8000))
    (tmp_path / "genome.fa").write_text(f">chr20\n{letters}\n>chrM\n{letters[:300]}\n")
    return tmp_path / "genome.fa"


@pytest.fixture
def peaks(tmp_path) -> Path:
    (tmp_path / "peaks.bed").write_text(PEAKS)
    return tmp_path / "peaks.bed"


@pytest.fixture
def motif_file(tmp_path) -> Path:
    (tmp_path / "one.jaspar").write_text(MOTIF)
    return tmp_path / "one.jaspar"


@pytest.fixture
def command(genome, peaks, motif_file) -> list[str]:
    return ["shards", "--genome", str(genome), "--peaks", str(peaks), "--motifs", str(motif_file), "--workers", "1"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert all(f"--{option}" in said for option in COMMANDS[name][0].__dataclass_fields__)


def test_it_runs_from_the_repositorys_root():
    root = Path(data_prep.main.__file__).parents[1]
    said = subprocess.run([sys.executable, "data_prep/main.py", "--help"], cwd=root, capture_output=True, text=True)
    assert said.returncode == 0
    assert all(name in said.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PEAKS + "chr21\t1\t5\n", "chr21 (1)"),
        (PEAKS + "chr20\t7990\t8001\n", "chr20:7990-8001"),
        (PEAKS + "chr20\t90\t90\n", ":14: "),
        (PEAKS + "chr20\t90\t80\n", ":14: "),
        (PEAKS + "chr20 90 180\n", ":14: "),
        (PEAKS + "chr20\t90\n", ":14: "),
        (PEAKS + "chr20\t90\t1e3\n", ":14: "),
        (PEAKS + f"chr20\t90\t{10**20}\n", ":14: "),
        ("".join(PEAKS.splitlines(keepends=True)[:9]) + "chrM\t0\t9\n" * 9, "10 accessible regions"),
        ("", "holds no peak"),
        (b"\x80\x81", ""),
        (None, "no such"),
    ],
    ids=[
        "unknown chromosome",
        "past the end",
        "empty region",
        "backwards",
        "spaces",
        "two columns",
        "no whole number",
        "beyond 64 bits",
        "nine regions a chromosome",
        "no regions",
        "binary",
        "missing",
    ],
)
def test_bad_peaks_are_named_in_one_line(command, peaks, refused, text, said):
    peaks.unlink()
    if text is not None:
        peaks.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(*command)
    assert str(peaks) in line
    assert said in line


def test_a_gzip_genome_is_refused_with_its_repair(command, genome, refused):
    compressed = genome.with_name("genome.fa.gz")
    compressed.write_bytes(gzip.compress(genome.read_bytes()))
    line = refused(*command, "--genome", compressed)
    assert str(compressed) in line
    assert "bgzip" in line


@pytest.mark.parametrize("content", [None, "chr20\t1\t5\n", "", ">chr20\nACGT\nA\nACGT\n"])
def test_a_bad_genome_is_named_in_one_line(command, genome, refused, content):
    genome.unlink()
    if content is not None:
        genome.write_text(content)
    assert str(genome) in refused(*command)


@pytest.mark.parametrize("source", ["JASPAR1999", "nowhere.jaspar", "peaks.bed"])
def test_a_bad_motif_source_is_named_in_one_line(command, tmp_path, refused, source):
    given = source if source.startswith("JASPAR") else tmp_path / source
    assert str(given) in refused(*command, "--motifs", given)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--val-chroms", "chr9"),
        ("--val-chroms", "chr20"),
        ("--seed", "-1"),
        ("--samples-per-shard", "0"),
        ("--workers", "0"),
    ],
)
def test_a_bad_value_is_refused_by_its_option(command, refused, option, value):
    assert option.strip("-").split("-")[0] in refused(*command, option, value)


def test_two_files_of_one_cell_type_are_refused(command, peaks, tmp_path, refused):
    twin = tmp_path / "again" / "peaks.narrowPeak"
    twin.parent.mkdir()
    shutil.copy(peaks, twin)
    line = refused(*command, "--peaks", peaks, twin)
    assert str(peaks) in line
    assert str(twin) in line


def test_bare_chromosome_names_are_mapped_and_said(command, peaks, tmp_path, capsys):
    main([*command, "--out", str(tmp_path / "one")])
    with_prefix = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("train*")}
    assert "mapped" not in capsys.readouterr().out
    peaks.write_text(PEAKS.replace("chr20", "20"))
    main([*command, "--out", str(tmp_path / "two")])
    assert "20 -> chr20" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").glob("train*")} == with_prefix


@pytest.mark.parametrize("arguments", [["shards"], ["simulate"]])
def test_a_folder_of_other_files_is_kept_unless_told(command, tmp_path, capsys, arguments):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    if arguments == ["shards"]:
        arguments = command
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--out", str(out)])
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {out}: ")
    assert line.count("\n") == 1
    assert [path.read_text() for path in out.iterdir()] == ["years of work"]


def test_overwrite_replaces_other_results_and_nothing_else(command, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("years of work")
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--out", str(out), "--overwrite"])
    assert exit_.value.code == 2
    assert "not of this program" in capsys.readouterr().err
    (out / "manifest.json").write_text("{}")
    main([*command, "--out", str(out), "--overwrite"])
    assert {path.name for path in out.iterdir()} == {
        *("manifest.json", "summary.json", "train-000000.tar", "train-000000.index.npy")
    }
    assert not list(tmp_path.glob("mine.*"))


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", "1"),
        ("--affinity", "hits"),
        ("--samples-per-shard", "7"),
        ("--val-chroms", "none"),
        ("--motifs", "other.jaspar"),
        ("--genome", "other.fa"),
        ("--blacklist", "other.bed"),
    ],
    ids=lambda options: options[0].strip("-"),
)
def test_shards_of_other_options_are_not_taken_for_up_to_date(command, genome, tmp_path, capsys, options):
    (tmp_path / "other.jaspar").write_text(MOTIF.replace("9", "8"))
    (tmp_path / "other.fa").write_text(genome.read_text().lower())
    (tmp_path / "other.bed").write_text("chr20\t1\t2\n")
    out = ("--out", str(tmp_path / "shards"))
    main([*command, *out])
    option, value = options
    with pytest.raises(SystemExit):
        main([*command, *out, option, str(tmp_path / value) if value.startswith("other") else value])
    capsys.readouterr()
    main([*command, *out, "--workers", "2"])
    assert "up to date" in capsys.readouterr().out


def test_another_input_needs_overwrite_and_then_replaces(command, peaks, tmp_path):
    out = tmp_path / "shards"
    main([*command, "--out", str(out)])
    before = (out / "train-000000.tar").read_bytes()
    peaks.write_text(PEAKS.replace("chr20\t500\t", "chr20\t501\t"))
    with pytest.raises(SystemExit):
        main([*command, "--out", str(out)])
    assert (out / "train-000000.tar").read_bytes() == before
    main([*command, "--out", str(out), "--overwrite"])
    assert (out / "train-000000.tar").read_bytes() != before


def test_a_reader_that_leaves_is_no_error():
    script = "from data_prep.errors import ends_on_input_error\nends_on_input_error(print)('a line')"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.fixture
def unprivileged():
    """Root may read everything: be another user for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("which", ["genome.fa", "peaks.bed"])
def test_a_file_that_may_not_be_read_is_named(command, tmp_path, refused, request, which):
    (tmp_path / which).chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o777)
    request.getfixturevalue("unprivileged")
    assert f"{tmp_path / which}: cannot be read: Permission denied" in refused(*command)
