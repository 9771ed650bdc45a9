"""Reading VCF files: what each genotype becomes, what is counted, and what is refused."""

import gzip
from collections.abc import Callable

import numpy as np
import pysam
import pytest

from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.peaks import Regions
from data_prep.vcf import Genotypes, Site, read_genotypes

SEQUENCE = "ACGTTGCAACGTACGGATCCATTACGGTACGTTAGCATCGNNNN"
SAMPLES = ["a", "b", "c"]
RECORDS = [
    ("5", "T", "A", "PASS", "0|1 1|1 0|0"),
    ("10", "C", "CT,*", ".", "1|2 0/1 ./."),
    ("20", "C", "<DEL>", "PASS", "0|1 0|0 0|0"),
    ("31", "g", "t", "PASS", "1 0|. 1/1"),
    ("33", "T", ".", "PASS", "0|0 0|0 0|0"),
    ("34", "A", "G", "LowQual", "1|1 1|1 1|1"),
]


@pytest.fixture
def genome(tmp_path) -> Genome:
    (tmp_path / "one.fa").write_text(f">chr1\n{SEQUENCE}\n>chr2\n{SEQUENCE}\n")
    return Genome(tmp_path / "one.fa")


@pytest.fixture
def regions(genome) -> Regions:
    """chr1:3-20 and chr1:30-36, 0-based half-open."""
    return Regions(np.zeros(2, np.int32), np.array([3, 30]), np.array([20, 36]), tuple(genome.lengths))


def text(records: list[tuple[str, ...]], chromosome: str = "1", samples: list[str] = SAMPLES) -> str:
    lines = ["##fileformat=VCFv4.2", '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">']
    lines += [f'##FILTER=<ID=LowQual,Description="low">\n##contig=<ID={chromosome}>']
    lines += ["\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples])]
    for position, ref, alt, filter_, calls in records:
        lines.append("\t".join([chromosome, position, ".", ref, alt, ".", filter_, ".", "GT", *calls.split()]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def read(tmp_path, genome, regions) -> Callable[..., Genotypes]:
    """Reads the texts of files at the sites of the regions."""

    def read(*texts: str, wanted: str = "abc") -> Genotypes:
        paths = [tmp_path / f"{number}.vcf" for number in range(len(texts))]
        for path, content in zip(paths, texts, strict=True):
            path.write_text(content)
        return read_genotypes(paths, regions, genome, set(wanted))

    return read


def test_alleles_are_those_of_the_file_and_what_cannot_be_used_is_ref_and_counted(read):
    found = read(text(RECORDS))
    assert found.samples == SAMPLES
    assert found.sites == [
        Site("chr1", 4, "T", ("A",)),
        Site("chr1", 9, "C", ("CT", None)),
        Site("chr1", 19, "C", (None,)),
        Site("chr1", 30, "G", ("T",)),
    ]
    assert found.alleles.tolist() == [
        [[0, 1], [1, 1], [0, 0]],
        [[1, 2], [0, 1], [0, 0]],
        [[0, 1], [0, 0], [0, 0]],
        [[1, 1], [0, 0], [1, 1]],
    ]
    assert {name: n for name, n in found.counts.items() if n} == {
        "records": 6,
        "in the regions": 6,
        "sites": 4,
        "filtered": 1,
        "without an alternative": 1,
        "missing genotypes": 2,
        "haploid genotypes": 1,
        "unphased heterozygous genotypes": 1,
    }


def test_only_sites_whose_ref_lies_over_a_region_are_read(read):
    records = [("1", "ACG", "A", ".", "0|1 0|1 0|1"), ("2", "CGT", "C", ".", "0|1 0|1 0|1")]
    records += [("21", "A", "G", ".", "0|1 0|1 0|1"), ("30", "CG", "C", ".", "0|1 0|1 0|1")]
    found = read(text(records))
    assert [site.position for site in found.sites] == [1, 29]
    assert found.counts["records"] == 4


@pytest.mark.parametrize("chromosome", ["1", "chr1"])
@pytest.mark.parametrize("how", ["gzip", "bgzip", "indexed"])
def test_compression_an_index_and_the_chromosomes_name_make_no_difference(
    read, tmp_path, genome, regions, chromosome, how
):
    plain, path = read(text(RECORDS)), tmp_path / "packed.vcf.gz"
    content = text(RECORDS, chromosome).encode()
    if how == "gzip":
        path.write_bytes(gzip.compress(content))
    else:
        with pysam.BGZFile(str(path), "wb") as file:
            file.write(content)
    if how == "indexed":
        pysam.tabix_index(str(path), preset="vcf")
    found = read_genotypes([path], regions, genome, set("abc"))
    assert (found.sites, found.alleles.tolist()) == (plain.sites, plain.alleles.tolist())
    assert found.counts == plain.counts


def test_the_library_prints_no_warnings_of_its_own(read, capfd):
    read(text(RECORDS).replace("##contig=<ID=1>\n", ""))
    assert capfd.readouterr() == ("", "")


def test_files_of_the_same_people_are_joined_whatever_the_order_of_their_columns(read):
    first = text(RECORDS[3:4], samples=["c", "a", "b", "x"]).replace("1/1\n", "1/1\t0|0\n")
    second = text(RECORDS[:1])
    found = read(first, second, wanted="abz")
    assert found.samples == ["a", "b"]
    assert [site.position for site in found.sites] == [4, 30]
    assert found.alleles.tolist() == [[[0, 1], [1, 1]], [[0, 0], [1, 1]]]
    assert found.counts["samples without a phenotype"] == 2


def many(n_wrong: int, n: int = 200) -> str:
    """Sites all at one place, of which some have another REF than the FASTA."""
    return text([("5", "C" if i < n_wrong else "T", "A", ".", "0|1 1|1 0|0") for i in range(n)])


def test_up_to_one_percent_of_other_refs_are_left_out(read):
    found = read(many(2))
    assert (found.counts["mismatched"], len(found.sites)) == (2, 198)


def test_a_ref_past_the_chromosomes_end_or_off_the_fasta_is_no_match(read):
    assert read(many(0) + "1\t36\t.\tGCATCGNNNNA\tG\t.\t.\t.\tGT\t0|1\t0|1\t0|1\n").counts["mismatched"] == 1
    found = read(
        many(0).replace("##contig", "##contig=<ID=7>\n##contig") + "7\t5\t.\tT\tA\t.\t.\t.\tGT\t0|1\t0|0\t0|0\n"
    )
    assert found.counts["off the FASTA"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0.vcf: cannot be read as VCF"),
        ("sample\tstatus\n", "0.vcf: cannot be read as VCF"),
        (text(RECORDS).replace("\t", " "), "0.vcf: cannot be read as VCF"),
        (text(RECORDS, samples=["a", "b", "a"]), "0.vcf: cannot be read as VCF"),
        (text([], samples=[]).replace("\tFORMAT", ""), "its header names no samples, or no FORMAT GT"),
        (text(RECORDS).replace("##FORMAT=<ID=GT", "##FORMAT=<ID=DP"), "its header names no samples, or no FORMAT GT"),
        (text(RECORDS) + "1\tx\t.\tT\tA\t.\t.\t.\tGT\t0|1\t0|0\t0|0\n", "the record after 1:34 cannot be read"),
        (text(RECORDS) + "1\t35\t.\tT\tA\t.\t.\t.\tGT\t0|1\n", "the record after 1:34 cannot be read"),
        (text([("5", "T", "A", ".", "0|1|1 0|0 0|0")]), "1:5: a has 3 alleles"),
        (text(RECORDS, "9"), "none of 6 records lies in the regions (6 on chromosomes that"),
        (text([]), "none of 0 records lies in the regions"),
        (text(RECORDS, samples=["x", "y", "z"]), "none of the 3 samples with a phenotype is in it"),
        (many(3), "has at 3 of 200 sites in the regions (first: 1:5 C); give the FASTA of the VCF's assembly"),
    ],
)
def test_bad_files_are_refused_in_one_line(read, content, message):
    with pytest.raises(InputError) as error:
        read(content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_or_missing_is_refused(tmp_path, genome, regions):
    path = tmp_path / "cut.vcf.gz"
    content = gzip.compress(text(RECORDS * 500).encode())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.vcf\.gz: cannot be read"):
        read_genotypes([path], regions, genome, {"a"})
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(text(RECORDS * 5000).encode())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.vcf\.gz: .*cannot be read"):
        read_genotypes([path], regions, genome, {"a"})
    with pytest.raises(InputError, match="no such VCF"):
        read_genotypes([tmp_path / "none.vcf"], regions, genome, {"a"})
