"""Simulated ChIP-seq: narrowPeak files over binding sites that `simulate` wrote into the genome, summits near them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Transcription factor and cell type of each experiment.
EXPERIMENTS = (("CTCF", "smooth_muscle_cell"), ("HNF4A", "hepatocyte"), ("REST", "neuron"))
MOST_PEAKS = 700  # of an experiment, drawn from its sites
APART = 300  # bp between the middles of an experiment's peaks, at least
JITTER = 12  # bp of a summit from the middle of its site, standard deviation
FLANK_MIN, FLANK_MAX = 80, 220  # bp of a peak on either side of its summit


@dataclass(frozen=True)
class BindingSite:
    """motif: its name; region: row of the accessible regions of its chromosome; start: bp on the chromosome; bases:
    uint8, as planted: what was planted later may have changed them."""

    motif: str
    region: int
    start: int
    bases: np.ndarray


def write_tfbs(
    rng: np.random.Generator,
    folder: Path,
    genome: dict[str, np.ndarray],
    accessible: dict[str, dict[str, np.ndarray]],
    planted: dict[str, list[BindingSite]],
) -> dict[str, int]:
    """CELL_TYPE_FACTOR.narrowPeak of each experiment; returns their numbers of peaks.

    accessible: by chromosome and cell type, bool [n_regions]; planted: by chromosome. A factor binds its sites that
    are whole, in the regions open in the cell type.
    """
    folder.mkdir()
    counts = {}
    for motif, cell_type in EXPERIMENTS:
        peaks = []
        for name, sites in planted.items():
            bound = [
                site
                for site in sites
                if site.motif == motif and accessible[name][cell_type][site.region] and is_whole(site, genome[name])
            ]
            middles = [site.start + len(site.bases) // 2 for site in sorted(bound, key=lambda site: site.start)]
            peaks += [(name, middle) for middle in kept_apart(middles)]
        drawn = np.sort(rng.permutation(len(peaks))[:MOST_PEAKS]).tolist()
        lines = []
        for number, row in enumerate(drawn, 1):
            name, middle = peaks[row]
            summit = middle + round(rng.normal(0, JITTER))
            start, end = summit - rng.integers(FLANK_MIN, FLANK_MAX), summit + rng.integers(FLANK_MIN, FLANK_MAX)
            signal = rng.lognormal(3, 0.6)
            score = min(1000, round(10 * signal))
            lines.append(f"{name}\t{start}\t{end}\tpeak_{number}\t{score}\t.\t{signal:.2f}\t-1\t-1\t{summit - start}\n")
        (folder / f"{cell_type}_{motif}.narrowPeak").write_text("".join(lines))
        counts[f"{cell_type}_{motif}"] = len(lines)
    return counts


def is_whole(site: BindingSite, chromosome: np.ndarray) -> bool:
    return np.array_equal(chromosome[site.start : site.start + len(site.bases)], site.bases)


def kept_apart(middles: list[int]) -> list[int]:
    """Of sorted positions, each that lies `APART` bp or more past the last one kept."""
    kept: list[int] = []
    for middle in middles:
        if not kept or middle - kept[-1] >= APART:
            kept.append(middle)
    return kept
