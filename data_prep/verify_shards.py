"""`inspect --verify`: every file, every sample and every base of a set of shards against what it says of itself.

In this order: each file's sha256, and the tar's members against the index; each sample against the manifest, the index
and the FASTA; the samples of each cell type against one another; the motifs' mean and deviation; and some regions,
scanned again. The first fault ends it with one line that names shard and sample.
"""

import sys
import tarfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import workers
from data_prep.bases import OTHER, decode
from data_prep.binding import Scanner
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.motifs import load_motifs
from data_prep.output_folder import MANIFEST
from data_prep.remote_file import is_remote, url
from data_prep.shard_format import MEMBERS, REGIONS, REGIONS_PER_SAMPLE, SPLITS, Sample
from data_prep.shard_reader import ShardReader, check_content, read_manifest, verify_shard
from data_prep.shard_set import REPAIR, ShardSet

SCANNED_AGAIN = 1000  # regions
STATISTICS_TOLERANCE = 1e-6  # of the manifest's mean and deviation, absolute and relative
_CHUNK = 64  # samples
_MOST_BASES = 300_000_000  # of chromosomes in memory at a time, if they are more than one
_SEED = 0  # of the regions scanned again


def verify_shards(location: str, fasta: str | None, n_workers: int) -> None:
    """Check the shards in the folder `location` and print what was checked; bases only with `fasta`.

    Raises `InputError` for the first fault found, with the shard, the sample and what differs.
    """
    if is_remote(location):
        raise InputError(f"{url(location)}: lies behind a URL; copy the folder here, then verify it")
    manifest = read_manifest(location)
    check_content(location, manifest, REGIONS, "inspect --verify")
    genome = open_genome(fasta, manifest) if fasta else None
    check_files(Path(location), manifest, n_workers)
    shard_set = ShardSet(location)
    spans, bp = check_samples(shard_set, genome, n_workers)
    check_order(shard_set, spans)
    check_regions(shard_set)
    n_scanned, reason = scan_again(shard_set)

    against = f"{bp:,} bp against {genome.path.name}" if genome else f"{bp:,} bp"
    print(
        f"verified: {len(shard_set):,} samples in {len(shard_set.entries):,} shards, {against}"
        + (f", {n_scanned:,} regions scanned again" if n_scanned else "")
        + ("" if genome else "; not checked: the bases, for want of --genome FASTA")
        + (f"; not scanned again: {reason}" if reason else "")
    )


def open_genome(fasta: str, manifest: dict) -> Genome:
    """The FASTA to compare with; warns where it is another file than the shards were made from."""
    genome = Genome(fasta)
    expected, found = manifest["genome"]["sha256"], sha256_of_file(genome.path)
    if found != expected:
        print(
            f"warning: {fasta}: sha256 {found}; the shards were made from {manifest['genome']['name']}, "
            f"sha256 {expected}: bases are compared all the same",
            file=sys.stderr,
        )
    return genome


def check_files(folder: Path, manifest: dict, n_workers: int) -> None:
    """Check each shard's and index's sha256, and that the index tells where the tar's members are."""
    firsts = dict.fromkeys(SPLITS, 0)
    tasks = []
    for entry in manifest["shards"]:
        tasks.append((entry, firsts[entry["split"]]))
        firsts[entry["split"]] += entry["samples"]
    with tqdm(total=len(tasks), desc="verifying files", unit="shard", disable=None) as progress:
        for _ in workers.unordered(_check_file, tasks, n_workers, (folder, manifest)):
            progress.update()


def _check_file(context: tuple[Path, dict], task: tuple[dict, int]) -> None:
    (folder, manifest), (entry, first) = context, task
    verify_shard(folder, entry)
    index = ShardReader(folder, entry["split"], manifest | {"shards": [entry]}).index
    fault = tar_fault(folder / entry["name"], index, first)
    if fault:
        raise InputError(f"{folder / entry['name']}: {fault}; {REPAIR}")


def tar_fault(tar: Path, index: np.ndarray, first: int) -> str | None:
    """What does not fit between a tar and its index, in a few words.

    Sample i has the key first + i, in nine digits, and its members in the format's order.
    """
    try:
        with tarfile.open(tar, "r:") as file:
            members = [(member.name, member.offset_data, member.size) for member in file]
    except (tarfile.TarError, OSError) as error:
        return f"not a whole tar ({error})"
    if len(members) != len(index) * len(MEMBERS):
        return f"{len(members)} members, not {len(MEMBERS)} for each of {len(index)} samples"
    for number, row in enumerate(index):
        own = members[number * len(MEMBERS) : (number + 1) * len(MEMBERS)]
        names = [f"{first + number:09d}.{member}" for member in MEMBERS]
        expected = list(zip(names, row["offset"].tolist(), row["size"].tolist(), strict=True))
        if own != expected:
            found, wanted = next(pair for pair in zip(own, expected, strict=True) if pair[0] != pair[1])
            return (
                f"sample {number}: {found[0]} of {found[2]} bytes at {found[1]}, where {wanted[0]} of {wanted[2]} at "
                f"{wanted[1]} belongs by the index"
            )
    return None


def check_samples(shard_set: ShardSet, genome: Genome | None, n_workers: int) -> tuple[np.ndarray, int]:
    """Check every sample, its bases where there is a genome, and the manifest's mean and deviation of each motif.

    Returns each sample's (index within the cell type, first start, last end), int64 [n, 3], and the number of bp.
    """
    manifest = shard_set.manifest
    names = resolved_names(shard_set, genome) if genome else {}
    chromosome = shard_set.index["chromosome"]
    spans, bp = np.zeros((len(shard_set), 3), np.int64), 0
    sums = np.zeros((2, len(manifest["motifs"])))
    with tqdm(total=len(shard_set), desc="verifying samples", unit="sample", disable=None) as progress:
        for group in chromosome_groups(np.unique(chromosome).tolist(), genome, names):
            codes = {number: genome.codes(names[number]) for number in group} if genome else {}
            numbers = np.flatnonzero(np.isin(chromosome, group))
            chunks = np.split(numbers, range(_CHUNK, len(numbers), _CHUNK))
            for chunk, its_spans, its_sums, its_bp in workers.unordered(
                _check_chunk, chunks, n_workers, (shard_set, codes)
            ):
                spans[chunk] = its_spans
                sums += its_sums
                bp += its_bp
                progress.update(len(chunk))
    check_statistics(shard_set, *sums)
    return spans, bp


def resolved_names(shard_set: ShardSet, genome: Genome) -> dict[int, str]:
    """The FASTA's names of the chromosomes that have samples, by their number in the manifest."""
    names = {}
    for number in np.unique(shard_set.index["chromosome"]).tolist():
        name = shard_set.manifest["chromosomes"][number]
        names[number] = genome.resolve(name)
        if names[number] is None:
            raise InputError(f"{genome.path}: has no chromosome {name!r}, on which {shard_set.location} has samples")
    return names


def chromosome_groups(numbers: list[int], genome: Genome | None, names: dict[int, str]) -> list[list[int]]:
    """Chromosomes to hold in memory together: one, or many small ones; all where there is no genome to hold."""
    if genome is None:
        return [numbers]
    groups, room = [], 0
    for number in numbers:
        room -= genome.lengths[names[number]]
        if room < 0:
            groups.append([])
            room = _MOST_BASES - genome.lengths[names[number]]
        groups[-1].append(number)
    return groups


def _check_chunk(context: tuple[ShardSet, dict], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    shard_set, codes = context
    spans, bp = [], 0
    sums = np.zeros((2, len(shard_set.manifest["motifs"])))
    for number in numbers.tolist():
        sample, row = shard_set[number], shard_set.index[number]
        cell_type, chromosome = int(row["cell_type"]), int(row["chromosome"])
        is_val = shard_set.split(number) == "val"
        fault = sample_fault(sample, shard_set.manifest, cell_type, chromosome, is_val, codes.get(chromosome))
        if fault:
            raise InputError(f"{shard_set.where(number)}: {fault}; {REPAIR}")
        spans.append((sample.meta["index"], sample.meta["starts"][0], sample.meta["ends"][-1]))
        bp += len(sample.bases)
        if not is_val:
            binding = sample.binding.astype(np.float64)
            sums += binding.sum(axis=0), (binding**2).sum(axis=0)
    return numbers, np.array(spans, np.int64), sums, bp


def sample_fault(
    sample: Sample, manifest: dict, cell_type: int, chromosome: int, is_val: bool, codes: np.ndarray | None
) -> str | None:
    """What is wrong with a sample whose members are of the format, in a few words; None where nothing is.

    cell_type, chromosome: of its row in the index; codes: base codes of the whole chromosome, None for no FASTA.
    """
    meta = sample.meta
    of_index = {
        "cell_type": manifest["cell_types"][cell_type]["name"],
        "chromosome": manifest["chromosomes"][chromosome],
    }
    for key, expected in of_index.items():
        if meta[key] != expected:
            return f"its {key} is {meta[key]!r} in meta.json and {expected!r} in the index"
    if is_val != (meta["chromosome"] in manifest["val_chromosomes"]):
        held_out = ", ".join(manifest["val_chromosomes"]) or "none"
        return f"lies on {meta['chromosome']} in {SPLITS[is_val]}, and the held-out chromosomes are: {held_out}"
    starts, ends = np.array(meta["starts"]), np.array(meta["ends"])
    regions = [f"{meta['chromosome']}:{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    wrong = np.flatnonzero(ends - starts != sample.lengths)
    if len(wrong):
        return f"region {wrong[0]}, {regions[wrong[0]]}, has length {sample.lengths[wrong[0]]}"
    earliest = np.append(0, ends[:-1])
    wrong = np.flatnonzero(starts < earliest)
    if len(wrong):
        return (
            f"region {wrong[0]}, {regions[wrong[0]]}, begins before {earliest[wrong[0]]}: out of order or overlapping"
        )
    if sample.bases.max() > OTHER:
        return f"bases.npy holds {sample.bases.max()}, and codes end at {OTHER}"
    return binding_fault(sample.binding, sample.lengths, manifest) or (
        base_fault(sample.bases, starts, ends, regions, codes) if codes is not None else None
    )


def binding_fault(binding: np.ndarray, lengths: np.ndarray, manifest: dict) -> str | None:
    """What value cannot be an affinity. binding: float16 [10, n_motifs]."""
    most = {"max": 1.0, "occupancy": np.finfo(np.float16).max, "hits": 2.0 * lengths[:, None]}[manifest["affinity"]]
    wrong = ~(np.isfinite(binding) & (binding >= 0) & (binding <= most))
    if manifest["affinity"] == "hits":
        wrong |= binding != np.round(binding)
    if not wrong.any():
        return None
    region, motif = np.argwhere(wrong)[0]
    return (
        f"binding of region {region} to {manifest['motifs'][motif]} is {binding[region, motif]:.4g}, no affinity "
        f"{manifest['affinity']!r}"
    )


def base_fault(
    bases: np.ndarray, starts: np.ndarray, ends: np.ndarray, regions: list[str], codes: np.ndarray
) -> str | None:
    """Where the bases of a sample differ from the chromosome's."""
    if ends[-1] > len(codes):
        return f"region {regions[-1]} ends past the FASTA's {len(codes)} bp"
    expected = np.concatenate([codes[start:end] for start, end in zip(starts, ends, strict=True)])
    wrong = np.flatnonzero(bases != expected)
    if not len(wrong):
        return None
    bounds = np.cumsum(ends - starts)
    region = int(np.searchsorted(bounds, wrong[0], side="right"))
    at = wrong[0] - bounds[region] + ends[region]
    return (
        f"{len(wrong)} of {len(bases)} bases differ from the FASTA, the first at {at} (0-based) in region {region}, "
        f"{regions[region]}: {decode(bases[wrong[:1]])}, and the FASTA has {decode(expected[wrong[:1]])}"
    )


def check_statistics(shard_set: ShardSet, total: np.ndarray, squares: np.ndarray) -> None:
    """Check the manifest's mean and deviation of each motif. total, squares: float64 [n_motifs], over training rows."""
    rows = max(shard_set.n_train, 1) * REGIONS_PER_SAMPLE
    mean = total / rows
    std = np.sqrt(np.maximum(squares / rows - mean**2, 0.0))
    for key, found in (("binding_mean", mean), ("binding_std", std)):
        named = np.array(shard_set.manifest[key])
        wrong = np.flatnonzero(~np.isclose(named, found, rtol=STATISTICS_TOLERANCE, atol=STATISTICS_TOLERANCE))
        if len(wrong):
            raise InputError(
                f"{shard_set.path(MANIFEST)}: {key} of {shard_set.manifest['motifs'][wrong[0]]} is {named[wrong[0]]}, "
                f"and {found[wrong[0]]} over the training samples: a binding value was changed; {REPAIR}"
            )


def check_order(shard_set: ShardSet, spans: np.ndarray) -> None:
    """Check that each cell type's samples are numbered 0 ... n - 1, along each chromosome, and share no region.

    spans: int64 [n, 3], each sample's index within the cell type, first start and last end.
    """
    index, start, end = spans.T
    cell_type, chromosome = shard_set.index["cell_type"], shard_set.index["chromosome"]
    order = np.lexsort((index, cell_type))
    first_of_type = np.searchsorted(cell_type[order], cell_type[order])
    wrong = np.flatnonzero(index[order] != np.arange(len(order)) - first_of_type)
    if len(wrong):
        number = order[wrong[0]]
        raise InputError(
            f"{shard_set.where(number)}: index {index[number]} within {shard_set.cell_types[cell_type[number]]}, where "
            f"{wrong[0] - first_of_type[wrong[0]]} comes next: a sample is missing or repeated; {REPAIR}"
        )
    order = np.lexsort((index, chromosome, cell_type))
    one, next_ = order[:-1], order[1:]
    together = (cell_type[one] == cell_type[next_]) & (chromosome[one] == chromosome[next_])
    wrong = np.flatnonzero(together & (start[next_] < end[one]))
    if len(wrong):
        number, before = next_[wrong[0]], one[wrong[0]]
        raise InputError(
            f"{shard_set.where(number)}: begins at {start[number]}, before {end[before]}, where the one before it in "
            f"{shard_set.cell_types[cell_type[number]]} ends ({shard_set.where(before)}); {REPAIR}"
        )


def check_regions(shard_set: ShardSet) -> None:
    """Check each cell type's number of regions in samples, as the manifest counts them among its peaks."""
    for cell_type in shard_set.manifest["cell_types"]:
        counted, held = cell_type["regions"]["in_samples"], REGIONS_PER_SAMPLE * sum(cell_type["samples"].values())
        if counted != held:
            raise InputError(
                f"{shard_set.path(MANIFEST)}: counts {counted} regions of {cell_type['name']} in samples, which hold "
                f"{held}; {REPAIR}"
            )


def scan_again(shard_set: ShardSet) -> tuple[int, str | None]:
    """Scan some regions, drawn by a fixed seed, and compare with their rows; how many, and why not where none.

    Values may differ by one unit in the last place of float16, as processors sum in different orders.
    """
    manifest = shard_set.manifest
    source = manifest.get("motif_source", "")
    try:
        motifs = load_motifs(source, manifest.get("tax_group", "vertebrates"))
    except InputError as error:
        return 0, f"motifs {source!r} cannot be loaded ({error})"
    if [motif.matrix_id for motif in motifs] != manifest["motifs"]:
        return 0, f"motifs {source!r} are not those of the shards"
    n = len(shard_set) * REGIONS_PER_SAMPLE
    drawn = np.sort(np.random.default_rng(_SEED).choice(n, min(SCANNED_AGAIN, n), replace=False))
    regions, stored = [], []
    for number in np.unique(drawn // REGIONS_PER_SAMPLE):
        sample = shard_set[number]
        rows = drawn[drawn // REGIONS_PER_SAMPLE == number] % REGIONS_PER_SAMPLE
        pieces = np.split(sample.bases, np.cumsum(sample.lengths)[:-1])
        regions += [pieces[row] for row in rows]
        stored.append(sample.binding[rows])
    stored = np.concatenate(stored)
    scanned = Scanner.of(motifs, manifest["affinity"]).scan(regions)
    allowed = np.spacing(np.maximum(stored, scanned)).astype(np.float64)
    wrong = np.argwhere(np.abs(stored.astype(np.float64) - scanned) > allowed)
    if len(wrong):
        region, motif = wrong[0]
        number, row = divmod(int(drawn[region]), REGIONS_PER_SAMPLE)
        raise InputError(
            f"{shard_set.where(number)}: binding of region {row} to {manifest['motifs'][motif]} is "
            f"{stored[region, motif]:.4g}, and {scanned[region, motif]:.4g} where its bases are scanned; {REPAIR}"
        )
    return len(drawn), None
