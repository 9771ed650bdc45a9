"""Disease risk of new people: of each person of a VCF, by both haplotypes over the regions of the model's locus.

Regions, and the windows that they are cut into, are those that the model was trained on. A site that the VCF does not
list is taken as the reference.
"""

import sys
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_prep.bases import decode, encode
from data_prep.errors import InputError
from data_prep.genome import Genome
from data_prep.haplotypes import Change, change
from data_prep.hscr_data import assumed, used
from data_prep.locus import Locus, codes_of, over_regions, regions_named
from data_prep.vcf import Genotypes, read_genotypes, samples_of
from finetune.examples import Examples
from finetune.hscr import Windows, cut, reference_digest, window_limits
from finetune.scoring import Scorer

NAMED = 5  # people in an error, at most


def score_people(path: Path, genome: Genome, scorer: Scorer, batch_size: int, file: TextIO) -> None:
    """Write a line for each person of a VCF; what is left out or assumed is said on stderr."""
    people = read_people(path, genome, scorer)
    print("sample", *scorer.outputs[1:], sep="\t", file=file)
    for first in tqdm(range(0, len(people), batch_size), desc=str(path), unit="batch", disable=None):
        some = people.take(np.arange(first, min(first + batch_size, len(people))))
        for name, found in zip(some.names, scorer.of_rows(some)[:, 1:], strict=True):
            print(name, *(f"{value:.6f}" for value in found), sep="\t", file=file)


def read_people(path: Path, genome: Genome, scorer: Scorer) -> Examples:
    """The people of a VCF as the model's training data were made; their targets are 0.

    Raises `InputError` for a VCF without genotypes at the locus, a FASTA of another assembly than the model's or the
    VCF's, and haplotypes longer than the model reads.
    """
    if "locus" not in scorer.about:
        raise InputError(
            f"{scorer.encoder.folder}: does not say which regions it reads; fine-tune it again with: "
            "python finetune/run.py --task hscr"
        )
    saved = scorer.about["locus"]
    regions = regions_named(saved["regions"], genome)
    if reference_digest(map(decode, codes_of(regions, genome))) != saved["reference"]:
        raise InputError(
            f"{genome.path}: reads otherwise in the regions of the locus than the {saved['genome']} that the model was "
            "trained on; give the FASTA, and a VCF, of that assembly"
        )
    genotypes = read_genotypes([path], regions, genome, set(samples_of(path)))
    locus = over_regions(genotypes, regions, genome)
    say(path, genotypes, locus, saved["alleles"], genome)

    most, overlap = window_limits(scorer.encoder)
    n_windows = np.array(saved["windows"])
    if most is not None:
        check_lengths(path, genotypes.samples, locus, overlap + n_windows * (most - overlap))
    sequences, (region, _) = locus.haplotypes["sequence"].tolist(), pd.factorize(locus.haplotypes["region"])
    windows = Windows.of(
        [cut(sequence, n, overlap) for sequence, n in zip(sequences, n_windows[region].tolist(), strict=True)],
        None if scorer.model.region is None else scorer.encoder.scanner.scan(list(map(encode, sequences))),
    )
    unread = sum(scorer.encoder.tokens.count(window) > scorer.encoder.longest for window in windows.sequences)
    if unread:  # by a tokenizer of no k-mers, whose windows are whole regions
        print(f"{path}: {unread:,} of {len(windows.sequences):,} haplotypes are not read whole", file=sys.stderr)
    targets = np.zeros(len(genotypes.samples), np.int64)
    rows = windows.rows(locus.of_each.tolist())
    return Examples(windows.sequences, rows, targets, genotypes.samples, path, binding=windows.binding)


def check_lengths(path: Path, samples: list[str], locus: Locus, longest: np.ndarray) -> None:
    """Raise `InputError` for people with a haplotype longer than fits into its region's windows. longest: bp by
    region."""
    lengths = locus.haplotypes["sequence"].str.len().to_numpy()[locus.of_each]
    people, _, region = np.nonzero(lengths > longest)
    if len(people):
        names = [samples[number] for number in np.unique(people)]
        name = locus.haplotypes["region"].unique()[region[0]]
        raise InputError(
            f"{path}: {len(names):,} people have a haplotype longer than the model reads (first: {names[0]}, "
            f"{lengths[people[0], :, region[0]].max():,} bp at {name}, of {longest[region[0]]:,} at most); leave them "
            f"out, as by: bcftools view -s ^{','.join(names[:NAMED])}"
        )


def say(path: Path, genotypes: Genotypes, locus: Locus, known: list[str], genome: Genome) -> None:
    """Say on stderr what was used, left out and assumed, and which of the `known` alleles, those of the people trained
    on, the VCF does not list."""
    counts = genotypes.counts | locus.counts
    listed = {
        (site.chromosome, change(site.position, site.ref, alt)) for site in genotypes.sites for alt in site.alts if alt
    }
    trained, carried = ({changed(allele, genome) for allele in alleles} for alleles in (known, locus.alleles))
    lines = [used(counts, "sites"), *assumed(counts)]
    lines.append(
        f"of {len(trained):,} alleles of the people trained on {len(trained - listed):,} are not listed: taken as REF; "
        f"{len(carried - trained):,} alleles that people have here were not among them"
    )
    print("\n".join(f"{path}: {line}" for line in lines), file=sys.stderr)


def changed(allele: str, genome: Genome) -> tuple[str | None, Change]:
    """The chromosome, by the FASTA's name, and the change of an allele of a `Locus`, however its site is written."""
    chromosome, position, ref, alt = allele.rsplit(":", 3)
    return genome.resolve(chromosome), change(int(position) - 1, ref, alt)
