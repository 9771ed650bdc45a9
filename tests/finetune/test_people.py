"""The risk of people of a VCF: that of a run of the same people, whatever else a VCF says, and what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from finetune.predict import main
from finetune.run import main as finetune
from finetune.tasks import TASKS

FIRST_SITE, END = 120, 150  # of the first region, which is read in one window


@pytest.fixture(scope="module")
def vcf(cohort) -> Path:
    return Path(cohort[0][cohort[0].index("--vcf") + 1])


@pytest.fixture(scope="module")
def genome(cohort) -> Path:
    return Path(cohort[0][cohort[0].index("--genome") + 1])


@pytest.fixture(scope="module")
def records(vcf) -> list[list[str]]:
    """Columns of the cohort's VCF, from the header line on."""
    return [line.split("\t") for line in vcf.read_text().splitlines() if not line.startswith("##")]


@pytest.fixture(scope="module")
def cohort_run(cohort_data, checkpoint, tmp_path_factory) -> Callable[[str], Path]:
    """A function from a modality to the folder of a fine-tuning on the cohort."""

    @cache
    def tuned(modality: str) -> Path:
        out = tmp_path_factory.mktemp("hscr") / "run"
        given = ["--task", "hscr", "--data", str(cohort_data), "--checkpoint", str(checkpoint), "--out", str(out)]
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(TASKS, "hscr", replace(TASKS["hscr"], resamples=2))
            finetune([*given, "--models", "pretrained", "--epochs", "0.1", "--modality", modality, "--rc"])
        return out

    return tuned


@pytest.fixture
def write_vcf(vcf, tmp_path) -> Callable[[list[list[str]]], Path]:
    """A function that writes columns, the first of them the header line's, as a VCF."""

    def write(rows: list[list[str]]) -> Path:
        meta = [line for line in vcf.read_text().splitlines() if line.startswith("##")]
        path = tmp_path / "x.vcf"
        path.write_text("\n".join([*meta, *("\t".join(row) for row in rows)]) + "\n")
        return path

    return write


@pytest.fixture
def risks(cohort_run, genome, capsys) -> Callable[..., dict[str, float]]:
    """A function from a VCF to the risk of each person by the model that reads sequences alone."""

    def score(path: Path, fasta: Path = genome) -> dict[str, float]:
        capsys.readouterr()
        main(["--model", str(cohort_run("sequence") / "pretrained"), "--input", str(path), "--genome", str(fasta)])
        rows = csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t")
        return {row["sample"]: float(row["case"]) for row in rows}

    return score


@pytest.mark.parametrize("modality", ["sequence", "multimodal"])
def test_the_people_of_a_run_are_scored_as_in_it(cohort_run, vcf, genome, tmp_path, modality, capsys):
    run, out = cohort_run(modality), tmp_path / "risks.tsv"
    capsys.readouterr()
    main(["--model", str(run / "pretrained"), "--input", str(vcf), "--genome", str(genome), "--out", str(out)])
    found = pd.read_csv(out, sep="\t", index_col="sample")["case"]
    expected = pd.read_csv(run / "predictions.tsv", sep="\t", index_col="name")["pretrained"]
    assert len(found) == 160
    assert found.std() > 1e-3
    assert found[expected.index].tolist() == pytest.approx(expected.tolist(), abs=2e-6)
    said = capsys.readouterr().err
    assert "sites: 5 used of 5 records; left out: none" in said
    assert "of 5 alleles of the people trained on 0 are not listed" in said


def test_a_person_alone_on_a_fasta_of_other_names_and_order_has_the_same_risk(
    risks, vcf, records, write_vcf, genome, tmp_path
):
    everybody = risks(vcf)
    fasta = tmp_path / "other.fa"
    fasta.write_text(">chr0\nACGT\n" + genome.read_text().replace(">chr1", ">1"))
    alone = write_vcf([[*row[:9], row[9 + 7]] for row in records])
    assert risks(alone, fasta) == {"p7": pytest.approx(everybody["p7"], abs=2e-6)}


def test_a_site_that_is_not_listed_is_the_reference_and_is_counted(
    risks, cohort_run, records, write_vcf, genome, capsys
):
    reference = [*records[:3], [*records[3][:9], *["0|0"] * 160], *records[4:]]
    expected = risks(write_vcf(reference))
    path = write_vcf([*records[:3], *records[4:]])
    assert risks(path) == pytest.approx(expected, abs=2e-6)
    main(["--model", str(cohort_run("sequence") / "pretrained"), "--input", str(path), "--genome", str(genome)])
    assert "5 alleles of the people trained on 1 are not listed: taken as REF; 0 alleles" in capsys.readouterr().err


def test_an_allele_written_otherwise_is_the_same(risks, cohort_run, vcf, records, write_vcf, genome, capsys):
    """The first site's, anchored one base earlier, and an allele that nobody had."""
    letters = genome.read_text().split("\n")[1]
    position, ref, alt = int(records[1][1]), records[1][3], records[1][4]
    before = letters[position - 2]
    other = next(letter for letter in "ACGT" if letter not in (ref, alt))
    written = [*records[1][:1], str(position - 1), ".", before + ref, f"{before}{alt},{before}{other}", *records[1][5:]]
    path = write_vcf([records[0], written, *records[2:]])
    assert risks(path) == pytest.approx(risks(vcf), abs=2e-6)
    one_of_them = [*written[:9], "2|2", *written[10:]]
    path = write_vcf([records[0], one_of_them, *records[2:]])
    assert abs(risks(path)["p0"] - risks(vcf)["p0"]) > 1e-5
    main(["--model", str(cohort_run("sequence") / "pretrained"), "--input", str(path), "--genome", str(genome)])
    assert "0 are not listed: taken as REF; 1 alleles that people have here" in capsys.readouterr().err


def test_haplotypes_longer_than_those_trained_on_are_read_to_their_ends(risks, records, write_vcf, genome):
    """12 bp more than the region's 50, where 57 were the most; the last base tells two people apart."""
    letters = genome.read_text().split("\n")[1]
    last = END - 1
    other = "A" if letters[last] != "A" else "C"
    site = ["1", str(FIRST_SITE + 1), ".", letters[FIRST_SITE], letters[FIRST_SITE] + "ACGTACGTACGT"]
    at_end = ["1", str(last + 1), ".", letters[last], other]
    rest = [".", ".", ".", "GT"]
    path = write_vcf([records[0][:11], [*site, *rest, "1|1", "1|1"], [*at_end, *rest, "0|0", "1|1"]])
    found = risks(path)
    assert abs(found["p0"] - found["p1"]) > 1e-5


# What is refused.


@pytest.fixture
def refused_people(cohort_run, vcf, genome, tmp_path, capsys) -> Callable[..., str]:
    def run(path: Path = vcf, fasta: Path = genome, model: Path | None = None) -> str:
        given = ["--input", str(path), "--genome", str(fasta), "--out", str(tmp_path / "refused.tsv")]
        model = cohort_run("sequence") / "pretrained" if model is None else model
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["--model", str(model), *given])
        line = capsys.readouterr().err.splitlines()[-1]
        assert exit_.value.code == 2
        assert line.startswith("error: ")
        assert not list(tmp_path.glob("refused*"))
        return line

    return run


def test_another_assembly_is_refused(refused_people, records, write_vcf, genome, tmp_path):
    letters = genome.read_text().split("\n")[1]
    fasta = tmp_path / "hg0.fa"
    fasta.write_text(f">chr1\n{letters[:400]}{'A' if letters[400] != 'A' else 'C'}{letters[401:]}\n")
    assert "hg0.fa: reads otherwise in the regions of the locus than the genome that" in refused_people(fasta=fasta)
    fasta = tmp_path / "short.fa"
    fasta.write_text(f">chr1\n{letters[:420]}\n")
    assert "short.fa: does not have chr1:300-440, a region of the locus" in refused_people(fasta=fasta)
    swapped = {"A": "C", "C": "G", "G": "T", "T": "A"}
    wrong = [*records[2][:3], swapped[records[2][3]], "N", *records[2][5:]]
    assert "REF is not what" in refused_people(write_vcf([*records[:2], wrong, *records[3:]]))


def test_what_holds_no_people_of_the_locus_is_refused(refused_people, records, write_vcf, tmp_path):
    assert "its header names no samples" in refused_people(write_vcf([row[:8] for row in records]))
    far = [records[0], *([row[0], "550", *row[2:]] for row in records[1:])]
    assert "none of 5 records lies in the regions" in refused_people(write_vcf(far))
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    assert "pretrained scores people; give a VCF of their genotypes" in refused_people(tmp_path / "x.fa")


def test_haplotypes_longer_than_the_model_reads_are_refused(refused_people, records, write_vcf):
    long = [*records[1][:4], records[1][3] + "ACGT" * 5, *records[1][5:9], *["0|0"] * 3, "0|1", "1|1", *["0|0"] * 155]
    line = refused_people(write_vcf([records[0], long]))
    assert "2 people have a haplotype longer than the model reads (first: p3, 70 bp at chr1:100-150, of 64 at" in line
    assert "bcftools view -s ^p3,p4" in line


def test_a_model_that_does_not_say_its_locus_is_refused(refused_people, cohort_run, tmp_path):
    model = tmp_path / "old"
    shutil.copytree(cohort_run("sequence") / "pretrained", model)
    about = json.loads((model / "task.json").read_text())
    del about["locus"]
    (model / "task.json").write_text(json.dumps(about))
    assert "does not say which regions it reads; fine-tune it again" in refused_people(model=model)
