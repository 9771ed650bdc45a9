import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.genome import sha256_of_file
from data_prep.shard_reader import ShardReader, read_manifest, verify_shard


@pytest.fixture
def shards(synthetic, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic.shards, tmp_path / "shards"))


def equal(one, other) -> bool:
    return one.meta == other.meta and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("bases", "lengths", "binding")
    )


def test_shards_as_written_are_verified(shards):
    for entry in read_manifest(shards)["shards"]:
        verify_shard(shards, entry)


@pytest.mark.parametrize("member", ["name", "index"])
@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_is_named_with_both_sha256(shards, member, damage):
    entry = read_manifest(shards)["shards"][1]
    path = shards / entry[member]
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-100:]
    else:
        content[len(content) // 2] ^= 1
    expected = sha256_of_file(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: .*expected sha256 {expected}, found {sha256_of_file(path)}"):
        verify_shard(shards, entry)
    verify_shard(shards, read_manifest(shards)["shards"][0])


@pytest.mark.parametrize("member", ["name", "index"])
def test_a_missing_file_is_named(shards, member):
    entry = read_manifest(shards)["shards"][0]
    (shards / entry[member]).unlink()
    with pytest.raises(InputError, match=str(shards / entry[member])):
        verify_shard(shards, entry)


def test_another_format_version_is_refused(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"format_version": 999}))
    with pytest.raises(InputError, match=rf"{shards}/manifest.json: .*version 999.* reads 1"):
        read_manifest(shards)


@pytest.mark.parametrize("content", ["{", '{"format": "other"}', "[1, 2]"])
def test_what_is_no_manifest_is_refused(shards, content):
    (shards / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=rf"{shards}/manifest.json: "):
        read_manifest(shards)


def test_a_folder_without_shards_is_refused_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}/manifest.json: .*data_prep/main.py shards --out {tmp_path}"):
        ShardReader(tmp_path, "train")


def test_samples_are_numbered_in_the_manifests_order_of_shards(synthetic):
    whole = ShardReader(synthetic.shards, "train")
    manifest = synthetic.manifest
    number = 0
    for entry in (entry for entry in manifest["shards"] if entry["split"] == "train"):
        alone = ShardReader(synthetic.shards, "train", manifest | {"shards": [entry]})
        for sample in alone:
            assert equal(sample, whole[number])
            number += 1
    assert number == len(whole)


def test_a_number_past_the_end_is_an_index_error_and_a_negative_one_counts_from_it(synthetic):
    reader = ShardReader(synthetic.shards, "train")
    with pytest.raises(IndexError):
        reader[len(reader)]
    for number in range(len(reader)):
        assert equal(reader[number - len(reader)], reader[number])


def test_the_index_tells_cell_type_and_chromosome_without_the_sample(atlas):
    for split in ("train", "val"):
        reader = ShardReader(atlas.shards, split)
        names = [cell_type["name"] for cell_type in reader.manifest["cell_types"]]
        assert [names[number] for number in reader.cell_type] == [sample.meta["cell_type"] for sample in reader]
        chromosomes = [reader.manifest["chromosomes"][number] for number in reader.index["chromosome"]]
        assert chromosomes == [sample.meta["chromosome"] for sample in reader]


def test_a_used_reader_can_be_handed_to_another_process(synthetic):
    reader = ShardReader(synthetic.shards, "train")
    first = reader[0]
    assert equal(pickle.loads(pickle.dumps(reader))[0], first)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.map(reader.__getitem__, range(3))
    assert all(equal(sample, reader[number]) for number, sample in enumerate(there))
