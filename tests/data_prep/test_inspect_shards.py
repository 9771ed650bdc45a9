"""`inspect`: its numbers against numpy on what webdataset decodes, what it prints, writes and refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from Bio import motifs

from data_prep import remote_file, shard_figures
from data_prep.inspect_shards import drawn
from data_prep.main import main

FIGURES = ("overview.png", "motifs.png", "sample.png")


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are drawn, but not rendered, which takes most of the time."""

    def save(figure, path: Path) -> None:
        shard_figures.plt.close(figure)
        path.touch()

    monkeypatch.setattr(shard_figures, "save", save)


def test_numbers_are_those_of_the_decoded_samples(atlas, inspections, decoded):
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


def test_specificity_is_cohens_d_over_regions_counted_once_a_cell_type(atlas, inspections, decoded):
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


@pytest.mark.usefixtures("unrendered")
def test_few_samples_are_drawn_evenly_over_all_shards_without_repetition(synthetic, tmp_path, capsys, inspected):
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


@pytest.mark.usefixtures("unrendered")
def test_the_planted_motif_is_the_most_specific_one(planted, tmp_path, capsys, inspected):
    found = inspected(planted / "shards", tmp_path / "out")
    best = {row["name"]: row["specific_motifs"][0] for row in found["cell_types"]}
    assert {name: motif["name"] for name, motif in best.items()} == {"ctcf_cell": "CTCF", "gata_cell": "GATA1::TAL1"}
    assert all(motif["difference"] > 2 for motif in best.values())
    said = capsys.readouterr().out
    assert f"GATA1::TAL1 {best['gata_cell']['difference']:+.2f}" in said
    assert "pooled standard deviations" in said
    assert "(simulated data)" in said


@pytest.mark.usefixtures("unrendered")
def test_one_cell_type_has_no_specificity_and_no_figure_of_it(planted, tmp_path, capsys, inspected):
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


@pytest.mark.usefixtures("unrendered")
def test_the_default_place_is_beside_the_shards(synthetic, tmp_path, monkeypatch, capsys):
    shards = Path(shutil.copytree(synthetic.shards, tmp_path / "atlas"))
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    main(["inspect", str(shards)])
    monkeypatch.chdir(shards)
    main(["inspect", "."])
    assert {path.name for path in (tmp_path / "atlas.inspect").iterdir()} == {*FIGURES, "inspect.json"}
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    assert str(tmp_path / "atlas.inspect" / "motifs.png") in capsys.readouterr().out


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("number", [0, -1])
def test_the_sample_drawn_is_the_one_asked_for(synthetic, tmp_path, number, decoded, inspected):
    samples = decoded(synthetic.shards)
    number %= len(samples)
    found = inspected(synthetic.shards, tmp_path / "out", "--sample", str(number))["sample_drawn"]
    assert found["number"] == number
    assert found["split"] == ("train" if number == 0 else "val")
    assert {key: found[key] for key in samples[number]["meta.json"]} == samples[number]["meta.json"]


def test_the_default_sample_is_of_median_length(atlas, inspections, decoded):
    bp = sorted(len(sample["bases.npy"]) for sample in decoded(atlas.shards))
    found = inspections(atlas.shards).numbers["sample_drawn"]
    assert sum(found["ends"]) - sum(found["starts"]) == bp[len(bp) // 2]


def test_a_sample_out_of_range_is_refused(synthetic, tmp_path, refusal):
    n = sum(synthetic.manifest["samples"].values())
    for number in (n, -1):
        line = refusal(synthetic.shards, "--sample", number, "--out", tmp_path / "out")
        assert f"0 to {n - 1}" in line
    assert not (tmp_path / "out").exists()


def test_what_holds_no_shards_is_refused(tmp_path, refusal):
    assert "data_prep/main.py shards" in refusal(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    assert "not a manifest" in refusal(tmp_path)


def test_places_that_cannot_or_must_not_be_written_are_refused(synthetic, tmp_path, refusal):
    before = sorted(synthetic.shards.iterdir())
    for inside in (synthetic.shards, synthetic.shards / "figures"):
        assert "the shards' own folder" in refusal(synthetic.shards, "--out", inside)
    assert sorted(synthetic.shards.iterdir()) == before
    (tmp_path / "file").write_text("x")
    assert "a file" in refusal(synthetic.shards, "--out", tmp_path / "file" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "not of this program" in refusal(synthetic.shards, "--out", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("option", ["--max-samples", "--workers"])
def test_a_bad_value_is_refused_by_its_option(synthetic, option, refusal):
    assert option.strip("-").split("-")[0] in refusal(synthetic.shards, option, 0)


def test_a_genome_without_verify_is_refused(synthetic, refusal):
    assert "--verify" in refusal(synthetic.shards, "--genome", "genome.fa")


def test_shards_behind_a_url_need_a_place_and_a_copy_to_be_verified(refusal):
    assert "--out" in refusal("https://example.org/atlas")
    assert "copy the folder" in refusal("https://example.org/atlas", "--verify")


@pytest.fixture
def server(serve, shards, tmp_path, monkeypatch):
    """Serves the shards; nothing may be staged to this user's home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote_file, "PAUSE", 0.01)
    return serve(shards)


def room_for_one(manifest: dict) -> int:
    """Bytes that hold one shard and its index, whichever."""
    return max(entry["bytes"] + 1024 + 72 * entry["samples"] for entry in manifest["shards"])


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("limited", [False, True])
def test_shards_behind_a_url_are_inspected_as_those_of_a_folder(
    server, synthetic, inspections, inspected, tmp_path, capsys, limited
):
    cache, limit = tmp_path / "cache", room_for_one(synthetic.manifest)
    options = ["--shard_cache", cache, *(["--shard_cache_gb", limit / 1e9] if limited else [])]
    found = inspected(server.url, tmp_path / "out", *options)
    assert found | {"shards": ""} == inspections(synthetic.shards).numbers | {"shards": ""}
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{server.url}: up to ")
    assert f" GB of shards are downloaded to {cache}, which keeps " in first
    assert (f"{limit / 1e9:.3g} GB of them at most" in first) == limited
    kept = sum(path.stat().st_size for path in cache.glob("*.*"))
    assert 0 < kept <= limit if limited else kept > limit
    assert not (tmp_path / "home").exists()


def test_what_is_downloaded_where_is_said_before_it_is(server, synthetic, tmp_path, capsys):
    server.status |= {entry["index"]: 403 for entry in synthetic.manifest["shards"]}
    with pytest.raises(SystemExit):
        main(["inspect", server.url, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    n_bytes = sum(entry["bytes"] + 1024 + 72 * entry["samples"] for entry in synthetic.manifest["shards"])
    assert said.out == (
        f"{server.url}: up to {n_bytes / 1e9:.3g} GB of shards are downloaded to "
        f"{tmp_path}/home/.cache/genebert/shards, which keeps them (--shard_cache, --shard_cache_gb)\n"
    )
    assert "403" in said.err


@pytest.mark.parametrize(("gigabytes", "said"), [("0", "more than 0"), ("inf", "more than 0"), ("1e-6", "a larger")])
def test_a_limit_that_holds_no_shard_is_refused(server, tmp_path, refusal, gigabytes, said):
    line = refusal(server.url, "--out", tmp_path / "out", "--shard-cache-gb", gigabytes)
    assert "--shard_cache_gb" in line
    assert said in line
    assert set(server.asked) <= {"manifest.json"}
