"""From bases to a masked batch: k-mer ids, special tokens, span masking and corruption.

A row is `[CLS] A [SEP] B [SEP] [PAD] ...`. A and B hold the overlapping k-mers of five regions each, a region's k-mers
by themselves. Overlapping k-mers leak each other's letters, so spans are masked (DNABERT, Ji et al. 2021): at each
place of the row a span may begin, which masks the k-mers from there on. Spans also begin before the row, so every
k-mer, wherever it stands, is reached by the same number of them and masked with the same probability. Of the masked
k-mers 80% become [MASK], 10% a random k-mer, 10% stay. Special tokens, and [UNK] for a k-mer with a letter outside
ACGT, are never masked and never drawn.

`mask_kmers_reference` defines the result; the Triton kernel gives the same bits in one launch, a program for each row.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from kernels import dispatch
from kernels.philox import WORD, Stream, below, draw, threshold

PAD, UNK, CLS, SEP, MASK = range(5)
N_SPECIAL = 5
IGNORED = -100  # label of a token that is not masked
BECOMES_MASK, STAYS = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """How rows are made and masked.

    k: letters of a k-mer, 3 to 6; tokens: length of a row; span: tokens that a span masks (`span_tokens`); rate: share
    of the k-mers masked; capacity: slots for the masked tokens of a row (`capacity_for`), which keeps shapes static;
    seed: below 2**32.
    """

    k: int
    tokens: int
    span: int
    rate: float
    capacity: int
    seed: int

    @property
    def span_threshold(self) -> int:
        """A span begins where a uniform word lies below this: then a share `rate` of the k-mers is masked."""
        return threshold(1.0 - (1.0 - self.rate) ** (1.0 / self.span))


def span_tokens(rule: str, k: int) -> int:
    """Tokens that a span masks: k for `dnabert`, M + k - 1 for `bases=M`. Raises `ValueError` for any other rule.

    DNABERT masks a drawn centre and neighbours at offsets {-1, 1} for k = 3, {-1, 1, 2} for 4, {-2, -1, 1, 2} for 5 and
    {-2, -1, 1, 2, 3} for 6: for every k the k consecutive k-mers that hold ONE base. The M + k - 1 k-mers of
    `bases=M` are those that hold any of M bases, so they hide M.
    """
    if rule == "dnabert":
        return k
    if rule.startswith("bases=") and rule[6:].isdecimal() and int(rule[6:]) > 0:
        return int(rule[6:]) + k - 1
    raise ValueError(f"span rule {rule!r}: give dnabert or bases=M, M a whole number from 1")


def capacity_for(tokens: int, rate: float, span: int) -> int:
    """Slots for the masked tokens of a row: six standard deviations above their mean, a multiple of 8.

    A row that draws more (fewer than one in 1e7) leaves those past the last slot unmasked.
    """
    deviation = math.sqrt(tokens * rate * (1 - rate) * span)
    return min(tokens, math.ceil((tokens * rate + 6 * deviation) / 8) * 8)


@dataclass(frozen=True)
class MaskedBatch:
    """All int64. token_ids, segment_ids, attention_mask: [batch, tokens];
    labels: [batch, tokens], the id that a masked token had, -100 elsewhere;
    masked_positions: [batch, capacity], place in the row of each masked token, in order, 0 in unused slots;
    masked_labels: [batch, capacity], the id that each had, -100 in unused slots."""

    token_ids: torch.Tensor
    segment_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    masked_positions: torch.Tensor
    masked_labels: torch.Tensor


def mask_kmers(
    bases: torch.Tensor, window_kmers: torch.Tensor, sample: torch.Tensor, epoch: torch.Tensor, masking: Masking
) -> MaskedBatch:
    """Tokenize and mask a batch.

    bases: uint8 [batch, n_bases], codes A 0, T 1, C 2, G 3, other 4: each region's window, one after another;
    window_kmers: int32 [batch, n_regions], k-mers in each region's window (a window of n > 0 k-mers is n + k - 1
    bases, one of 0 none); the first half of the regions make A, the others B. sample, epoch: int64 [batch], which with
    the seed decide the draws.

    A sample whose tokens do not fit the row, or whose windows the bases do not hold, raises `ValueError` on a CPU. On
    CUDA, where to ask would mean to wait for the device, its token ids are all -1, which no embedding takes.
    """
    if bases.device.type == "cpu" and len(bases):
        tokens, n_bases = (int(needed.max()) for needed in _needed(window_kmers, masking.k))
        if tokens > masking.tokens:
            raise ValueError(f"a sample of {tokens} tokens does not fit a row of {masking.tokens}")
        if n_bases > bases.shape[1]:
            raise ValueError(f"the windows of a sample hold {n_bases} bases, its row has {bases.shape[1]}")
    return dispatch.run(
        _mask_kmers_triton, mask_kmers_reference, bases.device, bases, window_kmers, sample, epoch, masking
    )


def _needed(window_kmers: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that each sample's row must have, and bases, int64 [batch]."""
    kmers = window_kmers.long()
    return kmers.sum(1) + 3, (kmers + (kmers > 0) * (k - 1)).sum(1)


def kmer_ids(bases: torch.Tensor, k: int) -> torch.Tensor:
    """Token id of the k-mer that begins at each base, int64 [batch, n_bases - k + 1]; [UNK] over a letter outside ACGT.

    bases: uint8 [batch, n_bases].
    """
    n = bases.shape[1] - k + 1
    letters = bases.int().masked_fill_(bases > 3, 4**k)  # one outside ACGT makes the sum too large for a k-mer
    ids = torch.zeros(bases.shape[0], n, dtype=torch.int32, device=bases.device)
    for j in range(k):
        ids.mul_(4).add_(letters[:, j : j + n])
    return torch.where(ids < 4**k, ids + N_SPECIAL, UNK).long()


def mask_kmers_reference(
    bases: torch.Tensor, window_kmers: torch.Tensor, sample: torch.Tensor, epoch: torch.Tensor, masking: Masking
) -> MaskedBatch:
    """`mask_kmers` in plain PyTorch; it defines the result."""
    tokens, span, capacity = masking.tokens, masking.span, masking.capacity
    before, segment_ids, attention_mask = _rows(bases, window_kmers, masking.k, tokens)

    place = torch.arange(1 - span, tokens, device=bases.device)
    words = draw(masking.seed, epoch[:, None], Stream.MASK, sample[:, None], place & WORD)
    # A token is masked if a span begins at one of the `span` places up to it: a running count, and a difference.
    begins = (words[0] < masking.span_threshold).int()
    count = F.pad(begins.cumsum(1, dtype=torch.int32), (1, 0))
    masked = (count[:, span:] > count[:, :-span]) & (before >= N_SPECIAL)
    slot = masked.cumsum(1) - 1
    masked &= slot < capacity

    row, place = masked.nonzero(as_tuple=True)
    slot, original = slot[row, place], before[row, place]
    kind, choice = (word[row, place + span - 1] for word in words[1:3])
    random_kmer = N_SPECIAL + below(choice, 4**masking.k)
    corrupted = torch.where(kind < threshold(1 - STAYS), random_kmer, original)
    corrupted = torch.where(kind < threshold(BECOMES_MASK), MASK, corrupted)

    tokens_needed, bases_needed = _needed(window_kmers, masking.k)
    fits = (tokens_needed <= tokens) & (bases_needed <= bases.shape[1])
    token_ids, labels = before.clone(), torch.full_like(before, IGNORED)
    masked_positions = before.new_zeros(len(bases), capacity)
    masked_labels = torch.full_like(masked_positions, IGNORED)
    token_ids[row, place], labels[row, place] = corrupted, original
    masked_positions[row, slot], masked_labels[row, slot] = place, original
    token_ids[~fits] = -1
    return MaskedBatch(token_ids, segment_ids, attention_mask, labels, masked_positions, masked_labels)


def _rows(
    bases: torch.Tensor, window_kmers: torch.Tensor, k: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unmasked token ids, segment ids and attention mask, int64 [batch, tokens]."""
    kmers = window_kmers.long()
    n_regions = kmers.shape[1]
    n_a = kmers[:, : n_regions // 2].sum(1, keepdim=True)
    n_b = kmers[:, n_regions // 2 :].sum(1, keepdim=True)

    place = torch.arange(tokens, device=bases.device).expand(len(bases), tokens)
    in_b = place > n_a + 1
    kmer = (place - 1 - in_b.long()).clamp(min=0)  # number of the k-mer within the sample
    last = kmers.cumsum(1)
    region = torch.searchsorted(last, kmer.contiguous(), right=True).clamp(max=n_regions - 1)
    skipped = (kmers > 0).long() * (k - 1)  # bases of each window beyond one a k-mer
    skipped_before = skipped.cumsum(1) - skipped
    base = kmer + skipped_before.gather(1, region)
    ids = kmer_ids(F.pad(bases, (0, max(k - bases.shape[1], 0))), k)
    token_ids = ids.gather(1, base.clamp(max=ids.shape[1] - 1))

    used = place < n_a + n_b + 3
    token_ids = torch.where((place == n_a + 1) | (place == n_a + n_b + 2), SEP, token_ids)
    token_ids = torch.where(place == 0, CLS, torch.where(used, token_ids, PAD))
    return token_ids, (in_b & used).long(), used.long()


def _mask_kmers_triton(
    bases: torch.Tensor, window_kmers: torch.Tensor, sample: torch.Tensor, epoch: torch.Tensor, masking: Masking
) -> MaskedBatch:
    bases, window_kmers = bases.contiguous(), window_kmers.to(torch.int32).contiguous()
    sample, epoch = (numbers.to(torch.int64).contiguous() for numbers in (sample, epoch))
    batch, n_bases = bases.shape

    def empty(width: int) -> torch.Tensor:
        return torch.empty(batch, width, dtype=torch.int64, device=bases.device)

    tokens, capacity = masking.tokens, masking.capacity
    result = MaskedBatch(empty(tokens), empty(tokens), empty(tokens), empty(tokens), empty(capacity), empty(capacity))
    if batch:
        block = min(triton.next_power_of_2(tokens), LARGEST_BLOCK)
        _mask_kmers_kernel[(batch,)](
            bases,
            window_kmers,
            sample,
            epoch,
            *vars(result).values(),
            n_bases,
            masking.seed,
            masking.span_threshold,
            K=masking.k,
            N_KMERS=4**masking.k,
            N_REGIONS=window_kmers.shape[1],
            TOKENS=tokens,
            SPAN=masking.span,
            CAPACITY=capacity,
            BLOCK=block,
            LEAD=triton.next_power_of_2(masking.span),
            SLOTS=triton.next_power_of_2(max(capacity, 1)),
            num_warps=max(1, block // 128),
        )
    return result


LARGEST_BLOCK = 1024  # tokens that a program holds at once
_STREAM = tl.constexpr(int(Stream.MASK))
_BELOW_IS_MASK, _BELOW_IS_CORRUPTED = tl.constexpr(threshold(BECOMES_MASK)), tl.constexpr(threshold(1 - STAYS))
_PAD, _UNK, _CLS, _SEP, _MASK = (tl.constexpr(token) for token in (PAD, UNK, CLS, SEP, MASK))
_N_SPECIAL, _IGNORED = tl.constexpr(N_SPECIAL), tl.constexpr(IGNORED)
_NOWHERE = tl.constexpr(-(2**30))  # a place from which no span reaches


@triton.jit
def _mask_kmers_kernel(
    bases,
    window_kmers,
    sample,
    epoch,
    token_ids,
    segment_ids,
    attention_mask,
    labels,
    masked_positions,
    masked_labels,
    n_bases,
    seed: tl.int64,
    span_threshold: tl.int64,
    K: tl.constexpr,
    N_KMERS: tl.constexpr,
    N_REGIONS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAD: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """A program makes a row. BLOCK: tokens at once; LEAD: places before the row, at least SPAN; SLOTS: CAPACITY or
    more; all three are powers of two."""
    row = tl.program_id(0).to(tl.int64)
    bases += row * n_bases
    window_kmers += row * N_REGIONS
    number = tl.load(sample + row)
    key = (tl.load(epoch + row) << 32) | seed

    n_a = 0
    n_kmers = 0
    n_window_bases = 0
    for region in tl.static_range(N_REGIONS):
        in_window = tl.load(window_kmers + region)
        n_kmers += in_window
        n_window_bases += in_window + tl.where(in_window > 0, K - 1, 0)
        if region < N_REGIONS // 2:
            n_a += in_window
    fits = (n_kmers + 3 <= TOKENS) & (n_window_bases <= n_bases)

    # The last span to begin so far, and the tokens masked so far. Spans that begin at -SPAN or before reach nothing.
    lead = tl.arange(0, LEAD) - LEAD
    lead_word, _, _ = _words(key, number, lead)
    last_begin = tl.max(tl.where(lead_word < span_threshold, lead, _NOWHERE), 0)
    n_masked = 0
    for first in range(0, TOKENS, BLOCK):
        place = first + tl.arange(0, BLOCK)
        in_row = place < TOKENS
        in_b = place > n_a + 1
        used = place < n_kmers + 3
        is_kmer = used & (place > 0) & (place != n_a + 1) & (place != n_kmers + 2)
        kmer = place - 1 - in_b.to(tl.int32)  # number of the k-mer within the sample
        base = kmer
        kmers_so_far = 0
        for region in tl.static_range(N_REGIONS):
            in_window = tl.load(window_kmers + region)
            kmers_so_far += in_window
            base += tl.where((in_window > 0) & (kmer >= kmers_so_far), K - 1, 0)
        id_ = tl.zeros([BLOCK], tl.int32)
        known = is_kmer
        for j in tl.static_range(K):
            letter = tl.load(bases + base + j, mask=is_kmer & fits, other=0).to(tl.int32)
            id_ = id_ * 4 + letter
            known &= letter < 4
        id_ = tl.where(known, id_ + _N_SPECIAL, tl.where(is_kmer, _UNK, _SEP))
        id_ = tl.where(place == 0, _CLS, tl.where(used, id_, _PAD))

        word, kind, choice = _words(key, number, place)
        begin = tl.where(word < span_threshold, place, _NOWHERE)
        reached_from = tl.maximum(tl.associative_scan(begin, 0, _later), last_begin)
        masked = known & (reached_from > place - SPAN)
        slot = n_masked + tl.cumsum(masked.to(tl.int32), 0) - 1
        n_masked += tl.sum(masked.to(tl.int32), 0)
        last_begin = tl.maximum(last_begin, tl.max(begin, 0))
        masked &= slot < CAPACITY

        random_kmer = _N_SPECIAL + tl.umulhi(choice, tl.full([BLOCK], N_KMERS, tl.uint32)).to(tl.int32)
        corrupted = tl.where(kind < _BELOW_IS_MASK, _MASK, tl.where(kind < _BELOW_IS_CORRUPTED, random_kmer, id_))
        here = row * TOKENS + place
        tl.store(token_ids + here, tl.where(fits, tl.where(masked, corrupted, id_), -1), mask=in_row)
        tl.store(segment_ids + here, in_b & used, mask=in_row)
        tl.store(attention_mask + here, used, mask=in_row)
        tl.store(labels + here, tl.where(masked, id_, _IGNORED), mask=in_row)
        tl.store(masked_positions + row * CAPACITY + slot, place, mask=masked)
        tl.store(masked_labels + row * CAPACITY + slot, id_, mask=masked)

    slot = tl.arange(0, SLOTS)
    unused = (slot >= n_masked) & (slot < CAPACITY)
    tl.store(masked_positions + row * CAPACITY + slot, tl.zeros([SLOTS], tl.int64), mask=unused)
    tl.store(masked_labels + row * CAPACITY + slot, tl.full([SLOTS], _IGNORED, tl.int64), mask=unused)


@triton.jit
def _words(key, sample, place):
    """Three words, int64, of `philox.draw(seed, epoch, Stream.MASK, sample, place)`. key: epoch, then seed."""
    position = place.to(tl.uint32, bitcast=True)
    low, high = sample.to(tl.uint32), (sample >> 32).to(tl.uint32)
    a, b, c, _ = tl.philox(key, position, position * 0 + _STREAM, position * 0 + low, position * 0 + high)
    return a.to(tl.int64), b.to(tl.int64), c


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)
