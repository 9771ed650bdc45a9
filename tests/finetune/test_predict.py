"""Scoring of new sequence: every input format, and the effect of variants."""

import csv
import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.bases import decode, encode, reverse_complement
from data_prep.genome import Genome
from finetune.encoder import Encoder
from finetune.model import Target, new_model, save
from finetune.predict import main
from finetune.scoring import Scorer
from finetune.variant_effects import gains_and_losses, variants

BP, POSITIONS = 40, 20


@pytest.fixture(scope="module")
def write_model(checkpoint, tmp_path_factory) -> Callable[..., Path]:
    """A function that saves a model with a drawn head as finetune/run.py does."""

    def write(target: Target, modality: str = "sequence", **about: object) -> Path:
        encoder, folder = Encoder.at(checkpoint), tmp_path_factory.mktemp("model") / "pretrained"
        model = new_model(encoder, target, modality, True, BP, seed=1)
        model.head.weight.data *= 20
        about = {"task": "promoter", "longest": BP, "bp": BP, "both_strands": False, "row_shape": [1, 1], **about}
        save(model, encoder, folder, **about)
        return folder

    return write


@pytest.fixture(scope="module")
def promoter_model(write_model) -> Path:
    return write_model(Target("classes", ("other", "promoter")))


@pytest.fixture(scope="module")
def splice_model(write_model) -> Path:
    return write_model(Target("nucleotides", ("none", "acceptor", "donor"), POSITIONS), task="splice", longest=BP - 1)


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Genome:
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    sequence = "".join(np.random.default_rng(6).choice(list("ACGT"), 300))
    path.write_text(f">chr1\n{sequence}\n")
    return Genome(path)


def scored(capsys, *arguments: object) -> list[dict[str, str]]:
    main([*map(str, arguments)])
    return list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))


def probabilities(model: Path, *sequences: str) -> list[float]:
    """Of each sequence alone."""
    scorer = Scorer.of(model)
    return [scorer([sequence])[0, 1] for sequence in sequences]


def letters(genome: Genome, start: int, end: int) -> str:
    return decode(genome.codes("chr1", start, end))


@pytest.mark.parametrize("compressed", [False, True])
def test_each_record_of_a_fasta_file_is_scored(promoter_model, genome, tmp_path, capsys, compressed):
    sequences = [letters(genome, start, start + 40) for start in (0, 50, 99)]
    text = "".join(f">s{number} of a few\n{sequence}\n" for number, sequence in enumerate(sequences))
    path = tmp_path / ("x.fa.gz" if compressed else "x.fa")
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    rows = scored(capsys, "--model", promoter_model, "--input", path, "--batch_size", 2)
    assert [row["name"] for row in rows] == ["s0", "s1", "s2"]
    expected = probabilities(promoter_model, *sequences)
    assert [float(row["promoter"]) for row in rows] == pytest.approx(expected, abs=2e-6)


def test_a_tables_columns_are_carried_along(promoter_model, genome, tmp_path, capsys):
    sequence = letters(genome, 7, 40)
    (tmp_path / "x.csv").write_text(f"gene,sequence\nA1,{sequence}\nB2,{sequence.lower()}\n")
    rows = scored(capsys, "--model", promoter_model, "--input", tmp_path / "x.csv")
    assert [(row["gene"], row["sequence"]) for row in rows] == [("A1", sequence), ("B2", sequence.lower())]
    (expected,) = probabilities(promoter_model, sequence)
    assert [float(row["promoter"]) for row in rows] == pytest.approx([expected] * 2, abs=2e-6)


def test_intervals_are_read_on_their_strand(promoter_model, genome, tmp_path, capsys):
    (tmp_path / "x.bed").write_text("track name=x\n1\t10\t45\n1\t10\t45\tb\t0\t-\n")
    rows = scored(capsys, "--model", promoter_model, "--input", tmp_path / "x.bed", "--genome", genome.path)
    codes = genome.codes("chr1", 10, 45)
    expected = probabilities(promoter_model, decode(codes), decode(reverse_complement(codes)))
    assert [float(row["promoter"]) for row in rows] == pytest.approx(expected, abs=2e-6)
    assert [row["strand"] for row in rows] == ["+", "-"]


def test_windows_reach_to_the_end_of_a_sequence(promoter_model, genome, tmp_path, capsys):
    (tmp_path / "x.fa").write_text(f">a\n{letters(genome, 0, 95)}\n>b\n{letters(genome, 0, 30)}\n")
    rows = scored(capsys, "--model", promoter_model, "--input", tmp_path / "x.fa", "--stride", 25)
    places = [(row["name"], int(row["window_start"]), int(row["window_end"])) for row in rows]
    assert places == [("a", 0, 40), ("a", 25, 65), ("a", 50, 90), ("a", 55, 95), ("b", 0, 30)]
    expected = probabilities(promoter_model, *(letters(genome, start, end) for _, start, end in places))
    assert [float(row["promoter"]) for row in rows] == pytest.approx(expected, abs=2e-6)


def test_what_a_model_does_not_read_is_counted(promoter_model, genome, tmp_path, capsys):
    (tmp_path / "x.fa").write_text(f">a\n{letters(genome, 0, 95)}\n>b\n{letters(genome, 0, 40)}\n")
    main(["--model", str(promoter_model), "--input", str(tmp_path / "x.fa")])
    assert "1 sequences were cut" in capsys.readouterr().err


def test_both_strands_are_averaged_where_the_model_was_trained_so(write_model, genome):
    model = write_model(Target("classes", ("other", "promoter")), both_strands=True)
    sequence = letters(genome, 20, 60)
    opposite = decode(reverse_complement(encode(sequence)))
    (both,), (of_opposite,) = probabilities(model, sequence), probabilities(model, opposite)
    assert both == pytest.approx(of_opposite, abs=1e-9)


def test_values_are_written_for_each_output(write_model, genome, tmp_path, capsys):
    model = write_model(Target("values", ("root", "leaf")), "multimodal", task="expression")
    (tmp_path / "x.fa").write_text(f">a\n{letters(genome, 0, 40)}\n")
    (row,) = scored(capsys, "--model", model, "--input", tmp_path / "x.fa")
    assert [float(row["root"]), float(row["leaf"])] == pytest.approx(
        Scorer.of(model)([letters(genome, 0, 40)])[0], abs=1e-6
    )


def test_every_nucleotide_is_predicted_once(splice_model, genome, tmp_path, capsys):
    """With 10 bp around it, N beyond the sequence."""
    sequence = letters(genome, 0, 47)
    (tmp_path / "x.fa").write_text(f">a\n{sequence}\n")
    rows = scored(capsys, "--model", splice_model, "--input", tmp_path / "x.fa", "--threshold", 0)
    assert [int(row["position"]) for row in rows] == list(range(47))
    padded = "N" * 10 + sequence + "N" * 40
    scorer = Scorer.of(splice_model)
    expected = np.concatenate([scorer([padded[first : first + BP]])[0] for first in (0, 20, 40)])[:47]
    for name, column in (("acceptor", 1), ("donor", 2)):
        assert [float(row[name]) for row in rows] == pytest.approx(expected[:, column].tolist(), abs=2e-6)


def test_a_threshold_leaves_the_likely_nucleotides(splice_model, genome, tmp_path, capsys):
    (tmp_path / "x.fa").write_text(f">a\n{letters(genome, 0, 60)}\n")
    given = ("--model", splice_model, "--input", tmp_path / "x.fa", "--threshold")
    everything, likely = (scored(capsys, *given, threshold) for threshold in (0, 0.6))
    expected = [row for row in everything if max(float(row["acceptor"]), float(row["donor"])) >= 0.6]
    assert 0 < len(expected) < 60
    assert likely == expected


# Variants.

HEADER = '##fileformat=VCFv4.2\n##contig=<ID=1>\n##ALT=<ID=DEL,Description="deletion">\n'


@pytest.fixture
def write_vcf(tmp_path) -> Callable[..., Path]:
    """A function that writes sites of (position from 1, reference, alternatives)."""

    def write(*sites: tuple[int, str, str], compressed: bool = False) -> Path:
        lines = (f"1\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n" for pos, ref, alt in sites)
        text = HEADER + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(lines)
        path = tmp_path / ("x.vcf.gz" if compressed else "x.vcf")
        path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
        return path

    return write


def other(base: str) -> str:
    return "ACGT"["ACGT".index(base) - 1]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_variants_effect_is_the_difference_of_its_alleles(promoter_model, genome, write_vcf, capsys, compressed):
    base = letters(genome, 99, 100)
    path = write_vcf((100, base, f"{other(base)},{base}TTT"), compressed=compressed)
    rows = scored(capsys, "--model", promoter_model, "--input", path, "--genome", genome.path)
    start = 99 - (BP - 1) // 2
    before, after = letters(genome, start, 99), letters(genome, 100, 200)
    expected = probabilities(
        promoter_model, *((before + allele + after)[:BP] for allele in (base, other(base), f"{base}TTT"))
    )
    for row, allele, found in zip(rows, (other(base), f"{base}TTT"), expected[1:], strict=True):
        assert (row["chrom"], row["pos"], row["ref"], row["alt"]) == ("1", "100", base, allele)
        values = [float(row[f"promoter_{part}"]) for part in ("ref", "alt", "change")]
        assert values == pytest.approx([expected[0], found, found - expected[0]], abs=2e-6)


def test_a_deletion_and_the_chromosomes_ends_fill_their_windows(genome, write_vcf):
    sites = ((2, letters(genome, 1, 5), letters(genome, 1, 2)), (300, letters(genome, 299, 300), "AAAA"))
    found = list(variants(write_vcf(*sites), genome, BP, Counter()))
    first, last = found
    assert {len(window) for one in found for window in (one.reference, one.alternative)} == {BP}
    assert first.reference == "N" * 17 + letters(genome, 0, 23)
    assert first.alternative == "N" * 17 + letters(genome, 0, 2) + letters(genome, 5, 26)
    assert last.reference == letters(genome, 280, 300) + "N" * 20
    assert last.alternative == letters(genome, 280, 299) + "AAAA" + "N" * 17


def test_what_is_left_out_of_a_vcf_is_counted(promoter_model, genome, write_vcf, capsys):
    base = letters(genome, 99, 100)
    many = [(100, base, other(base))] * 120
    path = write_vcf((99, other(letters(genome, 98, 99)), "A"), *many, (150, letters(genome, 149, 150), "<DEL>"))
    main(["--model", str(promoter_model), "--input", str(path), "--genome", str(genome.path)])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 120
    assert "1 sites of another reference allele" in printed.err
    assert "1 symbolic alleles" in printed.err


def test_another_assembly_is_refused(promoter_model, genome, write_vcf, refused_prediction, tmp_path):
    base = letters(genome, 98, 99)
    path = write_vcf((99, other(base), "G" if other(base) != "G" else "C"))
    line = refused_prediction(
        "--model", promoter_model, "--input", path, "--genome", genome.path, "--out", tmp_path / "out.tsv"
    )
    assert "1 of 1 sites have another reference allele" in line
    assert sorted(tmp_path.glob("out*")) == []


def test_gains_and_losses_are_those_of_the_nucleotides_that_both_have():
    """Three classes' places in two windows; the allele is at 1, and two bases longer."""
    reference = np.array([[0.1], [0.2], [0.9], [0.3]])
    alternative = np.array([[0.1], [0.6], [0.0], [0.0], [0.2]])[:4]
    assert gains_and_losses(reference, alternative, at=1, longer=0).ravel().tolist() == pytest.approx([0.4, 0.9])
    # Inserted: the third of the reference stands fifth, out of the window; what is left are the first two.
    assert gains_and_losses(reference, alternative, at=1, longer=2).ravel().tolist() == pytest.approx([0.4, 0.0])
    # Deleted: the third is gone, the fourth stands third.
    assert gains_and_losses(reference, alternative, at=1, longer=-1).ravel().tolist() == pytest.approx([0.4, 0.3])


# What is refused.


@pytest.fixture
def refused_prediction(capsys) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments)])
        line = capsys.readouterr().err
        assert exit_.value.code == 2
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        return line

    return run


def test_bad_input_is_one_line(promoter_model, write_model, genome, tmp_path, refused_prediction):
    given = ("--model", promoter_model, "--input")
    (tmp_path / "x.fa").write_text(">a\nACGTACGT\n")
    (tmp_path / "x.csv").write_text("sequence\nACGTACGT\nACGTXX\n")
    (tmp_path / "x.bed").write_text("chr1\t290\t310\n")
    (tmp_path / "x.vcf").write_text("nothing\n")
    (tmp_path / "x.txt").write_text("ACGT\n")
    assert "no such file" in refused_prediction(*given, tmp_path / "nowhere.fa")
    assert "its name ends on none of" in refused_prediction(*given, tmp_path / "x.txt")
    assert "--genome" in refused_prediction(*given, tmp_path / "x.bed")
    assert "x.csv:3: not a DNA sequence" in refused_prediction(*given, tmp_path / "x.csv")
    assert "x.bed:1: chr1:290-310" in refused_prediction(*given, tmp_path / "x.bed", "--genome", genome.path)
    assert "cannot be read as VCF" in refused_prediction(*given, tmp_path / "x.vcf", "--genome", genome.path)
    (tmp_path / "short.fa").write_text(">a\nACGT\n>b\nAC\n")
    (tmp_path / "empty.bed").write_text("chr1\t30\t30\n")
    assert "short.fa: b: 2 bp; the shortest usable is 3" in refused_prediction(*given, tmp_path / "short.fa")
    line = refused_prediction(*given, tmp_path / "empty.bed", "--genome", genome.path)
    assert "empty.bed:1: 30 to 30 is no interval" in line
    assert "no fine-tuned model" in refused_prediction("--model", tmp_path, "--input", tmp_path / "x.fa")
    assert "--batch_size 0" in refused_prediction(*given, tmp_path / "x.fa", "--batch_size", 0)
    people = write_model(Target("classes", ("control", "case")), task="hscr", row_shape=[2, 3])
    assert "scores people" in refused_prediction("--model", people, "--input", tmp_path / "x.fa")


def test_a_file_appears_whole_and_is_not_replaced_unasked(promoter_model, tmp_path, refused_prediction):
    (tmp_path / "x.fa").write_text(">a\nACGTACGTACGT\n")
    given = ("--model", promoter_model, "--input", tmp_path / "x.fa", "--out", tmp_path / "new" / "out.tsv")
    main([*map(str, given)])
    assert len((tmp_path / "new" / "out.tsv").read_text().splitlines()) == 2
    assert "is there already" in refused_prediction(*given)
    main([*map(str, given), "--overwrite"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.tsv"]
