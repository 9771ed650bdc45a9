"""Gene models from SpliceAI's table, GTF and GFF3, against a gene worked by hand."""

import gzip
from pathlib import Path

import pytest

from data_prep.errors import InputError
from data_prep.gene_models import read_gene_models

# Exons of one gene on either strand, 1-based inclusive as in GTF: 5, 5 and 5 bp, with introns of 8 bp.
EXONS = [(6, 10), (19, 23), (32, 36)]
INTRONS = ((10, 18), (23, 31))  # 0-based half-open
# From the transcript's start: exons are at 0-4, 13-17 and 26-30 on either strand.
ACCEPTORS, DONORS = [13, 26], [4, 17]


def gtf(
    exons: list[tuple[int, int]], strand: str = "+", tags: str = "", gene: str = "g1", transcript: str = "t1"
) -> str:
    attributes = f'gene_id "{gene}"; transcript_id "{transcript}";{tags}'
    return "".join(f"chr2\tsim\texon\t{a}\t{b}\t.\t{strand}\t.\t{attributes}\n" for a, b in exons)


def cds(length: int, gene: str, transcript: str) -> str:
    return f'chr2\tsim\tCDS\t1\t{length}\t.\t+\t0\tgene_id "{gene}"; transcript_id "{transcript}";\n'


def gff3(exons: list[tuple[int, int]], strand: str = "+", tags: str = "", transcript: str = "t1") -> str:
    first, last = exons[0][0], exons[-1][1]
    lines = [
        f"chr2\tsim\tmRNA\t{first}\t{last}\t.\t{strand}\t.\tID=transcript:{transcript};Parent=gene:g1{tags}",
        *(f"chr2\tsim\texon\t{a}\t{b}\t.\t{strand}\t.\tParent=transcript:{transcript}" for a, b in exons),
    ]
    return "".join(f"{line}\n" for line in lines)


GFF3_GENE = "##gff-version 3\nchr2\tsim\tgene\t6\t36\t.\t+\t.\tID=gene:g1;Name=ONE\n"


def written(path: Path, text: str) -> Path:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("strand", ["+", "-"])
@pytest.mark.parametrize("name", ["genes.txt", "genes.gtf", "genes.gff3", "genes.gff3.gz", "genes.txt.gz"])
def test_sites_are_the_exons_ends_at_introns_in_every_format_and_on_both_strands(tmp_path, name, strand):
    if "gtf" in name:
        text = gtf(EXONS, strand)
    elif "gff3" in name:
        text = GFF3_GENE + gff3(EXONS, strand)
    else:
        text = f"g1\t0\tchr2\t{strand}\t6\t36\t10,23,\t19,32,\n"
    (gene,), left_out = read_gene_models(written(tmp_path / name, text))
    assert (gene.name, gene.chromosome, gene.strand, gene.start, gene.end) == ("g1", "chr2", strand, 5, 36)
    assert gene.introns == INTRONS
    assert (gene.acceptors, gene.donors) == (ACCEPTORS, DONORS)
    assert left_out == {}


def test_a_minus_strand_mirrors_what_is_not_symmetric(tmp_path):
    """One intron at 0-based 10-18 of a transcript at 5-40: on the minus strand its first base is 17, 22 bp from the
    transcript's start at 39, so that the donor is the 22nd base (21), and the acceptor 9 (39 - 9 = 30)."""
    (gene,), _ = read_gene_models(written(tmp_path / "g.txt", "g1\t1\tchr2\t-\t6\t40\t10,\t19,\n"))
    assert (gene.donors, gene.acceptors) == ([21], [30])
    assert gene.paralog is True


@pytest.mark.parametrize("ending", ["gtf", "gff3"])
def test_the_tagged_transcript_is_taken_over_the_longer_one(tmp_path, ending):
    longer = [(6, 15), (19, 23), (32, 60)]
    if ending == "gtf":
        tags = ' tag "basic"; tag "Ensembl_canonical"; tag "CCDS";'
        text = gtf(longer, transcript="t0") + gtf(EXONS, tags=tags, transcript="t1")
    else:
        text = GFF3_GENE + gff3(longer, transcript="t0") + gff3(EXONS, tags=";tag=basic,MANE Select", transcript="t1")
    (gene,), _ = read_gene_models(written(tmp_path / f"genes.{ending}", text))
    assert gene.introns == INTRONS


def test_without_tags_the_longest_cds_decides_and_then_the_exons(tmp_path):
    longer = [(6, 15), (19, 23), (32, 60)]
    coding = gtf(EXONS) + cds(12, "g1", "t1") + gtf(longer, transcript="t2") + cds(9, "g1", "t2")
    (gene,), _ = read_gene_models(written(tmp_path / "coding.gtf", coding))
    assert gene.introns == INTRONS
    (gene,), _ = read_gene_models(written(tmp_path / "plain.gtf", gtf(EXONS) + gtf(longer, transcript="t2")))
    assert gene.end == 60


def test_genes_without_cds_are_left_out_and_counted_where_others_have_one(tmp_path):
    text = gtf(EXONS) + cds(12, "g1", "t1") + gtf([(100, 120), (140, 150)], gene="lnc", transcript="t9")
    genes, left_out = read_gene_models(written(tmp_path / "genes.gtf", text))
    assert [gene.name for gene in genes] == ["g1"]
    assert left_out == {"without CDS": 1}


def test_exons_that_touch_or_overlap_have_no_intron_between_them(tmp_path):
    text = gtf([(6, 10), (11, 15), (14, 23), (16, 18), (32, 36)])
    (gene,), _ = read_gene_models(written(tmp_path / "genes.gtf", text))
    assert gene.introns == ((23, 31),)


def test_exons_in_transcription_order_are_sorted(tmp_path):
    (gene,), _ = read_gene_models(written(tmp_path / "genes.gtf", gtf(EXONS[::-1], "-")))
    assert (gene.start, gene.end, gene.introns) == (5, 36, INTRONS)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("genes.txt", "", "holds no gene"),
        ("genes.gff3", GFF3_GENE, "holds no gene"),
        ("genes.txt", "g1\t0\tchr2\t+\t6\t36\t10,23,\t19,\n", ":1: gene g1 has 2 exon ends and 1 exon starts"),
        ("genes.txt", "g1\t0\tchr2\t.\t6\t36\t10,\t19,\n", ":1: strand '.'"),
        ("genes.txt", "g1\t2\tchr2\t+\t6\t36\t10,\t19,\n", ":1: paralog flag '2'"),
        ("genes.txt", "g1\t0\tchr2\t+\t6\t36\t10,\tx,\n", ":1: start, end and exons"),
        ("genes.txt", "g1\t0\tchr2\t+\t6\t36\t10,\t37,\n", ":1: gene g1: an exon ends at 10"),
        ("genes.txt", "g1\t0\tchr2\t+\t6\t36\t10,\t11,\n", "with an intron between"),
        ("genes.txt", "g1 0 chr2 +\n", ":1: 1 columns"),
        ("genes.gtf", gtf(EXONS, "."), ":1: strand '.' of an exon"),
        ("genes.gtf", "chr2\tsim\texon\t9\n", ":1: "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, text, says):
    path = written(tmp_path / name, text)
    with pytest.raises(InputError) as error:
        read_gene_models(path)
    assert str(error.value).startswith(str(path))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
