"""A small converted checkpoint, and promoters that a motif at a fixed place tells from other sequence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from data_prep import main as data_prep
from data_prep.motifs import load_motifs
from finetune.examples import Examples
from pretrain.config import ModelConfig
from pretrain.convert import write_tokenizer
from pretrain.model import GeneBERT

K = 3
MAX_TOKENS = 64
MOTIFS = ["MA0139.1", "MA0035.3", "MA0080.4", "MA0108.2"]
N_PEOPLE = 160  # of the cohort
REGIONS = [(100, 150), (300, 440)]  # the second is longer than the checkpoint reads
SITES = [(120, "T"), (140, "+ACGTACG"), (310, "A"), (390, "-"), (430, "C")]
CAUSAL = 2


@pytest.fixture(scope="session")
def model() -> GeneBERT:
    """Both encoders with drawn weights, of a few thousand each."""
    torch.manual_seed(11)
    arguments = {"img_size": [28, 56], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    config = ModelConfig(
        k=K,
        max_tokens=MAX_TOKENS,
        hidden_size=32,
        layers=2,
        heads=2,
        intermediate_size=64,
        region_encoder="swin_tiny_patch4_window7_224",
        region_encoder_arguments=json.dumps(arguments),
        projection_size=16,
    )
    return GeneBERT(config, torch.zeros(len(MOTIFS)), torch.ones(len(MOTIFS))).eval()


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory) -> Path:
    """What finetune reads of a folder that pretrain/convert.py wrote."""
    folder = tmp_path_factory.mktemp("converted") / "genebert"
    model.sequence.save_pretrained(folder / "sequence")
    write_tokenizer(folder / "sequence", model.config)
    timm.models.save_for_hf(model.region, folder / "region", safe_serialization=True)
    description = {
        **{"k": K, "step": 20, "motifs": MOTIFS, "motif_source": "JASPAR2018", "affinity": "max"},
        "transform": {"mean": [0.5] * len(MOTIFS), "std": [0.1] * len(MOTIFS)},
    }
    (folder / "genebert.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="session")
def draw_promoters() -> Callable[[np.random.Generator, int], list[tuple[str, int]]]:
    """A function that draws n rows of 40 bp, half of them with TATAAAAG from base 12 on, in random order."""

    def draw(rng: np.random.Generator, n: int) -> list[tuple[str, int]]:
        rows = []
        for label in rng.permutation(np.arange(n) % 2).tolist():
            sequence = "".join(rng.choice(list("ACGT"), 40))
            rows.append((sequence[:12] + "TATAAAAG" + sequence[20:] if label else sequence, label))
        return rows

    return draw


@pytest.fixture(scope="session")
def write_table() -> Callable[[Path, list[tuple[str, int]]], Path]:
    """A function that writes rows of (sequence, label) as CSV, or TSV by the file's name."""

    def write(path: Path, rows: list[tuple[str, int]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [("sequence", "label"), *rows]
        path.write_text("".join(f"{sequence}{separator}{label}\n" for sequence, label in lines))
        return path

    return write


@pytest.fixture(scope="session")
def promoters(tmp_path_factory, draw_promoters, write_table) -> Path:
    """240 training rows, 60 of dev and 80 of test."""
    folder = tmp_path_factory.mktemp("promoters")
    rng = np.random.default_rng(3)
    for split, n in (("train", 240), ("dev", 60), ("test", 80)):
        write_table(folder / f"{split}.csv", draw_promoters(rng, n))
    return folder


@pytest.fixture(scope="session")
def labelled() -> Callable[[list[tuple[str, int]]], Examples]:
    """A function from rows of (sequence, label) to a split."""

    def of(rows: list[tuple[str, int]]) -> Examples:
        return Examples.of_sequences([s for s, _ in rows], np.array([y for _, y in rows], np.int64), Path("rows.csv"))

    return of


@pytest.fixture
def refused(request, tmp_path, capsys) -> Callable[..., str]:
    """Runs the program of the test's module, its `main` with its `arguments`, where it must end with one line on stderr
    and exit code 2, leaving nothing; gives the line."""
    arguments = request.getfixturevalue("arguments")

    def run(*changed: object) -> str:
        out = tmp_path / "refused"
        with pytest.raises(SystemExit) as exit_:
            request.module.main([*arguments, "--out", str(out), *map(str, changed)])
        line = capsys.readouterr().err
        assert exit_.value.code == 2
        assert line.startswith("error: ")
        assert line.endswith("\n")
        assert line.count("\n") == 1
        assert not out.exists()
        return line

    return run


@pytest.fixture(scope="session")
def cohort(checkpoint, tmp_path_factory) -> tuple[list[str], np.ndarray]:
    """Arguments that prepare people over two regions, and their alleles [N_PEOPLE, 2, sites]; status follows the third
    site's, with some noise."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(2)
    sequence = "".join(rng.choice(list("ACGT"), 600))
    alleles = rng.integers(0, 2, size=(N_PEOPLE, 2, len(SITES)))
    status = alleles[:, :, CAUSAL].sum(axis=1) + rng.normal(0, 0.4, N_PEOPLE) > 1
    names = [f"p{i}" for i in range(N_PEOPLE)]
    lines = ["##fileformat=VCFv4.2", '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
    lines.append("\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *names]))
    for number, (position, alt) in enumerate(SITES):
        ref = sequence[position : position + (3 if alt == "-" else 1)]
        alt = {"-": ref[0], "+": ref + alt[1:]}.get(alt[0], "G" if alt == ref else alt)
        calls = [f"{first}|{second}" for first, second in alleles[:, :, number].tolist()]
        lines.append("\t".join(["1", str(position + 1), ".", ref, alt, ".", ".", ".", "GT", *calls]))
    (folder / "cohort.vcf").write_text("\n".join(lines) + "\n")
    people = [f"{name}\t{int(case)}\n" for name, case in zip(names, status, strict=True)]
    (folder / "samples.tsv").write_text("sample\tstatus\n" + "".join(people))
    (folder / "locus.bed").write_text("".join(f"chr1\t{start}\t{end}\n" for start, end in REGIONS))
    (folder / "genome.fa").write_text(f">chr1\n{sequence}\n")
    known = {motif.matrix_id: motif for motif in load_motifs("JASPAR2018", "all")}
    blocks = []
    for name in json.loads((checkpoint / "genebert.json").read_text())["motifs"]:
        rows = zip("ACGT", known[name].counts, strict=True)
        blocks.append(f">{name} x\n" + "".join(f"{letter} [ {' '.join(map(str, row))} ]\n" for letter, row in rows))
    (folder / "motifs.txt").write_text("".join(blocks))
    files = {"vcf": "cohort.vcf", "phenotypes": "samples.tsv", "regions": "locus.bed", "genome": "genome.fa"}
    files["motifs"] = "motifs.txt"
    return [word for option, name in files.items() for word in (f"--{option}", str(folder / name))], alleles


@pytest.fixture(scope="session")
def cohort_data(cohort, tmp_path_factory) -> Path:
    """What data preparation makes of the cohort."""
    folder = tmp_path_factory.mktemp("hscr") / "data"
    data_prep.main(["hscr", *cohort[0], "--out", str(folder)])
    return folder
