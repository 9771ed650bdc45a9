"""Pre-training on shards behind a URL: the same losses, one download for all ranks, and errors of one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.shard_cache import ShardCache
from data_prep.shard_reader import ShardReader, read_manifest
from pretrain.batches import MicroBatches, loader
from pretrain.config import parse
from pretrain.data_order import MicroBatch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def remote(shards, tmp_path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "remote"))


@pytest.fixture
def server(serve, remote):
    return serve(remote)


@pytest.fixture
def alone(tmp_path, preset, ds_config) -> Callable[..., subprocess.CompletedProcess]:
    """Runs pretrain/main.py without a launcher: a world of one."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        given = ["--ds_config", ds_config(9), "--config", preset, "--steps", 6, *arguments]
        return subprocess.run(
            [sys.executable, "pretrain/main.py", *map(str, given)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def room_for_one(entries: list[dict]) -> int:
    """Bytes that hold any one shard and its index."""
    return max(entry["bytes"] for entry in entries) + 4096


def losses(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "loss/" in name} for row in rows]


@pytest.mark.slow
def test_a_run_on_a_url_gives_the_losses_of_the_folder_and_downloads_each_file_once(
    tmp_path, server, shards, pretrain, alone, ds_config
):
    entries, cache = read_manifest(shards)["shards"], tmp_path / "cache"
    ended = alone("--shards", shards, "--out", tmp_path / "local")
    assert ended.returncode == 0, ended.stderr
    expected = losses(tmp_path / "local")
    assert len(expected) == 7  # six steps and an evaluation

    remote = ("--shards", server.url, "--shard_cache", str(cache), "--steps", "6", "--ds_config", str(ds_config(9)))
    pretrain(2, *remote, "--out", str(tmp_path / "two"))
    for found, wanted in zip(losses(tmp_path / "two"), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    assert {name: n for name, n in server.asked.items() if name != "manifest.json"} == {
        entry[key]: 1 for entry in entries for key in ("name", "index")
    }


@pytest.mark.slow
def test_a_shard_that_a_worker_cannot_stage_ends_the_run_with_one_line(tmp_path, server, remote, shards, alone):
    entries = read_manifest(shards)["shards"]
    damaged = [entry for entry in entries if entry["split"] == "train"][4]
    content = bytearray((remote / damaged["name"]).read_bytes())
    content[9999] ^= 1
    (remote / damaged["name"]).write_bytes(content)
    small = ("--shard_cache", tmp_path / "small", "--shard_cache_gb", room_for_one(entries) / 1e9, "--workers", 2)
    ended = alone("--shards", server.url, "--out", tmp_path / "run", *small)
    assert ended.returncode == 2
    assert "steps wait for the network" in ended.stdout
    assert ended.stderr.startswith(f"error: {server.url}/{damaged['name']}: truncated or altered: expected sha256 ")
    assert ended.stderr.count("\n") == 1
    assert damaged["sha256"] in ended.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_readers_error_arrives_as_it_was_raised(shards, workers):
    class Fails(MicroBatches):
        def __getitem__(self, asked: MicroBatch):
            if asked.sample[0] == 2:
                raise InputError("shard 2: is not there; make it anew")
            return super().__getitem__(asked)

    dataset = Fails(ShardReader(shards, "train"), k=3, max_tokens=96, seed=0)
    order = [MicroBatch(np.array([n]), np.array([0]), np.ones(1, np.float32)) for n in range(4)]
    batches = loader(dataset, order, workers, pin_memory=False)
    assert [next(batches)["sample"].tolist() for _ in range(2)] == [[0], [1]]
    with pytest.raises(InputError) as error:
        next(batches)
    assert str(error.value) == "shard 2: is not there; make it anew"


@pytest.mark.parametrize("limited", [False, True])
def test_workers_give_the_batches_of_the_folder(tmp_path, server, shards, limited):
    """Forked from a process that has downloaded already, and whose threads they do not have."""
    manifest = read_manifest(server.url)
    limit = room_for_one(manifest["shards"]) if limited else None
    cache = ShardCache(server.url, manifest, tmp_path / "cache", limit)
    remote, local = ShardReader(server.url, "train", manifest, cache), ShardReader(shards, "train")
    order = [MicroBatch(np.arange(n, n + 8), np.zeros(8, np.int64), np.ones(8, np.float32)) for n in range(0, 64, 8)]
    both = (loader(MicroBatches(reader, k=3, max_tokens=96, seed=0), order, 2, False) for reader in (remote, local))
    for one, other in zip(*both, strict=True):
        for name, tensor in one.items():
            assert tensor.equal(other[name])
    assert (max(server.asked.values()) > 1) == limited


@pytest.mark.parametrize("value", [0, -1, "nan", "inf"])
def test_a_limit_that_no_cache_can_keep_is_refused(value, ds_config):
    with pytest.raises(InputError, match="--shard_cache_gb"):
        parse(["--ds_config", str(ds_config()), "--shard_cache_gb", str(value)], "")


@pytest.mark.parametrize("value", [20, 0.5])
def test_a_limit_is_read_from_a_yaml_file(value, ds_config, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"shard_cache_gb: {value}\n")
    _, run = parse(["--ds_config", str(ds_config()), "--config", str(path)], "")
    assert run.shard_cache_gb == value
