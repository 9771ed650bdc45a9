"""The training step and the evaluation, over a DeepSpeed engine.

Sequence-region matching sees the whole global batch at once. Where that takes several rounds of micro-batches, the
embeddings of all are computed first without gradient, the loss and its gradient with respect to them over the whole
batch, and each micro-batch then runs again with that gradient (GradCache, Gao et al. 2021).
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist

from kernels.infonce import info_nce
from kernels.kmer_mask import MaskedBatch, Masking, capacity_for, mask_kmers, span_tokens
from pretrain import ranks
from pretrain.batches import Batch, MicroBatches
from pretrain.config import RunConfig
from pretrain.data_order import split
from pretrain.ds_config import BatchLayout
from pretrain.model import GeneBERT, Outputs
from pretrain.objectives import METRICS, TokenObjectives, masked_count, recall, token_objectives

Embeddings = tuple[torch.Tensor, torch.Tensor]


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

    def mask_rate(self, step: int) -> float:
        """Share of k-mers masked at a step: the later rate in the last part of the run."""
        late = step >= round(self.config.late_mask_from * self.steps)
        return self.config.late_mask_rate if late else self.config.mask_rate

    def step(self, step: int, batches: list[Batch], with_recall: bool) -> dict[str, float]:
        """One optimizer step over this rank's micro-batches; metrics of the global batch."""
        batches = [to_device(batch, ranks.device()) for batch in batches]
        masked = [self.mask(batch, self.mask_rate(step)) for batch in batches]
        mgm_count = ranks.summed(
            sum(masked_count(rows, batch["weight"]) for rows, batch in zip(masked, batches, strict=True))
        )
        matching, embeddings = self._matching(step, batches, masked)
        rate = self.engine.optimizer.param_groups[0]["lr"]
        sums, shares = torch.zeros(len(METRICS), dtype=torch.float64, device=ranks.device()), []
        for number, (batch, rows) in enumerate(zip(batches, masked, strict=True)):
            outputs = self._forward(step, number, batch, rows)
            parts = token_objectives(outputs, rows, batch["follows"], batch["weight"])
            srm, share = matching(number, outputs)
            loss = (
                self.config.mgm_weight * parts.mgm_loss / mgm_count
                + self.config.ngsp_weight * parts.ngsp_loss / self.layout.global_batch
                + self.config.srm_weight * srm
            )
            # DeepSpeed divides by the rounds and averages over the ranks; the parts are to be added up.
            self.engine.backward(loss * self.layout.accumulation * self.layout.world_size)
            self.engine.step()
            sums += parts.sums()
            shares.append(share.detach().double())
            if embeddings is None:
                embeddings = outputs.sequence.detach(), outputs.region.detach()
        metrics = self._metrics(ranks.summed(torch.cat([sums, torch.stack(shares).sum()[None]])))
        if with_recall:
            metrics |= self._recall(embeddings, torch.cat([batch["weight"] for batch in batches]))
        metrics["srm/temperature"] = 1 / float(self.model.scale.detach())
        metrics["optim/lr"] = float(rate)
        metrics["optim/grad_norm"] = float(self.engine.get_global_grad_norm())
        return metrics

    @torch.no_grad()
    def evaluate(self, dataset: MicroBatches) -> dict[str, float]:
        """Metrics over all held-out samples, in their order, with the masks and pairs of epoch 0; `val/...`."""
        self.engine.eval()
        sums = torch.zeros(len(METRICS) + 1, dtype=torch.float64, device=ranks.device())
        recalls: dict[str, float] = defaultdict(float)
        for samples in np.array_split(np.arange(len(dataset)), -(-len(dataset) // self.layout.global_batch)):
            layout = replace(self.layout, global_batch=len(samples))
            embeddings, weights = [], []
            for asked in split(samples, np.zeros_like(samples), layout, dist.get_rank()):
                batch = to_device(dataset[asked], ranks.device())
                rows = self.mask(batch, self.config.mask_rate)
                outputs = self.engine(rows, batch["binding"])
                sums[:-1] += token_objectives(outputs, rows, batch["follows"], batch["weight"]).sums()
                embeddings.append((outputs.sequence, outputs.region))
                weights.append(batch["weight"])
            sequence, region = (torch.cat(parts) for parts in zip(*embeddings, strict=True))
            weight = torch.cat(weights)
            sums[-1] += len(samples) * info_nce(sequence, region, self.model.scale, weight, self.config.srm_loss)
            here = self._recall((sequence, region), weight) | {"srm/chance": 1 / len(samples)}
            for name, share in here.items():
                recalls[name] += share * len(samples) / len(dataset)
        self.engine.train()
        sums = ranks.summed(sums)
        sums[-1] /= len(dataset)
        return {f"val/{name}": value for name, value in (self._metrics(sums) | recalls).items()}

    def mask(self, batch: Batch, rate: float) -> MaskedBatch:
        masking = replace(self._at_largest_rate, rate=rate)
        return mask_kmers(batch["bases"], batch["window_kmers"], batch["sample"], batch["epoch"], masking)

    @cached_property
    def _at_largest_rate(self) -> Masking:
        """For the larger of the run's two rates the slots of masked tokens suffice."""
        model, config = self.model.config, self.config
        span, rate = span_tokens(config.mask_span, model.k), max(config.mask_rate, config.late_mask_rate)
        return Masking(
            k=model.k,
            tokens=model.max_tokens,
            span=span,
            rate=rate,
            capacity=capacity_for(model.max_tokens, rate, span),
            seed=config.seed,
        )

    def _forward(self, step: int, number: int, batch: Batch, rows: MaskedBatch) -> Outputs:
        if self.model.config.dropout:
            # The same dropout in both passes over a micro-batch, and after a resume.
            torch.manual_seed(hash((self.config.seed, step, dist.get_rank(), number)))
        return self.engine(rows, batch["binding"])

    def _matching(
        self, step: int, batches: list[Batch], masked: list[MaskedBatch]
    ) -> tuple[Callable[[int, Outputs], tuple[torch.Tensor, torch.Tensor]], Embeddings | None]:
        """A function from a micro-batch's outputs to the term that carries its gradient and to its share of the loss,
        and, where a first pass computed them, this rank's embeddings."""
        if self.layout.accumulation == 1:
            weight = batches[0]["weight"]

            def in_one_pass(_: int, outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
                share = info_nce(outputs.sequence, outputs.region, self.model.scale, weight, self.config.srm_loss)
                return share, share

            return in_one_pass, None

        with torch.no_grad():
            embeddings = []
            for number, (batch, rows) in enumerate(zip(batches, masked, strict=True)):
                outputs = self._forward(step, number, batch, rows)
                embeddings.append((outputs.sequence, outputs.region))
        sequence, region = (torch.cat(parts).requires_grad_() for parts in zip(*embeddings, strict=True))
        scale = self.model.scale.detach().requires_grad_()
        weight = torch.cat([batch["weight"] for batch in batches])
        share = info_nce(sequence, region, scale, weight, self.config.srm_loss)
        gradients = torch.autograd.grad(share, (sequence, region, scale))
        d_sequence, d_region = (gradient.split(self.layout.micro_batch) for gradient in gradients[:2])
        rounds = self.layout.accumulation

        def from_cache(number: int, outputs: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
            term = (outputs.sequence * d_sequence[number]).sum() + (outputs.region * d_region[number]).sum()
            return term + (self.model.scale * gradients[2]).sum() / rounds, share / rounds

        return from_cache, (sequence.detach(), region.detach())

    def _metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """Losses and accuracies from sums over the global batch: METRICS, then the matching loss."""
        *counts, srm = sums.tolist()
        parts = TokenObjectives(*counts)
        mgm, ngsp = parts.mgm_loss / max(parts.mgm_count, 1), parts.ngsp_loss / max(parts.ngsp_count, 1)
        config = self.config
        return {
            "loss/total": config.mgm_weight * mgm + config.ngsp_weight * ngsp + config.srm_weight * srm,
            "loss/mgm": mgm,
            "loss/ngsp": ngsp,
            "loss/srm": srm,
            "mgm/accuracy": parts.mgm_correct / max(parts.mgm_count, 1),
            "mgm/perplexity": math.exp(min(mgm, 50.0)),
            "ngsp/accuracy": parts.ngsp_correct / max(parts.ngsp_count, 1),
        }

    def _recall(self, embeddings: Embeddings, weight: torch.Tensor) -> dict[str, float]:
        """Share of sequences whose own region is among the nearest 1 and 5 of the global batch."""
        sequence, region = embeddings
        world = dist.get_world_size()
        columns = region.new_empty(world * len(region), region.shape[1])
        dist.all_gather_into_tensor(columns, region.contiguous())
        kept = weight.new_empty(world * len(weight))
        dist.all_gather_into_tensor(kept, weight)
        kept = kept > 0
        first = dist.get_rank() * len(region)
        hits = torch.stack([recall(sequence, columns, first, kept, at) for at in (1, 5)])
        shares = ranks.summed(hits.double()) / kept.sum()
        return {"srm/recall_at_1": float(shares[0]), "srm/recall_at_5": float(shares[1])}


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@dataclass
class Throughput:
    """Rates since the last restart: samples and tokens a second, and the share of time spent waiting for data."""

    layout: BatchLayout
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    tokens: int = 0
    steps: int = 0

    def micro_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The next step's micro-batches, timed."""
        before = time.perf_counter()
        taken = [next(batches) for _ in range(self.layout.accumulation)]
        self.waited += time.perf_counter() - before
        self.tokens += sum(int(batch["window_kmers"][batch["weight"] > 0].sum()) for batch in taken)
        self.steps += 1
        return taken

    def read(self) -> dict[str, float]:
        """The rates of the whole run, from this rank's steps since `restart`."""
        seconds = time.perf_counter() - self.started
        rates = {
            "perf/samples_per_s": self.steps * self.layout.global_batch / seconds,
            "perf/tokens_per_s": self.tokens * self.layout.world_size / seconds,
            "perf/data_wait_share": self.waited / seconds,
            "perf/memory_gib": memory_gib(),
        }
        return rates

    def restart(self) -> None:
        self.started, self.waited, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0


def memory_gib() -> float:
    """Peak memory of this rank: the GPU's, or the process's resident size on a CPU."""
    if ranks.on_cuda():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
