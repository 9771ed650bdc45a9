"""Accessible regions: reading BED and ENCODE peak files, placing them on a genome, merging those that overlap.

Coordinates are 0-based half-open, as in BED.
"""

import gzip
import re
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.genome import Genome

_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII).fullmatch
PEAK_SUFFIXES = (".bed", ".narrowPeak", ".narrowpeak", ".broadPeak", ".broadpeak")


@dataclass(frozen=True)
class Regions:
    """Regions of one cell type; all fields are arrays of one length.

    chromosome: int32, index into the genome's chromosomes (FASTA order) or, when just read, into `names`;
    start, end: int64, bp; names: the chromosomes' names.
    """

    chromosome: np.ndarray
    start: np.ndarray
    end: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: np.ndarray) -> "Regions":
        return Regions(self.chromosome[rows], self.start[rows], self.end[rows], self.names)

    def sorted(self) -> "Regions":
        """By chromosome index, start, end."""
        return self.take(np.lexsort((self.end, self.start, self.chromosome)))

    def distinct(self) -> "Regions":
        """Sorted, each once."""
        regions = self.sorted()
        fields = (regions.chromosome, regions.start, regions.end)
        repeated = np.logical_and.reduce([field[1:] == field[:-1] for field in fields])
        return regions.take(np.flatnonzero(np.append(True, ~repeated)[: len(regions)]))

    @property
    def by_position(self) -> bool:
        """Whether each chromosome's regions stand together, in order of their starts."""
        turns = self.chromosome[1:] != self.chromosome[:-1]
        together = turns.sum() + bool(len(self)) == len(np.unique(self.chromosome))
        return bool(together and (turns | (self.start[1:] >= self.start[:-1])).all())


def cell_type_of(path: Path) -> str:
    """A peak file's cell type: its name without the endings of peak formats and compression."""
    name = path.name.removesuffix(".gz")
    for suffix in PEAK_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def read_regions(path: Path | str) -> Regions:
    """Read the first three columns of BED (3 to 12 columns), narrowPeak or broadPeak, gzipped or not; in their order.

    Raises `InputError`, with the line, for spaces instead of tabs, too few columns, or an interval that is not one.
    """
    path = Path(path)
    names: dict[str, int] = {}
    chromosome, start, end = array("i"), array("q"), array("q")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith("#") or line.split(None, 1)[0] in ("track", "browser"):
                    continue
                fields = line.rstrip("\r\n").split("\t", 3)
                if len(fields) < 3:
                    raise InputError(f"{path}:{number}: {_why_too_few(line)}")
                name, first, last = fields[0], fields[1], fields[2].rstrip()
                if not name.strip() or not (_WHOLE(first) and _WHOLE(last)):
                    raise InputError(
                        f"{path}:{number}: must begin with a chromosome's name and two whole numbers, not with "
                        f"{name[:40]!r}, {first[:40]!r} and {last[:40]!r}"
                    )
                first, last = int(first), int(last)
                if not 0 <= first < last < 2**63:
                    raise InputError(
                        f"{path}:{number}: start {first} and end {last} are no interval (BED: 0 <= start < end)"
                    )
                chromosome.append(names.setdefault(name, len(names)))
                start.append(first)
                end.append(last)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: cannot be read as BED, narrowPeak or broadPeak: {reason}") from error
    return Regions(np.array(chromosome, np.int32), np.array(start, np.int64), np.array(end, np.int64), tuple(names))


def place(regions: Regions, genome: Genome, source: Path | str) -> tuple[Regions, dict[str, str], dict[str, int]]:
    """The regions whose chromosome the FASTA has, with chromosomes indexed in FASTA order; the names that had to be
    mapped (`20` -> `chr20`); and the names that the FASTA lacks, with the regions left out for each.

    Raises `InputError` for a region past its chromosome's end: no FASTA of the right assembly has one.
    """
    order = {name: index for index, name in enumerate(genome.lengths)}
    resolved = [genome.resolve(name) for name in regions.names]
    count = np.bincount(regions.chromosome, minlength=len(resolved))
    unknown = {name: int(n) for name, here, n in zip(regions.names, resolved, count, strict=True) if here is None}
    renamed = {name: here for name, here in zip(regions.names, resolved, strict=True) if here not in (None, name)}

    index_of = np.array([-1 if here is None else order[here] for here in resolved], np.int32)
    placed = index_of[regions.chromosome] >= 0 if len(regions) else np.zeros(0, bool)
    regions = regions.take(np.flatnonzero(placed))
    chromosome = index_of[regions.chromosome] if len(regions) else regions.chromosome
    lengths = np.array(list(genome.lengths.values()), np.int64)[chromosome]
    beyond = np.flatnonzero(regions.end > lengths)
    if len(beyond):
        row = beyond[0]
        raise InputError(
            f"{source}: region {regions.names[regions.chromosome[row]]}:{regions.start[row]}-{regions.end[row]} lies "
            f"past the chromosome's end ({lengths[row]} bp in {genome.path}), as do {len(beyond) - 1} others; "
            "give the FASTA that the peaks were called on"
        )
    return Regions(chromosome, regions.start, regions.end, tuple(genome.lengths)), renamed, unknown


def overlapping(regions: Regions, others: Regions) -> np.ndarray:
    """bool [len(regions)]: which share at least one base with any of `others`; both on the same chromosomes."""
    others = merge_overlapping(others)
    hit = np.zeros(len(regions), bool)
    for number in np.unique(others.chromosome):
        rows = np.flatnonzero(regions.chromosome == number)
        there = others.take(np.flatnonzero(others.chromosome == number))
        # The first of the (disjoint, sorted) others that ends after a region's start overlaps it, or none does.
        first = np.searchsorted(there.end, regions.start[rows], side="right")
        in_reach = first < len(there)
        hit[rows[in_reach]] = there.start[first[in_reach]] < regions.end[rows[in_reach]]
    return hit


def merge_overlapping(regions: Regions) -> Regions:
    """Sorted regions with each run of overlapping ones replaced by its union; regions that only touch stay apart."""
    regions = regions.sorted()
    if not len(regions):
        return regions
    # On each chromosome, the furthest end seen so far; a large step per chromosome keeps them apart in one pass.
    step = int(regions.end.max()) + 1
    offset = regions.chromosome.astype(np.int64) * step
    reach = np.maximum.accumulate(regions.end + offset)
    first = np.flatnonzero(np.append(True, regions.start[1:] + offset[1:] >= reach[:-1]))
    last = np.append(first[1:], len(regions)) - 1
    return Regions(regions.chromosome[first], regions.start[first], reach[last] - offset[last], regions.names)


def _why_too_few(line: str) -> str:
    if len(line.split()) >= 3:
        return "columns are separated by spaces; BED and peak files use tabs"
    return f"{len(line.split())} columns; BED needs at least chromosome, start, end"
