"""From bases to a masked batch: k-mer ids, special tokens, span masking and corruption.

A row is `[CLS] A [SEP] B [SEP] [PAD] ...`. A and B hold the overlapping k-mers of five regions each, a region's k-mers
by themselves. Overlapping k-mers leak each other's letters, so spans are masked (DNABERT, Ji et al. 2021): a centre is
drawn at each place of the row and masks its neighbours too. Centres are also drawn at places that hold no k-mer, so
every k-mer, wherever it stands, is reached by the same number of centres and masked with the same probability. Of the
masked k-mers 80% become [MASK], 10% a random k-mer, 10% stay. Special tokens, and [UNK] for a k-mer with a letter
outside ACGT, are never masked and never drawn.
"""

import math
from dataclasses import dataclass

import torch

from kernels.dispatch import implementation
from kernels.philox import WORD, Stream, below, draw, threshold

PAD, UNK, CLS, SEP, MASK = range(5)
N_SPECIAL = 5
IGNORED = -100  # label of an unused slot
DNABERT_OFFSETS = {3: (-1, 1), 4: (-1, 2), 5: (-2, 2), 6: (-2, 3)}


@dataclass(frozen=True)
class SpanRule:
    """Which tokens a drawn centre masks: those at offsets first ... last from it.

    For every k, DNABERT's rule masks k tokens, the k-mers of one base; `bases=M` masks the M + k - 1 k-mers of M bases.
    """

    first: int
    last: int

    @classmethod
    def parse(cls, rule: str, k: int) -> "SpanRule":
        """`dnabert` or `bases=M`. Raises `ValueError` for anything else."""
        if rule == "dnabert":
            return cls(*DNABERT_OFFSETS[k])
        if rule.startswith("bases=") and rule[6:].isdecimal() and int(rule[6:]) > 0:
            return cls(0, int(rule[6:]) + k - 2)
        raise ValueError(f"span rule {rule!r}: give dnabert or bases=M, M a whole number from 1")

    @property
    def width(self) -> int:
        return self.last - self.first + 1

    def centre_probability(self, rate: float) -> float:
        """Probability of a centre at which a share `rate` of the k-mers is masked after expansion."""
        return 1.0 - (1.0 - rate) ** (1.0 / self.width)

    def capacity(self, tokens: int, rate: float) -> int:
        """Slots for the masked tokens of a row: six standard deviations above their mean, a multiple of 8.

        A row that draws more (about one in 1e9) leaves those past the last slot unmasked.
        """
        mean = tokens * rate
        deviation = math.sqrt(tokens * rate * (1 - rate) * self.width)
        return min(tokens, math.ceil((mean + 6 * deviation) / 8) * 8)


@dataclass(frozen=True)
class MaskedBatch:
    """token_ids, segment_ids, attention_mask: int64 [batch, tokens];
    masked_positions: int64 [batch, capacity], place in the row of each masked token, 0 in unused slots;
    labels: int64 [batch, capacity], the id that each masked token had, -100 in unused slots."""

    token_ids: torch.Tensor
    segment_ids: torch.Tensor
    attention_mask: torch.Tensor
    masked_positions: torch.Tensor
    labels: torch.Tensor


def mask_kmers(
    bases: torch.Tensor,
    window_kmers: torch.Tensor,
    sample: torch.Tensor,
    epoch: torch.Tensor,
    *,
    k: int,
    tokens: int,
    rate: float,
    capacity: int,
    seed: int,
    rule: SpanRule,
) -> MaskedBatch:
    """Tokenize and mask a batch.

    bases: uint8 [batch, n_bases], codes A 0, T 1, C 2, G 3, other 4: each region's window, one after another;
    window_kmers: int32 [batch, n_regions], k-mers in each region's window (a window of n > 0 k-mers is n + k - 1
    bases, one of 0 none); the first half of the regions make A, the others B. sample, epoch: int64 [batch], which with
    `seed` decide the draws. tokens: length of a row; at least 3 plus the k-mers of any sample.
    """
    run = implementation({"reference": mask_kmers_reference}, bases.device)
    return run(
        bases, window_kmers, sample, epoch, k=k, tokens=tokens, rate=rate, capacity=capacity, seed=seed, rule=rule
    )


def kmer_ids(bases: torch.Tensor, k: int) -> torch.Tensor:
    """Token id of the k-mer that begins at each base, int64 [batch, n_bases - k + 1]; [UNK] over a letter outside ACGT.

    bases: uint8 [batch, n_bases].
    """
    n = bases.shape[1] - k + 1
    ids = torch.zeros(bases.shape[0], n, dtype=torch.int64, device=bases.device)
    known = torch.ones_like(ids, dtype=torch.bool)
    for j in range(k):
        letter = bases[:, j : j + n]
        ids = ids * 4 + letter
        known &= letter < 4
    return torch.where(known, ids + N_SPECIAL, UNK)


def mask_kmers_reference(
    bases: torch.Tensor,
    window_kmers: torch.Tensor,
    sample: torch.Tensor,
    epoch: torch.Tensor,
    *,
    k: int,
    tokens: int,
    rate: float,
    capacity: int,
    seed: int,
    rule: SpanRule,
) -> MaskedBatch:
    """`mask_kmers` in plain PyTorch; it defines the result."""
    token_ids, segment_ids, attention_mask = _rows(bases, window_kmers, k, tokens)

    position = torch.arange(-rule.last, tokens - rule.first, device=bases.device)
    words = draw(seed, epoch[:, None], Stream.MASK, sample[:, None], position & WORD)
    # A token is masked if any of the `width` centres that reach it was drawn: a running count, and a difference.
    drawn = (words[0] < threshold(rule.centre_probability(rate))).long()
    count = torch.nn.functional.pad(drawn.cumsum(1), (1, 0))
    masked = (count[:, rule.width :] > count[:, : -rule.width]) & (token_ids >= N_SPECIAL)
    slot = masked.cumsum(1) - 1
    masked &= slot < capacity

    here = slice(rule.last, rule.last + tokens)
    kind, random_kmer = words[1][:, here], N_SPECIAL + below(words[2][:, here], 4**k)
    corrupted = torch.where(kind < threshold(0.8), MASK, torch.where(kind < threshold(0.9), random_kmer, token_ids))

    row, place = masked.nonzero(as_tuple=True)
    masked_positions = torch.zeros(len(bases), capacity, dtype=torch.int64, device=bases.device)
    labels = torch.full_like(masked_positions, IGNORED)
    masked_positions[row, slot[row, place]] = place
    labels[row, slot[row, place]] = token_ids[row, place]
    token_ids = torch.where(masked, corrupted, token_ids)
    return MaskedBatch(token_ids, segment_ids, attention_mask, masked_positions, labels)


def _rows(
    bases: torch.Tensor, window_kmers: torch.Tensor, k: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unmasked token ids, segment ids and attention mask, int64 [batch, tokens]."""
    kmers = window_kmers.long()
    n_regions = kmers.shape[1]
    n_a = kmers[:, : n_regions // 2].sum(1, keepdim=True)
    n_b = kmers[:, n_regions // 2 :].sum(1, keepdim=True)
    if (too_long := int((n_a + n_b + 3).max())) > tokens:
        raise ValueError(f"a sample of {too_long} tokens does not fit a row of {tokens}")

    place = torch.arange(tokens, device=bases.device).expand(len(bases), tokens)
    in_b = place > n_a + 1
    kmer = (place - 1 - in_b.long()).clamp(min=0)  # number of the k-mer within the sample
    last = kmers.cumsum(1)
    region = torch.searchsorted(last, kmer.contiguous(), right=True).clamp(max=n_regions - 1)
    skipped = (kmers > 0).long() * (k - 1)  # bases of each window beyond one a k-mer
    skipped_before = skipped.cumsum(1) - skipped
    base = kmer + skipped_before.gather(1, region)
    ids = kmer_ids(bases, k)
    token_ids = ids.gather(1, base.clamp(max=ids.shape[1] - 1))

    used = place < n_a + n_b + 3
    token_ids = torch.where((place == n_a + 1) | (place == n_a + n_b + 2), SEP, token_ids)
    token_ids = torch.where(place == 0, CLS, torch.where(used, token_ids, PAD))
    return token_ids, (in_b & used).long(), used.long()
