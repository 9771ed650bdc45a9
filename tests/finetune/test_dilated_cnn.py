"""SpliceAI's network: its published sizes, what it sees, and what it must not depend on."""

import numpy as np
import pytest
import torch

from finetune.dilated_cnn import BASES, DilatedCNN, one_hot, receptive_field, stretches_for
from finetune.examples import NO_LABEL
from finetune.model import Target
from finetune.splice_metrics import CLASSES

# By hand. The first convolution 4*32+32 = 160; 1x1 taps 32*32+32 = 1,056 each, one at the start and one a stretch; the
# head 32*3+3 = 99. A unit of width w: 2*(32*32*w+32) of convolutions and 2*(32+32) of normalisations: 22,720 for 11,
# 43,200 for 21, 84,160 for 41. Four units a stretch.
PARAMETERS = {1: 93_251, 2: 185_187, 3: 359_043, 4: 696_739}
SEES = {1: 80, 2: 400, 3: 2_000, 4: 10_000}


def network(stretches: int, positions: int) -> DilatedCNN:
    """With normalisations that have seen some data, in evaluation mode."""
    torch.manual_seed(3)
    model = DilatedCNN(stretches, Target("nucleotides", CLASSES, positions))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def logits(model: DilatedCNN, *sequences: str) -> torch.Tensor:
    ids = torch.from_numpy(np.stack([BASES.ids(sequence, len(sequence) + 2) for sequence in sequences]))
    rows = torch.arange(len(ids)).reshape(-1, 1, 1)
    with torch.no_grad():
        return model(ids, torch.ones_like(ids), rows)["logits"]


def random_sequence(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


@pytest.mark.parametrize("stretches", PARAMETERS)
def test_the_sizes_are_those_published(stretches):
    model = network(stretches, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[stretches]
    assert receptive_field(stretches) == SEES[stretches]


@pytest.mark.parametrize("stretches", [1, 2, 3])
def test_a_nucleotide_is_read_with_its_receptive_field_and_no_more(stretches):
    """In float64: the inputs that the middle one's logits have a gradient to."""
    half, margin, seen = SEES[stretches] // 2, 7, []

    def keep(module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model = network(stretches, 1).double()
    model.first.register_forward_hook(keep)
    ids = torch.from_numpy(BASES.ids(random_sequence(2 * (half + margin) + 1), 10**6))[None]
    model(ids, torch.ones_like(ids), torch.zeros(1, 1, 1, dtype=torch.long))["logits"].sum().backward()
    read = seen[0].grad[0].abs().sum(0).nonzero()
    assert (read.min(), read.max()) == (margin, margin + 2 * half)


@pytest.mark.parametrize(
    ("context", "size"), [(20, 80), (80, 80), (256, 400), (400, 400), (2000, 2000), (20000, 10000)]
)
def test_each_context_has_the_published_size_that_fits(context, size):
    assert receptive_field(stretches_for(context)) == size


def test_bases_are_one_hot_and_all_else_is_zero():
    ids = torch.from_numpy(BASES.ids("ATCGN", 7))[None]
    assert ids.tolist() == [[2, 5, 6, 7, 8, 1, 3]]
    assert one_hot(ids)[0].T.tolist() == [[0] * 4, *torch.eye(4).tolist(), [0] * 4, [0] * 4]


def test_predicted_are_the_nucleotides_in_the_middle():
    """Moving a window by one moves its predictions by one, away from its edges."""
    sequence = random_sequence(161)
    here, next_to_it = logits(network(1, 60), sequence[:-1], sequence[1:])
    torch.testing.assert_close(here[1:], next_to_it[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        logits(network(1, 1), sequence)[0, 0], logits(network(1, 61), sequence)[0, 30], rtol=1e-4, atol=1e-5
    )


def test_scores_do_not_depend_on_the_batch_nor_on_rows_that_share_a_sequence():
    model = network(1, 20)
    sequences = [random_sequence(100, seed) for seed in range(5)]
    together = logits(model, *sequences)
    for sequence, expected in zip(sequences, together, strict=True):
        torch.testing.assert_close(logits(model, sequence)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_labelled_nucleotides():
    model = network(1, 4)
    ids = torch.from_numpy(BASES.ids(random_sequence(84), 86))[None]
    labels = torch.tensor([[0, 2, NO_LABEL, 1]])
    with torch.no_grad():
        found = model(ids, torch.ones_like(ids), torch.zeros(1, 1, 1, dtype=torch.long), labels)
    log = found["logits"][0].log_softmax(-1)
    assert found["loss"].item() == pytest.approx(-(log[0, 0] + log[1, 2] + log[3, 1]).item() / 3, rel=1e-5)
