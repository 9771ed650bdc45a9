"""Accessible regions: reading BED and narrowPeak, placing them on a genome, merging those that overlap.

Coordinates are 0-based half-open, as in BED.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.genome import Genome

PEAK_SUFFIXES = (".bed", ".narrowPeak", ".narrowpeak")


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


def cell_type_of(path: Path) -> str:
    """A peak file's cell type: its name without the endings of peak formats and compression."""
    name = path.name.removesuffix(".gz")
    for suffix in PEAK_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def read_regions(path: Path | str) -> Regions:
    """Read the first three columns of a BED or narrowPeak file, gzipped or not; in the file's order.

    Raises `InputError`, with the line, for spaces instead of tabs, too few columns, or an interval that is not one.
    """
    path = Path(path)
    names: dict[str, int] = {}
    chromosome, start, end = [], [], []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or line.startswith(("#", "track", "browser")):
                    continue
                fields = line.rstrip("\r\n").split("\t", 3)
                if len(fields) < 3:
                    raise InputError(f"{path}:{number}: {_why_too_few(line)}")
                try:
                    first, last = int(fields[1]), int(fields[2])
                except ValueError:
                    raise InputError(
                        f"{path}:{number}: start and end must be whole numbers, not {fields[1]!r} and {fields[2]!r}"
                    ) from None
                if not 0 <= first < last < 2**63:
                    raise InputError(
                        f"{path}:{number}: start {first} and end {last} are no interval (BED: 0 <= start < end)"
                    )
                chromosome.append(names.setdefault(fields[0], len(names)))
                start.append(first)
                end.append(last)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: cannot be read as BED or narrowPeak: {reason}") from error
    return Regions(np.array(chromosome, np.int32), np.array(start, np.int64), np.array(end, np.int64), tuple(names))


def place(regions: Regions, genome: Genome, source: Path | str) -> tuple[Regions, dict[str, str]]:
    """The same regions with chromosomes indexed in FASTA order, and the names that had to be mapped (`20` -> `chr20`).

    Raises `InputError` for a chromosome that the FASTA lacks, or a region past its chromosome's end.
    """
    order = {name: index for index, name in enumerate(genome.lengths)}
    renamed, index_of = {}, []
    for position, name in enumerate(regions.names):
        resolved = genome.resolve(name)
        if resolved is None:
            count = int((regions.chromosome == position).sum())
            raise InputError(
                f"{source}: chromosome {name!r} ({count} regions) is not in {genome.path}; "
                "give the FASTA that the peaks were called on, or remove these regions"
            )
        if resolved != name:
            renamed[name] = resolved
        index_of.append(order[resolved])
    chromosome = np.array(index_of, np.int32)[regions.chromosome]
    lengths = np.array(list(genome.lengths.values()), np.int64)[chromosome]
    beyond = np.flatnonzero(regions.end > lengths)
    if len(beyond):
        row = beyond[0]
        raise InputError(
            f"{source}: region {regions.names[regions.chromosome[row]]}:{regions.start[row]}-{regions.end[row]} lies "
            f"past the chromosome's end ({lengths[row]} bp in {genome.path}), as do {len(beyond) - 1} others; "
            "give the FASTA that the peaks were called on"
        )
    return Regions(chromosome, regions.start, regions.end, tuple(genome.lengths)), renamed


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
        return "columns are separated by spaces; BED and narrowPeak use tabs"
    return f"{len(line.split())} columns; BED needs at least chromosome, start, end"
