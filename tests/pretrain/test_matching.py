"""Matching in one pass and in two, in one process; tests/pretrain/test_zero2_gradients.py holds it over ranks."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kernels.infonce import info_nce_reference
from pretrain.ds_config import BatchLayout
from pretrain.matching import in_one_pass, in_two_passes, recalls

pytestmark = pytest.mark.usefixtures("world_of_one")

LAYOUT = BatchLayout(global_batch=10, world_size=1, micro_batch=4, accumulation=3)
WEIGHTS = list(torch.tensor([1.0] * 10 + [0.0] * 2).split(4))
MODEL = SimpleNamespace(scale=torch.tensor([12.0], requires_grad=True))


@pytest.fixture
def embeddings() -> list[torch.Tensor]:
    """Sequences and regions of 10 samples, and of two of padding, which hold no numbers."""
    rows = F.normalize(torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0)), dim=2)
    rows[:, 10:] = torch.nan
    return [one.clone().requires_grad_() for one in rows]


def rounds(embeddings: list[torch.Tensor]) -> list[SimpleNamespace]:
    return [SimpleNamespace(sequence=a, region=b) for a, b in zip(*(one.split(4) for one in embeddings), strict=True)]


@pytest.mark.parametrize("loss", ["clip", "paper"])
def test_two_passes_give_the_loss_and_gradient_of_the_whole_batch(embeddings, loss):
    sequence, region = embeddings
    expected = info_nce_reference(sequence[:10], region[:10], MODEL.scale, torch.ones(10), loss)
    gradients = torch.autograd.grad(expected, (sequence, region, MODEL.scale))
    finite = [one.detach().nan_to_num().requires_grad_() for one in embeddings]
    match = in_two_passes(*finite, WEIGHTS, MODEL, loss)
    terms, shares = zip(*(match(number, outputs) for number, outputs in enumerate(rounds(finite))), strict=True)
    torch.testing.assert_close(sum(shares), expected)
    found = torch.autograd.grad(sum(terms), (*finite, MODEL.scale))
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one[:10], other[:10])


def test_in_one_pass_a_round_counts_by_its_samples(embeddings):
    match = in_one_pass(WEIGHTS, MODEL, LAYOUT, "clip")
    shares = [match(number, outputs)[1] for number, outputs in enumerate(rounds(embeddings))]
    for share, of_round, samples in zip(shares, rounds(embeddings), (4, 4, 2), strict=True):
        pairs = of_round.sequence[:samples], of_round.region[:samples]
        alone = info_nce_reference(*pairs, MODEL.scale, torch.ones(samples))
        torch.testing.assert_close(share, alone * samples / 10)


def test_recall_leaves_padding_out():
    sequence = torch.eye(6)
    region = torch.eye(6)[[1, 0, 2, 3, 4, 5]]
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert recalls(sequence, region, weight) == {"srm/recall_at_1": 0.5, "srm/recall_at_5": 1.0}
