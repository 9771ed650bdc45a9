"""The shard reader: the manifest, its checks, and samples by number, read by index with `os.pread`."""

import io
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.genome import sha256_of_file
from data_prep.output_folder import MANIFEST
from data_prep.shard_format import FORMAT, FORMAT_VERSION, INDEX_DTYPE, Sample


def read_manifest(folder: Path | str) -> dict:
    """A shard folder's manifest. Raises `InputError` where there is none, or it is of another format version."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: no shards there; make them with: python data_prep/main.py shards --out {folder}")
    try:
        manifest = json.loads(path.read_text())
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

    Files are opened in each process at its first read, so a reader can be handed to worker processes.
    """

    def __init__(self, folder: Path | str, split: str, manifest: dict | None = None):
        self.folder = Path(folder)
        self.manifest = manifest or read_manifest(folder)
        self.shards = [entry for entry in self.manifest["shards"] if entry["split"] == split]
        self.first_of_shard = np.cumsum([0, *(entry["samples"] for entry in self.shards)])
        self._handles: dict[int, int] = {}
        self._owner = None

    def __len__(self) -> int:
        return int(self.first_of_shard[-1])

    @cached_property
    def index(self) -> np.ndarray:
        """One row of INDEX_DTYPE a sample."""
        if not self.shards:
            return np.zeros(0, dtype=INDEX_DTYPE)
        tables = [np.load(self.folder / entry["index"], allow_pickle=False) for entry in self.shards]
        return np.concatenate(tables)

    @property
    def cell_type(self) -> np.ndarray:
        """int32 [len]: each sample's cell type, as a position in the manifest's list."""
        return self.index["cell_type"]

    def __getitem__(self, number: int) -> Sample:
        number = range(len(self))[number]
        row = self.index[number]
        shard = int(np.searchsorted(self.first_of_shard, number, side="right")) - 1
        start = int(row["offset"][0])
        stop = int(row["offset"][-1] + row["size"][-1])
        content = os.pread(self._handle(shard), stop - start, start)
        bases, lengths, binding, meta = (
            content[offset - start : offset - start + size]
            for offset, size in zip(row["offset"].tolist(), row["size"].tolist(), strict=True)
        )
        return Sample(_array(bases), _array(lengths), _array(binding), json.loads(meta))

    def _handle(self, shard: int) -> int:
        if self._owner != os.getpid():
            self._handles, self._owner = {}, os.getpid()
        if shard not in self._handles:
            self._handles[shard] = os.open(self.folder / self.shards[shard]["name"], os.O_RDONLY)
        return self._handles[shard]


def _array(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
