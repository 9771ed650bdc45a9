"""The FASTA reader: plain or bgzip, with or without an index; stretches of chromosomes as base codes."""

import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from pyfaidx import Fasta, FastaIndexingError, FetchError

from data_prep.bases import encode
from data_prep.errors import InputError

# What pyfaidx and Biopython's bgzf raise on a damaged file.
_UNREADABLE = (FastaIndexingError, FetchError, OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error)


class Genome:
    """A FASTA file opened by its `.fai` index, which is made where there is none.

    A missing index is written beside the FASTA, as `samtools faidx` does, or into a temporary folder where that place
    is write-protected. Raises `InputError` for a file that is missing, not FASTA, or gzip but not bgzip.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such FASTA file; give one with --genome")
        _check_format(self.path)
        self._index_folder = None
        self._indexes = self._index_names()
        self._open()
        self.lengths = {name: entry.rlen for name, entry in self._fasta.faidx.index.items()}
        if not self.lengths:
            raise InputError(f"{self.path}: holds no sequence")
        if max(self.lengths.values()) >= 2**32:
            raise InputError(f"{self.path}: holds a sequence of 2**32 bp or more; split it, as BAM and tabix need too")

    @property
    def name(self) -> str:
        """The file's name without its endings: `hg19` for `/data/hg19.fa.gz`."""
        return self.path.name.removesuffix(".gz").removesuffix(".fa").removesuffix(".fasta")

    def resolve(self, chromosome: str) -> str | None:
        """This FASTA's name of `chromosome`, across the `chr20`/`20` and `chrM`/`MT` habits; None if it has none."""
        bare = chromosome.removeprefix("chr")
        candidates = [chromosome, bare, f"chr{bare}"]
        if bare in ("M", "MT"):
            candidates += ["chrM", "MT", "M"]
        return next((name for name in candidates if name in self.lengths), None)

    def codes(self, chromosome: str, start: int = 0, end: int | None = None) -> np.ndarray:
        """Base codes of `chromosome` from `start` to `end` (0-based half-open; all of it by default), uint8."""
        if self._owner != os.getpid():  # processes that fork share a file's position
            self._open()
        end = self.lengths[chromosome] if end is None else end
        try:
            codes = encode(self._fasta[chromosome][start:end])
        except _UNREADABLE as error:
            raise InputError(f"{self.path}: {chromosome} cannot be read: {error}; copy the file again") from error
        if len(codes) != end - start:
            raise InputError(
                f"{self.path}: {chromosome} has not the letters that {self.path}.fai promises; remove empty lines and "
                "mixed line endings from the FASTA, and delete that index"
            )
        return codes

    def _open(self) -> None:
        try:
            self._fasta, self._owner = Fasta(str(self.path), as_raw=True, **self._indexes), os.getpid()
        except FastaIndexingError as error:
            reason = str(error).partition("Please report")[0]  # to pyfaidx, which means an empty line
            raise InputError(
                f"{self.path}: not a readable FASTA file: {reason}; the lines of a sequence must be of one length, "
                "none of them empty"
            ) from error
        except _UNREADABLE as error:
            raise InputError(f"{self.path}: not a readable FASTA file: {error}") from error

    def _index_names(self) -> dict[str, str]:
        endings = ("fai", "gzi") if self.path.suffix in (".gz", ".bgz") else ("fai",)
        folder = self.path.resolve().parent
        writable = os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222
        if writable or all(Path(f"{self.path}.{ending}").exists() for ending in endings):
            return {}
        self._index_folder = tempfile.TemporaryDirectory(prefix="genebert-fai-")
        stem = Path(self._index_folder.name) / self.path.name
        return {"indexname": f"{stem}.fai", "gzi_indexname": f"{stem}.gzi"}


def _check_format(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if head[:2] == b"\x1f\x8b":
        if path.suffix not in (".gz", ".bgz"):
            raise InputError(f"{path}: compressed, but not named so; rename it to {path.name}.gz")
        if head[3:4] != b"\x04" or head[12:14] != b"BC":
            raise InputError(
                f"{path}: compressed with gzip, which cannot be read at random; "
                f"recompress it: gunzip {path} && bgzip {path.with_suffix('')}"
            )
    elif not head.startswith(b">"):
        raise InputError(f"{path}: not a FASTA file: its first byte is not '>'")
