"""Two small atlases, their shards, and a scorer that shares no code with `data_prep`."""

import functools
import gzip
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import webdataset
from Bio import SeqIO, motifs
from Bio.motifs.matrix import PositionSpecificScoringMatrix
from pyjaspar import jaspardb

from data_prep.checksum import sha256_of_file
from data_prep.main import main
from data_prep.shard_reader import ShardReader, read_manifest

Interval = tuple[str, int, int]


@dataclass(frozen=True)
class Atlas:
    """sequence: upper-case letters by chromosome, in FASTA order; peaks: by cell type, with the FASTA's names;
    motifs: Biopython's, in column order; arguments: of the command that made `shards`, but --out and --workers."""

    sequence: dict[str, str]
    peaks: dict[str, list[Interval]]
    motifs: list[motifs.Motif]
    arguments: list[str]
    shards: Path

    @property
    def manifest(self) -> dict:
        return read_manifest(self.shards)

    def samples(self, split: str) -> list:
        reader = ShardReader(self.shards, split)
        return [reader[number] for number in range(len(reader))]


@pytest.fixture(scope="session")
def vertebrate_motifs() -> list[motifs.Motif]:
    records = jaspardb(release="JASPAR2018").fetch_motifs(collection="CORE", tax_group=["vertebrates"])
    return sorted(records, key=lambda record: record.matrix_id)


@pytest.fixture(scope="session")
def few_motifs(vertebrate_motifs) -> list[motifs.Motif]:
    """One motif of each width, 6 to 21, of whole counts, which a JASPAR file holds exactly."""
    whole = [motif for motif in vertebrate_motifs if (np.array([motif.counts[x] for x in "ACGT"]) % 1 == 0).all()]
    by_width = {motif.length: motif for motif in whole}
    return sorted(by_width.values(), key=lambda motif: motif.matrix_id)


@pytest.fixture(scope="session")
def log_odds() -> Callable[[motifs.Motif, str], np.ndarray]:
    """Log-odds at every position free of N, on both strands, by Biopython."""
    cached: dict[str, tuple[PositionSpecificScoringMatrix, ...]] = {}

    def scores(motif: motifs.Motif, sequence: str) -> np.ndarray:
        if motif.matrix_id not in cached:
            pssm = motif.counts.normalize(pseudocounts=0.1).log_odds()
            cached[motif.matrix_id] = pssm, pssm.reverse_complement()
        if len(sequence) < motif.length:
            return np.zeros(0)
        both = [np.atleast_1d(pssm.calculate(sequence.upper())) for pssm in cached[motif.matrix_id]]
        both = np.concatenate(both).astype(np.float64)
        return both[~np.isnan(both)]

    return scores


@pytest.fixture(scope="session")
def relative_maximum(log_odds) -> Callable[[motifs.Motif, str], float]:
    """The affinity `max`, by Biopython."""

    def affinity(motif: motifs.Motif, sequence: str) -> float:
        best = motif.counts.normalize(pseudocounts=0.1).log_odds().max
        return float(np.clip(log_odds(motif, sequence).max(initial=-np.inf) / best, 0, 1))

    return affinity


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory, few_motifs) -> Atlas:
    """Four chromosomes and three cell types with every kind of region: overlapping, nested, touching, of 5 bp, mostly
    and half N, soft-masked, unsorted, under other chromosome names, and too few for a sample."""
    folder = tmp_path_factory.mktemp("synthetic")
    rng = np.random.default_rng(1)
    letters = {
        name: rng.choice(list("ACGTacgtN"), size=length, p=[0.16, 0.16, 0.16, 0.16, 0.0899, 0.09, 0.09, 0.09, 0.0001])
        for name, length in {"chr1": 41_000, "chr2": 16_000, "chr3": 12_000, "chrM": 700}.items()
    }
    chr1, chr2, chr3 = (along(rng, name, n) for name, n in (("chr1", 33), ("chr2", 12), ("chr3", 9)))
    _, start, end = chr1[4]
    letters["chr1"][start:end] = "N"
    _, start, end = chr1[9]
    letters["chr1"][start : (start + end) // 2] = "n"
    letters["chr1"][(start + end) // 2 : end] = "C"
    irregular = [
        ("chr1", chr1[13][1] + 50, chr1[13][2] + 80),
        ("chr1", chr1[16][1] + 10, chr1[16][2] - 10),
        ("chr1", chr1[18][2], chr1[18][2] + 40),
        ("chrM", 600, 700),
    ]
    fasta = folder / "genome.fa"
    fasta.write_text("".join(f">{name} a description\n{in_lines(''.join(s))}" for name, s in letters.items()))
    alpha = chr1 + chr2 + chr3 + irregular
    beta = [alpha[i] for i in rng.permutation(33)] + along(rng, "chr2", 11)
    gamma = chr2[:8]
    (folder / "alpha.bed").write_text("track name=alpha\n" + "".join("{}\t{}\t{}\n".format(*peak) for peak in alpha))
    (folder / "beta.narrowPeak").write_text(
        "".join(f"{c.removeprefix('chr')}\t{s}\t{e}\t.\t0\t.\t1.5\t-1\t-1\t7\n" for c, s, e in beta)
    )
    with gzip.open(folder / "gamma.bed.gz", "wt") as file:
        file.writelines(f"{c}\t{s}\t{e}\tname\r\n" for c, s, e in gamma)
    (folder / "few.jaspar").write_text(motifs.write(few_motifs, "jaspar"))
    arguments = [
        *("shards", "--genome", str(fasta), "--motifs", str(folder / "few.jaspar"), "--samples-per-shard", "2"),
        *("--peaks", *(str(folder / name) for name in ("gamma.bed.gz", "beta.narrowPeak", "alpha.bed"))),
    ]
    main([*arguments, "--workers", "1", "--out", str(folder / "shards")])
    sequence = {name: "".join(s).upper() for name, s in letters.items()}
    return Atlas(sequence, {"alpha": alpha, "beta": beta, "gamma": gamma}, few_motifs, arguments, folder / "shards")


@pytest.fixture(scope="session")
def hg19(tmp_path_factory, shared_data, vertebrate_motifs) -> Atlas:
    """Real peaks of four cell types in two windows of hg19, with all motifs."""
    folder = tmp_path_factory.mktemp("hg19")
    fasta = shutil.copyfile(shared_data / "hg19" / "hg19_windows.fa.gz", folder / "hg19.fa.gz")
    files = [shared_data / "hg19" / "dnase" / name for name in ("8988t.narrowPeak", "Aoaf.narrowPeak", "E003.bed")]
    arguments = ["shards", "--genome", str(fasta), "--peaks", *map(str, files)]
    main([*arguments, "--workers", "1", "--out", str(folder / "shards")])
    with gzip.open(fasta, "rt") as file:
        sequence = {record.id: str(record.seq).upper() for record in SeqIO.parse(file, "fasta")}
    peaks = {file.stem: read_bed(file) for file in files}
    return Atlas(sequence, peaks, vertebrate_motifs, arguments, folder / "shards")


@pytest.fixture
def shards(synthetic, tmp_path) -> Path:
    """A copy of the synthetic atlas's shards, so that a test may damage it."""
    return Path(shutil.copytree(synthetic.shards, tmp_path / "shards"))


@pytest.fixture
def sign() -> Callable[..., None]:
    """Writes sizes and sha256 of a folder's shards as they now are, and keys given by name, to its manifest."""

    def write(folder: Path, /, **changed: object) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text()) | changed
        for entry in manifest["shards"]:
            tar = folder / entry["name"]
            entry |= {"sha256": sha256_of_file(tar), "bytes": tar.stat().st_size}
            entry["index_sha256"] = sha256_of_file(folder / entry["index"])
        path.write_text(json.dumps(manifest))

    return write


@pytest.fixture(scope="session")
def decoded() -> Callable[[Path], list[dict]]:
    """Every sample of a folder of shards, train first, as webdataset decodes it."""

    def samples(shards: Path) -> list[dict]:
        tars = sorted(map(str, shards.glob("*.tar")))
        return [sample for tar in tars for sample in webdataset.WebDataset(tar, shardshuffle=False).decode()]

    return samples


@dataclass(frozen=True)
class Inspection:
    folder: Path
    numbers: dict
    said: list[str]


@pytest.fixture(scope="session")
def inspections(tmp_path_factory, inspected) -> Callable[[Path], Inspection]:
    """What `inspect` writes and prints for some shards; once for all tests."""

    @functools.cache
    def inspection(shards: Path) -> Inspection:
        folder, said = tmp_path_factory.mktemp("inspect") / "out", io.StringIO()
        with redirect_stdout(said):
            numbers = inspected(shards, folder)
        return Inspection(folder, numbers, said.getvalue().splitlines())

    return inspection


@pytest.fixture(scope="session")
def inspected() -> Callable[..., dict]:
    """Runs `inspect`; returns its numbers."""

    def run(shards: Path | str, out: Path, *arguments: object) -> dict:
        main(["inspect", str(shards), "--out", str(out), *map(str, arguments)])
        return json.loads((out / "inspect.json").read_text())

    return run


@pytest.fixture
def refusal(capsys) -> Callable[..., str]:
    """Runs an `inspect` that must end with one error, in the last line on stderr, and exit code 2; returns the line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["inspect", *map(str, arguments)])
        assert exit_.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
        return lines[-1]

    return run


@pytest.fixture(params=["synthetic", "hg19"])
def atlas(request) -> Atlas:
    return request.getfixturevalue(request.param)


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
    """Runs a command that must end with one line on stderr and exit code 2, leaving nothing; returns the line."""

    def run(*arguments: object) -> str:
        out = tmp_path / "refused"
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments), "--out", str(out)])
        line = capsys.readouterr().err
        assert exit_.value.code == 2
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert not out.exists()
        assert not out.with_name("refused.partial").exists()
        return line

    return run


def along(rng: np.random.Generator, chromosome: str, n: int) -> list[Interval]:
    lengths = np.resize([5, 60, 150, 300, 505, 900], n)
    starts = 600 + 1180 * np.arange(n) + rng.integers(0, 200, size=n)
    return [(chromosome, int(start), int(start + length)) for start, length in zip(starts, lengths, strict=True)]


def in_lines(sequence: str, width: int = 60) -> str:
    return "".join(sequence[i : i + width] + "\n" for i in range(0, len(sequence), width))


def read_bed(path: Path) -> list[Interval]:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [(row[0], int(row[1]), int(row[2])) for row in rows]
