"""The simulated genome's genes: splice sites planted in it, and their table in SpliceAI's format.

Donors follow the consensus MAG|GTRAGT, acceptors a tract of pyrimidines and YAG|G, each position with its share of
other letters. The background holds some twenty times as many bare GT and AG.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.bases import LETTERS, reverse_complement
from data_prep.gene_models import GeneModel

if TYPE_CHECKING:  # the module that calls this one
    from data_prep.simulate import AccessibleRegions

# Shares of A, C, G, T by position (Zhang 1998, in round numbers): of donors from the exon's third letter from its end
# on, of acceptors up to the exon's first.
_EXON_END = [(0.35, 0.35, 0.2, 0.1), (0.65, 0.1, 0.1, 0.15), (0.1, 0.04, 0.8, 0.06)]
_DONOR = [(0, 0, 1, 0), (0, 0, 0, 1), (0.6, 0, 0.4, 0), (0.75, 0.05, 0.12, 0.08), (0.05, 0.05, 0.85, 0.05)]
_DONOR_END = [(0.15, 0.15, 0.2, 0.5)]
_TRACT = [(0.08, 0.4, 0.08, 0.44)] * 16
_ACCEPTOR = [(0.25, 0.25, 0.25, 0.25), (0.03, 0.67, 0, 0.3), (1, 0, 0, 0), (0, 0, 1, 0)]
_EXON_START = [(0.25, 0.12, 0.5, 0.13)]
DONOR = np.array(_EXON_END + _DONOR + _DONOR_END)
ACCEPTOR = np.array(_TRACT + _ACCEPTOR + _EXON_START)
BEFORE_DONOR, BEFORE_ACCEPTOR = len(_EXON_END), len(ACCEPTOR) - 1  # letters ahead of the intron's start, and of its end

GENES = {"chr1": 9.5, "chr2": 29, "chr3": 12.5, "chr4": 50}  # by Mbp; most are for training, in SpliceAI's split
EXONS, EXON_BP, INTRON_BP, GENE_BP = (3, 6), (80, 220), (150, 900), (1500, 4000)  # least and most
PARALOGS = 0.15  # share of the genes
EDGE = 20_000  # bp at the chromosomes' ends without genes


def plant_genes(
    rng: np.random.Generator, name: str, chromosome: np.ndarray, regions: "AccessibleRegions"
) -> list[GeneModel]:
    """Write the splice sites of genes into a chromosome, in place, on both strands, none of them in an accessible
    region; the genes, which do not overlap."""
    accessible = np.zeros(len(chromosome), bool)
    for start, end in zip(regions.start, regions.end, strict=True):
        accessible[start:end] = True
    n_genes = max(round(GENES[name] * len(chromosome) / 1e6), 1)
    edges = np.linspace(EDGE, len(chromosome) - EDGE, n_genes + 1).astype(int)
    genes = []
    for number, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        strand = str(rng.choice(["+", "-"]))
        codes, taken = chromosome[low:high], accessible[low:high]
        if strand == "-":
            codes, taken = reverse_complement(codes), taken[::-1]
        start, end, introns = gene_plan(rng, taken)
        for first, last in introns:
            write_site(rng, codes, first - BEFORE_DONOR, DONOR)
            write_site(rng, codes, last - BEFORE_ACCEPTOR, ACCEPTOR)
        if strand == "-":
            chromosome[low:high] = reverse_complement(codes)
            start, end = high - low - end, high - low - start
            introns = [(high - low - last, high - low - first) for first, last in reversed(introns)]
        genes.append(
            GeneModel(
                f"SIM{name.removeprefix('chr')}G{number + 1:03d}",
                name,
                strand,
                low + start,
                low + end,
                tuple((low + first, low + last) for first, last in introns),
                bool(rng.random() < PARALOGS),
                "",
            )
        )
    return genes


def gene_plan(rng: np.random.Generator, taken: np.ndarray) -> tuple[int, int, list[tuple[int, int]]]:
    """Start, end and introns of a gene within a stretch, in whose nucleotides that are `taken` no site may lie."""
    while True:
        start = at = int(rng.integers(len(taken) - GENE_BP[1]))
        introns = []
        for _ in range(rng.integers(*EXONS, endpoint=True) - 1):
            first = _next_free(taken, at + rng.integers(*EXON_BP, endpoint=True), BEFORE_DONOR, DONOR)
            at = _next_free(taken, first + rng.integers(*INTRON_BP, endpoint=True), BEFORE_ACCEPTOR, ACCEPTOR)
            introns.append((first, at))
        end = at + int(rng.integers(*EXON_BP, endpoint=True))
        if GENE_BP[0] <= end - start <= GENE_BP[1] and end <= len(taken):
            return start, end, introns


def _next_free(taken: np.ndarray, at: int, before: int, site: np.ndarray) -> int:
    """The first place from `at` on where a site, which begins `before` bp ahead of it, covers nothing taken."""
    at = int(at)
    while taken[at - before : at - before + len(site)].any():
        at += 1
    return at


def write_site(rng: np.random.Generator, codes: np.ndarray, first: int, shares: np.ndarray) -> None:
    """Draw a letter for each position of a site, in place from `first` on. shares: of A, C, G, T, [positions, 4]."""
    cumulative = shares.cumsum(axis=1)
    drawn = (rng.random(len(shares))[:, None] >= cumulative / cumulative[:, -1:]).sum(axis=1)
    codes[first : first + len(shares)] = np.array([LETTERS.index(letter) for letter in "ACGT"], np.uint8)[drawn]


def write_splice(folder: Path, genes: list[GeneModel]) -> dict[str, int]:
    """genes.txt, in SpliceAI's format and its 1-based coordinates; returns the counts for the manifest."""
    folder.mkdir()
    lines = []
    for gene in genes:
        ends = "".join(f"{first}," for first, _ in gene.introns)
        starts = "".join(f"{last + 1}," for _, last in gene.introns)
        fields = (gene.name, int(gene.paralog), gene.chromosome, gene.strand, gene.start + 1, gene.end, ends, starts)
        lines.append("\t".join(map(str, fields)) + "\n")
    (folder / "genes.txt").write_text("".join(lines))
    return {"genes": len(genes), "introns": sum(len(gene.introns) for gene in genes)}
