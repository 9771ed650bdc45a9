"""Both splits of a set of shards as one sequence of samples: train, then val, in the manifest's order of shards.

What does not fit the manifest or the format is an `InputError` that names the shard and the sample's place in it.
"""

import json
import sys
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.output_folder import MANIFEST
from data_prep.remote_file import is_remote, url
from data_prep.shard_cache import ShardCache
from data_prep.shard_format import REGIONS, REGIONS_PER_SAMPLE, SPLITS, Sample
from data_prep.shard_reader import ShardReader, check_content, read_manifest

REPAIR = "copy the shards again or make them anew"
_NEEDED = ("samples", "cell_types", "chromosomes", "val_chromosomes", "motifs", "motif_names", "affinity", "genome")
_NEEDED += ("binding_mean", "binding_std", "shards")


class ShardSet:
    """Samples 0 ... len - 1 of both splits, the first `n_train` for training; `index` has a row of INDEX_DTYPE each.

    location: a folder, or a URL, whose files are staged to `cache` (default: one without a limit). Raises `InputError`
    where there are no shards, the manifest lacks what it must have, or an index does not fit it.
    """

    def __init__(self, location: Path | str, manifest: dict | None = None, cache: ShardCache | None = None):
        self.location = str(location)
        self.manifest = manifest or read_manifest(location)
        check_content(location, self.manifest, REGIONS, "inspect")
        missing = [key for key in _NEEDED if key not in self.manifest]
        if missing:
            raise InputError(f"{self.path(MANIFEST)}: has no {missing[0]!r}; {REPAIR}")
        self.readers = {split: ShardReader(location, split, self.manifest, cache) for split in SPLITS}
        self.entries = [entry for reader in self.readers.values() for entry in reader.shards]
        self.first_of_shard = np.cumsum([0, *(entry["samples"] for entry in self.entries)])
        self.n_train = len(self.readers["train"])
        if not len(self):
            raise InputError(f"{self.path(MANIFEST)}: names no samples; make the shards anew")
        self.index = np.concatenate([reader.index for reader in self.readers.values()])
        self._check_index()
        self._check_totals()
        self._check_statistics()

    def __len__(self) -> int:
        return int(self.first_of_shard[-1])

    @property
    def cell_types(self) -> list[str]:
        """Their names, in the manifest's order."""
        return [cell_type["name"] for cell_type in self.manifest["cell_types"]]

    def path(self, name: str) -> str:
        """What messages call a file of the set."""
        return url(self.location, name) if is_remote(self.location) else str(Path(self.location) / name)

    def split(self, number: int) -> str:
        """`train` or `val`, where sample `number` belongs."""
        return SPLITS[int(number >= self.n_train)]

    def where(self, number: int) -> str:
        """A sample's shard and its place there, for a message: `shards/val-000000.tar: sample 12`."""
        shard = int(np.searchsorted(self.first_of_shard, number, side="right")) - 1
        return f"{self.path(self.entries[shard]['name'])}: sample {number - self.first_of_shard[shard]}"

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`. Raises `InputError` where it cannot be read, or its members are not of the format."""
        split = self.split(number)
        sample = self.readers[split][int(number) - (self.n_train if split == "val" else 0)]
        fault = member_fault(sample, len(self.manifest["motifs"]))
        if fault:
            raise InputError(f"{self.where(number)}: {fault}; {REPAIR}")
        return sample

    def _check_index(self) -> None:
        limits = {"cell_type": len(self.cell_types), "chromosome": len(self.manifest["chromosomes"])}
        for entry, rows in zip(self.entries, np.split(self.index, self.first_of_shard[1:-1]), strict=True):
            fault = index_fault(rows, limits, entry["bytes"])
            if fault:
                raise InputError(f"{self.path(entry['index'])}: {fault}; {REPAIR}")

    def _check_totals(self) -> None:
        for split, rows in zip(SPLITS, np.split(self.index, [self.n_train]), strict=True):
            counts = np.bincount(rows["cell_type"], minlength=len(self.cell_types)).tolist()
            named = [cell_type["samples"][split] for cell_type in self.manifest["cell_types"]]
            pairs = zip([self.manifest["samples"][split], *named], [len(rows), *counts], strict=True)
            for name, (expected, found) in zip(["all cell types", *self.cell_types], pairs, strict=True):
                if expected != found:
                    raise InputError(
                        f"{self.path(MANIFEST)}: counts {expected} {split} samples of {name}, the shards' indexes "
                        f"{found}; {REPAIR}"
                    )

    def _check_statistics(self) -> None:
        motifs = self.manifest["motifs"]
        for key in ("binding_mean", "binding_std"):
            values = self.manifest[key]
            if not isinstance(values, list) or len(values) != len(motifs):
                raise InputError(
                    f"{self.path(MANIFEST)}: {key} is no list of {len(motifs)} values, one a motif; {REPAIR}"
                )
            for motif, value in zip(motifs, values, strict=True):
                if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
                    raise InputError(
                        f"{self.path(MANIFEST)}: {key} of {motif} is {json.dumps(value)}, no finite number; {REPAIR}"
                    )


def index_fault(rows: np.ndarray, limits: dict[str, int], n_bytes: int) -> str | None:
    """What is wrong in a shard's index, in a few words: a code beyond `limits`, an offset beyond a tar's `n_bytes`."""
    for name, limit in limits.items():
        outside = np.flatnonzero((rows[name] < 0) | (rows[name] >= limit))
        if len(outside):
            return f"row {outside[0]}: {name} {rows[name][outside[0]]} is not one of the manifest's {limit}"
    ends = np.concatenate([np.zeros((len(rows), 1), np.int64), rows["offset"] + rows["size"]], axis=1)
    outside = (rows["offset"] < ends[:, :-1]) | (rows["size"] <= 0) | (ends[:, 1:] > n_bytes)
    if outside.any():
        return f"row {np.flatnonzero(outside.any(axis=1))[0]}: offsets that do not fit a shard of {n_bytes} bytes"
    return None


def member_fault(sample: Sample, n_motifs: int) -> str | None:
    """What is wrong with the types and shapes of a sample's members, in a few words; None where nothing is."""
    shapes = {"lengths": (REGIONS_PER_SAMPLE,), "binding": (REGIONS_PER_SAMPLE, n_motifs), "bases": sample.bases.shape}
    for (name, shape), dtype in zip(shapes.items(), (np.int32, np.float16, np.uint8), strict=True):
        array = getattr(sample, name)
        if array.dtype != dtype or array.shape != shape:
            return f"{name}.npy is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}"
    if sample.lengths.min() < 1 or sample.bases.shape != (sample.lengths.sum(),):
        return f"lengths.npy is {sample.lengths.tolist()}, for {sample.bases.size} bases"
    meta = sample.meta
    if not isinstance(meta, dict) or not all(isinstance(meta.get(key), str) for key in ("cell_type", "chromosome")):
        return "meta.json names no cell type and chromosome"
    positions = [meta.get("starts"), meta.get("ends"), [meta.get("index")]]
    if not all(isinstance(values, list) and all(map(_is_position, values)) for values in positions):
        return "meta.json: starts, ends and index are not whole numbers from 0 up"
    if not len(meta["starts"]) == len(meta["ends"]) == REGIONS_PER_SAMPLE:
        return f"meta.json has {len(meta['starts'])} starts and {len(meta['ends'])} ends, not {REGIONS_PER_SAMPLE}"
    return None


def _is_position(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62
