"""Under DeepSpeed's ZeRO-2 a training step has the gradients of plain PyTorch in one process, for every weight."""

import math
import multiprocessing
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from kernels.kmer_mask import IGNORED, MASK, N_SPECIAL, Masking, capacity_for, mask_kmers
from pretrain.config import ModelConfig
from pretrain.model import GeneBERT, region_image

SAMPLES, N_MOTIFS, RATE, TEMPERATURE = 10, 12, 0.2, 1.0
# Ranks, rounds of micro-batches, what pairs are told from. Several rounds take two passes for the whole batch, one for
# each round by itself. Ten samples leave slots that are padding with two ranks and two rounds, or with three ranks.
LAYOUTS = [
    (1, 1, "global"),
    (2, 1, "global"),
    (3, 1, "global"),
    (1, 2, "global"),
    (2, 2, "global"),
    (1, 2, "micro"),
    (2, 2, "micro"),
]


def build_model(config: ModelConfig) -> GeneBERT:
    """At a temperature high enough for fp32 to keep its digits."""
    torch.manual_seed(0)
    model = GeneBERT(config, torch.full((N_MOTIFS,), 0.5), torch.full((N_MOTIFS,), 0.3))
    with torch.no_grad():
        model.logit_scale.fill_(-math.log(TEMPERATURE))
    return model


def draw_samples(config: ModelConfig) -> dict[str, torch.Tensor]:
    """All samples; some fill their rows, others leave padding."""
    generator = torch.Generator().manual_seed(1)
    shortest = torch.tensor([(config.max_tokens - 3 + region) // 10 for region in range(10)])
    window_kmers = shortest.repeat(SAMPLES, 1)
    window_kmers[6:, ::2] -= 2
    bases = torch.randint(5, (SAMPLES, config.max_tokens - 3 + 10 * (config.k - 1)), generator=generator)
    return {
        "bases": bases.byte(),
        "window_kmers": window_kmers.int(),
        "binding": torch.rand(SAMPLES, 10, N_MOTIFS, generator=generator).half(),
        "follows": torch.randint(2, (SAMPLES,), generator=generator),
        "full": window_kmers.sum(1) == config.max_tokens - 3,
        "sample": torch.arange(SAMPLES),
        "epoch": torch.zeros(SAMPLES, dtype=torch.int64),
    }


def run_rank(
    rank: int, world: int, rounds: int, negatives: str, config: ModelConfig, in_parts: bool, port: int, path: str
) -> None:
    """A step by a Trainer over a DeepSpeed engine; the first rank writes down the gradients that it steps with.

    in_parts: with activation checkpointing.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    import deepspeed
    import numpy as np
    from deepspeed.utils import safe_get_full_grad

    from pretrain import ranks, speed
    from pretrain.config import RunConfig
    from pretrain.data_order import split
    from pretrain.ds_config import BatchLayout, with_layout
    from pretrain.trainer import Trainer

    ranks.join()
    content = {
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    layout = BatchLayout.of(SAMPLES, world, -(-SAMPLES // (world * rounds)))
    assert layout.accumulation == rounds
    run = RunConfig(
        ds_config="",
        config="",
        mask_rate=RATE,
        srm_negatives=negatives,
        compile="off",
        activation_checkpointing=in_parts,
    )
    model = build_model(config)
    speed.prepare(model, run, ranks.device())
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=with_layout(content, layout)
    )
    samples, found = draw_samples(config), {}

    def step() -> None:
        found.update({name: safe_get_full_grad(parameter) for name, parameter in model.named_parameters()})
        take_step()

    take_step, engine.step = engine.step, step
    batches = [
        {name: rows[torch.from_numpy(asked.sample)] for name, rows in samples.items()}
        | {"weight": torch.from_numpy(asked.weight)}
        for asked in split(np.arange(SAMPLES), np.zeros(SAMPLES, np.int64), layout, rank)
    ]
    Trainer(engine, run, layout, steps=100).step(0, batches, with_recall=False)
    if rank == 0:
        torch.save(found, path)
    ranks.leave()


def plain_gradients(config: ModelConfig, pools: list[slice]) -> dict[str, torch.Tensor]:
    """The gradients of the whole batch, from dense logits and matrices of similarities. pools: in which samples are
    told from each other."""
    model, samples = build_model(config), draw_samples(config)
    capacity = capacity_for(config.max_tokens, RATE, span=config.k)
    masking = Masking(config.k, config.max_tokens, span=config.k, rate=RATE, capacity=capacity, seed=0)
    rows = mask_kmers(*(samples[name] for name in ("bases", "window_kmers", "sample", "epoch")), masking)
    outputs = model.sequence(
        rows.token_ids, rows.attention_mask, rows.segment_ids, output_hidden_states=True, return_dict=True
    )
    mgm = F.cross_entropy(outputs.prediction_logits.flatten(0, 1), rows.labels.flatten(), ignore_index=IGNORED)
    ngsp = F.cross_entropy(outputs.seq_relationship_logits, samples["follows"])
    of_kmers = (rows.token_ids >= N_SPECIAL) | (rows.token_ids == MASK)
    mean = torch.stack([row[kept].mean(0) for row, kept in zip(outputs.hidden_states[-1], of_kmers, strict=True)])
    image = region_image(samples["binding"], model.binding_mean, model.binding_std, model.image_size)
    sequence = F.normalize(model.sequence_projection(mean), dim=1)
    region = F.normalize(model.region_projection(model.region(image)), dim=1)
    srm = 0.0
    for pool in pools:
        logits = model.logit_scale.exp() * sequence[pool] @ region[pool].T
        own = torch.arange(len(logits))
        in_pool = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        srm = srm + in_pool * len(logits) / SAMPLES
    (mgm + ngsp + 0.5 * srm).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("world", "rounds", "negatives", "in_parts"), [*((*layout, False) for layout in LAYOUTS), (2, 2, "global", True)]
)
def test_zero2_gives_the_gradients_of_one_process(
    world, rounds, negatives, in_parts, model_config, tmp_path, monkeypatch
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("GENEBERT_KERNELS", "reference")
    # Ranks are forked from a process that has imported once, in some seconds, what DeepSpeed imports in each.
    multiprocessing.set_forkserver_preload(["torch._inductor.compile_fx", "pretrain.trainer"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    path = str(tmp_path / "gradients.pt")
    arguments = (world, rounds, negatives, model_config, in_parts, port, path)
    mp.start_processes(run_rank, arguments, nprocs=world, start_method="forkserver")
    pool = SAMPLES if negatives == "global" else -(-SAMPLES // (world * rounds)) * world
    expected = plain_gradients(model_config, [slice(first, first + pool) for first in range(0, SAMPLES, pool)])
    found = torch.load(path, weights_only=True)
    assert expected.keys() == {name for name, gradient in found.items() if gradient is not None}
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        # They differ by the order of sums alone. That of a key's bias is zero but for rounding.
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * whole, name
