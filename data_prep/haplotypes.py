"""Haplotypes: a region's sequence with the alleles that one copy of a person's chromosome carries.

The rules are those of `bcftools consensus`, on alleles from which the letters that they share with REF are trimmed: of
two changes that overlap the first by position is applied, at one position the first in the file. Changes overlap where
they replace a common base, where one inserts among bases that the other replaces, and where both insert at one place.
Coordinates are 0-based half-open.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

SHORTEST = 6  # bp of a sequence; a haplotype on which less is left of a region is written as so many N


@dataclass(frozen=True)
class Change:
    """Bases [start, end) of a chromosome become `letters`. An insertion has start = end, and goes before that base."""

    start: int
    end: int
    letters: str

    @property
    def inserts(self) -> bool:
        return self.start == self.end


@dataclass(frozen=True)
class RegionHaplotypes:
    """sequences: the distinct ones, the reference first; of_each: int32 [n_samples, 2], their numbers; overlapping:
    alleles not applied for another one that they overlap, over all haplotypes; deleted: haplotypes written as N."""

    sequences: list[str]
    of_each: np.ndarray
    overlapping: int
    deleted: int


def change(position: int, ref: str, alt: str) -> Change:
    """What an allele changes: without the letters that REF and ALT share at their beginnings, then at their ends."""
    shorter = min(len(ref), len(alt))
    first = next((i for i in range(shorter) if ref[i] != alt[i]), shorter)
    last = next((i for i in range(shorter - first) if ref[-1 - i] != alt[-1 - i]), shorter - first)
    return Change(position + first, position + len(ref) - last, alt[first : len(alt) - last])


def within(one: Change, start: int, end: int) -> Change | None:
    """The part of a change that falls into the region [start, end); None where none does.

    An insertion belongs to the region of the base before it, where a VCF anchors it. A deletion or a replacement by as
    many letters is cut at the border; any other change over a border is not taken.
    """
    if one.inserts:
        return one if start < one.start <= end else None
    first, last = max(one.start, start), min(one.end, end)
    if first >= last:
        return None
    if (first, last) == (one.start, one.end) or not one.letters:
        return replace(one, start=first, end=last)
    if len(one.letters) == one.end - one.start:
        return Change(first, last, one.letters[first - one.start : last - one.start])
    return None


def apply(reference: str, start: int, changes: Iterable[Change]) -> tuple[str, int]:
    """The reference, which begins at `start`, with those of the changes, given in the file's order, that overlap none
    applied before them; and the number of the others. All fall into it, at least in part."""
    end, pieces, skipped = start + len(reference), [], 0
    done = reached = start  # of the reference, and of the changes, which may lie over its ends
    inserted = None
    for one in sorted(changes, key=lambda one: (one.start, not one.inserts)):
        if pieces and (one.start < reached or (one.inserts and one.start == inserted)):
            skipped += 1
            continue
        reached, inserted = one.end, one.start if one.inserts else inserted
        part = within(one, start, end)
        pieces += [reference[done - start : part.start - start], part.letters]
        done = part.end
    return "".join([*pieces, reference[done - start :]]), skipped


def haplotypes(reference: str, start: int, sites: list[list[Change | None]], alleles: np.ndarray) -> RegionHaplotypes:
    """Both haplotypes of each sample over the region that begins at `start`.

    sites: in the file's order, of each the change by each of its alternative alleles, None of one that is not to be
    applied here; alleles: int [n_sites, n_samples, 2], 0 for the reference. Each combination of alleles is applied
    once.
    """
    n_samples = alleles.shape[1]
    carried = np.zeros((1 + 2 * n_samples, 1 + len(sites)), np.int16)  # the first row is the reference
    carried[1:, 1:] = alleles.reshape(len(sites), 2 * n_samples).T
    combinations, of_each = np.unique(carried, axis=0, return_inverse=True)
    copies = np.bincount(of_each.ravel()[1:], minlength=len(combinations))

    numbers: dict[str, int] = {}
    number_of, overlapping, deleted = [], 0, 0
    for combination, n in zip(combinations[:, 1:], copies.tolist(), strict=True):
        here = [sites[site][allele - 1] for site, allele in enumerate(combination.tolist()) if allele]
        sequence, skipped = apply(reference, start, [one for one in here if one is not None])
        overlapping += skipped * n
        if len(sequence) < SHORTEST:
            sequence, deleted = "N" * SHORTEST, deleted + n
        number_of.append(numbers.setdefault(sequence, len(numbers)))
    each = np.array(number_of, np.int32)[of_each.ravel()[1:]].reshape(n_samples, 2)
    return RegionHaplotypes(list(numbers), each, overlapping, deleted)
