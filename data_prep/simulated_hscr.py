"""A simulated cohort at a simulated locus: VCF, table of people and BED, in the formats of real studies.

People carry mosaics of a few founder haplotypes, so that neighbouring sites are linked; some are families. Disease
follows from a liability: three variants that break strong sites of neural crest factors at the locus, and noise.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pysam

from data_prep.bases import LETTERS, decode, reverse_complement
from data_prep.motifs import Motif

if TYPE_CHECKING:  # the module that calls this one
    from data_prep.simulate import AccessibleRegions

CHROMOSOME = "chr2"
CELL_TYPE = "neural_crest_cell"
CAUSAL_MOTIFS = ("SOX10", "TFAP2A", "PAX3")
N_REGIONS, SITES_PER_REGION = 8, 7  # sites besides the causal ones
BORDER, SPACING = 20, 12  # bp between sites and their region's ends, and between sites
POPULATIONS = {"north": (160, 35), "south": (140, 40)}  # unrelated people, and families of two parents and two children
FOUNDERS, SWITCH = 14, 0.1  # haplotypes of a population, and how often a copy goes on as another one, at a site
CAUSAL_FREQUENCY = (0.3, 0.55)
INDELS, MULTIALLELIC = 0.15, 0.04  # shares of the other sites
GENETIC = 0.3  # share of the liability's variance
CASES = 0.4  # share of all people
MISSING, UNPHASED = 0.002, 0.01  # shares of the genotypes


@dataclass(frozen=True)
class Variant:
    """position: 0-based; motif: name of the factor whose site it breaks; None of a variant without effect."""

    position: int
    ref: str
    alts: tuple[str, ...]
    motif: str | None = None


def write_hscr(
    rng: np.random.Generator,
    folder: Path,
    genome: dict[str, np.ndarray],
    regions: dict[str, "AccessibleRegions"],
    accessible: dict[str, dict[str, np.ndarray]],
    motifs: dict[str, Motif],
) -> dict[str, int | float]:
    """Write genotypes.vcf.gz (chromosome named without `chr`), samples.tsv, locus.bed and causal_variants.tsv; returns
    counts, and the AUC of the genetic part of the liability, which no model can be expected to pass.

    genome: base codes by chromosome; regions: by chromosome; accessible: by chromosome and cell type, bool
    [n_regions].
    """
    folder.mkdir()
    chromosome, is_open = genome[CHROMOSOME], np.flatnonzero(accessible[CHROMOSOME][CELL_TYPE])
    rows = is_open[rng.integers(len(is_open) - N_REGIONS) :][:N_REGIONS]
    locus = [(int(regions[CHROMOSOME].start[row]), int(regions[CHROMOSOME].end[row])) for row in rows]
    variants = draw_variants(rng, chromosome, locus, motifs)
    causal = [row for row, variant in enumerate(variants) if variant.motif]
    haplotypes, people = draw_people(rng, variants, causal)
    risk = (haplotypes[:, :, causal] > 0).sum(axis=(1, 2))
    noise = rng.normal(size=len(risk)) * risk.std() * np.sqrt((1 - GENETIC) / GENETIC)
    liability = risk + noise
    is_case = liability > np.quantile(liability, 1 - CASES)

    name = CHROMOSOME.removeprefix("chr")
    with pysam.BGZFile(str(folder / "genotypes.vcf.gz"), "wb") as file:
        file.write(vcf_text(rng, name, len(chromosome), variants, haplotypes, [row[0] for row in people]).encode())
    rows = [(*row, int(case)) for row, case in zip(people, is_case, strict=True)]
    _write_tsv(folder / "samples.tsv", [("sample.id", "family.id", "Population", "status"), *rows])
    _write_tsv(folder / "locus.bed", [(CHROMOSOME, *ends, f"region{i}") for i, ends in enumerate(locus)])
    _write_tsv(
        folder / "causal_variants.tsv",
        [("chromosome", "position", "ref", "alt", "motif")]
        + [(name, v.position + 1, v.ref, v.alts[0], v.motif) for v in variants if v.motif],
    )
    counts = {"people": len(people), "cases": int(is_case.sum()), "sites": len(variants)}
    return counts | {"reachable_auc": auc(risk, is_case)}


def draw_variants(
    rng: np.random.Generator, chromosome: np.ndarray, locus: list[tuple[int, int]], motifs: dict[str, Motif]
) -> list[Variant]:
    """The variants of the locus, by position: one that breaks the strongest site of each causal factor, and others."""
    variants = [breaking(chromosome, locus, motifs[name]) for name in CAUSAL_MOTIFS]
    for start, end in locus:
        places = rng.permutation(np.arange(start + BORDER, end - BORDER))
        wanted = len(variants) + SITES_PER_REGION
        for place in places.tolist():
            if len(variants) < wanted and all(abs(place - other.position) > SPACING for other in variants):
                variants.append(other_variant(rng, chromosome, place))
    return sorted(variants, key=lambda variant: variant.position)


def breaking(chromosome: np.ndarray, locus: list[tuple[int, int]], motif: Motif) -> Variant:
    """The change of one letter that costs the motif's strongest site in the locus the most of its log-odds."""
    by_code = motif.log_odds[["ACGT".index(letter) for letter in LETTERS]]
    best, found = -np.inf, None
    for start, end in locus:
        for place in range(start + BORDER, end - BORDER - by_code.shape[1]):
            site = chromosome[place : place + by_code.shape[1]]
            for codes, forward in ((site, True), (reverse_complement(site), False)):
                log_odds = by_code[codes, np.arange(len(codes))]
                if log_odds.sum() > best:
                    best = log_odds.sum()
                    column = int((log_odds - by_code.min(axis=0)).argmax())
                    alt = int(by_code[:, column].argmin())
                    found = (place + column, alt) if forward else (place + len(codes) - 1 - column, alt ^ 1)
    position, alt = found
    return Variant(position, decode(chromosome[[position]]), (LETTERS[alt],), motif.name)


def other_variant(rng: np.random.Generator, chromosome: np.ndarray, position: int) -> Variant:
    """A change of one letter, sometimes to either of two; or an insertion or deletion of 1 to 6 bp."""
    ref = decode(chromosome[[position]])
    if rng.random() < INDELS:
        n = int(rng.integers(1, 7))
        if rng.random() < 0.5:
            return Variant(position, decode(chromosome[position : position + n + 1]), (ref,))
        return Variant(position, ref, (ref + decode(rng.integers(0, 4, size=n)),))
    alts = rng.permutation([letter for letter in LETTERS if letter != ref]).tolist()
    return Variant(position, ref, tuple(alts[: 2 if rng.random() < MULTIALLELIC else 1]))


def draw_people(
    rng: np.random.Generator, variants: list[Variant], causal: list[int]
) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """Alleles, int8 [n, 2, n_variants]; and of each person the name, the family and the population."""
    ancient = founders(rng, variants, causal)
    haplotypes, people = [], []
    for population, (unrelated, families) in POPULATIONS.items():
        own = ancient[rng.permutation(len(ancient))[:FOUNDERS]]
        for _ in range(unrelated):
            haplotypes.append(np.stack([mosaic(rng, own), mosaic(rng, own)]))
            people.append((f"SIM{len(people):04d}", f"SIM{len(people):04d}", population))
        for number in range(families):
            parents = [np.stack([mosaic(rng, own), mosaic(rng, own)]) for _ in range(2)]
            children = [np.stack([parent[rng.integers(2)] for parent in parents]) for _ in range(2)]
            for person in (*parents, *children):
                haplotypes.append(person)
                people.append((f"SIM{len(people):04d}", f"{population}{number:02d}", population))
    return np.array(haplotypes), people


def founders(rng: np.random.Generator, variants: list[Variant], causal: list[int]) -> np.ndarray:
    """Alleles, int8 [n, n_variants], of the haplotypes from which both populations come."""
    n = FOUNDERS + FOUNDERS // 2
    frequency = rng.beta(0.8, 2.0, size=len(variants)).clip(0.05, 0.6)
    frequency[causal] = rng.uniform(*CAUSAL_FREQUENCY, size=len(causal))
    carries = rng.random((n, len(variants))) < frequency
    which = rng.integers(1, [len(variant.alts) + 1 for variant in variants], size=carries.shape)
    return np.where(carries, which, 0).astype(np.int8)


def mosaic(rng: np.random.Generator, own: np.ndarray) -> np.ndarray:
    """One haplotype, int8 [n_variants], copied from founders."""
    n = own.shape[1]
    turns = np.append(0, 1 + np.flatnonzero(rng.random(n - 1) < SWITCH))
    copied = np.empty(n, np.int8)
    for first, last in pairwise([*turns.tolist(), n]):
        copied[first:last] = own[rng.integers(len(own)), first:last]
    return copied


def vcf_text(
    rng: np.random.Generator,
    chromosome: str,
    length: int,
    variants: list[Variant],
    haplotypes: np.ndarray,
    samples: list[str],
) -> str:
    """A VCF 4.2 of all people; some genotypes are missing, some without phase."""
    lines = [
        "##fileformat=VCFv4.2",
        "##source=simulated",
        f"##contig=<ID={chromosome},length={length}>",
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]),
    ]
    for row, variant in enumerate(variants):
        drawn = rng.random(len(samples)).tolist()
        calls = [
            "./." if u < MISSING else f"{first}{'/' if u < MISSING + UNPHASED else '|'}{second}"
            for u, (first, second) in zip(drawn, haplotypes[:, :, row].tolist(), strict=True)
        ]
        place = [chromosome, str(variant.position + 1), ".", variant.ref, ",".join(variant.alts)]
        lines.append("\t".join([*place, ".", "PASS", ".", "GT", *calls]))
    return "\n".join(lines) + "\n"


def auc(score: np.ndarray, is_case: np.ndarray) -> float:
    """The chance that a case scores higher than a control, ties counted half."""
    above = score[is_case][:, None] - score[~is_case][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def _write_tsv(path: Path, rows: list[tuple]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
