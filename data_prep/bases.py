"""DNA letters as uint8 codes: A 0, T 1, C 2, G 3, any other letter 4; soft-masked letters count as upper-case.

The order is that of DNABERT's vocabulary, so a k-mer's token id is 5 plus its codes read as a base-4 number. It also
makes the complement an exclusive-or with 1.
"""

import numpy as np

LETTERS = "ATCG"
OTHER = 4

_CODE = np.full(256, OTHER, dtype=np.uint8)
for _code, _letter in enumerate(LETTERS):
    _CODE[[ord(_letter), ord(_letter.lower())]] = _code
_LETTER = np.frombuffer(b"ATCGN", dtype=np.uint8)


def encode(sequence: str | bytes) -> np.ndarray:
    """Codes, uint8 [len(sequence)], of a DNA sequence."""
    if isinstance(sequence, str):
        sequence = sequence.encode("ascii", errors="replace")
    return _CODE[np.frombuffer(sequence, dtype=np.uint8)]


def decode(codes: np.ndarray) -> str:
    """The letters of `codes`, upper-case, N for every letter outside ACGT."""
    return _LETTER[codes].tobytes().decode("ascii")


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """Codes of the opposite strand, read 5' to 3'."""
    return np.where(codes < OTHER, codes ^ 1, codes)[::-1]
