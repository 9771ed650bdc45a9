"""The training step over a DeepSpeed engine."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist

from kernels.kmer_mask import MaskedBatch, Masking, capacity_for, mask_kmers, span_tokens
from pretrain import matching, ranks
from pretrain.batches import ON_HOST, Batch
from pretrain.config import RunConfig
from pretrain.ds_config import BatchLayout, matmul_dtype
from pretrain.faults import check_finite
from pretrain.model import GeneBERT, Outputs
from pretrain.objectives import METRICS, TokenObjectives, masked_count, token_objectives
from pretrain.token_mask import TokenMasking, mask_tokens


@dataclass
class Trainer:
    """What a step needs. engine: DeepSpeed's, around a GeneBERT; steps: of the whole run."""

    engine: object
    config: RunConfig
    layout: BatchLayout
    steps: int

    @property
    def model(self) -> GeneBERT:
        return self.engine.module

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return matmul_dtype(self.engine.config)

    def mask_rate(self, step: int) -> float:
        """Share of k-mers masked at a step: the later rate in the last part of the run."""
        late = step >= round(self.config.late_mask_from * self.steps)
        return self.config.late_mask_rate if late else self.config.mask_rate

    def step(
        self, step: int, batches: list[Batch], with_recall: bool, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], bool]:
        """One optimizer step over this rank's micro-batches; metrics of the global batch, and whether any rank is asked
        to `stop`.

        Raises `RunError` on all ranks where a metric is not finite.
        """
        batches = [to_device(batch, ranks.device()) for batch in batches]
        masked = [self.mask(batch, self.mask_rate(step)) for batch in batches]
        weights = [batch["weight"] for batch in batches]
        counts = (masked_count(rows, weight) for rows, weight in zip(masked, weights, strict=True))
        mgm_count = ranks.summed(sum(counts)).clamp(min=1)
        match = self._matching(step, batches, masked)
        rate = self.engine.optimizer.param_groups[0]["lr"]
        # METRICS, the matching loss, and how many ranks are asked to stop: one exchange, and one wait for the device.
        sums = torch.zeros(len(METRICS) + 2, dtype=torch.float64, device=ranks.device())
        embeddings = []
        with self._reduced_once():
            for number, (batch, rows) in enumerate(zip(batches, masked, strict=True)):
                outputs = self._forward(step, number, batch, rows)
                parts = token_objectives(outputs, rows, batch["follows"], batch["weight"])
                srm, share = match(number, outputs)
                loss = (
                    self.config.mgm_weight * parts.mgm_loss / mgm_count
                    + self.config.ngsp_weight * parts.ngsp_loss / self.layout.global_batch
                    + self.config.srm_weight * srm
                )
                # DeepSpeed averages over the ranks; their parts are to be added up.
                self.engine.backward(loss * self.layout.world_size)
                sums[:-1] += torch.cat([parts.sums(), share.detach().double()[None]])
                if outputs.region is not None:
                    embeddings.append((outputs.sequence.detach(), outputs.region.detach()))
                del outputs, parts, loss  # before the next round's
        self.engine.step()
        sums[-1] = float(stop())
        *reduced, stopping = ranks.summed(sums).tolist()
        metrics = metrics_of(reduced, self.config)
        if with_recall and embeddings:
            metrics |= matching.recalls(*map(torch.cat, zip(*embeddings, strict=True)), torch.cat(weights))
        if embeddings:
            metrics["srm/temperature"] = 1 / float(self.model.scale.detach())
        metrics["optim/lr"] = float(rate)
        metrics["optim/grad_norm"] = float(self.engine.get_global_grad_norm())
        check_finite(step + 1, metrics, sums[: len(METRICS)], *(part for pair in embeddings for part in pair))
        return metrics, stopping > 0

    def mask(self, batch: Batch, rate: float) -> MaskedBatch:
        masking = replace(self._at_largest_rate, rate=rate)
        if isinstance(masking, TokenMasking):
            return mask_tokens(batch["token_ids"], batch["sample"], batch["epoch"], masking)
        rows = mask_kmers(batch["bases"], batch["window_kmers"], batch["sample"], batch["epoch"], masking)
        return replace(rows, attention_mask=None) if bool(batch["full"].all()) else rows

    @cached_property
    def _at_largest_rate(self) -> Masking | TokenMasking:
        """For the larger of the run's two rates the slots of masked tokens suffice."""
        model, config = self.model.config, self.config
        rate = max(config.mask_rate, config.late_mask_rate)
        if model.sequence_encoder == "roberta":
            return TokenMasking(self.model.vocabulary, rate, capacity_for(model.max_tokens, rate, span=1), config.seed)
        span = span_tokens(config.mask_span, model.k)
        return Masking(
            k=model.k,
            tokens=model.max_tokens,
            span=span,
            rate=rate,
            capacity=capacity_for(model.max_tokens, rate, span),
            seed=config.seed,
        )

    def _forward(self, step: int, number: int, batch: Batch, rows: MaskedBatch, heads: bool = True) -> Outputs:
        if self.model.config.dropout:
            # The same dropout in both passes over a micro-batch, and after a resume.
            torch.manual_seed(hash((self.config.seed, step, dist.get_rank(), number)))
        return self.engine(rows, batch["binding"], heads)

    def _matching(self, step: int, batches: list[Batch], masked: list[MaskedBatch]) -> matching.Matching:
        """How a round's outputs are matched; computes the embeddings of all rounds first where they must be known."""
        if self.model.config.region_encoder == "none":
            return matching.nothing
        weights = [batch["weight"] for batch in batches]
        if not matching.embeddings_first(self.model.config, self.config, self.layout):
            return matching.in_one_pass(weights, self.model, self.layout, self.config.srm_loss)
        embeddings = []
        with torch.no_grad():
            for number, (batch, rows) in enumerate(zip(batches, masked, strict=True)):
                outputs = self._forward(step, number, batch, rows, heads=False)
                embeddings.append((outputs.sequence, outputs.region))
        sequence, region = map(torch.cat, zip(*embeddings, strict=True))
        return matching.in_two_passes(sequence, region, weights, self.model, self.config.srm_loss)

    @contextmanager
    def _reduced_once(self) -> Iterator[None]:
        """Ranks exchange gradients once a step: as the only round's backward goes, else after the last one's."""
        if self.layout.accumulation == 1:
            yield
        elif self.engine.zero_optimization():
            with self.engine.coalesce_grad_reduction():
                yield
        else:
            with self.engine.no_sync():
                yield
            self.engine.allreduce_gradients()


def metrics_of(sums: list[float], config: RunConfig) -> dict[str, float]:
    """Losses and accuracies from sums over the global batch: METRICS, then the matching loss. Without counts of
    next-segment pairs they are of a model of sequences alone."""
    *counts, srm = sums
    parts = TokenObjectives(*counts)
    mgm = parts.mgm_loss / max(parts.mgm_count, 1)
    of_tokens = {
        "loss/mgm": mgm,
        "mgm/accuracy": parts.mgm_correct / max(parts.mgm_count, 1),
        "mgm/perplexity": math.exp(min(mgm, 50.0)),
    }
    if not parts.ngsp_count:
        return {"loss/total": config.mgm_weight * mgm, **of_tokens}
    ngsp = parts.ngsp_loss / parts.ngsp_count
    return {
        "loss/total": config.mgm_weight * mgm + config.ngsp_weight * ngsp + config.srm_weight * srm,
        **of_tokens,
        "loss/ngsp": ngsp,
        "loss/srm": srm,
        "ngsp/accuracy": parts.ngsp_correct / parts.ngsp_count,
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor if name in ON_HOST else tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
