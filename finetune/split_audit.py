"""What recurs across train, dev and test: copies, reverse complements, and contradicting labels."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from data_prep.bases import encode, reverse_complement
from finetune.examples import Examples


@dataclass(frozen=True)
class Audit:
    """Counts of one split's rows. repeated: its sequence, on either strand, stood earlier in this split; seen, seen_rc:
    it stands in an earlier split, as it is or as its reverse complement; conflicting: it stands there, or earlier
    here, with another label. Of a row of several sequences all are meant."""

    rows: int
    repeated: int
    seen: int
    seen_rc: int
    conflicting: int


def audit(splits: dict[str, Examples], dedup: bool) -> tuple[dict[str, Examples], dict[str, dict[str, int]]]:
    """The splits, in order from train on, and each one's `Audit` as a dictionary.

    With `dedup`, rows that recur are dropped: repeats within a split keep the first, and what stands in an earlier
    split is taken out of the later one, so that nothing is tested that was trained on.
    """
    earlier: dict[bytes, set[bytes]] = {}
    kept, counts = {}, {}
    for name, split in splits.items():
        here: dict[bytes, set[bytes]] = {}
        keep, repeated, seen, seen_rc, conflicting = [], 0, 0, 0, 0
        for row, target in enumerate(split.targets):
            label = target.tobytes()
            sequence, opposite = both_strands(split, row)
            labels = set().union(*(table.get(s, ()) for table in (here, earlier) for s in (sequence, opposite)))
            repeated += sequence in here or opposite in here
            seen += sequence in earlier
            seen_rc += opposite in earlier and sequence not in earlier
            conflicting += bool(labels - {label})
            if not labels:
                keep.append(row)
            here.setdefault(sequence, set()).add(label)
        for sequence, labels in here.items():
            earlier.setdefault(sequence, set()).update(labels)
        kept[name] = split.take(np.array(keep, np.int64)) if dedup else split
        counts[name] = asdict(Audit(len(split), repeated, seen, seen_rc, conflicting))
    return kept, counts


def both_strands(split: Examples, row: int) -> tuple[bytes, bytes]:
    """What a row reads, on its strand and on the opposite one, as a digest."""
    given, opposite = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for number in split.rows[row].ravel().tolist():
        codes = encode(split.sequences[number])
        given.update(codes.tobytes() + b"|")
        opposite.update(reverse_complement(codes).tobytes() + b"|")
    return given.digest(), opposite.digest()
