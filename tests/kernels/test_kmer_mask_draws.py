"""What `mask_kmers` draws: the share masked, its 80/10/10, the random k-mers, and how much a span hides.

Every draw is a function of fixed numbers, so a test gives the same p-value each time. Below LEAST_P it fails; a right
implementation does so for one choice of these numbers in some hundreds, over all the tests here together.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from kernels.kmer_mask import IGNORED, MASK, N_SPECIAL, Masking, capacity_for, mask_kmers, span_tokens
from tests.kernels import masking_oracle

LEAST_P = 1e-5
ROWS, TOKENS = 2000, 420
PLACES = np.r_[1:201, 202:402]  # where a row of ten windows of 40 k-mers holds them


@pytest.fixture
def many_rows(implementation, device):
    """2,000 masked rows of 400 k-mers: from `masking` and a code for each base (random where None) to the token ids and
    labels of the k-mers, numpy arrays [2000, 400]."""
    if implementation == "triton" and device.type != "cuda":
        pytest.skip("too many rows for Triton's interpreter")

    def run(masking: Masking, code: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        shape = (ROWS, 10 * (40 + masking.k - 1))
        codes = np.random.default_rng(0).choice(5, size=shape, p=[0.24, 0.25, 0.25, 0.25, 0.01])
        bases = torch.from_numpy(codes.astype(np.uint8)) if code is None else torch.full(shape, code, dtype=torch.uint8)
        window_kmers, sample = torch.full((ROWS, 10), 40, dtype=torch.int32), torch.arange(ROWS)
        inputs = (tensor.to(device) for tensor in (bases, window_kmers, sample, torch.zeros_like(sample)))
        result = mask_kmers(*inputs, masking)
        return result.token_ids.cpu().numpy()[:, PLACES], result.labels.cpu().numpy()[:, PLACES]

    return run


def p_value(observed: np.ndarray, expected: np.ndarray, degrees: int) -> float:
    """Of Pearson's chi-square."""
    return chi2.sf(((observed - expected) ** 2 / expected).sum(), degrees)


@pytest.mark.parametrize("rule", ["dnabert", "bases=3"])
@pytest.mark.parametrize("rate", [0.15, 0.2])
@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_the_share_masked_after_expansion_is_the_rate_at_every_place(many_rows, k, rate, rule):
    span = span_tokens(rule, k)
    _, labels = many_rows(Masking(k, TOKENS, span, rate, capacity=TOKENS, seed=k), code=0)
    masked = (labels != IGNORED).sum(0)
    # Spans that reach one of two tokens a span or more apart do not reach the other: their masks are independent.
    for first in range(span):
        at_place = masked[first::span]
        observed = np.stack([at_place, ROWS - at_place])
        share = np.array([[rate], [1 - rate]])
        assert p_value(observed, ROWS * share, degrees=len(at_place)) > LEAST_P
        assert p_value(observed.sum(1, keepdims=True), observed.sum() * share, degrees=1) > LEAST_P


@pytest.mark.parametrize("k", [3, 6])
def test_of_the_masked_tokens_eighty_ten_ten_percent_are_masked_random_and_unchanged(many_rows, k):
    token_ids, labels = many_rows(Masking(k, TOKENS, k, 0.15, capacity=TOKENS, seed=1))
    masked = labels != IGNORED
    after, before = token_ids[masked], labels[masked]
    assert (before >= N_SPECIAL).all()
    assert (after >= MASK).all()
    assert (after < N_SPECIAL + 4**k).all()
    # What becomes of a token is drawn for each by itself. One random k-mer in 4**k is the one that was there.
    observed = np.array([(after == MASK).sum(), (after == before).sum(), ((after != MASK) & (after != before)).sum()])
    share = np.array([0.8, 0.1 + 0.1 / 4**k, 0.1 - 0.1 / 4**k])
    assert p_value(observed, len(after) * share, degrees=2) > LEAST_P


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_random_kmers_are_uniform(many_rows, k):
    token_ids, _ = many_rows(Masking(k, TOKENS, k, 0.5, capacity=TOKENS, seed=2), code=0)
    # Where every k-mer is AAA..., id 5, a token that is neither that nor [MASK] is a draw from all the others.
    counts = np.bincount(token_ids[token_ids > N_SPECIAL] - N_SPECIAL, minlength=4**k)[1:]
    assert len(counts) == 4**k - 1
    assert counts.mean() > 9  # as chi-square needs
    assert p_value(counts, counts.mean(), degrees=len(counts) - 1) > LEAST_P


@pytest.mark.parametrize("k", [3, 4, 5, 6])
@pytest.mark.parametrize(("rule", "hidden"), [("dnabert", 1), ("bases=1", 1), ("bases=2", 2), ("bases=5", 5)])
def test_a_lone_span_hides_that_many_bases(implementation, device, k, rule, hidden):
    rows, kmers, span = 16, 60, span_tokens(rule, k)
    rate = 1 - (1 - 1 / kmers) ** span  # about one span a row
    masking = Masking(k, kmers + 3, span, rate, capacity=kmers, seed=3)
    sample = torch.arange(rows, device=device)
    bases = torch.zeros(rows, kmers + k - 1, dtype=torch.uint8, device=device)
    window_kmers = torch.tensor([[kmers, 0]] * rows, dtype=torch.int32, device=device)
    labels = mask_kmers(bases, window_kmers, sample, torch.zeros_like(sample), masking).labels.cpu().numpy()

    n_lone = 0
    for row in range(rows):
        begins = masking_oracle.span_beginnings(3, 0, row, kmers + 3, span, rate)
        # With a k-mer of the window on either side of the span
        if len(begins) == 1 and 2 <= begins[0] <= kmers - span:
            n_lone += 1
            masked = {kmer for kmer in range(kmers) if labels[row, 1 + kmer] != IGNORED}
            holds = [set(range(base - k + 1, base + 1)) & set(range(kmers)) for base in range(kmers + k - 1)]
            assert sum(kmers_of_base <= masked for kmers_of_base in holds) == hidden
    assert n_lone >= 2


@pytest.mark.parametrize(("k", "offsets"), [(3, [-1, 1]), (4, [-1, 1, 2]), (5, [-2, -1, 1, 2]), (6, [-2, -1, 1, 2, 3])])
def test_dnaberts_published_offsets_are_those_of_as_many_consecutive_tokens(k, offsets):
    assert sorted([0, *offsets]) == list(range(offsets[0], offsets[0] + span_tokens("dnabert", k)))


@pytest.mark.parametrize("rule", ["bases=0", "bases=", "bases=-1", "bases=1.5", "spans", ""])
def test_an_unknown_span_rule_is_refused(rule):
    with pytest.raises(ValueError, match="give dnabert or bases=M"):
        span_tokens(rule, 6)


@pytest.mark.parametrize("rule", ["dnabert", "bases=3"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_no_row_of_two_thousand_is_over_capacity(many_rows, rate, rule):
    span = span_tokens(rule, 6)
    capacity = capacity_for(TOKENS, rate, span)
    _, labels = many_rows(Masking(6, TOKENS, span, rate, capacity=TOKENS, seed=4), code=0)
    masked = (labels != IGNORED).sum(1)
    assert masked.max() <= capacity
    assert masked.mean() + 6 * masked.std() <= capacity


@pytest.mark.parametrize(("tokens", "rate"), [(16, 0.15), (420, 0.15), (512, 0.2), (2048, 0.9)])
def test_capacity_is_a_multiple_of_eight_or_the_whole_row(tokens, rate):
    capacity = capacity_for(tokens, rate, span=6)
    assert capacity % 8 == 0 or capacity == tokens
    assert tokens * rate < capacity <= tokens
