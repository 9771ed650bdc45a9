"""The effect of variants: what a model predicts around a site with the reference and with an alternative allele."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from data_prep.bases import OTHER, decode, encode
from data_prep.errors import InputError, one_line
from data_prep.genome import Genome
from data_prep.vcf import MAX_MISMATCHES, opened
from finetune.scoring import Scorer, in_batches

LETTERS = frozenset("ACGTNacgtn")


@dataclass(frozen=True)
class Variant:
    """One alternative allele. ids: chromosome, position (1-based), reference and alternative allele, as the VCF says;
    reference, alternative: windows of one length, the allele in the middle of the first; at: 0-based place of the
    allele in them."""

    ids: tuple[str, str, str, str]
    reference: str
    alternative: str
    at: int

    @property
    def longer(self) -> int:
        """By how many bp the alternative allele is longer."""
        return len(self.ids[3]) - len(self.ids[2])


def score_variants(path: Path, genome: Genome, scorer: Scorer, batch_size: int, file: TextIO) -> None:
    """Write a line for each alternative allele of a VCF; what is left out is counted on stderr."""
    target, counts = scorer.model.target, Counter()
    outputs = scorer.outputs if target.kind == "values" else scorer.outputs[1:]
    parts = ("gain", "loss") if target.kind == "nucleotides" else ("ref", "alt", "change")
    print("chrom", "pos", "ref", "alt", *(f"{o}_{part}" for o in outputs for part in parts), sep="\t", file=file)
    found = tqdm(variants(path, genome, scorer.bp, counts), desc=str(path), unit="variant", disable=None)
    for batch in in_batches(found, batch_size):
        both = scorer([variant.reference for variant in batch] + [variant.alternative for variant in batch])
        both = both[..., -len(outputs) :]
        for variant, reference, alternative in zip(batch, both[: len(batch)], both[len(batch) :], strict=True):
            if target.kind == "nucleotides":
                first = (scorer.bp - target.positions) // 2
                values = gains_and_losses(reference, alternative, variant.at - first, variant.longer)
            else:
                values = np.stack([reference, alternative, alternative - reference])
            print(*variant.ids, *(f"{value:.6f}" for value in values.T.ravel()), sep="\t", file=file)
    left_out = {name: n for name, n in counts.items() if name != "alleles" and n}
    if left_out:
        listed = ", ".join(f"{n:,} {name}" for name, n in left_out.items())
        print(f"{path}: {counts['alleles']:,} alleles scored; left out: {listed}", file=sys.stderr)


def variants(path: Path, genome: Genome, bp: int, counts: Counter) -> Iterator[Variant]:
    """The alternative alleles of a VCF with their windows of `bp` bp; past a chromosome's end there is N.

    counts: filled with what is scored, and what is left out. Raises `InputError` for a file that is not VCF, and at its
    end where over 1% of the sites have another reference than the genome.
    """
    try:
        with opened(path) as file:
            for record in file:
                chromosome = genome.resolve(record.chrom)
                if chromosome is None or record.pos > genome.lengths[chromosome]:
                    counts["sites that the FASTA does not have"] += 1
                    continue
                start, end = record.pos - 1, min(record.pos - 1 + len(record.ref), genome.lengths[chromosome])
                if not np.array_equal(genome.codes(chromosome, start, end), encode(record.ref)):
                    counts[_MISMATCHED] += 1
                    continue
                counts["sites"] += 1
                for allele in record.alts or ():
                    if not LETTERS.issuperset(allele):
                        counts["symbolic alleles"] += 1
                        continue
                    counts["alleles"] += 1
                    ids = (record.chrom, str(record.pos), record.ref, allele)
                    yield _variant(ids, genome, chromosome, start, bp)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as VCF: {one_line(error)}; copy the file again") from error
    sites = counts.pop("sites", 0) + counts[_MISMATCHED]
    if counts[_MISMATCHED] > MAX_MISMATCHES * sites:
        raise InputError(
            f"{path}: {counts[_MISMATCHED]:,} of {sites:,} sites have another reference allele than {genome.path}; "
            "give the FASTA of the VCF's assembly"
        )


_MISMATCHED = "sites of another reference allele than the FASTA's"


def _variant(ids: tuple[str, str, str, str], genome: Genome, chromosome: str, start: int, bp: int) -> Variant:
    reference, alternative = map(encode, ids[2:])
    at = max(bp - len(reference), 0) // 2
    first, reach = start - at, bp + len(reference)  # so much that a deletion's window is filled too
    length = genome.lengths[chromosome]
    inside = genome.codes(chromosome, max(first, 0), min(first + reach, length))
    around = np.full(reach, OTHER, np.uint8)
    around[max(-first, 0) : max(-first, 0) + len(inside)] = inside
    changed = np.concatenate([around[:at], alternative, around[at + len(reference) :]])
    return Variant(ids, decode(around[:bp]), decode(changed[:bp]), at)


def gains_and_losses(reference: np.ndarray, alternative: np.ndarray, at: int, longer: int) -> np.ndarray:
    """The largest gain and the largest loss of each class, float64 [2, classes], over the nucleotides that both have.

    reference, alternative: [positions, classes]; at: place of the allele among them; longer: by how many bp the
    alternative one is longer, so that what follows it is shifted. After SpliceAI's delta scores (Jaganathan et al.
    2019), over all predicted positions.
    """
    places = np.arange(len(reference))
    there = np.where(places <= at, places, places + longer)
    kept = (there >= 0) & (there < len(alternative)) & ((places <= at) | (places > at + max(-longer, 0)))
    change = alternative[there[kept]] - reference[places[kept]]
    return np.stack([change.max(0).clip(min=0), (-change).max(0).clip(min=0)])
