"""Evaluation over held-out chromosomes, as a whole and by cell type, in one pass.

Sums over a cell type's samples are kept apart and reduced over the ranks together at the end, so the metrics of the
whole are theirs added up. The loss of sequence-region matching is that of a batch and has no part that is one cell
type's; by cell type it is seen in recall: the share of the cell type's sequences whose own region is nearest of all
regions of the batch.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from kernels.infonce import info_nce
from pretrain import ranks
from pretrain.batches import Batch, MicroBatches, loader
from pretrain.data_order import split
from pretrain.drawing import Embeddings
from pretrain.held_out_samples import described
from pretrain.matching import nearer_in_batch
from pretrain.model import Outputs
from pretrain.objectives import METRICS, objectives_by_sample
from pretrain.run_record import safe_names
from pretrain.trainer import Trainer, metrics_of, to_device

LARGEST_EMBEDDED = 2000  # held-out samples, the first ones, whose embeddings are kept
BY_CELL_TYPE = ("loss/mgm", "loss/ngsp", "mgm/accuracy", "ngsp/accuracy")
COLUMNS = (*METRICS, "recalled_at_1", "recalled_at_5", "samples")


@dataclass(frozen=True)
class Evaluation:
    """metrics: by name, `val/...`; embeddings; samples: what the model makes of a few, on the first rank."""

    metrics: dict[str, float]
    embeddings: Embeddings
    samples: list[dict]


@torch.no_grad()
def evaluate(trainer: Trainer, dataset: MicroBatches) -> Evaluation:
    """Metrics over all samples, in their order, with the masks and pairs of epoch 0. A collective."""
    config, device = trainer.config, ranks.device()
    trainer.engine.eval()
    pools = np.array_split(np.arange(len(dataset)), -(-len(dataset) // trainer.layout.global_batch))
    rounds = [
        list(split(pool, np.zeros_like(pool), replace(trainer.layout, global_batch=len(pool)), dist.get_rank()))
        for pool in pools
    ]
    batches = loader(dataset, [asked for pool in rounds for asked in pool], config.workers, ranks.on_cuda())
    names = [cell_type["name"] for cell_type in dataset.reader.manifest["cell_types"]]
    sums = torch.zeros(len(names), len(COLUMNS), dtype=torch.float64, device=device)
    srm = torch.zeros(1, dtype=torch.float64, device=device)
    first, samples = _First(), []
    for pool, asked in zip(pools, rounds, strict=True):
        parts = []
        for number, _ in enumerate(asked):
            batch = to_device(next(batches), device)
            rows = trainer.mask(batch, config.mask_rate)
            outputs = trainer.engine(rows, batch["binding"])
            if not first.batches and ranks.is_first() and "window_kmers" in batch:
                samples = described(dataset, batch, rows, outputs)
            if pool[0] + number * trainer.layout.world_size * len(batch["weight"]) < LARGEST_EMBEDDED:
                first.add(batch, outputs)
            values = torch.zeros(len(batch["weight"]), len(COLUMNS), dtype=torch.float64, device=device)
            of_samples = objectives_by_sample(outputs, rows, batch["follows"], batch["weight"])
            values[:, : len(METRICS)] = of_samples.sums()
            values[:, -1] = batch["weight"] > 0
            parts.append((outputs.sequence, outputs.region, batch["weight"], batch["cell_type"], values))
        *embeddings, weight, cell_type, values = (
            None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)
        )
        if embeddings[1] is not None:
            srm += len(pool) * info_nce(*embeddings, trainer.model.scale, weight, config.srm_loss)
            others = nearer_in_batch(*embeddings, weight)
            values[:, -3:-1] = torch.stack([others < 1, others < 5], dim=1).double()
        sums += F.one_hot(cell_type, len(names)).T.double() @ values
    trainer.engine.train()
    reduced = ranks.summed(torch.cat([sums.flatten(), srm]))
    sums, srm = reduced[:-1].view_as(sums), reduced[-1:] / len(dataset)
    metrics = metrics_of(torch.cat([sums.sum(0)[: len(METRICS)], srm]).tolist(), config)
    if first.matches:
        at_1, at_5, _ = (sums.sum(0)[-3:] / len(dataset)).tolist()
        metrics |= {"srm/recall_at_1": at_1, "srm/recall_at_5": at_5, "srm/chance": len(pools) / len(dataset)}
    metrics |= by_cell_type(sums, names, trainer, first.matches)
    return Evaluation(
        {f"val/{name}": value for name, value in metrics.items()}, first.gathered(len(dataset), names), samples
    )


def by_cell_type(sums: torch.Tensor, names: list[str], trainer: Trainer, matches: bool) -> dict[str, float]:
    """`<metric>/<cell type>`, where there are several. sums: [n_cell_types, len(COLUMNS)], over all ranks."""
    rows = sums.tolist()
    present = [number for number, row in enumerate(rows) if row[-1]]
    if len(present) < 2:
        return {}
    safe, metrics = safe_names(names), {}
    for number in present:
        row = rows[number]
        of_type = metrics_of([*row[: len(METRICS)], 0.0], trainer.config)
        found = {name: of_type[name] for name in BY_CELL_TYPE if name in of_type}
        if matches:
            found["srm/recall_at_1"] = row[-3] / row[-1]
        metrics |= {f"{name}/{safe[number]}": value for name, value in found.items()}
    return metrics


@dataclass
class _First:
    """Embeddings of the first rounds of all ranks."""

    batches: list[Batch] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)

    @property
    def matches(self) -> bool:
        return self.outputs[0].region is not None

    def add(self, batch: Batch, outputs: Outputs) -> None:
        self.batches.append({name: batch[name] for name in ("sample", "cell_type", "weight")})
        self.outputs.append(Outputs(sequence=outputs.sequence, region=outputs.region, cls=outputs.cls))

    def gathered(self, n_samples: int, names: list[str]) -> Embeddings:
        """Of all ranks, in the order of the samples, without padding."""
        here = {name: torch.cat([batch[name] for batch in self.batches]) for name in self.batches[0]}
        parts = ("cls", "sequence", "region") if self.matches else ("cls",)
        here |= {name: torch.cat([getattr(outputs, name) for outputs in self.outputs]).float() for name in parts}
        everywhere = {name: ranks.gathered_rows(tensor).cpu().numpy() for name, tensor in here.items()}
        sample = np.where(everywhere["weight"] > 0, everywhere["sample"], n_samples)
        order = np.argsort(sample, kind="stable")[: min((everywhere["weight"] > 0).sum(), LARGEST_EMBEDDED)]
        return Embeddings(
            cls=everywhere["cls"][order],
            sequence=everywhere["sequence"][order] if self.matches else None,
            region=everywhere["region"][order] if self.matches else None,
            cell_type=np.array(names)[everywhere["cell_type"][order]],
        )
