"""Transcription factor motifs as log-odds matrices: JASPAR releases by name, or a JASPAR or MEME file."""

import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import InputError

PSEUDOCOUNT = 0.1
BACKGROUND = 0.25
TAX_GROUP = "vertebrates"
MEME_SITES = 20  # of a MEME motif that does not say how many sites it was made from, as the MEME suite takes


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
    motifs = _from_release(source) if re.fullmatch(r"JASPAR\d*", source) else _from_file(Path(source))
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


def _from_release(release: str) -> list[Motif]:
    records = _database(release).fetch_motifs(collection="CORE", tax_group=[TAX_GROUP])
    return [Motif(record.matrix_id, record.name, _counts(record)) for record in records]


def _from_file(path: Path) -> list[Motif]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: no readable motif file ({error}); give a JASPAR or MEME file, or a release such as JASPAR2018"
        ) from error
    try:
        motifs = _from_meme(text) if "MEME version" in text[:200] else _from_jaspar(text)
    except Exception as error:  # Biopython raises bare ones
        raise InputError(f"{path}: not a JASPAR or MEME motif file: {error}") from error
    if not motifs:
        raise InputError(f"{path}: holds no motif in JASPAR or MEME format")
    return motifs


def _from_jaspar(text: str) -> list[Motif]:
    from Bio import motifs

    records = motifs.parse(io.StringIO(text), "jaspar")
    return [Motif(record.matrix_id or record.name, record.name, _counts(record)) for record in records]


def _from_meme(text: str) -> list[Motif]:
    """Motifs of the minimal MEME format. Biopython rounds its frequencies to counts of whole sites; here they stay."""
    motifs = []
    for block in re.split(r"^MOTIF ", text, flags=re.MULTILINE)[1:]:
        title, body = block.split("letter-probability matrix:", 1)
        options, *lines = body.splitlines()
        n_sites = re.search(r"nsites= *([\d.]+)", options)
        rows = itertools.takewhile(lambda fields: len(fields) == 4, map(str.split, lines))
        frequencies = np.array([[float(value) for value in row] for row in rows])
        words = title.split()
        counts = frequencies.T * (float(n_sites[1]) if n_sites else MEME_SITES)
        motifs.append(Motif(words[0], words[-1], counts))
    return motifs


def _counts(record) -> np.ndarray:
    return np.array([record.counts[letter] for letter in "ACGT"], dtype=np.float64)
