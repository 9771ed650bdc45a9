"""`inspect --verify`: every fault that it finds."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.main import main
from data_prep.shard_format import MEMBERS, index_path, npy_bytes, write_shard
from data_prep.shard_set import ShardSet
from data_prep.verify_shards import check_order


@pytest.fixture
def rewrite(shards, sign) -> Callable[[str, Callable[[list[dict]], None]], None]:
    """Changes the samples of one shard, and makes its index and the manifest's sha256 agree with them again."""

    def run(name: str, change: Callable[[list[dict]], None]) -> None:
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

    return run


@pytest.fixture
def fault(shards, refusal) -> Callable[..., str]:
    """Verifies the shards, which must not be in order; returns what is said."""
    return lambda *arguments: refusal(shards, "--verify", "--workers", 1, *arguments)


@pytest.fixture
def fasta(synthetic) -> str:
    return synthetic.arguments[synthetic.arguments.index("--genome") + 1]


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


def test_good_shards_are_verified(atlas, capsys, decoded):
    fasta = atlas.arguments[atlas.arguments.index("--genome") + 1]
    main(["inspect", "--verify", str(atlas.shards), "--genome", fasta, "--workers", "2"])
    said = capsys.readouterr().out.splitlines()
    n, bp = sum(atlas.manifest["samples"].values()), sum(len(s["bases.npy"]) for s in decoded(atlas.shards))
    assert said == [
        f"verified: {n:,} samples in {len(atlas.manifest['shards'])} shards, {bp:,} bp against {Path(fasta).name}, "
        f"{min(10 * n, 1000):,} regions scanned again"
    ]


def test_without_a_genome_it_says_that_bases_are_not_checked(synthetic, shards, capsys, sign):
    main(["inspect", str(shards), "--verify", "--workers", "1"])
    assert "not checked: the bases, for want of --genome" in capsys.readouterr().out
    sign(shards, motif_source="gone.jaspar")
    main(["inspect", str(shards), "--verify", "--workers", "1"])
    assert "not scanned again: motifs 'gone.jaspar'" in capsys.readouterr().out


def test_one_base_is_missed_by_all_but_the_fasta(shards, fasta, fault, decoded, sign, rewrite):
    def flip(samples: list[dict]) -> None:
        lengths = samples[1]["lengths.npy"]
        at = int(lengths[:3].sum()) + 2
        samples[1]["bases.npy"][at] = 4

    rewrite("train-000001.tar", flip)
    sign(shards, motif_source="gone.jaspar")  # or the scan may see it
    line = fault("--genome", fasta)
    samples = decoded(shards)
    meta = samples[3]["meta.json"]
    position = meta["starts"][3] + 2
    assert f"{shards}/train-000001.tar: sample 1: 1 of {len(samples[3]['bases.npy'])} bases" in line
    assert f"at {position} (0-based) in region 3, {meta['chromosome']}:{meta['starts'][3]}-{meta['ends'][3]}" in line
    main(["inspect", str(shards), "--verify", "--workers", "1"])


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
def test_a_changed_sample_is_named(shards, fasta, change, said, fault, rewrite):
    rewrite("train-000000.tar", change)
    line = fault("--genome", fasta)
    assert f"{shards}/train-000000.tar: " in line
    assert "sample 0" in line
    assert said in line


def test_a_number_that_does_not_follow_within_its_cell_type_is_found(shards, fault, rewrite):
    rewrite("train-000000.tar", of_meta("index", 999))
    assert "missing or repeated" in fault()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_binding_value_that_could_be_one_is_found(shards, fasta, split, fault, rewrite):
    """By the mean and deviation in the manifest, of training samples; by scanning again, of the others."""
    by_hand = 0.123

    def change(samples: list[dict]) -> None:
        assert abs(samples[0]["binding.npy"][4, 2] - by_hand) > 1e-3
        samples[0]["binding.npy"][4, 2] = by_hand

    rewrite(f"{split}-000000.tar", change)
    motif = ShardSet(shards).manifest["motifs"][2]
    line = fault("--genome", fasta)
    if split == "train":
        assert f"binding_mean of {motif}" in line
    else:
        assert f"{shards}/val-000000.tar: sample 0: binding of region 4 to {motif} is 0.123" in line


def test_an_altered_file_is_named_with_both_sha256(shards, fault, sign):
    tar = shards / "val-000000.tar"
    expected = sha256_of_file(tar)
    tar.write_bytes(tar.read_bytes()[:-20_480])
    line = fault()
    assert f"{tar}: truncated or altered: expected sha256 {expected}, found {sha256_of_file(tar)}" in line
    sign(shards)
    assert str(shards / "val-000000.") in fault()


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000002.tar"])
def test_a_missing_sample_is_found(shards, name, refusal, fault, sign, rewrite):
    def remove(samples: list[dict]) -> None:
        del samples[1]

    rewrite(name, remove)
    assert name.replace(".tar", ".index.npy") in fault()
    manifest = json.loads((shards / "manifest.json").read_text())
    next(entry for entry in manifest["shards"] if entry["name"] == name)["samples"] -= 1
    sign(shards, shards=manifest["shards"])
    assert "train samples of all cell types" in refusal(shards)
    line = fault()
    if name == "train-000000.tar":
        assert f"{shards}/train-000001.tar: sample 0: 000000002.bases.npy" in line  # the keys have a gap
    else:
        assert "train samples of all cell types" in line


def test_a_sample_in_place_of_another_of_its_kind_is_found(shards, fault, sign, rewrite):
    """Two samples of one cell type and chromosome, one twice and the other missing."""
    first = ShardSet(shards).index[["cell_type", "chromosome"]]
    entry = next(e for e in ShardSet(shards).entries if e["split"] == "train")
    pair = next(i for i in range(1, entry["samples"]) if first[i] == first[0])

    def repeat(samples: list[dict]) -> None:
        samples[pair] = samples[0] | {"key": samples[pair]["key"]}

    rewrite(entry["name"], repeat)
    set_ = ShardSet(shards)
    binding = np.concatenate([set_[number].binding for number in range(set_.n_train)]).astype(np.float64)
    sign(shards, binding_mean=binding.mean(axis=0).tolist(), binding_std=binding.std(axis=0).tolist())
    assert "missing or repeated" in fault()


def test_validation_chromosomes_in_training_are_found(shards, fault, sign):
    manifest = json.loads((shards / "manifest.json").read_text())
    sign(shards, val_chromosomes=["chr1"])
    line = fault()
    assert "held-out chromosomes are: chr1" in line
    sign(shards, val_chromosomes=manifest["val_chromosomes"])
    manifest["cell_types"][0]["regions"]["in_samples"] += 10
    sign(shards, **manifest)
    assert f"regions of {manifest['cell_types'][0]['name']} in samples" in fault()


def test_another_genome_is_told_by_its_bases(shards, fasta, tmp_path, capsys, fault):
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
    assert "has no chromosome 'chr2'" in fault("--genome", other)
    other.write_text(">chr1\nACGT\n>chr2\nACGT\n>chr3\nACGT\n")
    assert "past the FASTA's 4 bp" in fault("--genome", other)


def test_samples_that_overlap_across_are_found(synthetic, shards):
    shard_set = ShardSet(shards)
    metas = [shard_set[number].meta for number in range(len(shard_set))]
    spans = np.array([(meta["index"], meta["starts"][0], meta["ends"][-1]) for meta in metas])
    check_order(shard_set, spans)
    second = next(n for n, meta in enumerate(metas) if meta["index"] == 1)
    spans[second, 1] = 0
    with pytest.raises(InputError, match=rf"{shard_set.where(second)}: begins at 0, before \d+, where the one before"):
        check_order(shard_set, spans)


@pytest.mark.parametrize("key", ["binding_mean", "binding_std"])
@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_statistics_that_are_no_numbers_are_found(shards, sign, fault, key, value):
    manifest = ShardSet(shards).manifest
    sign(shards, **{key: [*manifest[key][:2], value, *manifest[key][3:]]})
    line = fault()
    assert f"{shards}/manifest.json: {key} of {manifest['motifs'][2]} is {json.dumps(value)}, no finite number" in line
