"""The regions of a locus, and what people's chromosomes hold there."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.bases import OTHER, decode
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.haplotypes import SHORTEST, RegionHaplotypes, change, haplotypes, within
from data_prep.peaks import Regions, merge_overlapping, place, read_regions
from data_prep.samples import MAX_N_SHARE
from data_prep.vcf import Genotypes, Site


@dataclass(frozen=True)
class Locus:
    """People's haplotypes over the regions.

    haplotypes: a row for each distinct one of each region, with columns id, region and sequence; of_each: int32
    [n_people, 2, n_regions], ids; alleles: `10:1234:A:G` (1-based), those that somebody carries; dosages: uint8
    [n_people, n_alleles], copies of each; counts: of alleles by fate.
    """

    haplotypes: pd.DataFrame
    of_each: np.ndarray
    alleles: list[str]
    dosages: np.ndarray
    counts: Counter


def read_locus(path: Path, genome: Genome, long: int, counts: Counter) -> Regions:
    """The regions of a BED file on the genome, widened by `long` on both sides, those that overlap merged.

    Left out, and counted, are those on chromosomes that the FASTA lacks, shorter than the shortest sequence, and mostly
    N. Raises `InputError` where none is left.
    """
    regions, _, unknown = place(read_regions(path), genome, path)
    counts["regions off the FASTA"] = sum(unknown.values())
    lengths = np.array(list(genome.lengths.values()))[regions.chromosome]
    wide = Regions(
        regions.chromosome, np.maximum(regions.start - long, 0), np.minimum(regions.end + long, lengths), regions.names
    )
    merged = merge_overlapping(wide)
    counts["regions merged"] = len(regions) - len(merged)
    short = merged.end - merged.start < SHORTEST
    over_n = np.array([(codes == OTHER).mean() > MAX_N_SHARE for codes in codes_of(merged, genome)], bool)
    counts["short regions"], counts["regions over N"] = int(short.sum()), int((over_n & ~short).sum())
    kept = merged.take(np.flatnonzero(~short & ~over_n))
    counts["regions"] = len(kept)
    if not len(kept):
        raise InputError(
            f"{path}: no region is left: {counts['regions off the FASTA']:,} on chromosomes that {genome.path} lacks, "
            f"{counts['short regions']:,} shorter than {SHORTEST} bp, {counts['regions over N']:,} mostly N"
        )
    return kept


def codes_of(regions: Regions, genome: Genome) -> list[np.ndarray]:
    """The base codes of each region."""
    return [
        genome.codes(regions.names[chromosome], start, end)
        for chromosome, start, end in zip(
            regions.chromosome.tolist(), regions.start.tolist(), regions.end.tolist(), strict=True
        )
    ]


def names_of(regions: Regions) -> list[str]:
    """`chr10:1000-1500` of each, 0-based half-open as in BED."""
    rows = zip(regions.chromosome.tolist(), regions.start.tolist(), regions.end.tolist(), strict=True)
    return [f"{regions.names[chromosome]}:{start}-{end}" for chromosome, start, end in rows]


def regions_named(names: list[str], genome: Genome) -> Regions:
    """The regions that `names_of` gave these names, in their order, on a FASTA that may name chromosomes otherwise.

    Raises `InputError` where the FASTA lacks one.
    """
    order = {name: index for index, name in enumerate(genome.lengths)}
    rows = []
    for name in names:
        chromosome, _, span = name.rpartition(":")
        start, end = map(int, span.split("-"))
        resolved = genome.resolve(chromosome)
        if resolved is None or end > genome.lengths[resolved]:
            raise InputError(
                f"{genome.path}: does not have {name}, a region of the locus; give the FASTA of its assembly"
            )
        rows.append((order[resolved], start, end))
    chromosomes, starts, ends = zip(*rows, strict=True)
    return Regions(np.array(chromosomes, np.int32), np.array(starts), np.array(ends), tuple(genome.lengths))


def over_regions(genotypes: Genotypes, regions: Regions, genome: Genome) -> Locus:
    """The haplotypes of everybody over every region."""
    sites = genotypes.sites
    changes = [[None if alt is None else change(site.position, site.ref, alt) for alt in site.alts] for site in sites]
    counts, taken, found = Counter(), set(), []
    chromosomes = [regions.names[number] for number in regions.chromosome.tolist()]
    rows_of = zip(names_of(regions), chromosomes, regions.start.tolist(), codes_of(regions, genome), strict=True)
    for name, chromosome, start, codes in rows_of:
        end = start + len(codes)
        rows = [
            number
            for number, site in enumerate(sites)
            if site.chromosome == chromosome and site.position < end and start < site.end
        ]
        applied = [[None] * len(changes[row]) for row in rows]
        for row, of_site in zip(rows, applied, strict=True):
            for allele, whole in enumerate(changes[row]):
                if whole is None:
                    continue
                part = within(whole, start, end)
                if part is not None:
                    of_site[allele] = whole
                    taken.add((row, allele))
                    counts["cut at a border"] += part != whole
                else:
                    counts["over a border"] += max(whole.start, start) < min(whole.end, end)
        one = haplotypes(decode(codes), start, applied, genotypes.alleles[rows])
        counts["overlapping"] += one.overlapping
        counts["deleted"] += one.deleted
        found.append((name, one))

    copies = {
        (site, allele): (genotypes.alleles[site] == allele + 1).sum(axis=1)
        for site, each in enumerate(changes)
        for allele in range(len(each))
    }
    counts["not spelt out"] = sum(int(n.sum()) for (site, allele), n in copies.items() if not changes[site][allele])
    return _locus(sites, found, {one: copies[one] for one in sorted(taken) if copies[one].any()}, counts)


def _locus(
    sites: list[Site],
    found: list[tuple[str, RegionHaplotypes]],
    carried: dict[tuple[int, int], np.ndarray],
    counts: Counter,
) -> Locus:
    """Number the haplotypes of all regions through. carried: by site and allele, its copies in each person."""
    first = np.cumsum([0, *(len(one.sequences) for _, one in found)])
    rows = [(name, sequence) for name, one in found for sequence in one.sequences]
    table = pd.DataFrame(rows, columns=["region", "sequence"]).rename_axis("id").reset_index()
    of_each = np.stack([one.of_each + start for (_, one), start in zip(found, first, strict=False)], axis=2)
    names = [
        f"{sites[site].chromosome}:{sites[site].position + 1}:{sites[site].ref}:{sites[site].alts[allele]}"
        for site, allele in carried
    ]
    return Locus(table, of_each, names, np.array(list(carried.values()), np.uint8).T, counts)
