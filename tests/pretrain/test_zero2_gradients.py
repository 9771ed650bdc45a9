"""Under DeepSpeed's ZeRO-2 the gradient of the matching loss is that of one process, for encoders and temperature."""

import multiprocessing
import os
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from kernels.infonce import info_nce

SAMPLES = 32
WEIGHT = torch.tensor([1.0, 1.0, 0.5, 2.0] * 7 + [0.0] * 4)
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]  # ranks, rounds of micro-batches


class TwoTowers(nn.Module):
    """Two linear encoders and a learnt temperature, with what a Trainer asks of a GeneBERT.

    As in tests/kernels/test_infonce_ranks.py the pairs resemble each other and the temperature is high, so that fp32
    keeps as many digits as the test asks for.
    """

    config = SimpleNamespace(dropout=0.0)

    def __init__(self):
        super().__init__()
        weight, noise = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(0))
        self.sequence, self.region = nn.Parameter(weight), nn.Parameter(weight + 0.3 * noise)
        self.logit_scale = nn.Parameter(torch.tensor([1.0]))

    @property
    def scale(self) -> torch.Tensor:
        return self.logit_scale.exp()

    def forward(self, tokens: torch.Tensor, binding: torch.Tensor) -> SimpleNamespace:
        sequence, region = F.linear(tokens, self.sequence), F.linear(binding, self.region)
        return SimpleNamespace(sequence=F.normalize(sequence, dim=1), region=F.normalize(region, dim=1))


def draw_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoders take, both [SAMPLES, 24]."""
    return torch.randn(SAMPLES, 2, 24, generator=torch.Generator().manual_seed(1)).cumsum(1).unbind(1)


def run_rank(rank: int, world: int, rounds: int, port: int, path: str) -> None:
    """The backward passes of a step by a Trainer over a DeepSpeed engine; the first rank writes down the gradients."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    from pretrain import ranks
    from pretrain.ds_config import BatchLayout
    from pretrain.trainer import Trainer

    ranks.join()
    micro_batch = SAMPLES // (world * rounds)
    content = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": rounds,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    towers = TwoTowers()
    engine, *_ = deepspeed.initialize(model=towers, model_parameters=towers.parameters(), config=content)
    layout = BatchLayout(SAMPLES, world, micro_batch, rounds)
    trainer = Trainer(engine, SimpleNamespace(srm_loss="clip"), layout, steps=1)

    own = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    tokens, binding, weight = (rows[own].split(micro_batch) for rows in (*draw_inputs(), WEIGHT))
    batches = [{"binding": rows, "weight": of_rows} for rows, of_rows in zip(binding, weight, strict=True)]
    matching, _ = trainer._matching(0, batches, tokens)
    for number, (batch, rows) in enumerate(zip(batches, tokens, strict=True)):
        term, _ = matching(number, trainer._forward(0, number, batch, rows))
        engine.backward(term * layout.accumulation * layout.world_size)
        if number == rounds - 1:
            found = {name: safe_get_full_grad(parameter) for name, parameter in towers.named_parameters()}
        engine.step()
    if rank == 0:
        torch.save(found, path)
    ranks.leave()


@pytest.fixture(scope="module")
def one_process() -> dict[str, torch.Tensor]:
    """The gradients of the whole batch, without DeepSpeed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GENEBERT_KERNELS", "reference")
        towers = TwoTowers()
        outputs = towers(*draw_inputs())
        info_nce(outputs.sequence, outputs.region, towers.scale, WEIGHT).backward()
    return {name: parameter.grad for name, parameter in towers.named_parameters()}


@pytest.mark.parametrize(("world", "rounds"), LAYOUTS)
def test_zero2_gives_the_gradients_of_one_process(world, rounds, one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # Ranks are forked from a process that has imported once, in some seconds, what DeepSpeed imports in each.
    multiprocessing.set_forkserver_preload(["torch._inductor.compile_fx", "pretrain.trainer"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    path = str(tmp_path / "gradients.pt")
    mp.start_processes(run_rank, (world, rounds, port, path), nprocs=world, start_method="forkserver")
    for name, found in torch.load(path, weights_only=True).items():
        expected = one_process[name]
        # They differ by the order of sums alone: in fp32 by a few ulp, of 1.2e-7.
        assert (found - expected).norm() <= 1e-6 * expected.norm(), name
