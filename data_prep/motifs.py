"""Transcription factor motifs as log-odds matrices: JASPAR releases by name, or a JASPAR or MEME file."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError

PSEUDOCOUNT = 0.1
BACKGROUND = 0.25
TAX_GROUP = "vertebrates"


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


def load_motifs(source: str) -> list[Motif]:
    """Motifs sorted by matrix id, from a release name (`JASPAR2018`: CORE vertebrates) or a JASPAR or MEME file.

    Raises `InputError` for an unknown release, a file of neither format, or a repeated matrix id.
    """
    records = _from_release(source) if re.fullmatch(r"JASPAR\d*", source) else _from_file(Path(source))
    motifs = [
        Motif(record.matrix_id if getattr(record, "matrix_id", None) else record.name, record.name, _counts(record))
        for record in records
    ]
    ids = [motif.matrix_id for motif in motifs]
    if len(set(ids)) < len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{source}: motif {repeated!r} stands there more than once")
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


def _from_release(release: str):
    return _database(release).fetch_motifs(collection="CORE", tax_group=[TAX_GROUP])


def _from_file(path: Path):
    from Bio import motifs

    try:
        head = path.read_text()[:200]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: no readable motif file ({error}); give a JASPAR or MEME file, or a release such as JASPAR2018"
        ) from error
    file_format = "minimal" if "MEME version" in head else "jaspar"
    try:
        with open(path) as file:
            records = list(motifs.parse(file, file_format))
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"{path}: not a JASPAR or MEME motif file: {error}") from error
    if not records:
        raise InputError(f"{path}: holds no motif in JASPAR or MEME format")
    return records


def _counts(record) -> np.ndarray:
    return np.array([record.counts[letter] for letter in "ACGT"], dtype=np.float64)
