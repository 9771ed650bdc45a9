"""`mask_kmers`: the bits of the oracle by each implementation, and what happens at the edges."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import dispatch
from kernels.kmer_mask import (
    CLS,
    IGNORED,
    MASK,
    PAD,
    SEP,
    UNK,
    Masking,
    _mask_kmers_triton,
    kmer_ids,
    mask_kmers,
    mask_kmers_reference,
    span_tokens,
)
from tests.kernels import masking_oracle

SAMPLES = [0, 5, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1]
EPOCHS = [0, 1, 2, 3, 2**31, 2**32 - 1]


class Samples(NamedTuple):
    """The tensors that `mask_kmers` takes, in its order."""

    bases: torch.Tensor
    window_kmers: torch.Tensor
    sample: torch.Tensor
    epoch: torch.Tensor

    def rows(self, rows) -> "Samples":
        return Samples(*(tensor[rows] for tensor in self))

    def to(self, device) -> "Samples":
        return Samples(*(tensor.to(device) for tensor in self))


def samples_of(window_kmers, k: int, rng: np.random.Generator, n_share: float = 0.02, spare: int = 9) -> Samples:
    """Random bases for such windows: here and there an N, in each row a run of them, and poison behind the windows."""
    window_kmers = np.array(window_kmers, dtype=np.int32)
    batch = len(window_kmers)
    n_bases = (window_kmers + (k - 1) * (window_kmers > 0)).sum(1)
    bases = rng.integers(0, 4, size=(batch, n_bases.max() + spare)).astype(np.uint8)
    bases[rng.random(bases.shape) < n_share] = 4
    for row, n in enumerate(n_bases):
        first = rng.integers(n + 1)
        bases[row, first : first + round(300 * n_share)] = 4
        bases[row, n:] = 200
    sample, epoch = (np.resize(np.array(numbers), batch) for numbers in (SAMPLES, EPOCHS))
    return Samples(*(torch.from_numpy(array) for array in (bases, window_kmers, sample, epoch)))


def rows_of_all_sorts(tokens: int, k: int, rng: np.random.Generator, n_share: float = 0.02) -> Samples:
    """Two rows full to the last token, one half full, and rows of B alone, of a single window, and of no k-mer."""
    full, also_full = rng.multinomial(tokens - 3, rng.dirichlet(np.ones(10)), size=2)
    single = np.where(np.arange(10) == 3, tokens - 3, 0)
    return samples_of([full, also_full, full // 2, full * (np.arange(10) > 4), single, full * 0], k, rng, n_share)


def masking_of(k=6, rule="dnabert", tokens=64, rate=0.3, capacity=None, seed=2**32 - 1) -> Masking:
    return Masking(k, tokens, span_tokens(rule, k), rate, tokens if capacity is None else capacity, seed)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_poison():
    """`torch.empty` holds the largest integer, so that an element of an output that nothing writes is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def mask(implementation, device):
    """`mask_kmers` by one implementation: from samples to its outputs, numpy arrays by name."""

    def run(samples: Samples, masking: Masking) -> dict[str, np.ndarray]:
        result = mask_kmers(*samples.to(device), masking)
        return {name: output.cpu().numpy() for name, output in vars(result).items()}

    return run


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, output in found.items():
        assert output.dtype == np.int64
        np.testing.assert_array_equal(output, expected[name], err_msg=name)


def oracle(samples: Samples, masking: Masking) -> dict[str, np.ndarray]:
    return masking_oracle.mask_batch(*samples, **vars(masking))


def test_the_oracle_draws_the_published_numbers():
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    # The known answer of Random123 for philox4x32-10
    assert masking_oracle.philox(pi[4:], pi[:4]) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_a_row_is_cls_a_sep_b_sep_pad(mask):
    atcgn_gggg = torch.tensor([[0, 1, 2, 3, 4, 3, 3, 3, 3]], dtype=torch.uint8)
    samples = Samples(atcgn_gggg, torch.tensor([[3, 2]], dtype=torch.int32), torch.tensor([0]), torch.tensor([0]))
    found = mask(samples, masking_of(k=3, tokens=10, rate=0.0))
    atc, tcg, ggg = 5 + 0 * 16 + 1 * 4 + 2, 5 + 1 * 16 + 2 * 4 + 3, 5 + 63
    assert found["token_ids"].tolist() == [[CLS, atc, tcg, UNK, SEP, ggg, ggg, SEP, PAD, PAD]]
    assert found["segment_ids"].tolist() == [[0] * 5 + [1] * 3 + [0] * 2]
    assert found["attention_mask"].tolist() == [[1] * 8 + [0] * 2]
    assert (found["labels"] == IGNORED).all()


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_kmer_ids_count_over_the_letters_a_t_c_g(k):
    codes = np.random.default_rng(k).integers(0, 5, size=300).astype(np.uint8)
    text = "".join("ATCGN"[code] for code in codes)
    expected = [masking_oracle.kmer_id(text[i : i + k]) for i in range(300 - k + 1)]
    assert kmer_ids(torch.from_numpy(codes[None]), k)[0].tolist() == expected


@pytest.mark.parametrize("rule", ["dnabert", "bases=2", "bases=9"])
@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_every_k_and_rule_gives_the_oracles_bits(mask, k, rule):
    samples = rows_of_all_sorts(100, k, np.random.default_rng(k))
    masking = masking_of(k, rule, tokens=100, capacity=30)
    assert_equal(mask(samples, masking), oracle(samples, masking))


# Longer than 1,024 tokens, a row takes more than one block of the kernel
@pytest.mark.parametrize("tokens", [3, 4, 17, 64, 420, 1024, 1025, 2100])
def test_every_length_of_row_gives_the_oracles_bits(mask, tokens):
    samples = rows_of_all_sorts(tokens, 5, np.random.default_rng(tokens), n_share=0.005)
    masking = masking_of(5, "bases=3", tokens)
    expected = oracle(samples, masking)
    assert_equal(mask(samples, masking), expected)
    if tokens == 2100:
        across = expected["labels"][:, 1022:1026] != IGNORED
        assert across.all(1).any()  # a span lies across two blocks


@pytest.mark.parametrize(("tokens", "capacity"), [(64, 0), (64, 1), (64, 8), (64, 13), (64, 64), (1500, 440)])
def test_rows_over_capacity_give_the_oracles_bits(mask, tokens, capacity):
    samples = rows_of_all_sorts(tokens, 4, np.random.default_rng(capacity), n_share=0.0)
    masking = masking_of(4, tokens=tokens, capacity=capacity)
    expected = oracle(samples, masking)
    assert_equal(mask(samples, masking), expected)
    masked = (expected["labels"] != IGNORED).sum(1)
    assert masked.max() == capacity or capacity == tokens
    assert (masked < capacity).any() or capacity == 0


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_the_last_slot_is_used_and_none_past_it(mask, spare):
    samples = samples_of([[0, 20, 0, 0, 5, 0, 0, 0, 6, 0]], 6, np.random.default_rng(0), n_share=0.0)
    found = mask(samples, masking_of(rate=1.0, capacity=31 + spare))  # masks each of the 31 k-mers that has a slot
    places = [*range(1, 26), *range(27, 33)]
    slots = min(31, 31 + spare)
    assert np.flatnonzero(found["labels"][0] != IGNORED).tolist() == places[:slots]
    assert found["masked_positions"].tolist() == [places[:slots] + [0] * (31 + spare - slots)]
    assert (found["masked_labels"][0] == IGNORED).tolist() == [False] * slots + [True] * (31 + spare - slots)


@pytest.mark.parametrize("rate", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 16, 2**31, 2**32 - 1])  # 1 and multiples of 16 are compiled specially
def test_every_seed_and_rate_gives_the_oracles_bits(mask, seed, rate):
    samples = rows_of_all_sorts(64, 6, np.random.default_rng(0))
    masking = masking_of(rate=rate, seed=seed)
    assert_equal(mask(samples, masking), oracle(samples, masking))


@st.composite
def cases(draw) -> tuple[Samples, Masking]:
    """Rows of any windows that fit, with runs of N anywhere. Few shapes, since each is compiled for a GPU."""
    k, tokens = draw(st.integers(3, 6)), 101
    lengths = draw(st.lists(st.lists(st.integers(0, tokens // 3), min_size=10, max_size=10), min_size=1, max_size=3))
    window_kmers = [np.diff(np.minimum(np.cumsum([0, *row]), tokens - 3)) for row in lengths]
    samples = samples_of(window_kmers, k, np.random.default_rng(draw(st.integers(0, 99))), n_share=0.0)
    for first, n in draw(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 30)), max_size=4)):
        samples.bases[:, first : first + n] = 4
    numbers = st.lists(st.integers(0, 2**63 - 1), min_size=len(samples.sample), max_size=len(samples.sample))
    samples.sample.copy_(torch.tensor(draw(numbers)))
    samples.epoch.copy_(torch.tensor(draw(numbers)) % 2**32)
    rule, capacity = draw(st.sampled_from(["dnabert", "bases=4"])), draw(st.sampled_from([8, tokens]))
    return samples, masking_of(k, rule, tokens, draw(st.floats(0, 1)), capacity, draw(st.integers(0, 2**32 - 1)))


# The fixtures hold no state, so one set of them serves all examples.
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_any_samples_give_the_oracles_bits(mask, case):
    samples, masking = case
    assert_equal(mask(samples, masking), oracle(samples, masking))


def test_a_mask_depends_neither_on_the_place_in_the_batch_nor_on_the_other_rows(mask):
    samples, masking = rows_of_all_sorts(64, 6, np.random.default_rng(4)), masking_of(capacity=24)
    together = mask(samples, masking)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert_equal(mask(samples.rows(order), masking), {name: output[order] for name, output in together.items()})
    for row in range(len(order)):
        alone = mask(samples.rows(slice(row, row + 1)), masking)
        assert_equal(alone, {name: output[row : row + 1] for name, output in together.items()})


def test_seed_epoch_and_every_part_of_the_samples_number_change_the_mask(mask):
    one = samples_of([[12] * 10], 6, np.random.default_rng(5), n_share=0.0)
    masking = masking_of(tokens=128, rate=0.6, seed=7)
    masks = [
        mask(one, masking),
        mask(one, replace(masking, seed=8)),
        mask(one._replace(epoch=one.epoch + 1), masking),
        mask(one._replace(sample=one.sample + 1), masking),
        mask(one._replace(sample=one.sample + 2**32), masking),
    ]
    places = {tuple(np.flatnonzero(found["labels"][0] != IGNORED)) for found in masks}
    assert len(places) == len(masks)
    # What becomes of the masked tokens is drawn anew as well: the tokens masked in two of them are not treated alike.
    first = masks[0]
    for other in masks[1:]:
        both = (first["labels"] != IGNORED) & (other["labels"] != IGNORED)
        assert ((first["token_ids"] == MASK) != (other["token_ids"] == MASK))[both].any()


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    view = torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
    assert view.data_ptr() % 16
    return view


def strided(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack([tensor, torch.full_like(tensor, 77)], dim=-1)[..., 0]


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor


@pytest.mark.parametrize("layout", [misaligned, strided, transposed])
def test_any_layout_of_the_inputs_gives_the_same(implementation, device, layout):
    samples, masking = rows_of_all_sorts(64, 6, np.random.default_rng(6)), masking_of()
    moved = Samples(*(layout(tensor) for tensor in samples.to(device)))
    found = mask_kmers(*moved, masking)
    assert_equal({name: output.cpu().numpy() for name, output in vars(found).items()}, oracle(samples, masking))


def test_an_empty_batch_gives_empty_outputs(mask):
    samples = rows_of_all_sorts(64, 6, np.random.default_rng(7)).rows(slice(0))
    found = mask(samples, masking_of(capacity=24))
    shapes = {name: (0, 24) if name.startswith("masked") else (0, 64) for name in found}
    assert {name: output.shape for name, output in found.items()} == shapes


def test_what_lies_behind_the_last_window_changes_nothing(mask):
    samples = samples_of([[4, 0, 6, 5, 0, 0, 3, 8, 0, 0]], 6, np.random.default_rng(8), spare=0)
    narrow = mask(samples, masking_of())
    for behind in (0, 3, 4, 200):
        more = torch.full((1, 50), behind, dtype=torch.uint8)
        assert_equal(mask(samples._replace(bases=torch.cat([samples.bases, more], dim=1)), masking_of()), narrow)


@pytest.mark.parametrize("n_bases", [0, 1, 5])
def test_samples_of_no_kmer_need_no_bases(mask, n_bases):
    samples = samples_of([[0] * 10] * 2, 6, np.random.default_rng(9), spare=n_bases)
    assert_equal(mask(samples, masking_of()), oracle(samples, masking_of()))


# Row by row: full to the last token and base but one; a token too many; a base too few; full to the last base
UNFIT = samples_of([[37, 0], [38, 0], [18, 19], [18, 18]], 3, np.random.default_rng(10), spare=-1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (1, "a sample of 41 tokens does not fit a row of 40"),
        (2, "the windows of a sample hold 41 bases, its row has 40"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_on_a_cpu(row, message):
    with pytest.raises(ValueError, match=message):
        mask_kmers(*UNFIT.rows(slice(row, row + 1)), masking_of(3, tokens=40))
    mask_kmers(*UNFIT.rows([0, 3]), masking_of(3, tokens=40))


def assert_unfit_rows_alone_lack_token_ids(result) -> None:
    found = {name: output.cpu().numpy() for name, output in vars(result).items()}
    assert (found["token_ids"][[1, 2]] == -1).all()
    fit = [0, 3]
    assert_equal(
        {name: output[fit] for name, output in found.items()}, oracle(UNFIT.rows(fit), masking_of(3, tokens=40))
    )


def test_the_reference_gives_a_sample_that_does_not_fit_no_token_ids(device):
    assert_unfit_rows_alone_lack_token_ids(mask_kmers_reference(*UNFIT.to(device), masking_of(3, tokens=40)))


@pytest.mark.triton
def test_the_kernel_gives_a_sample_that_does_not_fit_no_token_ids(device):
    if device.type != "cuda" and not dispatch.interpreted():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")
    assert_unfit_rows_alone_lack_token_ids(_mask_kmers_triton(*UNFIT.to(device), masking_of(3, tokens=40)))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")


@pytest.mark.cuda
@needs_cuda
def test_a_sample_that_does_not_fit_gets_no_token_ids_on_cuda(device):
    assert_unfit_rows_alone_lack_token_ids(mask_kmers(*UNFIT.to(device), masking_of(3, tokens=40)))


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("capacity", [8, 2048])
def test_rows_past_two_to_the_31_elements_are_like_any_other(device, capacity):
    batch, tokens, n_bases = 2**20 + 64, 2048, 2090  # the first of the last 64 rows begins at element 2**31
    torch.cuda.empty_cache()
    needed, free = batch * (8 * (4 * tokens + 2 * capacity) + n_bases), torch.cuda.mem_get_info()[0]
    if free < needed + 2**30:
        pytest.skip(f"needs {needed / 2**30 + 1:.0f} GiB of GPU memory; {free / 2**30:.0f} are free")
    torch.manual_seed(0)
    samples = Samples(
        torch.randint(0, 4, (batch, n_bases), dtype=torch.uint8, device=device),
        torch.full((batch, 10), 204, dtype=torch.int32, device=device),
        torch.arange(batch, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )
    masking = masking_of(tokens=tokens, rate=0.15, capacity=capacity)
    together = mask_kmers(*samples, masking)
    for rows in (slice(0, 64), slice(2**20, None)):
        alone = mask_kmers(*samples.rows(rows), masking)
        for name, output in vars(alone).items():
            assert torch.equal(getattr(together, name)[rows], output), name
