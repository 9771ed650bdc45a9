"""Gene models: the introns of each gene's canonical transcript, from SpliceAI's table of genes or from a GTF or GFF3.

Coordinates are 0-based half-open. SpliceAI's are 1-based: of a junction, the exon's last nucleotide before the intron
and the next exon's first one, both in the genome's order, whatever the strand (Jaganathan et al. 2019).
"""

import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from data_prep.errors import InputError, one_line, shown
from data_prep.gff import Feature, read_features

GFF_ENDINGS = (".gtf", ".gff", ".gff3")
CANONICAL = {"Ensembl_canonical", "MANE_Select", "RefSeq_Select"}  # tags of Ensembl, GENCODE and NCBI
COLUMNS = ("name", "paralog", "chromosome", "strand", "tx start", "tx end", "exon ends", "exon starts")
CHOICE = (
    "the transcript tagged Ensembl_canonical, MANE_Select or RefSeq_Select, else the one of the longest CDS, then of "
    "the longest exons; where the file has CDS, genes without are left out"
)


@dataclass(frozen=True)
class GeneModel:
    """A gene by one transcript. start, end: of the transcript; introns: (start, end) of each, ascending; paralog:
    whether it has paralogs, False where the file does not know; where: file and line."""

    name: str
    chromosome: str
    strand: str
    start: int
    end: int
    introns: tuple[tuple[int, int], ...]
    paralog: bool
    where: str

    @property
    def donors(self) -> list[int]:
        """The last nucleotide of each exon before an intron: places from the transcript's start on its strand."""
        if self.strand == "+":
            return [start - 1 - self.start for start, _ in self.introns]
        return [self.end - 1 - end for _, end in reversed(self.introns)]

    @property
    def acceptors(self) -> list[int]:
        """The first nucleotide of each exon after an intron: places from the transcript's start on its strand."""
        if self.strand == "+":
            return [end - self.start for _, end in self.introns]
        return [self.end - start for start, _ in reversed(self.introns)]


def is_gff(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(GFF_ENDINGS)


def read_gene_models(path: Path) -> tuple[list[GeneModel], dict[str, int]]:
    """The genes in the file's order, and what was left out by reason: of a GTF or GFF3 by its name, else of SpliceAI's
    table. Raises `InputError`, with the line, for what cannot be read, and for a file without genes."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file of genes; give SpliceAI's table, a GTF or a GFF3 with --genes, or make simulated "
            "genes with: python data_prep/main.py simulate"
        )
    genes, left_out = read_gff(path) if is_gff(path) else (read_spliceai(path), {})
    if not genes:
        raise InputError(f"{path}: holds no gene; give SpliceAI's table, or a GTF or GFF3 (so named) with exons")
    return genes, left_out


def read_spliceai(path: Path) -> list[GeneModel]:
    """SpliceAI's canonical dataset: eight columns separated by tabs, the last two comma-separated lists."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            return [
                _of_line(line.rstrip("\r\n").split("\t"), f"{path}:{number}")
                for number, line in enumerate(file, 1)
                if line.strip()
            ]
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as SpliceAI's table: {one_line(error)}; copy it again") from error


def _of_line(fields: list[str], where: str) -> GeneModel:
    if len(fields) != len(COLUMNS):
        raise InputError(f"{where}: {len(fields)} columns; SpliceAI's table has {len(COLUMNS)}: {', '.join(COLUMNS)}")
    name, paralog, chromosome, strand, *numbers = fields
    if strand not in ("+", "-"):
        raise InputError(f"{where}: strand {shown(strand)} of gene {name}; it must be + or -")
    if paralog not in ("0", "1"):
        raise InputError(f"{where}: paralog flag {shown(paralog)} of gene {name}; it must be 0 or 1")
    try:
        (first,), (last,), ends, starts = ([int(n) for n in text.split(",") if n.strip()] for text in numbers)
    except ValueError:
        raise InputError(f"{where}: start, end and exons of gene {name} must be whole numbers") from None
    if len(ends) != len(starts):
        raise InputError(
            f"{where}: gene {name} has {len(ends)} exon ends and {len(starts)} exon starts; an intron needs one of each"
        )
    for before, after in zip(ends, starts, strict=True):
        if not 1 <= first <= before < after - 1 < last:
            raise InputError(
                f"{where}: gene {name}: an exon ends at {before} and the next starts at {after}; both must lie in "
                f"{first}-{last}, in order, with an intron between"
            )
    introns = tuple(sorted((before, after - 1) for before, after in zip(ends, starts, strict=True)))
    return GeneModel(name, chromosome, strand, first - 1, last, introns, paralog == "1", where)


@dataclass
class _Transcript:
    """What the lines of one transcript said. first: the first of its exons; coding: bp of CDS."""

    name: str
    gene: str = ""
    first: Feature | None = None
    exons: list[tuple[int, int]] = field(default_factory=list)
    coding: int = 0
    tags: set[str] = field(default_factory=set)

    @property
    def rank(self) -> tuple:
        """Higher of the more canonical one."""
        return bool(self.tags & CANONICAL), self.coding, sum(end - start for start, end in self.exons)

    def model(self, gene: str, path: Path) -> GeneModel:
        exons = sorted(self.exons)
        ends = list(accumulate((end for _, end in exons), max))
        introns = tuple((end, start) for end, (start, _) in zip(ends, exons[1:], strict=False) if end < start)
        seqid, strand, where = self.first.seqid, self.first.strand, f"{path}:{self.first.line}"
        return GeneModel(gene, seqid, strand, exons[0][0], ends[-1], introns, False, where)


def read_gff(path: Path) -> tuple[list[GeneModel], dict[str, int]]:
    """The canonical transcript of each gene (`CHOICE`). A transcript's exons are those of one chromosome and strand."""
    genes, left_out = [], 0
    transcripts = [one for one in _transcripts(path) if one.exons]
    has_coding = any(one.coding for one in transcripts)
    by_gene: dict[tuple[str, str, str], list[_Transcript]] = defaultdict(list)
    for one in transcripts:
        by_gene[one.first.seqid, one.first.strand, one.gene or one.name].append(one)
    for (_, _, gene), of_gene in by_gene.items():
        if has_coding and not any(one.coding for one in of_gene):
            left_out += 1
            continue
        best = max(sorted(of_gene, key=lambda one: one.name), key=lambda one: one.rank)
        genes.append(best.model(gene.removeprefix("gene:"), path))
    return genes, {"without CDS": left_out} if left_out else {}


def _transcripts(path: Path) -> Iterable[_Transcript]:
    """Of all lines. Those of GFF3's genes are among them, without exons."""
    found: dict[tuple[str, str, str], _Transcript] = {}
    for feature in read_features(path):
        attributes = feature.attributes
        is_part = feature.type in ("exon", "CDS")
        own = attributes.get("Parent" if is_part else "ID") or attributes.get("transcript_id", "")
        if "ID" in attributes or "Parent" in attributes:  # GFF3
            gene = "" if is_part else attributes.get("Parent", "")
        else:
            gene = attributes.get("gene_id", "")
        for name in filter(None, own.split(",")):
            one = found.setdefault((feature.seqid, feature.strand, name), _Transcript(name))
            one.gene = one.gene or gene
            one.tags.update(tag.strip().replace(" ", "_") for tag in attributes.get("tag", "").split(","))
            if feature.type == "exon":
                if feature.strand not in ("+", "-"):
                    raise InputError(f"{path}:{feature.line}: strand {feature.strand!r} of an exon; it must be + or -")
                one.first = one.first or feature
                one.exons.append((feature.start, feature.end))
            elif feature.type == "CDS":
                one.coding += feature.end - feature.start
    return found.values()
