"""`inspect`: its numbers against numpy on what webdataset decodes, its figures, and every fault that --verify finds."""

import functools
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import webdataset
from Bio import motifs
from PIL import Image

from data_prep.errors import InputError
from data_prep.genome import sha256_of_file
from data_prep.inspect_shards import by_chance, composition, drawn, specificity
from data_prep.main import main
from data_prep.shard_format import MEMBERS, index_path, npy_bytes, write_shard
from data_prep.shard_set import ShardSet

FIGURES = ("overview.png", "motifs.png", "sample.png")


def decoded(shards: Path) -> list[dict]:
    """Every sample, train first, as webdataset decodes it."""
    tars = sorted(map(str, shards.glob("*.tar")))
    return [sample for tar in tars for sample in webdataset.WebDataset(tar, shardshuffle=False).decode()]


@dataclass(frozen=True)
class Inspection:
    folder: Path
    numbers: dict
    said: list[str]


@pytest.fixture(scope="module")
def inspections(tmp_path_factory) -> Callable[[Path], Inspection]:
    """What `inspect` writes and prints for some shards; once for all tests."""

    @functools.cache
    def inspection(shards: Path) -> Inspection:
        folder, said = tmp_path_factory.mktemp("inspect") / "out", io.StringIO()
        with redirect_stdout(said):
            numbers = inspected(shards, folder)
        return Inspection(folder, numbers, said.getvalue().splitlines())

    return inspection


def inspected(shards: Path, out: Path, *arguments: str) -> dict:
    main(["inspect", str(shards), "--out", str(out), *arguments])
    return json.loads((out / "inspect.json").read_text())


def refusal(capsys, *arguments: object) -> str:
    """The one line that a command must end with, beside exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *map(str, arguments)])
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1]


# ---------------------------------------------------------------------------------------------------- numbers


def test_numbers_are_those_of_the_decoded_samples(atlas, inspections):
    found = inspections(atlas.shards).numbers
    samples = decoded(atlas.shards)
    manifest = atlas.manifest
    names = [cell_type["name"] for cell_type in manifest["cell_types"]]
    lengths = np.concatenate([sample["lengths.npy"] for sample in samples])
    assert found["samples_read"] == len(samples)
    assert found["all"]["bp_read"] == lengths.sum() == sum(len(sample["bases.npy"]) for sample in samples)
    assert found["all"]["mean_length"] == pytest.approx(lengths.mean(), abs=1e-3)
    quantiles = [np.percentile(lengths, q) for q in (0, 5, 25, 50, 75, 95, 100)]
    assert list(found["all"]["length_quantiles"].values()) == pytest.approx(quantiles, abs=1e-3)
    for name, row in zip(names, found["cell_types"], strict=True):
        own = [sample for sample in samples if sample["meta.json"]["cell_type"] == name]
        splits = [sample["__url__"].rpartition("/")[2].partition("-")[0] for sample in own]
        assert row["name"] == name
        assert row["samples"] == {split: splits.count(split) for split in ("train", "val")}
        assert row["regions_read"] == 10 * len(own)
        if not own:
            assert row["gc"] is row["n_share"] is row["mean_length"] is row["by_chance"] is None
            assert row["specific_motifs"] == []
            continue
        letters = "".join(
            atlas.sequence[s["meta.json"]["chromosome"]][start:end]
            for s in own
            for start, end in zip(s["meta.json"]["starts"], s["meta.json"]["ends"], strict=True)
        )
        gc, at = (sum(map(letters.count, pair)) for pair in ("GC", "AT"))
        assert row["gc"] == pytest.approx(gc / (gc + at), abs=1e-4)
        assert row["n_share"] == pytest.approx(letters.count("N") / len(letters), rel=1e-9)
        assert row["bp_read"] == len(letters)
        own_lengths = np.concatenate([sample["lengths.npy"] for sample in own])
        assert row["mean_length"] == pytest.approx(own_lengths.mean(), abs=1e-3)
    by_chromosome = {row["name"]: row["samples"] for row in found["chromosomes"]}
    there = [sample["meta.json"]["chromosome"] for sample in samples]
    assert {name: sum(counts.values()) for name, counts in by_chromosome.items()} == {
        name: there.count(name) for name in there
    }
    assert {name for name, counts in by_chromosome.items() if counts["val"]} == set(manifest["val_chromosomes"])
    assert not any(counts["train"] and counts["val"] for counts in by_chromosome.values())


def test_specificity_is_cohens_d_over_regions_counted_once_a_cell_type(atlas, inspections):
    found = inspections(atlas.shards).numbers
    rows: dict[str, dict[tuple, np.ndarray]] = {row["name"]: {} for row in found["cell_types"]}
    for sample in decoded(atlas.shards):
        meta = sample["meta.json"]
        for start, row in zip(meta["starts"], sample["binding.npy"].astype(np.float64), strict=True):
            rows[meta["cell_type"]][meta["chromosome"], start] = row
    for name, said, listed in zip(rows, found["specificity"], found["cell_types"], strict=True):
        if not rows[name]:
            assert set(said) == {None}
            continue
        own = np.array(list(rows[name].values()))
        rest = np.array([row for other in rows if other != name for row in rows[other].values()])
        pooled = (len(own) - 1) * own.var(axis=0, ddof=1) + (len(rest) - 1) * rest.var(axis=0, ddof=1)
        pooled = np.sqrt(pooled / (len(own) + len(rest) - 2))
        difference = np.divide(own.mean(axis=0) - rest.mean(axis=0), pooled, where=pooled > 1e-6, out=0 * pooled)
        np.testing.assert_allclose(said, difference, atol=1e-4)
        best = listed["specific_motifs"]
        assert [motif["difference"] for motif in best] == pytest.approx(np.sort(difference)[::-1][:10], abs=1e-4)
        columns = [found["motifs"].index(motif["motif"]) for motif in best]
        assert [found["motif_names"][column] for column in columns] == [motif["name"] for motif in best]
        np.testing.assert_allclose(difference[columns], np.sort(difference)[::-1][:10], atol=1e-4)


def test_specificity_is_zero_where_nothing_varies_and_undefined_for_one_cell_type():
    regions = np.array([10, 20, 0])
    total = np.array([[5.0, 10], [10, 20], [0, 0]])
    squares = np.array([[2.5, 12], [5, 24], [0, 0]])
    difference = specificity(regions, total, squares)
    assert (difference[:2] == 0).all()
    assert np.isnan(difference[2]).all()
    assert np.isnan(specificity(regions[:1], total[:1], squares[:1])).all()


def test_chance_is_exceeded_once_in_twenty_where_nothing_differs():
    rng = np.random.default_rng(0)
    regions, n_motifs = np.array([40, 160]), 30
    largest = []
    for _ in range(1000):
        values = rng.normal(size=(200, n_motifs))
        parts = np.split(values, [40])
        sums = (np.array([f(part).sum(axis=0) for part in parts]) for f in (np.asarray, np.square))
        largest.append(np.abs(specificity(regions, *sums)).max())
    exceeded = np.mean(np.array(largest) > by_chance(regions, n_motifs)[0])
    assert 0.03 < exceeded < 0.08


def test_composition_counts_each_region_alone():
    bases = np.array([2, 3, 0, 1, 4, 4, 4, 3], dtype=np.uint8)  # CG A TNN NG
    gc, other = composition(bases, np.array([2, 1, 3, 2]))
    assert gc.tolist() == [2, 0, 0, 1]
    assert other.tolist() == [0, 0, 2, 1]


def test_few_samples_are_drawn_evenly_over_all_shards_without_repetition(synthetic, tmp_path, capsys):
    n = sum(synthetic.manifest["samples"].values())
    found = inspected(synthetic.shards, tmp_path / "out", "--max-samples", "5")
    assert found["samples_read"] == 5
    assert found["all"]["regions_read"] == 50
    assert sum(found["samples"].values()) == n
    assert f"5 of {n:,} samples" in capsys.readouterr().out
    many = drawn(100_000, 20_000)
    assert len(np.unique(many)) == 20_000
    assert np.array_equal(many, drawn(100_000, 20_000))
    assert np.ptp(np.histogram(many, bins=20, range=(0, 100_000))[0]) < 200
    assert drawn(3, 20_000).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------- planted motifs, print


@pytest.fixture(scope="module")
def planted(tmp_path_factory, vertebrate_motifs, few_motifs) -> Path:
    """Arguments' folder: two cell types, whose regions hold a CTCF site and a GATA1::TAL1 site, and their shards."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(3)
    sites = {name: next(m for m in vertebrate_motifs if m.name == name) for name in ("CTCF", "GATA1::TAL1")}
    beds, fasta = {"ctcf_cell": "", "gata_cell": ""}, ""
    for chromosome in ("chr1", "chr2"):
        letters = rng.choice(list("ACGT"), size=64_000)
        for number in range(60):
            start = 500 + 1000 * number
            at = start + int(rng.integers(0, 150))
            cell_type, site = list(zip(beds, sites.values(), strict=True))[number % 2]
            consensus = site.consensus if number % 4 < 2 else site.consensus.reverse_complement()
            letters[at : at + site.length] = list(str(consensus))
            beds[cell_type] += f"{chromosome}\t{start}\t{start + 200}\n"
        fasta += f">{chromosome}\n{''.join(letters)}\n"
    (folder / "simulated.fa").write_text(fasta)
    for name, text in beds.items():
        (folder / f"{name}.bed").write_text(text)
    chosen = {motif.matrix_id: motif for motif in [*few_motifs, *sites.values()]}
    (folder / "motifs.jaspar").write_text(motifs.write(list(chosen.values()), "jaspar"))
    make_shards(folder, "shards", *beds)
    return folder


def make_shards(folder: Path, out: str, *cell_types: str) -> None:
    peaks = [str(folder / f"{name}.bed") for name in cell_types]
    options = ["--genome", str(folder / "simulated.fa"), "--motifs", str(folder / "motifs.jaspar"), "--workers", "1"]
    main(["shards", *options, "--peaks", *peaks, "--out", str(folder / out)])


def test_the_planted_motif_is_the_most_specific_one(planted, tmp_path, capsys):
    found = inspected(planted / "shards", tmp_path / "out")
    best = {row["name"]: row["specific_motifs"][0] for row in found["cell_types"]}
    assert {name: motif["name"] for name, motif in best.items()} == {"ctcf_cell": "CTCF", "gata_cell": "GATA1::TAL1"}
    assert all(motif["difference"] > 2 for motif in best.values())
    said = capsys.readouterr().out
    assert f"GATA1::TAL1 {best['gata_cell']['difference']:+.2f}" in said
    assert "pooled standard deviations" in said
    assert "(simulated data)" in said


def test_one_cell_type_has_no_specificity_and_no_figure_of_it(planted, tmp_path, capsys):
    make_shards(planted, "one", "ctcf_cell")
    out = tmp_path / "out"
    out.mkdir()
    (out / "motifs.png").write_bytes(b"of an earlier run")
    found = inspected(planted / "one", out)
    assert found["cell_types"][0]["specific_motifs"] == []
    assert "Motif specificity: none" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["inspect.json", "overview.png", "sample.png"]


def test_tables_are_aligned_and_name_every_cell_type_and_chromosome(atlas, inspections):
    lines = inspections(atlas.shards).said
    header = next(number for number, line in enumerate(lines) if line.startswith("  cell type"))
    names = [cell_type["name"] for cell_type in atlas.manifest["cell_types"]]
    table = lines[header : header + 1 + len(names)]
    assert [line.split()[0] for line in table[1:]] == names
    column = table[0].index("train") + len("train")
    assert all(line[column - 1].isdigit() and line[column] == " " for line in table[1:])
    for chromosome in atlas.manifest["val_chromosomes"]:
        row = next(line.split() for line in lines if line.split()[:1] == [chromosome])
        assert row[1:] == ["0", str(atlas.manifest["samples"]["val"])]


# ---------------------------------------------------------------------------------------------------- figures


def test_figures_are_drawn(atlas, inspections):
    for name in FIGURES:
        with Image.open(inspections(atlas.shards).folder / name) as image:
            pixels = np.asarray(image.convert("RGB")).astype(float)
        height, width, _ = pixels.shape
        assert 600 < width < 4000
        assert 300 < height < 4000
        assert pixels.std() > 15
        assert 0.02 < (pixels < 250).any(axis=2).mean() < 0.99
        assert (pixels[:3] == 255).all()  # nothing runs over the edge
        assert (pixels[:, -2:] == 255).all()


def test_the_default_place_is_beside_the_shards(synthetic, tmp_path, monkeypatch, capsys):
    shards = Path(shutil.copytree(synthetic.shards, tmp_path / "atlas"))
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    main(["inspect", str(shards)])
    monkeypatch.chdir(shards)
    main(["inspect", "."])
    assert {path.name for path in (tmp_path / "atlas.inspect").iterdir()} == {*FIGURES, "inspect.json"}
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert str(tmp_path / "atlas.inspect" / "motifs.png") in capsys.readouterr().out


@pytest.mark.parametrize("number", [0, -1])
def test_the_sample_drawn_is_the_one_asked_for(synthetic, tmp_path, number):
    samples = decoded(synthetic.shards)
    number %= len(samples)
    found = inspected(synthetic.shards, tmp_path / "out", "--sample", str(number))["sample_drawn"]
    assert found["number"] == number
    assert found["split"] == ("train" if number == 0 else "val")
    assert {key: found[key] for key in samples[number]["meta.json"]} == samples[number]["meta.json"]


def test_the_default_sample_is_of_median_length(atlas, inspections):
    bp = sorted(len(sample["bases.npy"]) for sample in decoded(atlas.shards))
    found = inspections(atlas.shards).numbers["sample_drawn"]
    assert sum(found["ends"]) - sum(found["starts"]) == bp[len(bp) // 2]


# -------------------------------------------------------------------------------------------------- bad input


def test_a_sample_out_of_range_is_refused(synthetic, capsys, tmp_path):
    n = sum(synthetic.manifest["samples"].values())
    for number in (n, -1):
        line = refusal(capsys, synthetic.shards, "--sample", number, "--out", tmp_path / "out")
        assert f"0 to {n - 1}" in line
    assert not (tmp_path / "out").exists()


def test_what_holds_no_shards_is_refused(tmp_path, capsys):
    assert "data_prep/main.py shards" in refusal(capsys, tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    assert "not a manifest" in refusal(capsys, tmp_path)


def test_a_manifest_without_a_part_is_refused(shards, capsys):
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["motif_names"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert "'motif_names'" in refusal(capsys, shards)


def test_places_that_cannot_or_must_not_be_written_are_refused(synthetic, tmp_path, capsys):
    before = sorted(synthetic.shards.iterdir())
    for inside in (synthetic.shards, synthetic.shards / "figures"):
        assert "the shards' own folder" in refusal(capsys, synthetic.shards, "--out", inside)
    assert sorted(synthetic.shards.iterdir()) == before
    (tmp_path / "file").write_text("x")
    assert "a file" in refusal(capsys, synthetic.shards, "--out", tmp_path / "file" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "not of this program" in refusal(capsys, synthetic.shards, "--out", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("option", ["--max-samples", "--workers"])
def test_a_bad_value_is_refused_by_its_option(synthetic, capsys, option):
    assert option.strip("-").split("-")[0] in refusal(capsys, synthetic.shards, option, 0)


def test_a_genome_without_verify_is_refused(synthetic, capsys):
    assert "--verify" in refusal(capsys, synthetic.shards, "--genome", "genome.fa")


def test_shards_behind_a_url_need_a_place_and_a_copy_to_be_verified(capsys):
    assert "--out" in refusal(capsys, "https://example.org/atlas")
    assert "copy the folder" in refusal(capsys, "https://example.org/atlas", "--verify")


# ----------------------------------------------------------------------------------------------------- verify


@pytest.fixture
def shards(synthetic, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic.shards, tmp_path / "shards"))


@pytest.fixture
def fasta(synthetic) -> str:
    return synthetic.arguments[synthetic.arguments.index("--genome") + 1]


def sign(folder: Path, /, **changed: object) -> None:
    """Write sizes and sha256 of the files as they now are, and `changed` keys, to the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changed
    for entry in manifest["shards"]:
        tar = folder / entry["name"]
        entry |= {"sha256": sha256_of_file(tar), "bytes": tar.stat().st_size}
        entry["index_sha256"] = sha256_of_file(folder / entry["index"])
    path.write_text(json.dumps(manifest))


def rewrite(shards: Path, name: str, change: Callable[[list[dict]], None]) -> None:
    """Change the samples of one shard, and make its index and the manifest's sha256 agree with them again."""
    tar, samples = shards / name, {}
    with tarfile.open(tar) as file:
        for member in file:
            key, _, kind = member.name.partition(".")
            content = file.extractfile(member).read()
            value = json.loads(content) if kind == "meta.json" else np.load(io.BytesIO(content))
            samples.setdefault(key, {"key": key})[kind] = value
    index = np.load(index_path(tar))
    listed = [sample | {"codes": codes} for sample, codes in zip(samples.values(), index.tolist(), strict=True)]
    change(listed)
    rows = []
    for sample in listed:
        contents = [npy_bytes(sample[member]) for member in MEMBERS[:3]]
        rows.append((sample["key"], *sample["codes"][:2], [*contents, json.dumps(sample["meta.json"]).encode()]))
    write_shard(tar, rows)
    sign(shards)


def refused_by_verify(capsys, shards: Path, *arguments: object) -> str:
    return refusal(capsys, shards, "--verify", "--workers", 1, *arguments)


def test_good_shards_are_verified(atlas, capsys):
    fasta = atlas.arguments[atlas.arguments.index("--genome") + 1]
    main(["inspect", "--verify", str(atlas.shards), "--genome", fasta, "--workers", "2"])
    said = capsys.readouterr().out.splitlines()
    n, bp = sum(atlas.manifest["samples"].values()), sum(len(s["bases.npy"]) for s in decoded(atlas.shards))
    assert said == [
        f"verified: {n:,} samples in {len(atlas.manifest['shards'])} shards, {bp:,} bp against {Path(fasta).name}, "
        f"{min(10 * n, 1000):,} regions scanned again"
    ]


def test_without_a_genome_it_says_that_bases_are_not_checked(synthetic, shards, capsys):
    main(["inspect", str(shards), "--verify", "--workers", "1"])
    assert "not checked: the bases, for want of --genome" in capsys.readouterr().out
    sign(shards, motif_source="gone.jaspar")
    main(["inspect", str(shards), "--verify", "--workers", "1"])
    assert "not scanned again: motifs 'gone.jaspar'" in capsys.readouterr().out


def test_one_base_is_missed_by_all_but_the_fasta(shards, fasta, capsys):
    def flip(samples: list[dict]) -> None:
        lengths = samples[1]["lengths.npy"]
        at = int(lengths[:3].sum()) + 2
        samples[1]["bases.npy"][at] = 4

    rewrite(shards, "train-000001.tar", flip)
    sign(shards, motif_source="gone.jaspar")  # or the scan may see it
    line = refused_by_verify(capsys, shards, "--genome", fasta)
    samples = decoded(shards)
    meta = samples[3]["meta.json"]
    position = meta["starts"][3] + 2
    assert f"{shards}/train-000001.tar: sample 1: 1 of {len(samples[3]['bases.npy'])} bases" in line
    assert f"at {position} (0-based) in region 3, {meta['chromosome']}:{meta['starts'][3]}-{meta['ends'][3]}" in line
    main(["inspect", str(shards), "--verify", "--workers", "1"])


def swap_regions(samples: list[dict]) -> None:
    order = [0, 1, 3, 2, *range(4, 10)]
    sample = samples[0]
    bounds = np.cumsum(sample["lengths.npy"])[:-1]
    pieces = np.split(sample["bases.npy"], bounds)
    sample["bases.npy"] = np.concatenate([pieces[number] for number in order])
    for member in ("lengths.npy", "binding.npy"):
        sample[member] = sample[member][order]
    for key in ("starts", "ends"):
        sample["meta.json"][key] = [sample["meta.json"][key][number] for number in order]


def of_meta(key: str, value: object) -> Callable[[list[dict]], None]:
    return lambda samples: samples[0]["meta.json"].update({key: value})


def of_binding(value: float) -> Callable[[list[dict]], None]:
    def change(samples: list[dict]) -> None:
        samples[0]["binding.npy"][4, 2] = value

    return change


def of_code(column: int, value: int) -> Callable[[list[dict]], None]:
    def change(samples: list[dict]) -> None:
        codes = list(samples[0]["codes"])
        codes[column] = value
        samples[0]["codes"] = codes

    return change


def of_length(samples: list[dict]) -> None:
    samples[0]["lengths.npy"][:2] += np.array([1, -1], np.int32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_regions, "out of order"),
        (of_length, "region 0, chr"),
        (of_meta("chromosome", "chrM"), "chromosome is 'chrM' in meta.json"),
        (of_meta("cell_type", "gamma"), "cell_type is 'gamma' in meta.json"),
        (of_meta("starts", [1, 2]), "2 starts"),
        (of_meta("ends", "none"), "whole numbers"),
        (of_meta("starts", [-1] * 10), "whole numbers"),
        (of_meta("index", 10**20), "whole numbers"),
        (of_code(1, 3), "chromosome is 'chr"),
        (of_binding(np.nan), "binding of region 4 to "),
        (of_binding(np.inf), "binding of region 4 to "),
        (of_binding(1.5), "is 1.5, no affinity 'max'"),
        (of_binding(-0.5), "is -0.5, no affinity 'max'"),
        (lambda samples: samples[0].update({"binding.npy": samples[0]["binding.npy"][:9]}), "[9, "),
        (lambda samples: samples[0].update({"binding.npy": samples[0]["binding.npy"].astype("f4")}), "float32"),
        (lambda samples: samples[0].update({"bases.npy": samples[0]["bases.npy"][:-1]}), "lengths.npy is "),
        (lambda samples: samples[0]["bases.npy"].__setitem__(0, 9), "holds 9"),
        (lambda samples: samples[0].update({"key": "000000077"}), "000000077.bases.npy"),
    ],
)
def test_a_changed_sample_is_named(shards, fasta, capsys, change, said):
    rewrite(shards, "train-000000.tar", change)
    line = refused_by_verify(capsys, shards, "--genome", fasta)
    assert f"{shards}/train-000000.tar: " in line
    assert "sample 0" in line
    assert said in line


def test_a_number_that_does_not_follow_within_its_cell_type_is_found(shards, capsys):
    rewrite(shards, "train-000000.tar", of_meta("index", 999))
    assert "missing or repeated" in refused_by_verify(capsys, shards)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_binding_value_that_could_be_one_is_found(shards, fasta, capsys, split):
    """By the mean and deviation in the manifest, of training samples; by scanning again, of the others."""
    by_hand = 0.123

    def change(samples: list[dict]) -> None:
        assert abs(samples[0]["binding.npy"][4, 2] - by_hand) > 1e-3
        samples[0]["binding.npy"][4, 2] = by_hand

    rewrite(shards, f"{split}-000000.tar", change)
    motif = ShardSet(shards).manifest["motifs"][2]
    line = refused_by_verify(capsys, shards, "--genome", fasta)
    if split == "train":
        assert f"binding_mean of {motif}" in line
    else:
        assert f"{shards}/val-000000.tar: sample 0: binding of region 4 to {motif} is 0.123" in line


def test_a_wrong_row_of_the_index_is_found(shards, capsys):
    path = shards / "train-000000.index.npy"
    index = np.load(path)
    for column, value, said in (
        ("cell_type", 77, "cell_type 77 is not one of the manifest's 3"),
        ("offset", 10**9, "offsets that do not fit"),
    ):
        wrong = index.copy()
        wrong[column][1] = value
        np.save(path, wrong)
        sign(shards)
        assert said in refusal(capsys, shards)
        assert "train-000000" in refused_by_verify(capsys, shards)
    wrong = index.copy()
    wrong["offset"][1] -= 512  # a header, not the array behind it
    np.save(path, wrong)
    sign(shards)
    assert "train-000000.tar: sample 1" in refusal(capsys, shards)
    assert "train-000000.tar: sample 1: " in refused_by_verify(capsys, shards)
    np.save(path, index[:1])
    sign(shards)
    assert "train-000000.index.npy: " in refusal(capsys, shards)


def test_another_cell_type_in_the_index_does_not_fit_the_manifest(shards, capsys):
    path = shards / "train-000000.index.npy"
    index = np.load(path)
    index["cell_type"][0] = 2
    np.save(path, index)
    sign(shards)
    assert "train samples of " in refusal(capsys, shards)


def test_an_altered_file_is_named_with_both_sha256(shards, capsys):
    tar = shards / "val-000000.tar"
    expected = sha256_of_file(tar)
    tar.write_bytes(tar.read_bytes()[:-20_480])
    line = refused_by_verify(capsys, shards)
    assert f"{tar}: truncated or altered: expected sha256 {expected}, found {sha256_of_file(tar)}" in line
    sign(shards)
    assert str(shards / "val-000000.") in refused_by_verify(capsys, shards)


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000002.tar"])
def test_a_missing_sample_is_found(shards, capsys, name):
    def remove(samples: list[dict]) -> None:
        del samples[1]

    rewrite(shards, name, remove)
    assert name.replace(".tar", ".index.npy") in refused_by_verify(capsys, shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    next(entry for entry in manifest["shards"] if entry["name"] == name)["samples"] -= 1
    sign(shards, shards=manifest["shards"])
    assert "train samples of all cell types" in refusal(capsys, shards)
    line = refused_by_verify(capsys, shards)
    if name == "train-000000.tar":
        assert f"{shards}/train-000001.tar: sample 0: 000000002.bases.npy" in line  # the keys have a gap
    else:
        assert "train samples of all cell types" in line


def test_a_sample_in_place_of_another_of_its_kind_is_found(shards, capsys):
    """Two samples of one cell type and chromosome, one twice and the other missing."""
    first = ShardSet(shards).index[["cell_type", "chromosome"]]
    entry = next(e for e in ShardSet(shards).entries if e["split"] == "train")
    pair = next(i for i in range(1, entry["samples"]) if first[i] == first[0])

    def repeat(samples: list[dict]) -> None:
        samples[pair] = samples[0] | {"key": samples[pair]["key"]}

    rewrite(shards, entry["name"], repeat)
    set_ = ShardSet(shards)
    binding = np.concatenate([set_[number].binding for number in range(set_.n_train)]).astype(np.float64)
    sign(shards, binding_mean=binding.mean(axis=0).tolist(), binding_std=binding.std(axis=0).tolist())
    assert "missing or repeated" in refused_by_verify(capsys, shards)


def test_validation_chromosomes_in_training_are_found(shards, capsys):
    manifest = json.loads((shards / "manifest.json").read_text())
    sign(shards, val_chromosomes=["chr1"])
    line = refused_by_verify(capsys, shards)
    assert "held-out chromosomes are: chr1" in line
    sign(shards, val_chromosomes=manifest["val_chromosomes"])
    manifest["cell_types"][0]["regions"]["in_samples"] += 10
    sign(shards, **manifest)
    assert f"regions of {manifest['cell_types'][0]['name']} in samples" in refused_by_verify(capsys, shards)


def test_another_genome_is_told_by_its_bases(shards, fasta, tmp_path, capsys):
    text = Path(fasta).read_text()
    same = tmp_path / "same.fa"
    same.write_text("".join(line if line[0] == ">" else line.upper() for line in text.splitlines(True)))
    main(["inspect", str(shards), "--verify", "--genome", str(same), "--workers", "1"])
    said = capsys.readouterr()
    assert f"sha256 {sha256_of_file(same)}" in said.err
    assert f"sha256 {sha256_of_file(fasta)}" in said.err
    assert "bp against same.fa" in said.out

    other = tmp_path / "other.fa"
    other.write_text("".join(line if line[0] == ">" else line[::-1].strip() + "\n" for line in text.splitlines(True)))
    with pytest.raises(SystemExit):
        main(["inspect", str(shards), "--verify", "--genome", str(other), "--workers", "1"])
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert "bases differ from the FASTA" in said.splitlines()[-1]
    other.write_text(">chr1\nACGT\n")
    assert "has no chromosome 'chr2'" in refused_by_verify(capsys, shards, "--genome", other)
    other.write_text(">chr1\nACGT\n>chr2\nACGT\n>chr3\nACGT\n")
    assert "past the FASTA's 4 bp" in refused_by_verify(capsys, shards, "--genome", other)


def test_samples_that_overlap_across_are_found(synthetic, shards):
    from data_prep.verify_shards import check_order

    shard_set = ShardSet(shards)
    metas = [shard_set[number].meta for number in range(len(shard_set))]
    spans = np.array([(meta["index"], meta["starts"][0], meta["ends"][-1]) for meta in metas])
    check_order(shard_set, spans)
    second = next(n for n, meta in enumerate(metas) if meta["index"] == 1)
    spans[second, 1] = 0
    with pytest.raises(InputError, match=rf"{shard_set.where(second)}: begins at 0, before \d+, where the one before"):
        check_order(shard_set, spans)
