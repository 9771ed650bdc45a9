"""Promoters of genes by name: cut from a genome upstream of annotated genes, or read from a FASTA file or a table."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.bases import OTHER, decode, encode, reverse_complement
from data_prep.errors import InputError, shown
from data_prep.expression_table import Cells, bare
from data_prep.genome import Genome
from data_prep.gff import Feature, read_features
from data_prep.promoters import FASTA_SUFFIXES, SHORTEST, records
from data_prep.samples import MAX_N_SHARE

LETTERS = set("ACGTUNRYSWKMBDHV")
CAUSES = {
    "too_short": f"shorter than {SHORTEST} bp",
    "over_n": "mostly N",
    "no_strand": "without a strand",
    "unknown_chromosome": "on chromosomes that the FASTA lacks",
}


@dataclass(frozen=True)
class Promoters:
    """names: of the genes, without `gene:`; sequences: 5' to 3' on the gene's strand, upper-case, the gene following
    their last base; counts: `read`, `used`, and why others were not (CAUSES); `clipped` of those that are used."""

    names: list[str]
    sequences: list[str]
    counts: Counter

    @classmethod
    def empty(cls) -> "Promoters":
        return cls([], [], Counter())

    def add(self, name: str, codes: np.ndarray) -> bool:
        """Take a promoter's base codes, uint8; False where it is left out, as too short or mostly N."""
        self.counts["read"] += 1
        if len(codes) < SHORTEST:
            self.counts["too_short"] += 1
            return False
        if (codes == OTHER).mean() > MAX_N_SHARE:
            self.counts["over_n"] += 1
            return False
        self.names.append(bare(name))
        self.sequences.append(decode(codes))
        self.counts["used"] += 1
        return True

    def fates(self) -> str:
        """The counts, in words."""
        fates = {"used": "used", **CAUSES}
        said = [
            f"{self.counts[fate]:,} {words}" for fate, words in fates.items() if fate == "used" or self.counts[fate]
        ]
        return f"{self.counts['read']:,} read = {' + '.join(said)}"

    def checked(self, path: Path) -> "Promoters":
        """Itself. Raises `InputError` where no promoter is left, or two are of one name."""
        if not self.names:
            raise InputError(f"{path}: no promoter to use: {self.fates()}")
        twice = next((name for name, times in Counter(self.names).items() if times > 1), None)
        if twice is not None:
            raise InputError(f"{path}: {twice} has two promoters; keep one of them")
        return self


def read_promoters(path: Path, bp: int) -> Promoters:
    """The last `bp` of each promoter of a FASTA file, whose headers' first words are the genes, or of a TSV or CSV with
    columns gene and sequence. Raises `InputError` for any other file, and as `Promoters.checked` does."""
    found = Promoters.empty()
    if not path.is_file():
        raise InputError(f"{path}: no such file of promoters")
    if path.name.removesuffix(".gz").endswith(FASTA_SUFFIXES):
        for name, codes in records(path):
            found.add(name, codes[-bp:])
    else:
        cells = Cells.read(path)
        gene, sequence = cells.column("gene"), cells.column("sequence")
        for line, row in zip(cells.lines, cells.rows, strict=True):
            found.add(row[gene], checked_codes(row[sequence], f"{path}:{line}")[-bp:])
    return found.checked(path)


def upstream_promoters(genome: Genome, annotation: Path, bp: int) -> Promoters:
    """The `bp` upstream of each gene of a GTF or GFF3 on its strand, as `bedtools flank -l bp -r 0 -s` and `bedtools
    getfasta -s` cut them: shorter at a chromosome's end, and over a neighbouring gene where one is near.

    Raises `InputError` for an annotation without genes, with a gene twice or past its chromosome's end.
    """
    if not annotation.is_file():
        raise InputError(f"{annotation}: no such annotation; give a GTF or GFF3 with --annotation")
    found, line_of, types = Promoters.empty(), {}, Counter()
    for feature in read_features(annotation):
        types[feature.type] += 1
        if feature.type != "gene":
            continue
        name = gene_name(feature, annotation)
        if name in line_of:
            raise InputError(f"{annotation}:{feature.line}: gene {name} stands in line {line_of[name]} too; keep one")
        line_of[name] = feature.line
        chromosome = genome.resolve(feature.seqid)
        if chromosome is None or feature.strand not in ("+", "-"):
            found.counts["read"] += 1
            found.counts["unknown_chromosome" if chromosome is None else "no_strand"] += 1
            continue
        if feature.end > genome.lengths[chromosome]:
            raise InputError(
                f"{annotation}:{feature.line}: gene {name} ends at {feature.end}, past the end of {chromosome} "
                f"({genome.lengths[chromosome]} bp in {genome.path}); give the FASTA that was annotated"
            )
        start, end = upstream(feature.start, feature.end, feature.strand, bp, genome.lengths[chromosome])
        codes = genome.codes(chromosome, start, end) if start < end else np.zeros(0, np.uint8)
        used = found.add(name, reverse_complement(codes) if feature.strand == "-" else codes)
        found.counts["clipped"] += used and end - start < bp
    if not line_of:
        there = ", ".join(sorted(types)) or "nothing"
        raise InputError(f"{annotation}: holds no feature of type gene, but {there}; give the annotation of genes")
    return found.checked(annotation)


def upstream(start: int, end: int, strand: str, bp: int, length: int) -> tuple[int, int]:
    """The interval of `bp` before a gene on its strand, cut at the ends of a chromosome of `length`; all 0-based
    half-open."""
    return (max(start - bp, 0), start) if strand == "+" else (end, min(end + bp, length))


def gene_name(feature: Feature, path: Path) -> str:
    """GFF3's ID or GTF's gene_id. Raises `InputError` for a gene with neither."""
    name = feature.attributes.get("ID") or feature.attributes.get("gene_id")
    if not name:
        raise InputError(f"{path}:{feature.line}: a gene without ID (GFF3) or gene_id (GTF); name it")
    return bare(name)


def checked_codes(sequence: str, where: str) -> np.ndarray:
    """Base codes, uint8. Raises `InputError` for letters outside IUPAC."""
    letters = sequence.strip().upper()
    if set(letters) - LETTERS:
        raise InputError(f"{where}: not a DNA sequence: {shown(sequence)}")
    return encode(letters)
