import torch
import torch.nn.functional as F

from kernels.kmer_mask import IGNORED, MaskedBatch
from pretrain.model import Outputs
from pretrain.objectives import METRICS, nearer, objectives_by_sample, token_objectives


def test_unused_slots_and_padding_count_nothing():
    labels = torch.tensor([[3, 1, IGNORED], [2, IGNORED, IGNORED], [0, 0, 0]])
    logits = torch.randn(3, 3, 5, dtype=torch.float64, requires_grad=True)
    rows = MaskedBatch(*[labels] * 4, masked_positions=torch.zeros(3, 3).long(), masked_labels=labels)
    weight = torch.tensor([1.0, 1.0, 0.0])
    parts = token_objectives(Outputs(mgm_logits=logits), rows, torch.zeros(3).long(), weight)
    used = [(0, 0, 3), (0, 1, 1), (1, 0, 2)]
    expected = -sum(logits[row, slot].log_softmax(0)[label] for row, slot, label in used)
    torch.testing.assert_close(parts.mgm_loss, expected.float())
    assert parts.mgm_count == 3
    assert parts.mgm_correct == sum(int(logits[row, slot].argmax() == label) for row, slot, label in used)
    parts.mgm_loss.backward()
    assert {(row, slot) for row, slot, _ in logits.grad.nonzero().tolist()} == {(0, 0), (0, 1), (1, 0)}


def test_objectives_by_sample_add_up_to_the_loss_over_all_tokens():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(50, (6, 40), generator=generator)
    labels[torch.rand(6, 40, generator=generator) < 0.3] = IGNORED
    rows = MaskedBatch(*[labels] * 4, masked_positions=labels, masked_labels=labels)
    outputs = Outputs(torch.randn(6, 40, 50, generator=generator), torch.randn(6, 2, generator=generator))
    follows, weight = torch.arange(6) % 2, torch.tensor([1.0, 1, 1, 0, 1, 0])
    by_sample = objectives_by_sample(outputs, rows, follows, weight).sums()
    assert not by_sample[weight == 0].any()
    parts = token_objectives(outputs, rows, follows, weight)
    torch.testing.assert_close(by_sample.sum(0), parts.sums(), rtol=1e-6, atol=0)
    kept = weight > 0
    expected = F.cross_entropy(
        outputs.mgm_logits[kept].flatten(0, 1), labels[kept].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(parts.mgm_loss, expected, rtol=1e-6, atol=0)
    expected = F.cross_entropy(outputs.ngsp_logits[kept], follows[kept], reduction="sum")
    torch.testing.assert_close(parts.ngsp_loss, expected, rtol=1e-6, atol=0)


def test_a_model_without_next_segments_counts_none():
    labels = torch.tensor([[3, 1]])
    rows = MaskedBatch(*[labels] * 4, masked_positions=labels, masked_labels=labels)
    parts = token_objectives(Outputs(mgm_logits=torch.zeros(1, 2, 5)), rows, torch.zeros(1).long(), torch.ones(1))
    sums = dict(zip(METRICS, parts.sums().tolist(), strict=True))
    assert [sums[name] for name in ("ngsp_loss", "ngsp_correct", "ngsp_count")] == [0, 0, 0]
    assert sums["mgm_count"] == 2


def test_recall_counts_rows_whose_own_column_is_near():
    columns = F.normalize(torch.eye(6)[:, :5] + 0.1, dim=1)
    rows = columns[2:4].clone()
    kept = torch.tensor([True] * 6)
    assert (nearer(rows, columns, 2, kept) < 1).sum() == 2
    assert (nearer(rows, columns, 0, kept) < 1).sum() == 0
    rows[0] = columns[5]
    assert (nearer(rows, columns, 2, kept) < 1).sum() == 1
    assert (nearer(torch.ones(2, 5), torch.ones(6, 5), 0, kept) < 5).sum() == 0  # collapsed
    assert (nearer(rows * torch.nan, columns, 0, kept) < 5).sum() == 0
    kept[2] = False
    assert (nearer(rows, columns, 2, kept) < 6).sum() == 1
