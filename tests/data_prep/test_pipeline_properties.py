"""What `shards` makes of any small genome and any regions on it, through the command line."""

import io
import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from data_prep.bases import encode
from data_prep.main import main
from data_prep.shard_format import Sample
from data_prep.shard_reader import ShardReader

Region = tuple[str, int, int]
MOTIFS = ">MA0001.1 X\n5 0 1 9\n1 9 1 0\n1 0 9 0\n3 1 0 1\n>MA0002.1 Y\n9 0\n0 9\n1 1\n0 0\n"


@dataclass(frozen=True)
class Case:
    """genome: letters by chromosome; peaks: each cell type's regions, in the order of its file; blacklist: regions."""

    genome: dict[str, str]
    peaks: dict[str, list[Region]]
    blacklist: list[Region]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Regions that overlap, touch, repeat and nest, out of order, on chromosomes of 1 to 4 kb with runs of N."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    genome = {}
    for number in range(draw(st.integers(1, 3))):
        letters = rng.choice(list("ACGTacgt"), size=draw(st.integers(1000, 4000)))
        for start in draw(st.lists(st.integers(0, 3900), max_size=3)):
            letters[start : start + 90] = "N"
        genome[f"chr{number + 1}"] = "".join(letters)

    def regions_at(n: int, longest: int) -> list[Region]:
        names = rng.choice(list(genome), size=n).tolist()
        lengths = rng.integers(1, longest + 1, size=n).tolist()
        return [
            (x, start := int(rng.integers(len(genome[x]) - y)), start + y) for x, y in zip(names, lengths, strict=True)
        ]

    atlas = regions_at(draw(st.integers(10, 200)), draw(st.sampled_from([20, 90, 400])))
    for row in draw(st.lists(st.integers(0, len(atlas) - 1), max_size=10)):
        name, start, end = atlas[row]
        variants = [(name, start, end), (name, end, end + 9), (name, end - 1, end + 9), (name, start, start + 1)]
        atlas.append(draw(st.sampled_from(variants)))  # repeated, touching, overlapping by a base, nested
    atlas = [(name, start, end) for name, start, end in atlas if end <= len(genome[name])]
    peaks = {}
    for cell_type in ["alpha", "beta", "gamma"][: draw(st.integers(1, 3))]:
        n = draw(st.sampled_from([len(atlas), len(atlas) // 2, 1]))
        peaks[cell_type] = [atlas[row] for row in rng.permutation(len(atlas))[:n]]
    return Case(genome, peaks, regions_at(draw(st.integers(0, 2)), 30))


def bed(regions: list[Region]) -> str:
    return "".join("{}\t{}\t{}\n".format(*region) for region in regions)


def usable_regions(case: Case, cell_type: str) -> dict[str, list[Region]]:
    """A cell type's regions by chromosome, in order, once those that overlap are joined, base by base."""
    usable = {}
    for name, letters in case.genome.items():
        bad = np.zeros(len(letters), bool)
        for _, start, end in (region for region in case.blacklist if region[0] == name):
            bad[start:end] = True
        covered, joined = np.zeros(len(letters), bool), np.zeros(len(letters) + 1, bool)
        for _, start, end in (region for region in case.peaks[cell_type] if region[0] == name):
            if not bad[start:end].any():
                covered[start:end] = True
                joined[start + 1 : end] = True
        edges = np.flatnonzero(covered & ~joined[:-1]).tolist()
        unions = [(name, s, s + 1 + int(np.argmin(np.append(joined[s + 1 :], False)))) for s in edges]
        usable[name] = [(c, s, e) for c, s, e in unions if 2 * sum(map(letters[s:e].upper().count, "ACGT")) >= e - s]
    return usable


def shards(case: Case, folder: Path) -> list[Sample] | None:
    """The samples of both splits, or None where `shards` has none to write and says so in one line."""
    (folder / "genome.fa").write_text("".join(f">{name}\n{letters}\n" for name, letters in case.genome.items()))
    (folder / "motifs").write_text(MOTIFS)
    (folder / "blacklist.bed").write_text(bed(case.blacklist))
    for cell_type, regions in case.peaks.items():
        text = bed(regions)
        (folder / f"{cell_type}.bed").write_text(text.replace("chr", "") if cell_type == "beta" else text)
    options = [f"--genome={folder / 'genome.fa'}", f"--motifs={folder / 'motifs'}", f"--out={folder / 'shards'}"]
    peaks = [str(folder / f"{cell_type}.bed") for cell_type in case.peaks]
    err, code = io.StringIO(), 0
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        try:
            main(["shards", *options, f"--blacklist={folder / 'blacklist.bed'}", "--workers=1", "--peaks", *peaks])
        except SystemExit as exit_:
            code = exit_.code
    if code:
        assert code == 2
        assert err.getvalue().count("\n") == 1
        assert "no cell type has 10 accessible regions on any chromosome" in err.getvalue()
        return None
    readers = [ShardReader(folder / "shards", split) for split in ("train", "val")]
    return [reader[number] for reader in readers for number in range(len(reader))]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_samples_are_the_consecutive_tens_of_each_cell_types_regions(case):
    usable = {cell_type: usable_regions(case, cell_type) for cell_type in case.peaks}
    tens = {
        (cell_type, regions[first : first + 10][0]): regions[first : first + 10]
        for cell_type in usable
        for regions in usable[cell_type].values()
        for first in range(0, len(regions) - 9, 10)
    }
    with tempfile.TemporaryDirectory() as folder:
        samples = shards(case, Path(folder))
        event("refused" if samples is None else "several samples" if len(samples) > 1 else "one sample")
        if samples is None:
            assert not tens
            return
        manifest = json.loads((Path(folder) / "shards" / "manifest.json").read_text())

    seen, order = set(), {}
    for sample in samples:
        meta = sample.meta
        regions = [(meta["chromosome"], start, end) for start, end in zip(meta["starts"], meta["ends"], strict=True)]
        assert len(regions) == 10
        assert all(here[2] <= there[1] for here, there in pairwise(regions))
        assert regions == tens[meta["cell_type"], regions[0]]
        letters = "".join(case.genome[name][start:end] for name, start, end in regions)
        np.testing.assert_array_equal(sample.bases, encode(letters))
        np.testing.assert_array_equal(sample.lengths, [end - start for _, start, end in regions])
        own = {(meta["cell_type"], region) for region in regions}
        assert not seen & own
        seen |= own
        order[meta["cell_type"], meta["index"]] = list(case.genome).index(meta["chromosome"]), meta["starts"][0]
    assert len(samples) == len(tens)
    assert [order[key] for key in sorted(order)] == [
        place for cell_type in sorted(usable) for place in sorted(order[key] for key in order if key[0] == cell_type)
    ]

    for described in manifest["cell_types"]:
        fates, regions = described["regions"], case.peaks[described["name"]]
        assert fates["peaks"] == len(regions) == sum(fates.values()) - fates["peaks"]
        assert fates["duplicate"] == len(regions) - len(set(regions))
        assert fates["in_samples"] == 10 * sum(sample.meta["cell_type"] == described["name"] for sample in samples)
        assert fates["remainder"] + fates["in_samples"] == sum(map(len, usable[described["name"]].values()))
