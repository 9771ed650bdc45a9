"""Genotypes at the sites of a locus, from VCF or BCF files: plain, gzip or bgzip; the reader is pysam.

Chromosomes meet the FASTA's across `chr10` and `10`. Coordinates are 0-based half-open inside; messages name sites as a
VCF does, 1-based. What cannot be used is counted, and stands as the reference.
"""

import gzip
import shutil
import tempfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pysam

from data_prep.bases import OTHER, encode
from data_prep.errors import InputError, one_line
from data_prep.genome import Genome
from data_prep.peaks import Regions

MAX_MISMATCHES = 0.01  # share of the sites whose REF may differ from the FASTA
PASSED = ({"PASS"}, set())  # of FILTER; the second is `.`


@dataclass(frozen=True)
class Site:
    """chromosome: the FASTA's name; position: 0-based, of the first letter of `ref`; alts: letters of ACGT, or None of
    an allele that the file does not spell out (`*`, `<DEL>`, a breakend)."""

    chromosome: str
    position: int
    ref: str
    alts: tuple[str | None, ...]

    @property
    def end(self) -> int:
        return self.position + len(self.ref)


@dataclass(frozen=True)
class Genotypes:
    """alleles: int16 [n_sites, n_samples, 2], 0 for REF and i for alts[i - 1], the first haplotype's and the second's;
    sites: sorted by chromosome (FASTA order) and position; counts: of records, of sites and of genotypes by fate."""

    samples: list[str]
    sites: list[Site]
    alleles: np.ndarray
    counts: Counter


def samples_of(path: Path) -> list[str]:
    """The people of a VCF. Raises `InputError` where there are none, or no genotypes."""
    with _with_genotypes(path) as file:
        return list(file.header.samples)


def read_genotypes(paths: list[Path], regions: Regions, genome: Genome, wanted: set[str]) -> Genotypes:
    """The genotypes of the `wanted` samples that all files have, in the first file's order, at the sites that lie over
    any of `regions` (placed on `genome`, those of a chromosome sorted, none overlapping).

    As written, a genotype's first allele is taken for haplotype 1 whether it is phased or not. A missing allele is
    taken as REF, a haploid call as two equal alleles. Raises `InputError` for a file that is no VCF with genotypes, for
    files without a sample of `wanted` in common, without a site in the regions, or of another assembly.
    """
    counts = Counter()
    with ExitStack() as stack:
        files = {path: stack.enter_context(_with_genotypes(path)) for path in paths}
        shared = wanted.intersection(*(file.header.samples for file in files.values()))
        samples = [name for name in files[paths[0]].header.samples if name in shared]
        if not samples:
            among = ", ".join(next(iter(file.header.samples)) for file in files.values())
            raise InputError(
                f"{', '.join(map(str, paths))}: none of the {len(wanted):,} samples with a phenotype is in "
                f"{'it' if len(paths) == 1 else 'all of them'} (first: {among}, against {min(wanted)}); see "
                "--sample-column"
            )
        counts["samples without a phenotype"] = len(set(files[paths[0]].header.samples) - shared)
        found: list[tuple[Site, np.ndarray]] = []
        mismatched: list[str] = []
        for path, file in files.items():
            file.subset_samples(samples)
            for record, chromosome in _records(path, file, regions, genome, counts):
                site = Site(chromosome, record.pos - 1, record.ref.upper(), tuple(map(_letters, record.alts or ())))
                if set(record.filter) not in PASSED:
                    counts["filtered"] += 1
                elif not _matches(site, genome):
                    mismatched.append(f"{record.chrom}:{record.pos} {record.ref}")
                elif site.alts:
                    found.append((site, _alleles(path, record, samples, counts)))
                else:
                    counts["without an alternative"] += 1
    counts["mismatched"] = len(mismatched)
    _check_assembly(paths, genome, counts, mismatched)
    order = {name: number for number, name in enumerate(genome.lengths)}
    found.sort(key=lambda one: (order[one[0].chromosome], one[0].position))
    counts["sites"] = len(found)
    return Genotypes(samples, [site for site, _ in found], np.array([alleles for _, alleles in found]), counts)


@contextmanager
def _with_genotypes(path: Path) -> Iterator[pysam.VariantFile]:
    if not path.is_file():
        raise InputError(f"{path}: no such VCF; give one with --vcf")
    with opened(path) as file:
        if not len(file.header.samples) or "GT" not in file.header.formats:
            raise InputError(f"{path}: its header names no samples, or no FORMAT GT; give a VCF with genotypes")
        yield file


@contextmanager
def opened(path: Path) -> Iterator[pysam.VariantFile]:
    """A VCF or BCF. htslib cannot read gzip without blocks from the middle: such a file is unpacked.

    Raises `InputError` where its header cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="genebert-vcf-") as folder, _silent_htslib():
        readable = path
        try:
            if _is_plain_gzip(path):
                readable = Path(folder) / "unpacked.vcf"
                with gzip.open(path) as packed, open(readable, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            file = pysam.VariantFile(str(readable))
        except (OSError, ValueError, EOFError, zlib.error) as error:
            reason = one_line(error).replace(str(readable), path.name)
            raise InputError(f"{path}: cannot be read as VCF or BCF: {reason}; copy or make it again") from error
        with file:
            yield file


@contextmanager
def _silent_htslib() -> Iterator[None]:
    """Its warnings name no file; what it cannot read, pysam raises."""
    verbosity = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(verbosity)


def _is_plain_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(16)
    return head[:2] == b"\x1f\x8b" and head[12:14] != b"BC"


def _records(
    path: Path, file: pysam.VariantFile, regions: Regions, genome: Genome, counts: Counter
) -> Iterator[tuple[pysam.VariantRecord, str]]:
    """The records whose REF lies over any of the regions, and the FASTA's name of their chromosome."""
    spans = {
        name: (regions.start[here].tolist(), regions.end[here].tolist())
        for number, name in enumerate(regions.names)
        if (here := regions.chromosome == number).any()
    }
    resolved: dict[str, str | None] = {}
    last = "the header"
    try:
        for record in _near(file, regions, genome):
            counts["records"] += 1
            last = f"{record.chrom}:{record.pos}"
            chromosome = resolved.setdefault(record.chrom, genome.resolve(record.chrom))
            if chromosome is None:
                counts["off the FASTA"] += 1
                continue
            starts, ends = spans.get(chromosome, ([], []))
            first = bisect_right(ends, record.pos - 1)  # of the regions, the first that ends after REF begins
            if first < len(ends) and starts[first] < record.pos - 1 + len(record.ref):
                counts["in the regions"] += 1
                yield record, chromosome
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the record after {last} cannot be read: {one_line(error)}; mend it") from error


def _near(file: pysam.VariantFile, regions: Regions, genome: Genome) -> Iterator[pysam.VariantRecord]:
    """All records; of an indexed file those from the first to the last of a chromosome's regions."""
    if file.index is None:
        yield from file
        return
    for contig in file.index:
        name = genome.resolve(contig)
        here = regions.chromosome == (regions.names.index(name) if name else -1)
        if here.any():
            yield from file.fetch(contig, int(regions.start[here].min()), int(regions.end[here].max()))


def _letters(allele: str) -> str | None:
    """An allele as letters of ACGT; None where it is not spelt so."""
    return allele.upper() if (encode(allele) < OTHER).all() else None


def _matches(site: Site, genome: Genome) -> bool:
    """Whether REF is what the FASTA has; any letter outside ACGT stands for any other such."""
    if site.end > genome.lengths[site.chromosome]:
        return False
    return bool(np.array_equal(encode(site.ref), genome.codes(site.chromosome, site.position, site.end)))


def _alleles(path: Path, record: pysam.VariantRecord, samples: list[str], counts: Counter) -> np.ndarray:
    """int16 [n_samples, 2] of one record."""
    alleles = np.zeros((len(samples), 2), np.int16)
    for row, name in zip(alleles, samples, strict=True):
        call = record.samples[name]
        given = call.allele_indices or (None,)
        if len(given) > 2:
            raise InputError(
                f"{path}: {record.chrom}:{record.pos}: {name} has {len(given)} alleles; at most two can be read"
            )
        counts["missing genotypes"] += None in given
        row[:] = [allele or 0 for allele in given]  # of a haploid call the one fills both
        counts["haploid genotypes"] += len(given) == 1 and None not in given
        counts["unphased heterozygous genotypes"] += bool(row[0] != row[1] and not call.phased)
    return alleles


def _check_assembly(paths: list[Path], genome: Genome, counts: Counter, mismatched: list[str]) -> None:
    """Raise `InputError` where no site is in the regions, or where too many have another REF than the FASTA."""
    where = ", ".join(map(str, paths))
    if not counts["in the regions"]:
        raise InputError(
            f"{where}: none of {counts['records']:,} records lies in the regions ({counts['off the FASTA']:,} on "
            f"chromosomes that {genome.path} lacks); give a VCF that covers them, and their genome's FASTA"
        )
    checked = counts["in the regions"] - counts["filtered"]
    if len(mismatched) > MAX_MISMATCHES * checked:
        raise InputError(
            f"{where}: REF is not what {genome.path} has at {len(mismatched):,} of {checked:,} sites in the "
            f"regions (first: {mismatched[0]}); give the FASTA of the VCF's assembly"
        )
