import io
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import shard_reader
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.shard_format import MEMBERS, npy_bytes
from data_prep.shard_reader import ShardReader, npy_array, read_manifest, verify_shard


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


def test_arrays_are_those_of_the_sample_and_of_the_tar(atlas):
    reader = ShardReader(atlas.shards, "train")
    entry = reader.shards[0]
    with tarfile.open(atlas.shards / entry["name"]) as tar:
        contents = [tar.extractfile(member).read() for member in tar]
    for number in range(entry["samples"]):
        sample, arrays = reader[number], reader.arrays(number)
        members = contents[len(MEMBERS) * number :][: len(MEMBERS)]
        for one, other, content in zip(
            (sample.bases, sample.lengths, sample.binding), arrays, members[:3], strict=True
        ):
            expected = np.load(io.BytesIO(content), allow_pickle=False)
            for array in (one, other):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)
        assert sample.meta == json.loads(members[3])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(7, dtype=np.uint8),
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.linspace(0, 1, 30).astype(np.float16).reshape(10, 3),
        np.zeros((10, 0), np.float16),
        np.float64(3.5),
    ],
)
def test_the_content_of_an_npy_file_is_read_without_a_copy(array):
    content = npy_bytes(np.asarray(array))
    found = npy_array(memoryview(content))
    expected = np.load(io.BytesIO(content))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert not found.flags.owndata
    assert not found.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array at all",
        npy_bytes(np.arange(9))[:-1],
        npy_bytes(np.arange(9)) + b"x",
        npy_bytes(np.arange(9))[:40],
        npy_bytes(np.arange(9)).replace(b"'<i8'", b"'|O' "),
        npy_bytes(np.arange(9)).replace(b"False", b"True "),
        npy_bytes(np.arange(9)).replace(b"(9,)", b"(-9)"),
    ],
)
def test_what_is_no_array_is_a_value_error(content):
    with pytest.raises(ValueError):  # noqa: PT011
        npy_array(memoryview(content))


def with_index(shards: Path, alter) -> dict:
    """Alters the index of the first training shard; its entry."""
    entry = next(entry for entry in read_manifest(shards)["shards"] if entry["split"] == "train")
    index = np.load(shards / entry["index"])
    np.save(shards / entry["index"], alter(index))
    return entry


def shifted(index: np.ndarray) -> np.ndarray:
    index["offset"] += 64
    return index


def longer(index: np.ndarray) -> np.ndarray:
    index["size"][:, 2] += 2
    return index


def far(index: np.ndarray) -> np.ndarray:
    index["offset"] += 1 << 40
    return index


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (shifted, "no array stands there"),
        (longer, "an array of"),
        (far, "the file ends before byte"),
    ],
)
def test_a_shard_that_does_not_match_its_index_is_named(shards, alter, said):
    entry = with_index(shards, alter)
    reader = ShardReader(shards, "train")
    for read in (reader.__getitem__, reader.arrays):
        with pytest.raises(InputError) as error:
            read(1)
        assert str(error.value).startswith(f"{shards / entry['name']}: sample 1 is not what its index says: {said}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "alter", [lambda index: index[:1], lambda index: np.arange(2), lambda _: np.zeros((0,), "<i8")]
)
def test_an_index_of_other_samples_is_named(shards, alter):
    entry = with_index(shards, alter)
    with pytest.raises(InputError, match=rf"^{shards / entry['index']}: not the index of the 2 samples"):
        ShardReader(shards, "train")[0]


def test_a_file_that_is_no_index_is_named(shards):
    entry = next(entry for entry in read_manifest(shards)["shards"] if entry["split"] == "train")
    for content in (b"", b"PK nothing", b"\x93NUMPY"):
        (shards / entry["index"]).write_bytes(content)
        with pytest.raises(
            InputError, match=rf"^{shards / entry['index']}: not an index of a shard: .*make the shards"
        ):
            ShardReader(shards, "train")[0]


def test_a_shard_that_is_gone_is_named(shards):
    reader = ShardReader(shards, "train")
    (shards / reader.shards[0]["name"]).unlink()
    with pytest.raises(InputError, match=rf"^{shards / reader.shards[0]['name']}: cannot be read: No such file"):
        reader[0]


def test_few_files_stay_open_and_samples_are_right_in_any_order(synthetic, monkeypatch):
    monkeypatch.setattr(shard_reader, "OPEN_FILES", 2)
    reader, other = ShardReader(synthetic.shards, "train"), ShardReader(synthetic.shards, "train")
    expected = list(other)
    copy = pickle.loads(pickle.dumps(reader))  # closes nothing of the other's
    assert len(reader.shards) > 2
    before = len(os.listdir("/proc/self/fd"))
    for number in np.random.default_rng(0).integers(len(reader), size=100).tolist():
        assert equal(reader[number], expected[number])
        assert equal(copy[-number - 1], expected[-number - 1])
    assert len(os.listdir("/proc/self/fd")) == before + 2 * 2
