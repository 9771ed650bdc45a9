"""Speed and memory of data preparation, as CSV on stdout, the machine first.

    python tests/bench/data_prep.py scan
    python tests/bench/data_prep.py rehearsal --scales 0.01 0.1 1 --folder /scratch
    python tests/bench/data_prep.py reading

`scan`: the binding scan end to end, from BED and FASTA to the float16 matrix on disk, one process, beside lightmotif's
bare kernel and MOODS in the same run. `rehearsal`: the whole `shards` command on a simulated atlas of the paper's size
(1,000,029 regions, 504,657,456 bp, 17 cell types, hg19's chromosome lengths) or a share of it, with the peak memory of
all its processes. `reading`: samples/s of the index reader and of plain webdataset.
"""

# ruff: noqa: E402
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lightmotif
import MOODS.scan
import MOODS.tools
import numpy as np
import psutil

sys.path[0] = str(Path(__file__).parents[2])  # this file has the package's name, and its folder would come first

from data_prep.atlas import read_peak_file
from data_prep.bases import decode
from data_prep.binding import Scanner
from data_prep.genome import Genome
from data_prep.motifs import load_motifs
from data_prep.region_store import RegionStore
from tests.bench.machine import describe_machine
from tests.bench.print_csv import Row, print_csv

REGIONS, REGION_BP, CELL_TYPES = 1_000_029, 504_657_456, 17  # of the human fetal atlas, as the paper counts them
ACCESSIBLE = 0.99  # share of the regions in each cell type: 1.7 million samples
HG19_MBP = {
    **{"chr1": 249.25, "chr2": 243.2, "chr3": 198.02, "chr4": 191.15, "chr5": 180.92, "chr6": 171.12, "chr7": 159.14},
    **{"chr8": 146.36, "chr9": 141.21, "chr10": 135.53, "chr11": 135.01, "chr12": 133.85, "chr13": 115.17},
    **{"chr14": 107.35, "chr15": 102.53, "chr16": 90.35, "chr17": 81.2, "chr18": 78.08, "chr19": 59.13},
    **{"chr20": 63.03, "chr21": 48.13, "chr22": 51.3, "chrX": 155.27, "chrY": 59.37},
}
UNIFORM = [0.25] * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=("scan", "rehearsal", "reading"))
    parser.add_argument("--scales", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="shares of the atlas")
    parser.add_argument("--regions", type=int, default=20_000, help="regions of `scan`")
    parser.add_argument("--folder", help="where to write; default: a temporary folder, removed at the end")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.bench == "scan":
            rows = scan(Path(folder), arguments.regions)
        elif arguments.bench == "rehearsal":
            rows = rehearsal(Path(folder), arguments.scales)
        else:
            from tests.bench.reading import measure

            rows = iter(measure())
        print_csv(rows)


def simulated_atlas(folder: Path, scale: float, seed: int = 0) -> tuple[Path, list[Path]]:
    """A FASTA of random bases and a BED for each cell type; every figure of the atlas times `scale`."""
    rng = np.random.default_rng(seed)
    n, bp = round(REGIONS * scale), round(REGION_BP * scale)
    lengths = np.clip(rng.lognormal(0.0, 0.5, n), 0.3, 5.0)
    lengths = (lengths / lengths.sum() * bp).astype(np.int64)
    lengths[: bp - lengths.sum()] += 1
    chromosome_bp = {name: int(mbp * 1e6 * scale) for name, mbp in HG19_MBP.items()}
    share = np.array(list(chromosome_bp.values()), float)
    bounds = np.round(np.cumsum(share / share.sum()) * n).astype(int)
    lines = []
    with open(folder / "simulated.fa", "wb") as fasta:
        for (name, length), first, last in zip(chromosome_bp.items(), np.append(0, bounds[:-1]), bounds, strict=True):
            letters = np.full((-(-length // 60), 61), ord("\n"), np.uint8)
            letters[:, :60] = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, (len(letters), 60), np.uint8)]
            fasta.write(f">{name}\n".encode() + letters.tobytes())
            own = lengths[first:last]
            gaps = np.sort(rng.integers(0, length - own.sum(), len(own)))
            starts = gaps + np.cumsum(own) - own
            lines += [f"{name}\t{a}\t{b}\n" for a, b in zip(starts.tolist(), (starts + own).tolist(), strict=True)]
    lines = np.array(lines, dtype=object)
    beds = []
    for number in range(CELL_TYPES):
        beds.append(folder / f"simulated_{number:02d}.bed")
        beds[-1].write_text("".join(lines[rng.random(n) < ACCESSIBLE]))
    return folder / "simulated.fa", beds


def scan(folder: Path, n_regions: int) -> Iterator[Row]:
    """Mbp x motif / s, both strands counted."""
    fasta, beds = simulated_atlas(folder, n_regions / REGIONS)
    motifs = load_motifs("JASPAR2018")
    started = time.perf_counter()
    genome = Genome(fasta)
    regions, _ = read_peak_file(beds[0], genome, None)
    store = RegionStore.of(folder, regions)
    store.write_bases(genome, 1)
    store.write_binding(Scanner.of(motifs), np.ones(len(regions), bool), 1)
    seconds = time.perf_counter() - started
    all_mbp_motifs = store.offset[-1] * len(motifs) * 2 / 1e6
    rate = all_mbp_motifs / seconds

    def row(what: str, seconds: float, mbp_motifs: float) -> Row:
        here = mbp_motifs / seconds
        return {"what": what, "seconds": seconds, "Mbp x motif / s": here, "end to end against it": rate / here}

    yield row("end to end, BED and FASTA to float16 on disk", seconds, all_mbp_motifs)

    letters = decode(np.random.default_rng(0).integers(0, 4, 4096 * 32, dtype=np.uint8))
    striped, strands = lightmotif.stripe(letters), Scanner.of(motifs).strands
    started = time.perf_counter()
    for _ in range(20):
        for forward, reverse in strands:
            forward.calculate(striped), reverse.calculate(striped)
    yield row("lightmotif's kernel alone", time.perf_counter() - started, 20 * len(letters) * len(motifs) * 2 / 1e6)

    for affinity, n in (("occupancy", 2000), ("hits", 2000)):
        scanner = Scanner.of(motifs, affinity)
        some = [store.bases[store.offset[i] : store.offset[i + 1]] for i in range(n)]
        started = time.perf_counter()
        scanner.scan(some)
        mbp_motifs = store.offset[n] * len(motifs) * 2 / 1e6
        yield row(f"affinity {affinity}, in memory", time.perf_counter() - started, mbp_motifs)

    matrices = [motif.log_odds.tolist() for motif in motifs]
    matrices += [MOODS.tools.reverse_complement(matrix) for matrix in matrices]
    sequences = [decode(store.bases[store.offset[i] : store.offset[i + 1]]) for i in range(2000)]
    for what, n, thresholds in (
        ("MOODS, hits at p < 1e-4", 2000, [MOODS.tools.threshold_from_p(one, UNIFORM, 1e-4) for one in matrices]),
        ("MOODS, scores above 0, which `max` needs", 100, [1e-9] * len(matrices)),
    ):
        scanner = MOODS.scan.Scanner(7)
        scanner.set_motifs(matrices, UNIFORM, thresholds)
        started = time.perf_counter()
        for sequence in sequences[:n]:
            scanner.scan(sequence)
        yield row(what, time.perf_counter() - started, store.offset[n] * len(matrices) / 1e6)


def rehearsal(folder: Path, scales: list[float]) -> Iterator[Row]:
    """The `shards` command at each share of the atlas: seconds by phase, peak memory, bytes."""
    for scale in scales:
        here = folder / f"{scale}"
        here.mkdir()
        started = time.perf_counter()
        fasta, beds = simulated_atlas(here, scale)
        print(f"simulated {scale:g} of the atlas in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        command = [sys.executable, "data_prep/main.py", "shards", "--genome", fasta, "--peaks", *beds]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--out", here / "shards"], stdout=subprocess.PIPE, text=True)
        memory = peak_memory(process)
        printed = process.stdout.read()
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"shards ended with {process.returncode}")
        print(printed, file=sys.stderr)
        yield rehearsal_row(scale, here / "shards", seconds, memory)
        shutil.rmtree(here)


def rehearsal_row(scale: float, shards: Path, seconds: float, memory: dict[str, float]) -> Row:
    summary = json.loads((shards / "summary.json").read_text())
    phases = {f"{name} s": float(value) for name, value in summary["seconds"].items() if name != "total"}
    return {
        "scale": scale,
        "regions": summary["distinct_regions"]["count"],
        "Mbp": summary["distinct_regions"]["bp"] / 1e6,
        "samples": sum(summary["samples"].values()),
        "GB": summary["bytes"] / 1e9,
        "minutes": seconds / 60,
        **phases,
        **memory,
    }


def peak_memory(process: subprocess.Popen) -> dict[str, float]:
    """Peak GiB over a process and its children until it ends: what is theirs alone, and with pages of mapped files
    (which the kernel takes back when it needs room); shared pages are counted once."""
    peaks = {"private GiB": 0.0, "with mapped files GiB": 0.0}
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        totals = {"Pss_Anon": 0, "Pss": 0}
        for one in [parent, *parent.children(recursive=True)]:
            try:
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has just ended
                continue
            for line in lines:
                name, _, value = line.partition(":")
                if name in totals:
                    totals[name] += int(value.split()[0])
        for name, key in zip(peaks, totals, strict=True):
            peaks[name] = max(peaks[name], totals[key] / 2**20)
        time.sleep(0.2)
    return peaks


if __name__ == "__main__":
    main()
