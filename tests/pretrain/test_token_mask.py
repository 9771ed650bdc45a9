"""Masking of single tokens: who is masked, what becomes of it, and on what that depends."""

import numpy as np
import pytest
import torch

from data_prep.bpe import BOS, EOS, MASK, N_SPECIAL, PAD
from kernels.kmer_mask import IGNORED, capacity_for
from pretrain.token_mask import TokenMasking, mask_tokens

TOKENS, VOCABULARY, RATE = 128, 1004, 0.15
MASKING = TokenMasking(VOCABULARY, RATE, capacity_for(TOKENS, RATE, span=1), seed=3)


def rows(n: int) -> torch.Tensor:
    """Left-padded rows of random tokens, of all lengths."""
    rng = np.random.default_rng(n)
    ids = rng.integers(N_SPECIAL, VOCABULARY, (n, TOKENS), dtype=np.int32)
    for row, first in enumerate(rng.integers(0, TOKENS - 1, n)):
        ids[row, :first], ids[row, first] = PAD, BOS
    ids[:, -1] = EOS
    return torch.from_numpy(ids)


def numbers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n) * 7 + 2**33, torch.arange(n) % 3


def test_masked_tokens_are_a_share_and_change_as_bert_has_it():
    before = rows(4000)
    batch = mask_tokens(before, *numbers(4000), MASKING)
    masked, tokens = batch.labels != IGNORED, before >= N_SPECIAL
    n = int(masked.sum())
    assert not (masked & ~tokens).any()
    assert n / int(tokens.sum()) == pytest.approx(RATE, abs=4 * (RATE * (1 - RATE) / int(tokens.sum())) ** 0.5)
    assert (batch.token_ids[~masked] == before.long()[~masked]).all()
    assert (batch.labels[masked] == before.long()[masked]).all()
    became, was = batch.token_ids[masked], before.long()[masked]
    spread = 4 * 0.5 / n**0.5
    assert float((became == MASK).double().mean()) == pytest.approx(0.8, abs=spread)
    assert float((became == was).double().mean()) == pytest.approx(0.1 + 0.1 / (VOCABULARY - N_SPECIAL), abs=spread)
    random = became[(became != MASK) & (became != was)]
    assert random.min() >= N_SPECIAL
    assert random.max() < VOCABULARY
    quarters = np.bincount((random.numpy() - N_SPECIAL) * 4 // (VOCABULARY - N_SPECIAL), minlength=4)
    assert quarters / len(random) == pytest.approx([0.25] * 4, abs=4 * 0.5 / len(random) ** 0.5)


def test_slots_hold_the_masked_places_in_order():
    before = rows(200)
    batch = mask_tokens(before, *numbers(200), MASKING)
    for row in range(200):
        places = torch.nonzero(batch.labels[row] != IGNORED).flatten()
        used = batch.masked_labels[row] != IGNORED
        assert batch.masked_positions[row][used].tolist() == places.tolist()
        assert batch.masked_labels[row][used].tolist() == before[row][places].tolist()
        assert not batch.masked_positions[row][~used].any()
    assert (batch.attention_mask == (before != PAD)).all()


def test_the_mask_depends_on_seed_epoch_and_sample_alone():
    before, (sample, epoch) = rows(60), numbers(60)
    whole = mask_tokens(before, sample, epoch, MASKING)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for part in order.split(17):
        cut = mask_tokens(before[part], sample[part], epoch[part], MASKING)
        for name, tensor in vars(cut).items():
            assert torch.equal(tensor, getattr(whole, name)[part]), name
    others = [(sample + 1, epoch), (sample, epoch + 1), (sample + 2**32, epoch)]
    for changed in others:
        assert not torch.equal(mask_tokens(before, *changed, MASKING).labels, whole.labels)
    other_seed = TokenMasking(VOCABULARY, RATE, MASKING.capacity, seed=4)
    assert not torch.equal(mask_tokens(before, sample, epoch, other_seed).labels, whole.labels)


def test_what_finds_no_slot_stays_as_it_is():
    before = rows(50)
    few = TokenMasking(VOCABULARY, 0.5, 3, seed=3)
    batch = mask_tokens(before, *numbers(50), few)
    all_of_them = mask_tokens(before, *numbers(50), TokenMasking(VOCABULARY, 0.5, TOKENS, seed=3))
    for row in range(50):
        expected = torch.nonzero(all_of_them.labels[row] != IGNORED).flatten()[:3]
        assert torch.nonzero(batch.labels[row] != IGNORED).flatten().tolist() == expected.tolist()
        changed = torch.nonzero(batch.token_ids[row] != before[row]).flatten().tolist()
        assert set(changed) <= set(expected.tolist())
