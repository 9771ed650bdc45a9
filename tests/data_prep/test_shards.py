import hashlib
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.main import main
from data_prep.shard_format import MEMBERS
from data_prep.shard_reader import ShardReader

SPLITS = ("train", "val")


def both_splits(atlas) -> list:
    return [sample for split in SPLITS for sample in atlas.samples(split)]


def merged(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out = []
    for start, end in sorted(intervals):
        if out and start < out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def expected(atlas) -> tuple[dict, dict]:
    """Samples by (cell type, index), and each cell type's balance of peaks, worked out again; no fate but these."""
    samples, balance = {}, {}
    for cell_type, peaks in atlas.peaks.items():
        counts = Counter(peaks=len(peaks), merged=0, over_n=0, remainder=0, in_samples=0)
        index = 0
        for chromosome, sequence in atlas.sequence.items():
            here = [(start, end) for name, start, end in peaks if name == chromosome]
            regions = merged(here)
            kept = [(s, e) for s, e in regions if sum(map(sequence[s:e].count, "ACGT")) * 2 >= e - s]
            counts["merged"] += len(here) - len(regions)
            counts["over_n"] += len(regions) - len(kept)
            counts["remainder"] += len(kept) % 10
            for first in range(0, len(kept) - 9, 10):
                starts, ends = map(list, zip(*kept[first : first + 10], strict=True))
                samples[cell_type, index] = (chromosome, starts, ends)
                counts["in_samples"] += 10
                index += 1
        balance[cell_type] = dict(counts)
    return samples, balance


def test_samples_are_all_the_consecutive_tens_of_regions_each_once(atlas):
    samples, _ = expected(atlas)
    metas = [sample.meta for sample in both_splits(atlas)]
    found = {(m["cell_type"], m["index"]): (m["chromosome"], m["starts"], m["ends"]) for m in metas}
    assert found == samples
    assert len(metas) == len(samples)


def test_the_synthetic_regions_meet_every_fate(synthetic):
    _, balance = expected(synthetic)
    assert balance["alpha"] == {"peaks": 58, "merged": 2, "over_n": 1, "remainder": 15, "in_samples": 40}
    assert balance["gamma"] == {"peaks": 8, "merged": 0, "over_n": 0, "remainder": 8, "in_samples": 0}


def test_meta_is_in_order_on_one_chromosome_and_half_open(atlas):
    for sample in both_splits(atlas):
        starts, ends = np.array(sample.meta["starts"]), np.array(sample.meta["ends"])
        assert starts.shape == ends.shape == (10,)
        assert (starts < ends).all()
        assert (starts[1:] >= ends[:-1]).all()
        assert (ends <= len(atlas.sequence[sample.meta["chromosome"]])).all()
        np.testing.assert_array_equal(sample.lengths, ends - starts)


def test_bases_are_the_fastas_base_for_base(atlas):
    code = {letter: "ATCG".find(letter) if letter in "ACGT" else 4 for letter in "ACGTN"}
    for sample in both_splits(atlas):
        sequence = atlas.sequence[sample.meta["chromosome"]]
        regions = [sequence[s:e] for s, e in zip(sample.meta["starts"], sample.meta["ends"], strict=True)]
        assert sample.bases.tolist() == [code[letter] for letter in "".join(regions)]


def test_members_have_their_dtypes_and_shapes(atlas):
    for sample in both_splits(atlas):
        assert (sample.bases.dtype, sample.lengths.dtype, sample.binding.dtype) == (np.uint8, np.int32, np.float16)
        assert sample.bases.shape == (sample.lengths.sum(),)
        assert sample.binding.shape == (10, len(atlas.motifs))


def test_binding_is_biopythons_relative_maximum(atlas, relative_maximum):
    samples = both_splits(atlas)
    columns = range(0, len(atlas.motifs), max(1, len(atlas.motifs) // 15))
    for sample in samples[:: max(1, len(samples) // 8)]:
        sequence = atlas.sequence[sample.meta["chromosome"]]
        regions = [sequence[s:e] for s, e in zip(sample.meta["starts"], sample.meta["ends"], strict=True)]
        by_biopython = [[relative_maximum(atlas.motifs[column], region) for column in columns] for region in regions]
        np.testing.assert_allclose(sample.binding[:, columns].astype(float), by_biopython, atol=1e-3)


def test_motif_columns_are_named_in_order(atlas):
    assert atlas.manifest["motifs"] == [motif.matrix_id for motif in atlas.motifs]
    assert atlas.manifest["motif_names"] == [motif.name for motif in atlas.motifs]


def test_tar_lists_the_members_in_order(atlas):
    first = dict.fromkeys(SPLITS, 0)
    for shard in atlas.manifest["shards"]:
        listed = subprocess.run(
            ["tar", "-tf", atlas.shards / shard["name"]], capture_output=True, text=True, check=True
        )
        keys = range(first[shard["split"]], first[shard["split"]] + shard["samples"])
        assert listed.stdout.split() == [f"{key:09d}.{member}" for key in keys for member in MEMBERS]
        first[shard["split"]] += shard["samples"]


@pytest.mark.parametrize("split", SPLITS)
def test_webdataset_decodes_what_the_reader_reads(atlas, split):
    tars = [str(atlas.shards / s["name"]) for s in atlas.manifest["shards"] if s["split"] == split]
    streamed = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    samples = atlas.samples(split)
    assert len(streamed) == len(samples) > 0
    for there, here in zip(streamed, samples, strict=True):
        assert [name for name in there if not name.startswith("__")] == list(MEMBERS)
        np.testing.assert_array_equal(there["bases.npy"], here.bases)
        np.testing.assert_array_equal(there["lengths.npy"], here.lengths)
        np.testing.assert_array_equal(there["binding.npy"], here.binding)
        assert there["meta.json"] == here.meta


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Of all files but the summary, which holds the time that the run took."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "summary.json"}


@pytest.mark.parametrize("workers", ["1", "2", "3"])
def test_the_same_input_gives_the_same_bytes(atlas, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("data_prep.region_store._CHUNK_REGIONS", 8 * int(workers))  # chunks for each to write
    main([*atlas.arguments, "--workers", workers, "--out", str(tmp_path / "again")])
    assert bytes_of(tmp_path / "again") == bytes_of(atlas.shards)


def test_the_order_of_the_peak_files_does_not_matter(synthetic, tmp_path):
    at = synthetic.arguments.index("--peaks") + 1
    main(
        [*synthetic.arguments[:at], *synthetic.arguments[:at:-1], synthetic.arguments[at], "--out", str(tmp_path / "s")]
    )
    assert bytes_of(tmp_path / "s") == bytes_of(synthetic.shards)


def test_another_seed_gives_the_same_samples_in_another_order(hg19, tmp_path):
    motif_file = tmp_path / "one.jaspar"
    motif_file.write_text(hg19.motifs[0].format("jaspar"))
    orders = []
    for seed in "01":
        out = tmp_path / seed
        main([*hg19.arguments, "--motifs", str(motif_file), "--seed", seed, "--workers", "1", "--out", str(out)])
        orders.append([json.dumps(sample.meta) for sample in ShardReader(out, "train")])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != sorted(orders[0])


def test_every_file_is_in_the_manifest_with_its_bytes_and_sha256(atlas):
    files = bytes_of(atlas.shards)
    del files["manifest.json"]
    for shard in atlas.manifest["shards"]:
        assert len(files[shard["name"]]) == shard["bytes"]
        assert hashlib.sha256(files.pop(shard["name"])).hexdigest() == shard["sha256"]
        assert hashlib.sha256(files.pop(shard["index"])).hexdigest() == shard["index_sha256"]
    assert not files


def test_manifest_names_the_genome(atlas):
    fasta = Path(atlas.arguments[2])
    assert atlas.manifest["genome"] == {
        "name": fasta.name.split(".")[0],
        "sha256": hashlib.sha256(fasta.read_bytes()).hexdigest(),
    }


def test_splits_share_no_chromosome(atlas):
    chromosomes = {split: {sample.meta["chromosome"] for sample in atlas.samples(split)} for split in SPLITS}
    assert chromosomes["train"]
    assert chromosomes["val"] == set(atlas.manifest["val_chromosomes"])
    assert not chromosomes["train"] & chromosomes["val"]


def test_chosen_chromosomes_are_held_out_under_either_name(synthetic, tmp_path):
    main([*synthetic.arguments, "--val-chroms", "1", "--out", str(tmp_path / "shards")])
    train, val = (ShardReader(tmp_path / "shards", split) for split in SPLITS)
    assert {sample.meta["chromosome"] for sample in val} == {"chr1"}
    assert {sample.meta["chromosome"] for sample in train} == {"chr2"}


def test_nothing_is_held_out_on_demand(synthetic, tmp_path):
    main([*synthetic.arguments, "--val-chroms", "none", "--out", str(tmp_path / "shards")])
    assert len(ShardReader(tmp_path / "shards", "val")) == 0
    assert len(ShardReader(tmp_path / "shards", "train")) == len(both_splits(synthetic))


def test_every_peak_is_accounted_for(atlas):
    _, balance = expected(atlas)
    nothing = {"duplicate": 0, "unknown_chromosome": 0, "blacklisted": 0}
    for cell_type in atlas.manifest["cell_types"]:
        peaks, regions = atlas.peaks[cell_type["name"]], cell_type["regions"]
        assert regions == balance[cell_type["name"]] | nothing
        assert 2 * regions["peaks"] == sum(regions.values())
        assert cell_type["bp"]["peaks"] == sum(end - start for _, start, end in peaks)


def test_the_report_accounts_for_every_peak(synthetic, tmp_path, capsys):
    main([*synthetic.arguments, "--out", str(tmp_path / "shards")])
    totals = Counter()
    for counts in expected(synthetic)[1].values():
        totals.update(counts)
    report = capsys.readouterr().out
    assert f"peaks: {totals['peaks']} read = {totals['in_samples']} in samples + {totals['merged']} merged" in report
    assert f"{totals['over_n']} mostly N + {totals['remainder']} left over" in report
    assert re.search(r"\n +gamma +8 +0 .* no sample\n", report)


def test_totals_add_up(atlas):
    manifest = atlas.manifest
    for split in SPLITS:
        samples = atlas.samples(split)
        by_cell_type = Counter(sample.meta["cell_type"] for sample in samples)
        in_shards = sum(shard["samples"] for shard in manifest["shards"] if shard["split"] == split)
        assert manifest["samples"][split] == in_shards == len(samples)
        assert {c["name"]: c["samples"][split] for c in manifest["cell_types"]} == {
            name: by_cell_type[name] for name in atlas.peaks
        }


def test_every_shard_but_the_last_of_a_split_is_full(synthetic):
    for split in SPLITS:
        sizes = [shard["samples"] for shard in synthetic.manifest["shards"] if shard["split"] == split]
        full, rest = divmod(synthetic.manifest["samples"][split], 2)
        assert sizes == [2] * full + [1] * rest
    assert len(synthetic.manifest["shards"]) > 3


def test_binding_statistics_are_numpys_over_the_train_samples(atlas):
    binding = np.concatenate([sample.binding for sample in atlas.samples("train")]).astype(np.float64)
    np.testing.assert_allclose(atlas.manifest["binding_mean"], binding.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(atlas.manifest["binding_std"], binding.std(axis=0), rtol=1e-6, atol=1e-7)


def test_the_asked_affinity_is_written(synthetic, tmp_path, log_odds):
    main([*synthetic.arguments, "--affinity", "occupancy", "--out", str(tmp_path / "shards")])
    reader = ShardReader(tmp_path / "shards", "train")
    assert reader.manifest["affinity"] == "occupancy"
    meta = reader[0].meta
    region = synthetic.sequence[meta["chromosome"]][meta["starts"][3] : meta["ends"][3]]
    occupancy = [np.log2(max(1, np.exp2(log_odds(motif, region)).sum())) for motif in synthetic.motifs]
    np.testing.assert_allclose(reader[0].binding[3].astype(float), occupancy, rtol=1e-3, atol=1e-3)


def test_a_second_run_changes_nothing_and_says_so(synthetic, tmp_path, capsys):
    arguments = [*synthetic.arguments, "--out", str(tmp_path / "shards")]
    main(arguments)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    capsys.readouterr()
    main(arguments)
    assert capsys.readouterr().out == f"{tmp_path / 'shards'}: up to date\n"
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()} == before


def test_the_summary_counts_what_the_files_hold(atlas):
    summary = json.loads((atlas.shards / "summary.json").read_text())
    manifest, samples = atlas.manifest, {split: atlas.samples(split) for split in SPLITS}
    assert summary["cell_types"] == manifest["cell_types"]
    assert summary["samples"] == manifest["samples"] == {split: len(own) for split, own in samples.items()}
    assert summary["bytes"] == sum(path.stat().st_size for path in atlas.shards.glob("*.tar"))
    for key in ("regions", "bp"):
        totals = Counter()
        for cell_type in manifest["cell_types"]:
            totals.update(cell_type[key])
        assert summary[key] == totals
    assert summary["bp"]["in_samples"] == sum(int(sample.lengths.sum()) for own in samples.values() for sample in own)
    for chromosome in summary["chromosomes"]:
        here = {split: sum(x.meta["chromosome"] == chromosome["name"] for x in own) for split, own in samples.items()}
        assert chromosome["samples"] == here
    distinct = {(name, *region) for name in atlas.sequence for region in distinct_regions_of(atlas, name)}
    assert summary["distinct_regions"] == {"count": len(distinct), "bp": sum(end - start for _, start, end in distinct)}
    assert set(summary["seconds"]) == {"inputs", "peaks", "sequences", "scan", "shards", "total"}


def distinct_regions_of(atlas, chromosome: str) -> set[tuple[int, int]]:
    """Of all cell types, after merging in each."""
    peaks = ([(s, e) for name, s, e in own if name == chromosome] for own in atlas.peaks.values())
    return {tuple(region) for own in peaks for region in merged(own)}
