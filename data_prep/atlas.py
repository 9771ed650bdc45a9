"""An atlas: one peak file a cell type, read onto the genome, with an account of every peak."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_prep import workers
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.peaks import Regions, cell_type_of, merge_overlapping, overlapping, place, read_regions

# Peaks on chromosomes that the FASTA lacks; above these shares the assembly is likely another.
MAX_UNKNOWN_SHARE = 0.01  # of all peaks
MAX_UNKNOWN_SHARE_OF_FILE = 0.5


@dataclass(frozen=True)
class PeakFile:
    """What became of one cell type's peaks: peaks = duplicate + unknown_chromosome + blacklisted + merged + regions.

    regions: those that are left, to be used; bp: of all peaks as read; by_position: whether they came sorted; renamed,
    unknown: chromosome names that had to be mapped, and those that the FASTA lacks with their peaks.
    """

    peaks: int
    bp: int
    duplicate: int
    unknown_chromosome: int
    blacklisted: int
    merged: int
    regions: int
    by_position: bool
    renamed: dict[str, str]
    unknown: dict[str, int]


def peak_files(paths: list[str]) -> dict[str, Path]:
    """Peak files by cell type, sorted by it. Raises `InputError` for a missing file or two of one stem."""
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"{path}: no such peak file")
        name = cell_type_of(path)
        if name in files:
            raise InputError(f"{files[name]} and {path} would both be cell type {name!r}; rename one")
        files[name] = path
    return dict(sorted(files.items()))


def read_blacklist(path: str | None, genome: Genome) -> Regions | None:
    """Regions of no use in any cell type, such as ENCODE's. Raises `InputError` where none fits the genome."""
    if path is None:
        return None
    blacklist, _, unknown = place(read_regions(path), genome, path)
    if unknown and not len(blacklist):
        raise InputError(f"{path}: no region lies on a chromosome of {genome.path}; give the blacklist of its assembly")
    if unknown:
        print(f"{path}: {sum(unknown.values()):,} regions on chromosomes that the FASTA lacks are of no effect")
    return blacklist


def read_atlas(
    files: dict[str, Path], genome: Genome, blacklist: Regions | None, n_workers: int
) -> tuple[list[Regions], list[PeakFile]]:
    """Each cell type's regions, sorted and none overlapping, and what became of its peaks, in the order of `files`.

    Prints what had to be mapped, sorted or left out.

    Raises `InputError` for a file that does not fit the genome, and where more than 1% of all peaks lie on chromosomes
    that it lacks.
    """
    paths = list(files.values())
    atlas, failed = {}, {}
    for number, outcome in tqdm(
        workers.unordered(_read, range(len(paths)), n_workers, (paths, genome, blacklist)),
        total=len(paths),
        desc="reading peaks",
        unit="file",
        disable=None,
    ):
        (failed if isinstance(outcome, InputError) else atlas)[number] = outcome
    if failed:
        others = f"; {len(atlas)} of {len(paths)} peak files can be used: are assemblies mixed?" if atlas else ""
        raise InputError(f"{failed[min(failed)]}{others}")
    regions, peaks = map(list, zip(*(atlas[number] for number in range(len(paths))), strict=True))
    _check_chromosomes(paths, peaks, genome)

    renamed = {there: here for one in peaks for there, here in one.renamed.items()}
    if renamed:
        pairs = ", ".join(f"{there} -> {here}" for there, here in sorted(renamed.items()))
        print(f"chromosome names of the peaks mapped to the FASTA's: {pairs}")
    unsorted = [path for path, one in zip(paths, peaks, strict=True) if not one.by_position]
    if unsorted:
        print(f"sorted by position here: {len(unsorted)} of {len(paths)} peak files, the first {unsorted[0]}")
    return regions, peaks


def _check_chromosomes(paths: list[Path], peaks: list[PeakFile], genome: Genome) -> None:
    unknown, total = sum((Counter(one.unknown) for one in peaks), Counter()), sum(one.peaks for one in peaks)
    if not unknown:
        return
    first = next(path for path, one in zip(paths, peaks, strict=True) if one.unknown)
    foreign = [
        path
        for path, one in zip(paths, peaks, strict=True)
        if one.unknown_chromosome > MAX_UNKNOWN_SHARE_OF_FILE * one.peaks
    ]
    if foreign and unknown.total() <= MAX_UNKNOWN_SHARE * total:
        raise InputError(
            f"{foreign[0]}: most of its peaks lie on chromosomes that {genome.path} lacks, where other files fit: are "
            "assemblies mixed? Give files of one assembly, or leave this one out"
        )
    names = ", ".join(f"{name} ({count:,})" for name, count in unknown.most_common(5))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    if unknown.total() > MAX_UNKNOWN_SHARE * total:
        raise InputError(
            f"{first}: {unknown.total():,} of all {total:,} peaks lie on chromosomes that {genome.path} lacks: "
            f"{names}{more}; give the FASTA that the peaks were called on, or remove these peaks"
        )
    print(f"left out: {unknown.total():,} of {total:,} peaks on chromosomes that the FASTA lacks: {names}{more}")


def _read(
    context: tuple[list[Path], Genome, Regions | None], number: int
) -> tuple[int, tuple[Regions, PeakFile] | InputError]:
    paths, genome, blacklist = context
    try:
        return number, read_peak_file(paths[number], genome, blacklist)
    except InputError as error:
        return number, error


def read_peak_file(path: Path, genome: Genome, blacklist: Regions | None) -> tuple[Regions, PeakFile]:
    """One cell type's regions, sorted and none overlapping, on the genome's chromosomes, and what became of its peaks.

    A peak that shares a base with the blacklist is left out. Raises `InputError` for a file that cannot be read, holds
    no peak, or does not fit the genome.
    """
    read = read_regions(path)
    if not len(read):
        raise InputError(f"{path}: holds no peak; leave it out of --peaks")
    placed, renamed, unknown = place(read, genome, path)
    distinct = placed.distinct()
    kept = distinct if blacklist is None else distinct.take((~overlapping(distinct, blacklist)).nonzero()[0])
    merged = merge_overlapping(kept)
    return merged, PeakFile(
        peaks=len(read),
        bp=int((read.end - read.start).sum()),
        duplicate=len(placed) - len(distinct),
        unknown_chromosome=len(read) - len(placed),
        blacklisted=len(distinct) - len(kept),
        merged=len(kept) - len(merged),
        regions=len(merged),
        by_position=read.by_position,
        renamed=renamed,
        unknown=unknown,
    )
