"""Remote shards: the files of a folder behind a URL, staged to a cache on this machine.

A file is downloaded once, whichever processes ask for it, and takes its place in the cache only when its sha256 is the
manifest's; there it is named by that sha256. Where the cache has a limit, the files used longest ago make room. A file
that is removed while a process reads it stays readable to that process.
"""

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.remote_file import blocks, is_remote, open_remote, retried, url
from data_prep.shard_format import INDEX_DTYPE

DEFAULT_FOLDER = "~/.cache/genebert/shards"
ATTEMPTS = 6
LARGEST_NPY_HEADER = 1024  # bytes; an index has 256

_SHA256 = re.compile(r"[0-9a-f]{64}")
_STAGED = re.compile(r"[0-9a-f]{64}\.(?:tar|npy)")
_PARTIAL = re.compile(r"([0-9a-f]{64}\.(?:tar|npy))\.partial-.*")


@dataclass(frozen=True)
class StagedFile:
    """A file that the manifest names. path: in the cache; n_bytes: its size, None where the manifest does not tell;
    at_most: bytes that it can have."""

    name: str
    sha256: str
    path: Path
    n_bytes: int | None
    at_most: int


def cache_for(location: str, manifest: dict, folder: Path | str, gigabytes: float | None) -> "ShardCache | None":
    """The cache in `folder` of at most so many GB (1e9 bytes, None for no limit); None for shards that lie in a folder
    themselves. Raises `InputError` as `ShardCache` does."""
    if not is_remote(location):
        return None
    return ShardCache(location, manifest, folder, None if gigabytes is None else int(gigabytes * 1e9))


class ShardCache:
    """The files of a remote folder of shards, on this machine. Can be handed to worker processes.

    limit: bytes that the cache's folder may hold, whichever shards they are of; None for no limit. What a process has
    open stays on the disk until it closes it, limit or not. Raises `InputError` for a folder that cannot be written,
    and for a limit that does not hold one shard.
    """

    def __init__(self, location: str, manifest: dict, folder: Path | str = DEFAULT_FOLDER, limit: int | None = None):
        self.location = location
        self.folder = Path(folder).expanduser()
        self.limit = limit
        sizes = [sum(file.at_most for file in self._files(entry)) for entry in manifest["shards"]]
        self.n_bytes = sum(sizes)
        if limit is not None and limit < max(sizes, default=0):
            raise InputError(
                f"{url(location)}: a shard and its index take {max(sizes) / 1e9:.3g} GB, the cache may hold "
                f"{limit / 1e9:.3g}; give a larger --shard_cache_gb"
            )
        with self._on_disk():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)

    @property
    def holds_all(self) -> bool:
        """True where all shards of the remote folder fit into the cache at once."""
        return self.limit is None or self.n_bytes <= self.limit

    def open(self, entry: dict, index: bool = False) -> int:
        """A descriptor of a shard, or of its index, to read from; it is downloaded where it is not in the cache.

        Raises `InputError` where that fails: with the URL and the cause, or with both sha256.
        """
        file = self._files(entry)[index]
        with self._on_disk():
            descriptor = self._open_staged(file)
        return self._download(file) if descriptor is None else descriptor

    def stage(self, entry: dict) -> None:
        """Have a shard and its index in the cache, their bytes checked."""
        self.check(entry)
        for index in (False, True):
            os.close(self.open(entry, index))

    def check(self, entry: dict) -> None:
        """Remove a shard or its index from the cache where it is not what the manifest says."""
        for file in self._files(entry):
            with self._on_disk(), self._lock(file.path.name), suppress(FileNotFoundError):
                if sha256_of_file(file.path) != file.sha256:
                    file.path.unlink()

    def _files(self, entry: dict) -> tuple[StagedFile, StagedFile]:
        """A shard and its index."""
        for sha256 in (entry["sha256"], entry["index_sha256"]):
            if not _SHA256.fullmatch(sha256):
                raise InputError(f"{url(self.location, entry['name'])}: the manifest's {sha256!r} is no sha256")
        shard, index = self.folder / f"{entry['sha256']}.tar", self.folder / f"{entry['index_sha256']}.npy"
        return (
            StagedFile(entry["name"], entry["sha256"], shard, entry["bytes"], entry["bytes"]),
            StagedFile(
                *(entry["index"], entry["index_sha256"], index),
                n_bytes=None,
                at_most=LARGEST_NPY_HEADER + INDEX_DTYPE.itemsize * entry["samples"],
            ),
        )

    def _open_staged(self, file: StagedFile) -> int | None:
        """A descriptor, where the file is there; it counts as used now."""
        try:
            descriptor = os.open(file.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if file.n_bytes not in (None, os.fstat(descriptor).st_size):
            os.close(descriptor)
            return None
        os.utime(descriptor)
        return descriptor

    def _download(self, file: StagedFile) -> int:
        lock = self._lock(file.path.name)
        with self._on_disk():
            lock.acquire()
        partial = None
        try:
            with self._on_disk():
                descriptor = self._open_staged(file)
            if descriptor is not None:
                return descriptor  # another process was faster
            partial = self._reserve(file)
            retried(lambda: self._fill(partial, file), self.location, file.name, ATTEMPTS)
            with self._on_disk(), self._lock("room"):
                # Opened before it is in its place, from where another process may remove it at once.
                descriptor = os.open(partial, os.O_RDONLY)
                partial.replace(file.path)
            return descriptor
        except FileNotFoundError as error:
            raise InputError(
                f"{url(self.location, file.name)}: the manifest names it, but it is not there; copy the shards anew"
            ) from error
        finally:
            if partial:
                partial.unlink(missing_ok=True)
            lock.release()

    def _fill(self, partial: Path, file: StagedFile) -> None:
        """Download into `partial`. Raises `ConnectionError` for a download that ends early, which may be retried."""
        found, n_bytes = hashlib.sha256(), 0
        with open_remote(self.location, file.name) as source:
            for block in blocks(source):
                if n_bytes + len(block) > file.at_most:
                    raise InputError(
                        f"{url(self.location, file.name)}: has more than the {file.at_most} bytes that the manifest "
                        "says; copy the shards anew"
                    )
                with self._on_disk(), open(partial, "r+b") as target:
                    target.seek(n_bytes)
                    target.write(block)
                found.update(block)
                n_bytes += len(block)
        if n_bytes < (file.n_bytes or 0):
            raise ConnectionError(f"it ended after {n_bytes} of {file.n_bytes} bytes")
        if found.hexdigest() != file.sha256:
            raise InputError(
                f"{url(self.location, file.name)}: truncated or altered: expected sha256 {file.sha256}, found "
                f"{found.hexdigest()} ({n_bytes} bytes); copy the shards anew"
            )
        with self._on_disk():
            os.truncate(partial, n_bytes)

    def _reserve(self, file: StagedFile) -> Path:
        """A file as large as the one to come, under another name, made as soon as the limit has room for it."""
        partial = file.path.with_name(f"{file.path.name}.partial-{socket.gethostname()}-{os.getpid()}")
        while True:
            with self._on_disk(), self._lock("room"):
                arriving = self._remove_abandoned(own=file.path.name)
                if self._make_room(arriving + file.at_most):
                    with open(partial, "wb") as target:
                        target.truncate(file.at_most)
                    return partial
            time.sleep(0.1)  # the downloads of other processes fill the limit, until they are done

    def _make_room(self, n_bytes: int) -> bool:
        """Remove the files used longest ago until `n_bytes` more fit; False where even all of them would not do."""
        if self.limit is None:
            return True
        if n_bytes > self.limit:
            return False
        staged = sorted((stat.st_mtime_ns, stat.st_size, path) for path, stat in self._scan(_STAGED))
        total = n_bytes + sum(size for _, size, _ in staged)
        for _, size, path in staged:
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size
        return True

    def _remove_abandoned(self, own: str) -> int:
        """Remove what killed processes left of downloads; the bytes of those that go on.

        own: the file whose lock this process holds, so that nobody else is downloading it.
        """
        arriving = 0
        for path, stat in self._scan(_PARTIAL):
            name = _PARTIAL.fullmatch(path.name)[1]
            if name == own:
                path.unlink(missing_ok=True)
                continue
            try:
                with self._lock(name, timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                arriving += stat.st_size
        return arriving

    def _scan(self, names: re.Pattern) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # its download has just ended
                if names.fullmatch(path.name):
                    yield path, path.stat()

    def _lock(self, name: str, timeout: float = -1) -> FileLock:
        return FileLock(self.folder / "locks" / name, timeout=timeout)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Turn a failure of this machine's disk into one line."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.folder}: the cache of shards failed: {error.strerror or error}; make room there, or choose "
                "another folder with --shard_cache"
            ) from error
