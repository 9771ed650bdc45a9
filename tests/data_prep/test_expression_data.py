"""Promoters cut upstream of genes, TPM in either orientation, and the table made of both."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from Bio.Seq import reverse_complement
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import InputError
from data_prep.expression_table import Expression, bare, matched, read_expression, stem
from data_prep.gene_promoters import upstream
from data_prep.main import main

BP = 60
TISSUES = ["root", "shoot"]
# Gene, 1-based inclusive start and end, strand; then the 0-based half-open stretch of chr1 (400 bp) before it.
GENES = [
    ("inner_plus", 201, 250, "+", (140, 200)),
    ("inner_minus", 101, 150, "-", (150, 210)),
    ("first_plus", 61, 70, "+", (0, 60)),
    ("clipped_plus", 56, 70, "+", (0, 55)),
    ("last_minus", 300, 340, "-", (340, 400)),
    ("clipped_minus", 300, 345, "-", (345, 400)),
]
LEFT_OUT = [("at_start", 1, 20, "+"), ("short_minus", 300, 351, "-"), ("unstranded", 201, 250, ".")]


def gff_line(name: str, start: int, end: int, strand: str, chromosome: str = "1", type_: str = "gene") -> str:
    return f"{chromosome}\tsource\t{type_}\t{start}\t{end}\t.\t{strand}\t.\tID=gene:{name};biotype=protein_coding\n"


@pytest.fixture
def chromosome() -> str:
    """400 bp, in part of lower case; the second chromosome begins with 45 bp of N."""
    letters = "".join(np.random.default_rng(2).choice(list("ACGT"), 400))
    return letters[:150] + letters[150:170].lower() + letters[170:]


@pytest.fixture
def inputs(tmp_path, chromosome) -> Path:
    """genome.fa, genes.gff3 and tpm.tsv, genes in columns; one gene has no TPM, one of the TPM no promoter."""
    (tmp_path / "genome.fa").write_text(f">chr1\n{chromosome}\n>chr2\n{'N' * 45}{chromosome[:100]}\n")
    lines = [gff_line(*gene[:4]) for gene in GENES]
    lines += [gff_line(*gene) for gene in LEFT_OUT]
    lines += [gff_line("mostly_n", 61, 70, "+", "chr2"), gff_line("elsewhere", 61, 70, "+", "chr9")]
    lines += [gff_line("transcript", 101, 150, "-", type_="mRNA")]
    (tmp_path / "genes.gff3").write_text("##gff-version 3\n" + "".join(lines))
    names = [gene[0] for gene in GENES][1:]
    rows = [["Cultivar", "organism_part", *names, "no_promoter"]]
    rows += [["B73", tissue, *(f"{10 * t + g}.5" for g in range(len(names))), "7"] for t, tissue in enumerate(TISSUES)]
    write_rows(tmp_path / "tpm.tsv", rows)
    return tmp_path


def write_rows(path: Path, rows: list[list[str]]) -> Path:
    separator = "," if path.suffix == ".csv" else "\t"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    return path


@pytest.fixture
def arguments(inputs) -> list[str]:
    """Of a run on `inputs`; the split is such that six genes reach all three tables."""
    return [
        *("expression", "--genome", str(inputs / "genome.fa"), "--annotation", str(inputs / "genes.gff3")),
        *("--tpm", str(inputs / "tpm.tsv"), "--bp", str(BP), "--test_share", "0.4", "--dev_share", "0.4"),
        *("--seed", "1"),
    ]


def table(out: Path) -> pd.DataFrame:
    """All rows, whatever their split, by gene."""
    parts = [pd.read_csv(out / f"{split}.tsv.gz", sep="\t").assign(split=split) for split in ("train", "dev", "test")]
    return pd.concat(parts).set_index("gene").sort_index()


def test_promoters_are_cut_upstream_on_their_strand_and_at_chromosome_ends(arguments, chromosome, tmp_path, capsys):
    main([*arguments, "--out", str(tmp_path / "out")])
    found = table(tmp_path / "out").sequence
    assert set(found.index) == {name for name, *_ in GENES[1:]}
    for name, _, _, strand, (first, last) in GENES[1:]:
        expected = chromosome[first:last].upper()
        assert found[name] == (expected if strand == "+" else reverse_complement(expected)), name
    printed = capsys.readouterr().out
    assert "2 cut short by a chromosome's end" in printed
    assert (
        "11 read = 6 used + 2 shorter than 50 bp + 1 mostly N + 1 without a strand + 1 on chromosomes that the FASTA "
        "lacks" in printed
    )
    assert "6 genes in columns; 1 have no promoter, 1 promoters have no TPM" in printed


def test_the_manifest_counts_what_was_left_out(arguments, tmp_path):
    main([*arguments, "--out", str(tmp_path / "out")])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["task"], manifest["simulated"], manifest["genome"]) == ("expression", False, "genome")
    assert manifest["tissues"] == TISSUES
    counts = manifest["counts"]
    assert counts.items() >= {"promoters_used": 6, "promoters_clipped": 2, "promoters_unknown_chromosome": 1}.items()
    assert (counts["tpm_without_promoter"], counts["promoters_without_tpm"]) == (1, 1)
    assert sum(split["rows"] for split in manifest["splits"].values()) == 5


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 200), st.sampled_from("+-"))
def test_an_upstream_stretch_touches_its_gene_and_stays_on_the_chromosome(start, size, bp, strand):
    end, length = start + size, 400
    first, last = upstream(start, end, strand, bp, length)
    assert (last == start) if strand == "+" else (first == end)
    room = start if strand == "+" else length - end
    assert 0 <= first <= last <= length
    assert last - first == min(bp, room)


def transposed(path: Path, out: Path) -> Path:
    """Genes in rows, with a column of words that is neither gene nor tissue."""
    with open(path) as file:
        columns = list(zip(*csv.reader(file, delimiter="\t"), strict=True))
    header = ["gene_id", "description", *columns[1][1:]]
    return write_rows(out, [header, *([f"gene:{name}", "a protein", *values] for name, *values in columns[2:])])


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv"])
def test_both_orientations_give_the_same_table(arguments, inputs, tmp_path, name, capsys):
    main([*arguments, "--out", str(tmp_path / "columns")])
    rows = transposed(inputs / "tpm.tsv", tmp_path / name)
    capsys.readouterr()
    main([*arguments, "--tpm", str(rows), "--out", str(tmp_path / "rows")])
    assert "genes in rows" in (printed := capsys.readouterr().out)
    assert "columns of words ignored: description" in printed
    for split in ("train", "dev", "test"):
        one, other = (tmp_path / out / f"{split}.tsv.gz" for out in ("columns", "rows"))
        assert one.read_bytes() == other.read_bytes()
    values = table(tmp_path / "columns")
    assert values.loc["inner_minus", TISSUES].tolist() == [0.5, 10.5]
    assert values.loc["clipped_minus", TISSUES].tolist() == [4.5, 14.5]


def test_a_header_without_a_name_for_the_genes_is_rs(tmp_path):
    path = write_rows(tmp_path / "r.tsv", [["root", "shoot"], ["g1", "1", "2"], ["g2", "3", "4"]])
    found = read_expression(path, ["g1"])
    assert (found.genes, found.tissues, found.tpm.tolist()) == (["g1", "g2"], TISSUES, [[1, 2], [3, 4]])


def test_replicates_of_a_tissue_are_averaged_and_tissues_chosen(tmp_path):
    rows = [
        ["line", "part", "g1", "g2"],
        ["B73", "root", "1", "0"],
        ["B73", "tip", "8", "9"],
        ["B73", "root", "3", "1"],
    ]
    path = write_rows(tmp_path / "tpm.tsv", rows)
    found = read_expression(path, ["g2"])
    assert (found.tissues, found.replicates, found.tpm.tolist()) == (["root", "tip"], 3, [[2, 8], [0.5, 9]])
    assert read_expression(path, ["g2"], ["tip"]).tpm.tolist() == [[8], [9]]
    with pytest.raises(InputError, match=r"--tissues leaf: .* has root, tip"):
        read_expression(path, ["g2"], ["leaf"])


def test_comments_stand_before_the_header_and_lines_are_counted_with_them(tmp_path):
    path = tmp_path / "counts.txt"
    path.write_text("# Program: some\n##more\n#gene\troot\n\ng1\t1\n#g2\t2\n")
    found = read_expression(path, ["g1"])
    assert (found.genes, found.tissues, found.tpm.tolist()) == (["g1", "#g2"], ["root"], [[1], [2]])
    path.write_text(path.read_text().replace("\t2", "\tx"))
    with pytest.raises(InputError, match=r"counts\.txt:6: TPM 'x' in column 'root'"):
        read_expression(path, ["g1"])


def test_tables_without_tpm_or_without_names_of_tissues_are_refused(tmp_path):
    path = write_rows(tmp_path / "tpm.tsv", [["gene", "name"], ["g1", "a"], ["g2", "b"]])
    with pytest.raises(InputError, match="no column of TPM"):
        read_expression(path, ["g1"])
    path = write_rows(tmp_path / "tpm.tsv", [["g1", "g2"], ["1", "2"]])
    with pytest.raises(InputError, match="no column of words names the tissues"):
        read_expression(path, ["g1"])


def test_words_that_differ_name_the_tissues(tmp_path):
    rows = [["id", "line", "part", "g1"], ["x", "B73", "root", "1"], ["x", "Mo17", "root", "2"]]
    path = write_rows(tmp_path / "tpm.tsv", rows)
    assert read_expression(path, ["g1"]).tissues == ["B73", "Mo17"]
    path = write_rows(path, [*rows, ["x", "B73", "tip", "3"]])
    assert read_expression(path, ["g1"]).tissues == ["B73 root", "Mo17 root", "B73 tip"]


@pytest.mark.parametrize(
    ("name", "without_prefix", "gene"),
    [
        ("gene:Zm00001eb000010", "Zm00001eb000010", "Zm00001eb000010"),
        ("transcript:Zm00001d027230_T001", "Zm00001d027230_T001", "Zm00001d027230"),
        ("GRMZM2G000014_T01", "GRMZM2G000014_T01", "GRMZM2G000014"),
        ("AT1G01010.1", "AT1G01010.1", "AT1G01010"),
        ("AC148152.3_FG001", "AC148152.3_FG001", "AC148152.3_FG001"),
    ],
)
def test_names_lose_their_prefix_and_then_their_transcript(name, without_prefix, gene):
    assert (bare(name), stem(name)) == (without_prefix, gene)


def test_promoters_meet_their_own_tpm_or_the_sum_of_their_genes_transcripts():
    genes = ["a", "b_T001", "b_T002", "c_T001", "c_T002", "lonely"]
    expression = Expression(genes, ["root"], np.array([[1.0], [2], [4], [8], [16], [32]]), 1, "rows", [])
    kept, tpm, counts = matched(["a_T001", "b", "c_T001", "c_T002", "a_T002", "unknown"], expression)
    assert kept == [0, 1, 2, 3]
    assert tpm.ravel().tolist() == [1, 6, 8, 16]
    assert counts == {
        "promoters_without_tpm": 1,
        "promoters_of_other_transcripts": 1,
        "genes_summed_over_transcripts": 1,
        "tpm_without_promoter": 1,
    }


@pytest.fixture
def many(tmp_path) -> list[str]:
    """Of a run on 300 promoters of 80 bp in FASTA, the last 60 bp of gene 7 and gene 8 being the same."""
    rng = np.random.default_rng(5)
    sequences = ["".join(rng.choice(list("ACGT"), 80)) for _ in range(300)]
    sequences[8] = "A" * 20 + sequences[7][20:]
    with gzip.open(tmp_path / "promoters.fa.gz", "wt") as file:
        file.writelines(f">gene:g{number} some words\n{s.lower()}\n" for number, s in enumerate(sequences))
    rows = [["gene", "root"], *([f"g{number}", str(number)] for number in range(300))]
    promoters, tpm = tmp_path / "promoters.fa.gz", write_rows(tmp_path / "tpm.csv", rows)
    return ["expression", "--promoters", str(promoters), "--tpm", str(tpm), "--bp", "60"]


def test_genes_are_split_seven_to_three_and_equal_promoters_stay_together(many, tmp_path):
    main([*many, "--out", str(tmp_path / "out")])
    found = table(tmp_path / "out")
    assert len(found) == 300
    assert set(found.sequence.str.len()) == {60}
    assert found.split["g7"] == found.split["g8"]
    assert found.sequence["g7"] == found.sequence["g8"]
    shares = found.split.value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.3, abs=0.08)
    assert shares["dev"] == pytest.approx(0.07, abs=0.04)
    assert found.root.sort_values().tolist() == list(range(300))


def test_a_seed_fixes_every_byte_and_another_splits_otherwise(many, tmp_path, capsys):
    for name, seed in (("one", "3"), ("again", "3"), ("other", "4")):
        main([*many, "--out", str(tmp_path / name), "--seed", seed])
    one, again, other = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "again", "other"))
    assert one == again
    assert not set(one.values()) & set(other.values())
    capsys.readouterr()
    main([*many, "--out", str(tmp_path / "one"), "--seed", "3"])
    assert capsys.readouterr().out == f"{tmp_path / 'one'}: up to date\n"


def test_a_table_of_promoters_is_as_good_as_fasta(many, tmp_path):
    main([*many, "--out", str(tmp_path / "fasta")])
    with gzip.open(tmp_path / "promoters.fa.gz", "rt") as file:
        lines = file.read().splitlines()
    rows = [[name.split()[0][1:], letters] for name, letters in zip(lines[::2], lines[1::2], strict=True)]
    path = write_rows(tmp_path / "promoters.tsv", [["gene", "sequence"], *rows])
    main([*many, "--promoters", str(path), "--out", str(tmp_path / "table")])
    assert (tmp_path / "table" / "train.tsv.gz").read_bytes() == (tmp_path / "fasta" / "train.tsv.gz").read_bytes()


def labelled(path: Path, n: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = [["".join(rng.choice(list("ACGT"), 60)), json.dumps([3.0, -9.965784])] for _ in range(n)]
    return write_rows(path, [["sequence", "labels"], *rows])


def test_labels_become_tpm_and_two_tables_keep_their_split(tmp_path):
    train, test = labelled(tmp_path / "train.tsv", 60, 1), labelled(tmp_path / "eval.tsv", 9, 2)
    given_ = ["expression", "--tissues", *TISSUES, "--out", str(tmp_path / "out"), "--tables"]
    main([*given_, str(train), str(test)])
    found = table(tmp_path / "out")
    assert found.split.value_counts()["test"] == 9
    assert set(found.index[found.split == "test"]) == {f"eval:{line}" for line in range(2, 11)}
    np.testing.assert_allclose(found.root, 2**3 - 0.001)
    np.testing.assert_allclose(found.shoot, 0, atol=1e-6)
    assert "2**label" in json.loads((tmp_path / "out" / "manifest.json").read_text())["scale"]
    main([*given_, str(train), "--label_scale", "log1p", "--overwrite"])
    found = table(tmp_path / "out")
    assert found.split.value_counts()["test"] == pytest.approx(0.3 * 60, abs=9)
    np.testing.assert_allclose(found.root, np.e**3 - 1, rtol=1e-6)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        (
            "genes.gff3",
            lambda text: text.replace("\tgene\t", "\tregion\t"),
            "no feature of type gene, but mRNA, region",
        ),
        ("genes.gff3", lambda text: text + gff_line("inner_plus", 5, 9, "-"), "gene inner_plus stands in line 2 too"),
        ("genes.gff3", lambda text: text + gff_line("beyond", 390, 401, "-"), "past the end of chr1"),
        ("genes.gff3", lambda text: text.replace("ID=gene:", "Alias="), "without ID"),
        ("tpm.tsv", lambda text: text.replace("10.5", "-10.5"), "tpm.tsv:3: TPM '-10.5' in column 'inner_minus'"),
        ("tpm.tsv", lambda text: text.replace("10.5", "many"), "TPM 'many'"),
        ("tpm.tsv", lambda text: text.replace("10.5", "nan"), "TPM 'nan'"),
        ("tpm.tsv", lambda text: text.replace("10.5", ""), "TPM ''"),
        ("tpm.tsv", lambda text: text.replace("no_promoter", "last_minus"), "gene last_minus stands twice"),
        ("tpm.tsv", lambda text: text.replace("_plus", "X").replace("_minus", "X"), "none of its genes has a promoter"),
        ("tpm.tsv", lambda text: text.replace("\t7\n", "\n", 1), "tpm.tsv:2: 7 columns, where the header has 8"),
        ("tpm.tsv", lambda text: text.splitlines()[0], "holds no row"),
        ("genome.fa", lambda text: text.replace("chr", "scaffold"), "no promoter to use: 11 read = 0 used"),
    ],
)
def test_bad_files_are_refused_and_the_place_is_named(arguments, inputs, refused, file, change, why):
    edit(inputs / file, change)
    assert why in refused(*arguments)


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        (["--tpm", "none.tsv", "--promoters", "none.fa"], "none.fa: no such file"),
        (["--promoters", "p.fa"], "--tpm"),
        (["--tpm", "t.tsv"], "give one of"),
        (["--genome", "g.fa", "--tpm", "t.tsv"], "give both"),
        (["--promoters", "p.fa", "--tables", "t.tsv"], "give one of"),
        (["--tables", "a.tsv", "b.tsv", "c.tsv"], "give one table, or two"),
        (["--tables", "a.tsv", "--bp", "5"], "--bp 5"),
        (["--tables", "a.tsv", "--test_share", "1.5"], "--test_share 1.5"),
        (["--tables", "a.tsv", "--seed", "-1"], "--seed -1"),
    ],
)
def test_bad_arguments_are_refused(refused, given_, why):
    assert why in refused("expression", *given_)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("[3.0, -9.965784]", "[3.0]", 4).replace("[3.0]", "[3.0, 1]", 3), ":5: 1 labels"),
        (lambda text: text.replace("[3.0", "[NaN", 1), ":2: labels '[NaN, -9.965784]' are no list of numbers"),
        (lambda text: text.replace("[3.0", "[[3.0", 1), "no list of numbers"),
        (lambda text: text.replace("labels", "label"), "no column 'labels'"),
        (lambda text: text.replace("\t", "!\t"), "no column 'sequence'"),
        (lambda text: text.replace("\nA", "\n!").replace("\nC", "\n!"), "not a DNA sequence"),
    ],
)
def test_bad_labels_are_refused(tmp_path, refused, change, why):
    edit(path := labelled(tmp_path / "train.tsv", 30, 1), change)
    assert why in refused("expression", "--tables", path)


def test_labels_that_are_no_tpm_are_refused_and_tissues_must_fit(tmp_path, refused):
    path = labelled(tmp_path / "train.tsv", 30, 1)
    assert "train:2: a label that is no TPM" in refused("expression", "--tables", path, "--label_scale", "tpm")
    assert "1 names, but" in refused("expression", "--tissues", "root", "--tables", path)
    edit(path, lambda text: text.replace("[3.0", "[3000.0", 1))
    assert "train:2: a label that is no TPM by --label_scale log2" in refused("expression", "--tables", path)
    edit(path, lambda text: text.replace("[3000.0", "[3.0", 1))
    assert "a name of its own" in refused("expression", "--tissues", "root", "root", "--tables", path)


def test_nothing_given_means_the_demo_and_says_how_to_make_it(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert "python data_prep/main.py simulate" in refused("expression")


def test_the_demo_is_called_simulated(tmp_path, inputs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "data" / "demo"
    (demo / "expression").mkdir(parents=True)
    (demo / "manifest.json").write_text('{"simulated": true}')
    shutil.copy(inputs / "genome.fa", demo / "simulated_genome.fa")
    for name in ("genes.gff3", "tpm.tsv"):
        shutil.copy(inputs / name, demo / "expression")
    main(["expression", "--bp", str(BP), "--test_share", "0.4", "--dev_share", "0.4", "--seed", "1"])
    assert "(simulated data)" in capsys.readouterr().out
    assert json.loads((tmp_path / "data" / "expression" / "manifest.json").read_text())["simulated"] is True


def test_the_real_tables_of_maize_are_read(shared_data, tmp_path):
    maize = shared_data / "maize"
    tissues = ["tassel", "base", "anther", "middle", "ear", "shoot", "tip", "root"]
    tables = [str(maize / f"promoters_{split}.tsv") for split in ("train", "eval")]
    main(["expression", "--tables", *tables, "--tissues", *tissues, "--out", str(tmp_path / "out")])
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts == {"promoters_read": 1143 + 261, "promoters_used": 1398, "promoters_too_short": 6}
    assert table(tmp_path / "out").split.value_counts()["test"] == 261


def test_the_real_tpm_of_b73_is_read_with_its_genes_in_columns(shared_data):
    path = shared_data / "maize" / "B73_TPM.txt"
    found = read_expression(path, ["gene:Zm00001eb000010_T001", "Zm00001eb000020"])
    assert (found.genes_in, len(found.genes), len(found.tissues)) == ("columns", 39_756, 10)
    assert found.tissues[:3] == ["root", "shoot", "base"]
    assert found.tpm[found.genes.index("Zm00001eb000020")][:2].tolist() == [60.645908, 31.948276]
