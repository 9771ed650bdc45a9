"""Masking of single tokens (BERT, Devlin et al. 2019): byte-level BPE tokens do not overlap, so no spans are needed.

Of the masked tokens 80% become <mask>, 10% a random token, 10% stay. Special tokens are never masked and never drawn.
Shapes are static and nothing waits for the device.
"""

from dataclasses import dataclass

import torch

from data_prep.bpe import MASK, N_SPECIAL, PAD
from kernels.kmer_mask import BECOMES_MASK, IGNORED, STAYS, MaskedBatch
from kernels.philox import Stream, below, draw, threshold


@dataclass(frozen=True)
class TokenMasking:
    """How tokens are masked. vocabulary: tokens, special ones included; rate: share of the tokens masked; capacity:
    slots for the masked tokens of a row (`kernels.kmer_mask.capacity_for`, span 1); seed: below 2**32."""

    vocabulary: int
    rate: float
    capacity: int
    seed: int


def mask_tokens(
    token_ids: torch.Tensor, sample: torch.Tensor, epoch: torch.Tensor, masking: TokenMasking
) -> MaskedBatch:
    """Mask a batch. token_ids: [batch, tokens]; sample, epoch: int64 [batch], which with the seed decide the draws.

    A row that draws more tokens than there are slots (fewer than one in 1e7) leaves those past the last unmasked.
    """
    before = token_ids.long()
    place = torch.arange(before.shape[1], device=before.device).expand_as(before)
    drawn, kind, choice, _ = draw(masking.seed, epoch[:, None], Stream.MASK, sample[:, None], place)
    masked = (drawn < threshold(masking.rate)) & (before >= N_SPECIAL)
    slot = masked.cumsum(1) - 1
    masked &= slot < masking.capacity

    corrupted = torch.where(
        kind < threshold(1 - STAYS), N_SPECIAL + below(choice, masking.vocabulary - N_SPECIAL), before
    )
    corrupted = torch.where(kind < threshold(BECOMES_MASK), MASK, corrupted)
    # What is not masked goes to a slot past the last, which is cut off.
    slot = torch.where(masked, slot, masking.capacity)
    positions = before.new_zeros(len(before), masking.capacity + 1).scatter_(1, slot, place)
    labels = torch.full_like(positions, IGNORED).scatter_(1, slot, before)
    return MaskedBatch(
        token_ids=torch.where(masked, corrupted, before),
        segment_ids=torch.zeros_like(before),
        attention_mask=(before != PAD).long(),
        labels=torch.where(masked, before, IGNORED),
        masked_positions=positions[:, :-1].contiguous(),
        masked_labels=labels[:, :-1].contiguous(),
    )
