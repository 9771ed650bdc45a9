"""Transcription factor motifs as log-odds matrices: a JASPAR release by name, or a motif file of the user's."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.motif_files import MatrixOfFile, read_matrices

PSEUDOCOUNT = 0.1
BACKGROUND = 0.25
MAX_WIDTH = 64


@dataclass(frozen=True)
class Motif:
    """matrix_id: `MA0139.1`; name: `CTCF`; counts: float64 [4, width], rows A, C, G, T."""

    matrix_id: str
    name: str
    counts: np.ndarray

    @property
    def log_odds(self) -> np.ndarray:
        """PSSM, float64 [4, width], base 2, with a pseudocount of 0.1 on each count and a uniform background."""
        counts = self.counts + PSEUDOCOUNT
        return np.log2(counts / counts.sum(axis=0) / BACKGROUND)


def load_motifs(source: str, tax_group: str = "vertebrates") -> list[Motif]:
    """Motifs sorted by matrix id: the CORE motifs of a release (`JASPAR2018`) of one tax group, or of `all`; or every
    motif of a JASPAR, MEME or TRANSFAC file, whose frequencies become counts (see `motif_files`).

    Raises `InputError` for an unknown release or tax group; for a repeated id, a width of 0 or more than 64, a column
    that sums to 0; and for anything amiss with the file's format.
    """
    motifs = _from_release(source, tax_group) if re.fullmatch(r"JASPAR\d*", source) else _from_file(Path(source))
    return sorted(motifs, key=lambda motif: motif.matrix_id)


def motifs_by_name(release: str, names: list[str], collection: str = "CORE") -> dict[str, Motif]:
    """The named motifs of a release (`GATA1`), any tax group; the first matrix of each name."""
    database = _database(release)
    found = {}
    for name in names:
        records = database.fetch_motifs(collection=collection, tf_name=name)
        if not records:
            raise InputError(f"{release} {collection}: no motif is named {name!r}")
        record = min(records, key=lambda record: record.matrix_id)
        found[name] = Motif(record.matrix_id, record.name, _counts(record))
    return found


def _database(release: str):
    from pyjaspar import jaspardb

    known = jaspardb().get_releases()
    if release not in known:
        raise InputError(f"{release}: not a JASPAR release; there are {', '.join(sorted(known))}, or give a motif file")
    return jaspardb(release=release)


def _from_release(release: str, tax_group: str) -> list[Motif]:
    database = _database(release)
    groups = database.conn.execute(
        "SELECT DISTINCT VAL, COLLECTION = 'CORE' FROM MATRIX JOIN MATRIX_ANNOTATION USING (ID) WHERE TAG = 'tax_group'"
    ).fetchall()
    in_core = sorted(group for group, is_core in groups if is_core)
    if tax_group != "all" and tax_group not in in_core:
        known = any(group == tax_group for group, _ in groups)
        reason = "has no CORE motif in" if known else "is not a tax group of"
        raise InputError(f"{tax_group!r} {reason} {release}; give one of {', '.join(in_core)}, or all")
    records = database.fetch_motifs(collection="CORE", tax_group=None if tax_group == "all" else [tax_group])
    return [Motif(record.matrix_id, record.name, _counts(record)) for record in records]


def _counts(record) -> np.ndarray:
    return np.array([record.counts[letter] for letter in "ACGT"], dtype=np.float64)


def _from_file(path: Path) -> list[Motif]:
    motifs: dict[str, Motif] = {}
    for matrix in read_matrices(path):
        if matrix.matrix_id in motifs:
            raise InputError(f"{matrix.where} stands there more than once; give each motif an id of its own")
        motifs[matrix.matrix_id] = Motif(matrix.matrix_id, matrix.name, _checked_counts(matrix))
    if not motifs:
        raise InputError(f"{path}: holds no motif")
    return list(motifs.values())


def _checked_counts(matrix: MatrixOfFile) -> np.ndarray:
    width = matrix.counts.shape[1]
    if width == 0:
        raise InputError(f"{matrix.where} has no columns")
    if width > MAX_WIDTH:
        raise InputError(f"{matrix.where} has {width} columns; the widest that can be scanned has {MAX_WIDTH}")
    empty = np.flatnonzero(matrix.counts.sum(axis=0) == 0)
    if len(empty):
        raise InputError(f"{matrix.where}: column {empty[0] + 1} sums to 0; a column needs the counts of some sites")
    return matrix.counts
