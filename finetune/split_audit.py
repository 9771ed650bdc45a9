"""What recurs across train, dev and test: copies, reverse complements, and contradicting labels."""

from dataclasses import asdict, dataclass

import numpy as np

from data_prep.bases import decode, encode, reverse_complement
from finetune.sequence_table import LabelledSequences


@dataclass(frozen=True)
class Audit:
    """Counts of one split's rows. repeated: its sequence, on either strand, stood earlier in this split; seen, seen_rc:
    it stands in an earlier split, as it is or as its reverse complement; conflicting: it stands there, or earlier
    here, with another label."""

    rows: int
    repeated: int
    seen: int
    seen_rc: int
    conflicting: int


def audit(
    splits: dict[str, LabelledSequences], dedup: bool
) -> tuple[dict[str, LabelledSequences], dict[str, dict[str, int]]]:
    """The splits, in order from train on, and each one's `Audit` as a dictionary.

    With `dedup`, rows that recur are dropped: repeats within a split keep the first, and what stands in an earlier
    split is taken out of the later one, so that nothing is tested that was trained on.
    """
    earlier: dict[str, set[int]] = {}
    kept, counts = {}, {}
    for name, split in splits.items():
        here: dict[str, set[int]] = {}
        keep, repeated, seen, seen_rc, conflicting = [], 0, 0, 0, 0
        for row, (letters, label) in enumerate(zip(split.sequences, split.labels.tolist(), strict=True)):
            codes = encode(letters)
            sequence, opposite = decode(codes), decode(reverse_complement(codes))
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
