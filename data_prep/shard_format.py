"""The shard format: what a sample's members are, how tars, their indexes and the manifest are written.

A shard is a plain WebDataset tar; beside `train-000000.tar` lies `train-000000.index.npy`, one row of `INDEX_DTYPE` a
sample, so that one `pread` gets a sample. `manifest.json` names every shard with its sha256 and is written last.
"""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMAT = "genebert-shards"
FORMAT_VERSION = 1
REGIONS_PER_SAMPLE = 10
SPLITS = ("train", "val")
REGIONS, PROMOTERS = "regions", "promoters"  # what samples are of: the manifest's `content`, regions where it has none
NPY_HEADER = 128  # bytes before the data of an .npy file of few dimensions
MEMBERS = ("bases.npy", "lengths.npy", "binding.npy", "meta.json")

# Offsets and sizes, in bytes, of the members' contents in the tar, in the order of MEMBERS; cell type and chromosome
# as positions in the manifest's lists.
INDEX_DTYPE = np.dtype(
    [
        ("cell_type", "<i4"),
        ("chromosome", "<i4"),
        ("offset", "<i8", (len(MEMBERS),)),
        ("size", "<i8", (len(MEMBERS),)),
    ]
)


@dataclass(frozen=True)
class Sample:
    """Ten consecutive accessible regions of one cell type, on one chromosome; or one promoter of a species.

    bases: uint8 [sum(lengths)], the regions' base codes one after another; lengths: int32 [10], bp;
    binding: float16 [10, n_motifs]; meta: cell_type, chromosome, starts, ends (0-based half-open), index within the
    cell type. Of a promoter: lengths [1]; binding [1, 0]; meta: species, name of its record, index within the species.
    """

    bases: np.ndarray
    lengths: np.ndarray
    binding: np.ndarray
    meta: dict


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes of an `.npy` file that holds `array`."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index.npy")


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[tuple[str, int, int, list[bytes]]]) -> int:
    """Write a tar and its index; returns the number of samples.

    Each sample is (key, cell type, chromosome, its members' contents in the order of MEMBERS). The tar holds no clock,
    user or mode of the machine: the same samples give the same bytes.
    """
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, cell_type, chromosome, contents in samples:
            offsets, sizes = [], []
            for member, content in zip(MEMBERS, contents, strict=True):
                header = tarfile.TarInfo(f"{key}.{member}")
                header.size, header.mode, header.mtime = len(content), 0o644, 0
                offsets.append(tar.offset + tarfile.BLOCKSIZE)
                sizes.append(len(content))
                tar.addfile(header, io.BytesIO(content))
            rows.append((cell_type, chromosome, offsets, sizes))
    np.save(index_path(path), np.array(rows, dtype=INDEX_DTYPE), allow_pickle=False)
    return len(rows)
