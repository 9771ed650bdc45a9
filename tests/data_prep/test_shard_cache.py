import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from filelock import FileLock

from data_prep import remote_file
from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.shard_cache import ShardCache
from data_prep.shard_format import SPLITS
from data_prep.shard_reader import ShardReader, read_manifest

fork = multiprocessing.get_context("fork")


@pytest.fixture
def shards(synthetic, tmp_path) -> Path:
    """A copy, so that a test may damage it."""
    return Path(shutil.copytree(synthetic.shards, tmp_path / "remote" / "shards"))


@pytest.fixture
def server(serve, shards):
    return serve(shards)


@pytest.fixture
def manifest(synthetic) -> dict:
    return synthetic.manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(remote_file, "PAUSE", 0.01)


def assert_same_samples(reader: ShardReader, local: ShardReader, order: np.ndarray | None = None) -> None:
    assert len(reader) == len(local) > 0
    for number in range(len(local)) if order is None else order.tolist():
        one, other = reader[number], local[number]
        assert one.meta == other.meta
        for name in ("bases", "lengths", "binding"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def files(folder: Path) -> dict[str, int]:
    """What the cache holds, locks aside."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Where shards may lie.


@pytest.fixture(params=["http", "http with a key", "file", "memory"])
def location(request, shards) -> Iterator[str]:
    if request.param.startswith("http"):
        server = request.getfixturevalue("server")
        yield server.url + ("?key=secret" if "key" in request.param else "/")
    elif request.param == "file":
        yield f"file://{shards}"
    else:
        memory = fsspec.filesystem("memory")
        memory.put(str(shards), "/shards", recursive=True)
        yield "memory://shards"
        memory.rm("/shards", recursive=True)


def test_shards_behind_any_url_give_the_samples_of_the_folder(location, folder, synthetic):
    manifest = read_manifest(location)
    assert manifest == synthetic.manifest
    for split in SPLITS:
        reader = ShardReader(location, split, manifest, ShardCache(location, manifest, folder))
        assert_same_samples(reader, ShardReader(synthetic.shards, split))
        np.testing.assert_array_equal(reader.cell_type, ShardReader(synthetic.shards, split).cell_type)


def test_files_are_asked_for_once_and_the_next_run_asks_for_none(server, folder, manifest, synthetic):
    for _ in range(2):
        reader = ShardReader(server.url, "train", manifest, ShardCache(server.url, manifest, folder))
        assert_same_samples(reader, ShardReader(synthetic.shards, "train"))
    assert server.asked == {entry[key]: 1 for entry in reader.shards for key in ("name", "index")}


def test_a_folder_is_read_in_place(synthetic, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ShardReader(synthetic.shards, "train")[0].lengths) == 10
    assert not list(tmp_path.iterdir())


# What may go wrong with a file.


def test_a_download_that_ends_early_is_tried_again(server, folder, manifest, synthetic):
    reader = ShardReader(server.url, "train", manifest, ShardCache(server.url, manifest, folder))
    entry = reader.shards[0]
    server.cut.update({entry["name"]: 2, entry["index"]: 1})
    assert_same_samples(reader, ShardReader(synthetic.shards, "train"))
    assert (server.asked[entry["name"]], server.asked[entry["index"]]) == (3, 2)


@pytest.mark.parametrize("kind", ["name", "index"])
def test_a_server_that_never_sends_the_whole_file_is_one_line(server, folder, manifest, kind):
    entry = manifest["shards"][0]
    server.cut[entry[kind]] = 99
    with pytest.raises(InputError) as error:
        ShardCache(server.url, manifest, folder).stage(entry)
    assert one_line(error).startswith(f"{server.url}/{entry[kind]}: could not be read in 6 attempts: ClientPayload")
    staged = {f"{entry['sha256']}.tar"} if kind == "index" else set()
    assert files(folder).keys() == staged


def test_a_file_that_is_not_there_is_named(server, folder, manifest, shards):
    entry = manifest["shards"][1]
    (shards / entry["name"]).unlink()
    with pytest.raises(InputError) as error:
        ShardCache(server.url, manifest, folder).open(entry)
    assert one_line(error).startswith(f"{server.url}/{entry['name']}: the manifest names it, but it is not there")
    assert server.asked[entry["name"]] == 1


@pytest.mark.parametrize("kind", ["name", "index"])
@pytest.mark.parametrize("damage", ["altered", "longer", "shorter"])
def test_a_damaged_remote_file_is_refused_and_leaves_nothing(server, folder, manifest, shards, kind, damage):
    entry = manifest["shards"][1]
    path, key = shards / entry[kind], "sha256" if kind == "name" else "index_sha256"
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[len(content) // 2] ^= 1
    content = {"altered": content, "longer": content + bytes(2000), "shorter": content[:-1]}[damage]
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        ShardCache(server.url, manifest, folder).open(entry, index=kind == "index")
    line = one_line(error)
    assert line.startswith(f"{server.url}/{entry[kind]}: ")
    if damage == "longer":
        assert "has more than the" in line
    elif damage == "shorter" and kind == "name":
        assert f"ended after {len(content)} of {entry['bytes']} bytes" in line
    else:
        assert f"expected sha256 {entry[key]}, found {sha256_of_file(path)} ({len(content)} bytes)" in line
    assert files(folder) == {}


def test_a_damaged_file_of_the_cache_is_staged_anew(server, folder, manifest, synthetic):
    cache = ShardCache(server.url, manifest, folder)
    for entry in manifest["shards"]:
        cache.stage(entry)
    altered, shortened = (folder / f"{entry['sha256']}.tar" for entry in manifest["shards"][:2])
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    os.truncate(shortened, 512)
    for entry in manifest["shards"]:
        cache.stage(entry)
    assert set(server.asked.values()) == {1, 2}
    assert sum(server.asked.values()) == 2 * len(manifest["shards"]) + 2
    assert_same_samples(ShardReader(server.url, "train", manifest, cache), ShardReader(synthetic.shards, "train"))


def test_a_manifest_cannot_name_a_file_outside_the_cache(server, folder, manifest):
    entry = manifest["shards"][0] | {"sha256": "../" * 20 + "a" * 4}
    with pytest.raises(InputError, match="is no sha256"):
        ShardCache(server.url, manifest | {"shards": [entry]}, folder)


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path, manifest):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"^{tmp_path}/file/x: the cache of shards failed: .*--shard_cache$"):
        ShardCache(server.url, manifest, tmp_path / "file" / "x")


@pytest.fixture
def small_disk(folder) -> Iterator[Path]:
    """A file system of 12 kB, less than a shard, where this user may mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(server, small_disk, manifest):
    entry = max(manifest["shards"], key=lambda entry: entry["bytes"])
    assert entry["bytes"] > 12 << 10
    with pytest.raises(InputError) as error:
        ShardCache(server.url, manifest, small_disk).open(entry)
    assert one_line(error).startswith(f"{small_disk}: the cache of shards failed: No space left on device; make room")
    assert files(small_disk) == {}
    assert server.asked[entry["name"]] == 1


# Several processes.


def in_processes(target, *arguments, n: int = 2) -> None:
    """Run a function in forked processes; none may fail."""
    processes = [fork.Process(target=target, args=(number, *arguments)) for number in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * n


def stage_together(_, url, manifest, folder, repetitions, barrier):
    for repetition in range(repetitions):
        cache = ShardCache(url, manifest, folder / str(repetition))
        barrier.wait(30)
        for entry in manifest["shards"][:2]:
            for index in (False, True):
                with open(cache.open(entry, index), "rb") as file:
                    key = "index_sha256" if index else "sha256"
                    assert hashlib.file_digest(file, "sha256").hexdigest() == entry[key]


def test_processes_that_stage_a_file_at_once_download_it_once_and_whole(server, folder, manifest):
    server.pause, repetitions = 0.001, 25
    in_processes(stage_together, server.url, manifest, folder, repetitions, fork.Barrier(3), n=3)
    assert server.asked == {entry[key]: repetitions for entry in manifest["shards"][:2] for key in ("name", "index")}
    both = manifest["shards"][:2]
    expected = {f"{entry['sha256']}.tar" for entry in both} | {f"{entry['index_sha256']}.npy" for entry in both}
    for repetition in range(repetitions):
        assert files(folder / str(repetition)).keys() == expected


def test_a_process_forked_from_one_that_has_downloaded_downloads_too(server, folder, manifest, synthetic):
    reader = ShardReader(server.url, "train", manifest, ShardCache(server.url, manifest, folder))
    reader[0]
    in_processes(read_all, reader, synthetic.shards, 1)


def read_all(number, reader, shards, epochs):
    for epoch in range(epochs):
        order = np.random.default_rng((number, epoch)).permutation(len(reader))
        assert_same_samples(reader, ShardReader(shards, "train"), order)


def stall(_, url, manifest, folder):
    ShardCache(url, manifest, folder).stage(manifest["shards"][0])


@pytest.mark.parametrize("after", [0, 1])
def test_a_killed_download_leaves_nothing_that_reads_as_complete(server, folder, manifest, synthetic, one_shard, after):
    """after: which shard the next process asks for first, the one whose download was killed or another."""
    name = manifest["shards"][0]["name"]
    server.stalls.add(name)
    process = fork.Process(target=stall, args=(0, server.url, manifest, folder))
    process.start()
    deadline = time.monotonic() + 30
    while not any(path.stat().st_blocks for path in folder.glob("*.partial-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert all("partial" in path for path in files(folder))
    server.stalls.clear()
    entry = manifest["shards"][after]
    # What was left must not count as used, or there would never be room.
    os.close(ShardCache(server.url, manifest, folder, one_shard).open(entry))
    assert files(folder) == {f"{entry['sha256']}.tar": entry["bytes"]}
    reader = ShardReader(server.url, "train", manifest, ShardCache(server.url, manifest, folder))
    assert_same_samples(reader, ShardReader(synthetic.shards, "train"))


# The limit.


@pytest.fixture
def one_shard(manifest) -> int:
    """Bytes that hold one shard and its index, whichever."""
    return max(entry["bytes"] + 1024 + 72 * entry["samples"] for entry in manifest["shards"])


def test_a_limit_below_one_shard_is_refused(server, folder, manifest, one_shard):
    ShardCache(server.url, manifest, folder, one_shard)
    with pytest.raises(InputError, match=rf"^{server.url}: a shard and its index take .* larger --shard_cache_gb"):
        ShardCache(server.url, manifest, folder, one_shard - 1)


def test_the_files_used_longest_ago_make_room(server, folder, manifest):
    entries = sorted(manifest["shards"], key=lambda entry: entry["bytes"])[:4]
    limit = sum(entry["bytes"] for entry in entries[1:])
    cache = ShardCache(server.url, manifest | {"shards": entries}, folder, limit)
    (folder / "train-000000.tar").write_bytes(bytes(100_000))  # of the user's
    for number in (0, 1, 2, 0, 3):
        os.close(cache.open(entries[number]))
        time.sleep(0.02)
    assert files(folder).keys() == {f"{entries[n]['sha256']}.tar" for n in (0, 2, 3)} | {"train-000000.tar"}


def test_whether_all_shards_fit_is_known(server, folder, manifest):
    n_bytes = ShardCache(server.url, manifest, folder).n_bytes
    assert ShardCache(server.url, manifest, folder).holds_all
    assert ShardCache(server.url, manifest, folder, n_bytes).holds_all
    assert not ShardCache(server.url, manifest, folder, n_bytes - 1).holds_all
    for entry in manifest["shards"]:
        ShardCache(server.url, manifest, folder, n_bytes).stage(entry)
    assert set(server.asked.values()) == {1}
    assert sum(files(folder).values()) <= n_bytes


@pytest.mark.parametrize("n_processes", [1, 2])
def test_an_epoch_in_any_order_keeps_within_the_limit(server, folder, manifest, synthetic, one_shard, n_processes):
    cache = ShardCache(server.url, manifest, folder, one_shard)
    largest, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            with FileLock(folder / "locks" / "room"):
                largest.append(sum(files(folder).values()))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        reader = ShardReader(server.url, "train", manifest, cache)
        in_processes(read_all, reader, synthetic.shards, 2, n=n_processes)
    finally:
        done.set()
        watcher.join()
    assert 0 < max(largest) <= one_shard
    assert max(server.asked.values()) > 1


def test_a_reader_holds_no_more_on_the_disk_than_one_shard_beyond_the_limit(
    server, folder, manifest, synthetic, one_shard
):
    reader = ShardReader(server.url, "train", manifest, ShardCache(server.url, manifest, folder, one_shard))
    assert_same_samples(reader, ShardReader(synthetic.shards, "train"))
    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert len([path for path in held if path.startswith(str(folder))]) <= 1


def test_a_file_that_vanishes_from_the_cache_is_staged_again(server, folder, manifest, synthetic):
    cache = ShardCache(server.url, manifest, folder)
    assert_same_samples(ShardReader(server.url, "train", manifest, cache), ShardReader(synthetic.shards, "train"))
    for path in folder.glob("*.*"):
        path.unlink()
    assert_same_samples(ShardReader(server.url, "train", manifest, cache), ShardReader(synthetic.shards, "train"))


def test_a_file_that_another_node_has_removed_is_staged_again(server, folder, manifest, synthetic, monkeypatch):
    """NFS gives ESTALE for a file that is open here and was removed there."""
    reader = ShardReader(server.url, "train", manifest, ShardCache(server.url, manifest, folder))
    reader[0]
    pread, failures = os.pread, [OSError(errno.ESTALE, "Stale file handle")]
    monkeypatch.setattr(os, "pread", lambda *given: pread(*given) if not failures else raising(failures.pop()))
    assert_same_samples(reader, ShardReader(synthetic.shards, "train"))
    assert not failures


def raising(error: Exception):
    raise error
