"""Sequence-region matching over rounds of micro-batches: over the whole global batch, or over each round by itself.

Where the batch takes several rounds, the embeddings of all are computed first without gradient, the loss and its
gradient with respect to them over the whole batch, and each micro-batch then runs again with that gradient (GradCache,
Gao et al. 2021): the gradient is that of one round, at the cost of a second forward pass.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from kernels.infonce import info_nce
from pretrain import ranks
from pretrain.config import ModelConfig, RunConfig
from pretrain.ds_config import BatchLayout
from pretrain.model import GeneBERT, Outputs
from pretrain.objectives import nearer

# From a round and its outputs to the term that carries its gradient, and to this rank's share of the loss.
Matching = Callable[[int, Outputs], tuple[torch.Tensor, torch.Tensor]]


def embeddings_first(model: ModelConfig, config: RunConfig, layout: BatchLayout) -> bool:
    """True where the embeddings of all rounds are computed before the first runs backward."""
    return model.region_encoder != "none" and config.srm_negatives == "global" and layout.accumulation > 1


def nothing(number: int, outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a model without a region encoder."""
    zero = outputs.mgm_logits.new_zeros(())
    return zero, zero


def in_one_pass(weights: list[torch.Tensor], model: GeneBERT, layout: BatchLayout, loss: str) -> Matching:
    """Each pair is told from those of its own round, on all ranks; a round counts by its samples.

    weights: [micro_batch] of each round.
    """
    in_round = layout.micro_batch * layout.world_size

    def match(number: int, outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
        samples = min(in_round, layout.global_batch - number * in_round)
        share = info_nce(outputs.sequence, outputs.region, model.scale, weights[number], loss)
        share = share * (samples / layout.global_batch)
        return share, share

    return match


def in_two_passes(
    sequence: torch.Tensor, region: torch.Tensor, weights: list[torch.Tensor], model: GeneBERT, loss: str
) -> Matching:
    """Each pair is told from all of the global batch.

    sequence, region: [n, d], the embeddings of all of this rank's rounds.
    """
    rounds = len(weights)
    sequence, region = sequence.detach().requires_grad_(), region.detach().requires_grad_()
    scale = model.scale.detach().requires_grad_()
    share = info_nce(sequence, region, scale, torch.cat(weights), loss)
    d_sequence, d_region, d_scale = torch.autograd.grad(share, (sequence, region, scale))
    d_sequence, d_region = d_sequence.chunk(rounds), d_region.chunk(rounds)

    def match(number: int, outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
        term = (outputs.sequence * d_sequence[number]).sum() + (outputs.region * d_region[number]).sum()
        return term + (model.scale * d_scale).sum() / rounds, share / rounds

    return match


def nearer_in_batch(sequence: torch.Tensor, region: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How many regions of the global batch are at least as near to each sequence as its own (`objectives.nearer`).

    sequence, region: [n, d], this rank's; weight: [n], 0 for padding. int64 [n]. A collective.
    """
    first_row = dist.get_rank() * len(region)
    return nearer(sequence, ranks.gathered_rows(region), first_row, ranks.gathered_rows(weight) > 0)


def recalls(sequence: torch.Tensor, region: torch.Tensor, weight: torch.Tensor) -> dict[str, float]:
    """Share of sequences whose own region is among the nearest 1 and 5 of the global batch.

    sequence, region: [n, d], this rank's; weight: [n], 0 for padding. A collective.
    """
    others = nearer_in_batch(sequence, region, weight)
    counts = ranks.summed(torch.stack([(others < 1).sum(), (others < 5).sum(), (weight > 0).sum()]).double())
    return {"srm/recall_at_1": float(counts[0] / counts[2]), "srm/recall_at_5": float(counts[1] / counts[2])}
