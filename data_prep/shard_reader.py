"""The shard reader: the manifest, its checks, and samples by number, read by index with `os.pread`.

Shards lie in a folder, which is read in place, or behind a URL, from where they are staged (`data_prep.shard_cache`).
"""

import errno
import io
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data_prep.checksum import sha256_of_file
from data_prep.errors import InputError
from data_prep.output_folder import MANIFEST
from data_prep.remote_file import is_remote, read_remote, url
from data_prep.shard_cache import ShardCache
from data_prep.shard_format import FORMAT, FORMAT_VERSION, INDEX_DTYPE, PROMOTERS, REGIONS, Sample

OPEN_FILES = 128  # shards that a process holds open
NPY_VERSION_1 = b"\x93NUMPY\x01\x00"
ATTEMPTS_AT_MANIFEST = 3

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_manifest(location: Path | str) -> dict:
    """The manifest of a folder or URL of shards.

    Raises `InputError` where there is none, it cannot be read, or it is of another format version.
    """
    path = url(str(location), MANIFEST) if is_remote(location) else Path(location) / MANIFEST
    try:
        if is_remote(location):
            content = read_remote(str(location), MANIFEST, ATTEMPTS_AT_MANIFEST)
        else:
            content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        where = f"--out FOLDER, and copy FOLDER to {url(str(location))}" if is_remote(location) else f"--out {location}"
        raise InputError(f"{path}: no shards there; make them with: python data_prep/main.py shards {where}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; make the shards anew") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of shards of this program")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: shards of format version {manifest.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "make them anew with: python data_prep/main.py shards"
        )
    return manifest


def check_content(location: Path | str, manifest: dict, expected: str, reader: str) -> None:
    """Raise `InputError` where the samples are not of what `reader` takes: REGIONS or PROMOTERS."""
    found = manifest.get("content", REGIONS)
    if found != expected:
        command = {REGIONS: "shards", PROMOTERS: "promoters"}[expected]
        raise InputError(
            f"{url(str(location), MANIFEST) if is_remote(location) else Path(location) / MANIFEST}: shards of {found}; "
            f"{reader} takes those of {expected}, which python data_prep/main.py {command} makes"
        )


def verify_shard(folder: Path | str, entry: dict) -> None:
    """Check one shard and its index against the manifest's entry. Raises `InputError` with both sha256."""
    for name, expected in ((entry["name"], entry["sha256"]), (entry["index"], entry["index_sha256"])):
        path = Path(folder) / name
        if not path.is_file():
            raise InputError(f"{path}: the manifest names it, but it is not there; make the shards anew")
        found = sha256_of_file(path)
        if found != expected:
            raise InputError(
                f"{path}: truncated or altered: expected sha256 {expected}, found {found} "
                f"({path.stat().st_size} bytes); copy it again or make the shards anew"
            )


class ShardReader:
    """Samples of one split, by number 0 ... len - 1 in the manifest's order of shards.

    location: a folder, or a URL, whose files are staged to `cache` (default: a `ShardCache` without a limit). Files are
    opened in each process when it first reads from them, so a reader can be handed to worker processes. Reading raises
    `InputError` for a shard that cannot be had, or does not match its index.
    """

    def __init__(self, location: Path | str, split: str, manifest: dict | None = None, cache: ShardCache | None = None):
        self.location = str(location)
        self.manifest = manifest or read_manifest(location)
        self.cache = ShardCache(self.location, self.manifest) if is_remote(location) and cache is None else cache
        self.shards = [entry for entry in self.manifest["shards"] if entry["split"] == split]
        self.first_of_shard = np.cumsum([0, *(entry["samples"] for entry in self.shards)]).tolist()
        # What is held open takes room on the disk even where the cache has removed it.
        self._most_open = OPEN_FILES if self.cache is None or self.cache.holds_all else 1
        self._handles: OrderedDict[int, int] = OrderedDict()  # by shard; the one used longest ago comes first
        self._owner = None

    def __len__(self) -> int:
        return self.first_of_shard[-1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handles": OrderedDict(), "_owner": None}

    @cached_property
    def index(self) -> np.ndarray:
        """One row of INDEX_DTYPE a sample."""
        tables = [self._read_index(entry) for entry in self.shards]
        return np.concatenate([np.zeros(0, dtype=INDEX_DTYPE), *tables])

    @property
    def cell_type(self) -> np.ndarray:
        """int32 [len]: each sample's cell type, as a position in the manifest's list."""
        return self.index["cell_type"]

    def __getitem__(self, number: int) -> Sample:
        number = range(len(self))[number]
        *arrays, meta = self._members(number, 4)
        try:
            return Sample(*map(npy_array, arrays), json.loads(bytes(meta)))
        except ValueError as error:
            raise self._mismatch(number, error) from error

    def arrays(self, number: int) -> Arrays:
        """bases, lengths and binding of sample `number` >= 0, read-only: what training needs of it."""
        bases, lengths, binding = self._members(number, 3)
        try:
            return npy_array(bases), npy_array(lengths), npy_array(binding)
        except ValueError as error:
            raise self._mismatch(number, error) from error

    def _members(self, number: int, n: int) -> list[memoryview]:
        """The contents of a sample's first `n` members."""
        offset, size = self.index["offset"][number].tolist(), self.index["size"][number].tolist()
        start, stop = offset[0], offset[n - 1] + size[n - 1]
        content = self._pread(bisect_right(self.first_of_shard, number) - 1, start, stop)
        if len(content) != stop - start:
            raise self._mismatch(number, f"the file ends before byte {stop}")
        content = memoryview(content)
        return [content[a - start : a - start + b] for a, b in zip(offset[:n], size[:n], strict=True)]

    def _pread(self, shard: int, start: int, stop: int) -> bytes:
        try:
            return os.pread(self._handle(shard), stop - start, start)
        except OSError as error:
            if error.errno == errno.ESTALE and self.cache:  # a cache on NFS, from which another node has removed it
                os.close(self._handles.pop(shard))
                return os.pread(self._handle(shard), stop - start, start)
            raise InputError(f"{self._path(self.shards[shard]['name'])}: cannot be read: {error.strerror}") from error

    def _handle(self, shard: int) -> int:
        if self._owner != os.getpid():
            self._handles, self._owner = OrderedDict(), os.getpid()
        if shard in self._handles:
            self._handles.move_to_end(shard)
        else:
            while len(self._handles) >= self._most_open:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[shard] = self._open(self.shards[shard])
        return self._handles[shard]

    def _open(self, entry: dict, index: bool = False) -> int:
        if self.cache:
            return self.cache.open(entry, index)
        path = self._path(entry["index" if index else "name"])
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; make the shards anew") from error

    def _read_index(self, entry: dict) -> np.ndarray:
        path = self._path(entry["index"])
        with open(self._open(entry, index=True), "rb") as file:
            try:
                table = np.load(file, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise InputError(f"{path}: not an index of a shard: {error}; make the shards anew") from error
        if table.dtype != INDEX_DTYPE or table.shape != (entry["samples"],):
            raise InputError(
                f"{path}: not the index of the {entry['samples']} samples that the manifest names; make the shards anew"
            )
        return table

    def _path(self, name: str) -> str:
        return url(self.location, name) if self.cache else str(Path(self.location) / name)

    def _mismatch(self, number: int, reason: object) -> InputError:
        shard = bisect_right(self.first_of_shard, number) - 1
        return InputError(
            f"{self._path(self.shards[shard]['name'])}: sample {number - self.first_of_shard[shard]} is not what its "
            f"index says: {reason}; copy the shards again or make them anew"
        )


def npy_array(content: memoryview) -> np.ndarray:
    """The array of an `.npy` file's content, without a copy, read-only. Raises `ValueError` where it holds none."""
    if content[:8] != NPY_VERSION_1:
        raise ValueError("no array stands there")
    data = 10 + int.from_bytes(content[8:10], "little")
    dtype, shape, n = _npy_header(bytes(content[:data]))
    if data + n * dtype.itemsize != len(content):
        raise ValueError(f"an array of {n * dtype.itemsize} bytes in {len(content) - data}")
    return np.frombuffer(content, dtype, n, data).reshape(shape)


@lru_cache(maxsize=16384)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """dtype, shape and number of elements. The headers of equal shapes are equal bytes, and parsing one takes longer
    than reading a sample."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran or dtype.hasobject:
        raise ValueError("an array of another layout")
    return dtype, shape, int(np.prod(shape))
