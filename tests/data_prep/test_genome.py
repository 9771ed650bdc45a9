import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf

from data_prep.bases import encode
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.genome import Genome

# Ten lines of 60 and a rest, soft-masked and with N; enough for several bgzip blocks.
SEQUENCE = {
    name: "".join(np.random.default_rng(seed).choice(list("ACGTacgtN"), size=length))
    for seed, (name, length) in enumerate({"chr1": 633, "chr2": 150_000, "scaffold_3": 1}.items())
}


def fasta_text() -> str:
    lines = {name: [s[i : i + 60] for i in range(0, len(s), 60)] for name, s in SEQUENCE.items()}
    return "".join(f">{name} assembled\n" + "\n".join(lines[name]) + "\n" for name in SEQUENCE)


def write_fasta(path: Path) -> Path:
    if path.suffix == ".gz":
        with bgzf.open(str(path), "wb") as file:
            file.write(fasta_text().encode())
    else:
        path.write_text(fasta_text())
    return path


def holds_the_sequences(genome: Genome) -> bool:
    return genome.lengths == {name: len(s) for name, s in SEQUENCE.items()} and all(
        np.array_equal(genome.codes(name), encode(s)) for name, s in SEQUENCE.items()
    )


@pytest.mark.parametrize("name", ["genome.fa", "genome.fasta", "genome.fa.gz", "genome.fasta.gz"])
def test_plain_and_bgzip_are_read_without_and_with_their_index(tmp_path, name):
    path = write_fasta(tmp_path / name)
    without = Genome(path)
    index = Path(f"{path}.fai")
    assert [line.split("\t")[0] for line in index.read_text().splitlines()] == list(SEQUENCE)
    made = index.stat().st_mtime_ns
    with_index = Genome(path)
    assert index.stat().st_mtime_ns == made
    assert holds_the_sequences(without)
    assert holds_the_sequences(with_index)
    assert with_index.name == "genome"


@pytest.fixture(params=["genome.fa", "genome.fa.gz"])
def protected(request, tmp_path) -> Iterator[Path]:
    """A FASTA in a folder of mode 0555."""
    folder = tmp_path / "protected"
    folder.mkdir()
    path = write_fasta(folder / request.param)
    folder.chmod(0o555)
    yield path
    folder.chmod(0o755)


def test_a_write_protected_folder_gets_no_index(protected):
    assert holds_the_sequences(Genome(protected))
    assert list(protected.parent.iterdir()) == [protected]


def test_half_an_index_in_a_write_protected_folder_stays_half(protected):
    protected.parent.chmod(0o755)
    Genome(protected)
    Path(f"{protected}.gzi").unlink(missing_ok=True)
    protected.parent.chmod(0o555)
    before = sorted(protected.parent.iterdir())
    assert holds_the_sequences(Genome(protected))
    assert sorted(protected.parent.iterdir()) == before


def test_a_link_into_a_write_protected_folder_is_read(protected, tmp_path):
    link = tmp_path / protected.name
    link.symlink_to(protected)
    assert holds_the_sequences(Genome(link))
    assert list(protected.parent.iterdir()) == [protected]


@pytest.fixture(params=["genome.fa", "genome.fa.gz"])
def of_another_user(request) -> Iterator[Path]:
    """A FASTA in a folder of mode 0755 that belongs to root, for a process that is nobody."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    path = write_fasta(folder / request.param)
    path.chmod(0o644)
    os.setresuid(65534, 65534, 0)
    yield path
    os.setresuid(0, 0, 0)
    shutil.rmtree(folder)


def test_a_folder_of_another_user_gets_no_index(of_another_user):
    assert holds_the_sequences(Genome(of_another_user))
    assert list(of_another_user.parent.iterdir()) == [of_another_user]


def test_gzip_is_refused_with_the_commands_that_repair_it(tmp_path):
    path = tmp_path / "genome.fa.gz"
    path.write_bytes(gzip.compress(fasta_text().encode()))
    with pytest.raises(InputError, match=rf"{path}: .*gunzip {path} && bgzip {tmp_path}/genome.fa$"):
        Genome(path)


def test_compressed_under_a_plain_name_is_refused(tmp_path):
    path = write_fasta(tmp_path / "genome.fa.gz").rename(tmp_path / "genome.fa")
    with pytest.raises(InputError, match=rf"{path}: .*rename"):
        Genome(path)


def in_bgzip(content: bytes, path: Path) -> bytes:
    with bgzf.open(str(path), "wb") as file:
        file.write(content)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.fa", b"chr1\t0\t100\n"),
        ("empty.fa", b""),
        ("ragged.fa", b">chr1\nACGT\nAC\nACGTACG\n"),
        ("twice.fa", b">chr1\nACGT\n>chr1\nACGT\n"),
        ("spaced.fa", b">chr1\nACGT\n\n\n"),
    ],
)
def test_what_is_not_fasta_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]+$"):
        Genome(path)


@pytest.mark.parametrize("content", [b">chr1\n\nACGT\n", b">chr1\nACGT\nACG\r\nACGT\nAC\n"])
def test_letters_that_the_index_cannot_find_are_refused(tmp_path, content):
    path = tmp_path / "genome.fa"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]*empty[^\n]*$"):
        Genome(path).codes("chr1")


def test_bgzip_that_holds_no_fasta_is_refused(tmp_path):
    path = tmp_path / "table.fa.gz"
    in_bgzip(b"chr1\t0\t100\n", path)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]+$"):
        Genome(path)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_bgzip_is_refused(tmp_path, damage):
    path = write_fasta(tmp_path / "genome.fa.gz")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]+$"):
        Genome(path)


def test_bgzip_cut_after_its_index_was_made_is_refused(tmp_path):
    path = write_fasta(tmp_path / "genome.fa.gz")
    Genome(path)
    index_time = Path(f"{path}.fai").stat().st_mtime - 10
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    os.utime(path, (index_time, index_time))
    with pytest.raises(InputError, match=rf"^{path}: [^\n]+$"):
        Genome(path).codes("chr2")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path / "nowhere.fa")):
        Genome(tmp_path / "nowhere.fa")


def test_sha256_is_of_the_files_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"ACGT" * 100_000)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(b"ACGT" * 100_000).hexdigest()
