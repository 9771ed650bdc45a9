import json
import re

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.shard_cache import ShardCache
from data_prep.shard_set import ShardSet


def test_samples_of_a_url_are_those_of_the_folder(serve, shards, tmp_path):
    server, folder = serve(shards), ShardSet(shards)
    cache = ShardCache(server.url, folder.manifest, tmp_path / "cache")
    remote = ShardSet(server.url, cache=cache)
    assert len(remote) == len(folder)
    np.testing.assert_array_equal(remote.index, folder.index)
    for number in range(len(folder)):
        one, other = remote[number], folder[number]
        assert one.meta == other.meta
        for name in ("bases", "lengths", "binding"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert remote.split(0) == "train"
    assert remote.where(len(folder) - 1).startswith(f"{server.url}/val-0")


def test_a_manifest_without_a_part_is_refused(shards, refusal):
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["motif_names"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert "'motif_names'" in refusal(shards)


def test_a_wrong_row_of_the_index_is_found(shards, refusal, sign):
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
        assert said in refusal(shards)
        assert "train-000000" in refusal(shards, "--verify", "--workers", 1)
    wrong = index.copy()
    wrong["offset"][1] -= 512  # a header, not the array behind it
    np.save(path, wrong)
    sign(shards)
    assert "train-000000.tar: sample 1" in refusal(shards)
    assert "train-000000.tar: sample 1: " in refusal(shards, "--verify", "--workers", 1)
    np.save(path, index[:1])
    sign(shards)
    assert "train-000000.index.npy: " in refusal(shards)


def test_another_cell_type_in_the_index_does_not_fit_the_manifest(shards, refusal, sign):
    path = shards / "train-000000.index.npy"
    index = np.load(path)
    index["cell_type"][0] = 2
    np.save(path, index)
    sign(shards)
    assert "train samples of " in refusal(shards)


@pytest.mark.parametrize("key", ["binding_mean", "binding_std"])
@pytest.mark.parametrize("value", [np.nan, -np.inf, None, "0.5", True, 10**400])
def test_a_mean_or_deviation_that_is_no_number_is_refused(shards, sign, key, value):
    manifest = ShardSet(shards).manifest
    sign(shards, **{key: [*manifest[key][:-1], value]})
    said = re.escape(f"{shards}/manifest.json: {key} of {manifest['motifs'][-1]} is {json.dumps(value)}, no finite")
    with pytest.raises(InputError, match=f"^{said}"):
        ShardSet(shards)


@pytest.mark.parametrize("values", [[0.5], {}, None])
def test_statistics_that_do_not_fit_the_motifs_are_refused(shards, sign, values):
    n_motifs = len(ShardSet(shards).manifest["motifs"])
    sign(shards, binding_std=values)
    with pytest.raises(InputError, match=rf"manifest.json: binding_std is no list of {n_motifs} values"):
        ShardSet(shards)
