import numpy as np
import pytest
import torch

from kernels.kmer_mask import (
    CLS,
    DNABERT_OFFSETS,
    IGNORED,
    MASK,
    N_SPECIAL,
    PAD,
    SEP,
    UNK,
    SpanRule,
    kmer_ids,
    mask_kmers,
    mask_kmers_reference,
)
from kernels.philox import WORD, Stream, draw

LETTERS = np.array(list("ATCGN"))


def windows(rng, batch: int, k: int, longest: int = 40, n_share: float = 0.0):
    """Random regions' windows: bases uint8 [batch, L], k-mers int32 [batch, 10]; some windows are empty."""
    kmers = rng.integers(0, longest, size=(batch, 10)).astype(np.int32)
    n_bases = (kmers + (k - 1) * (kmers > 0)).sum(1)
    bases = rng.integers(0, 4, size=(batch, n_bases.max())).astype(np.uint8)
    bases[rng.random(bases.shape) < n_share] = 4
    return torch.from_numpy(bases), torch.from_numpy(kmers)


def masked(rng, batch=64, k=6, tokens=512, rate=0.15, rule="dnabert", seed=0, epoch=0, first_sample=0, **kwargs):
    bases, kmers = windows(rng, batch, k, **kwargs)
    rule = SpanRule.parse(rule, k)
    sample = torch.arange(first_sample, first_sample + batch)
    arguments = {"k": k, "tokens": tokens, "rate": rate, "capacity": tokens, "seed": seed, "rule": rule}
    return bases, kmers, mask_kmers(bases, kmers, sample, torch.full_like(sample, epoch), **arguments)


def original(result):
    """Token ids before masking."""
    ids = result.token_ids.clone()
    row, slot = (result.labels != IGNORED).nonzero(as_tuple=True)
    ids[row, result.masked_positions[row, slot]] = result.labels[row, slot]
    return ids


def is_masked(result):
    """bool [batch, tokens]: the tokens that carry a label."""
    found = torch.zeros_like(result.token_ids, dtype=torch.bool)
    row, slot = (result.labels != IGNORED).nonzero(as_tuple=True)
    found[row, result.masked_positions[row, slot]] = True
    return found


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_kmer_ids_equal_a_count_over_the_letters_a_t_c_g(k):
    rng = np.random.default_rng(k)
    codes = rng.integers(0, 5, size=(1, 300)).astype(np.uint8)
    text = "".join(LETTERS[codes[0]])
    expected = []
    for i in range(300 - k + 1):
        word = text[i : i + k]
        expected.append(UNK if "N" in word else 5 + sum("ATCG".index(c) * 4 ** (k - 1 - j) for j, c in enumerate(word)))
    assert kmer_ids(torch.from_numpy(codes), k)[0].tolist() == expected


@pytest.mark.parametrize("k", [3, 6])
def test_rows_hold_each_regions_kmers_by_themselves_between_special_tokens(k):
    bases, kmers, result = masked(np.random.default_rng(1), batch=20, k=k, n_share=0.02)
    ids = original(result)
    for row in range(20):
        expected, base = [CLS], 0
        for region, n in enumerate(kmers[row].tolist()):
            if n:
                window = bases[row : row + 1, base : base + n + k - 1]
                expected += kmer_ids(window, k)[0].tolist()
                base += n + k - 1
            if region in (4, 9):
                expected.append(SEP)
        used = len(expected)
        assert ids[row].tolist() == expected + [PAD] * (512 - used)
        assert result.attention_mask[row].tolist() == [1] * used + [0] * (512 - used)
        n_a = 2 + int(kmers[row, :5].sum())
        assert result.segment_ids[row].tolist() == [0] * n_a + [1] * (used - n_a) + [0] * (512 - used)


@pytest.mark.parametrize("rule", ["dnabert", "bases=1", "bases=3"])
@pytest.mark.parametrize("rate", [0.15, 0.20])
@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_masked_share_is_the_rate_after_expansion(k, rate, rule):
    _, _, result = masked(np.random.default_rng(2), batch=3000, k=k, rate=rate, rule=rule, tokens=420)
    maskable = original(result) >= N_SPECIAL
    share = is_masked(result).sum() / maskable.sum()
    assert share.item() == pytest.approx(rate, abs=0.005 * rate + 0.001)


def test_the_share_does_not_depend_on_where_a_kmer_stands_in_its_region():
    bases = torch.zeros(20_000, 10 * 13, dtype=torch.uint8)
    kmers = torch.full((20_000, 10), 8, dtype=torch.int32)
    sample = torch.arange(20_000)
    result = mask_kmers(
        bases,
        kmers,
        sample,
        torch.zeros_like(sample),
        k=6,
        tokens=83,
        rate=0.15,
        capacity=83,
        seed=0,
        rule=SpanRule.parse("dnabert", 6),
    )
    share = is_masked(result).float().mean(0)
    places = (original(result)[0] >= N_SPECIAL).nonzero().flatten()
    assert (share[places] - 0.15).abs().max() < 4 * (0.15 * 0.85 / 20_000) ** 0.5


@pytest.mark.parametrize("k", [3, 4, 5, 6])
@pytest.mark.parametrize(("rule", "hidden"), [("dnabert", 1), ("bases=1", 1), ("bases=2", 2), ("bases=5", 5)])
def test_a_lone_centre_hides_that_many_bases(k, rule, hidden):
    span = SpanRule.parse(rule, k)
    if rule == "dnabert":
        published = {3: [-1, 1], 4: [-1, 1, 2], 5: [-2, -1, 1, 2], 6: [-2, -1, 1, 2, 3]}[k]
        assert [offset for offset in range(span.first, span.last + 1) if offset] == published
    centre, n_bases = 100, 200
    tokens = set(range(centre + span.first, centre + span.last + 1))
    # A base is hidden if every k-mer that holds it is masked.
    is_hidden = [set(range(base - k + 1, base + 1)) <= tokens for base in range(k, n_bases)]
    assert sum(is_hidden) == hidden


def test_corruption_is_eighty_ten_ten_and_never_special():
    _, _, result = masked(np.random.default_rng(3), batch=4000, n_share=0.01, tokens=420)
    found = is_masked(result)
    before, after = original(result)[found], result.token_ids[found]
    n = len(before)
    assert (before >= N_SPECIAL).all()
    assert ((after == MASK) | (after >= N_SPECIAL)).all()
    assert ((after == MASK).sum() / n).item() == pytest.approx(0.8, abs=0.005)
    assert ((after == before).sum() / n).item() == pytest.approx(0.1 + 0.1 / 4096, abs=0.005)
    drawn = after[(after != before) & (after != MASK)] - N_SPECIAL
    counts = torch.bincount(drawn // 64, minlength=64).double()  # random k-mers by their first three letters
    expected = counts.sum() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4  # chi-square, 63 degrees, p = 0.001
    assert (result.token_ids[~found] == original(result)[~found]).all()


def test_a_samples_mask_does_not_depend_on_its_batch():
    rng = np.random.default_rng(4)
    bases, kmers = windows(rng, 8, 6)
    sample, epoch = torch.arange(100, 108), torch.tensor([0, 1] * 4)
    arguments = {"k": 6, "tokens": 420, "rate": 0.15, "capacity": 150, "seed": 9, "rule": SpanRule.parse("dnabert", 6)}
    together = mask_kmers(bases, kmers, sample, epoch, **arguments)
    for row in range(8):
        alone = mask_kmers(
            bases[row : row + 1], kmers[row : row + 1], sample[row : row + 1], epoch[row : row + 1], **arguments
        )
        for name in ("token_ids", "segment_ids", "attention_mask", "masked_positions", "labels"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"first_sample": 1000}])
def test_seed_epoch_and_sample_change_the_mask(change):
    _, _, one = masked(np.random.default_rng(5))
    _, _, other = masked(np.random.default_rng(5), **change)
    assert torch.equal(original(one), original(other))
    assert not torch.equal(is_masked(one), is_masked(other))


def test_masks_follow_the_draws_of_a_plain_loop_in_numpy():
    rule = SpanRule.parse("dnabert", 6)
    bases, kmers = windows(np.random.default_rng(6), 3, 6, n_share=0.02)
    sample = torch.tensor([5, 2**33, 77])
    result = mask_kmers_reference(
        bases, kmers, sample, torch.tensor([0, 1, 2]), k=6, tokens=420, rate=0.2, capacity=420, seed=3, rule=rule
    )
    found, before = is_masked(result), original(result)
    limit = round((1 - 0.8 ** (1 / 6)) * 2**32)
    for row in range(3):
        for place in range(420):
            words = [
                draw(3, row, Stream.MASK, np.array([int(sample[row])]), (place - offset) & WORD)[0][0]
                for offset in (0, *[o for o in range(DNABERT_OFFSETS[6][0], DNABERT_OFFSETS[6][1] + 1) if o])
            ]
            assert found[row, place] == (before[row, place] >= N_SPECIAL and min(words) < limit)


def test_a_full_row_keeps_what_its_slots_hold():
    _, _, everything = masked(np.random.default_rng(7), batch=50)
    bases, kmers = windows(np.random.default_rng(7), 50, 6)
    few = mask_kmers(
        bases,
        kmers,
        torch.arange(50),
        torch.zeros(50, dtype=torch.int64),
        k=6,
        tokens=512,
        rate=0.15,
        capacity=16,
        seed=0,
        rule=SpanRule.parse("dnabert", 6),
    )
    assert torch.equal(few.labels, everything.labels[:, :16])
    assert torch.equal(original(few), original(everything))


def test_capacity_holds_nearly_every_row():
    rule = SpanRule.parse("dnabert", 6)
    _, _, result = masked(np.random.default_rng(8), batch=5000, tokens=420)
    assert is_masked(result).sum(1).max() <= rule.capacity(420, 0.15)


def test_a_sample_too_long_for_its_row_is_refused():
    with pytest.raises(ValueError, match="does not fit a row of 16"):
        masked(np.random.default_rng(9), tokens=16)


@pytest.mark.parametrize("rule", ["bases=0", "bases=", "spans"])
def test_an_unknown_span_rule_is_refused(rule):
    with pytest.raises(ValueError, match="give dnabert or bases=M"):
        SpanRule.parse(rule, 6)
