"""A training step and the loop over steps, without DeepSpeed; test_zero2_gradients.py holds a step's gradients."""

import math
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.shard_reader import ShardReader
from pretrain import checkpoint
from pretrain.batches import Batch, MicroBatches
from pretrain.config import RunConfig
from pretrain.data_order import MicroBatch
from pretrain.drawing import Drawing
from pretrain.ds_config import BatchLayout
from pretrain.model import GeneBERT
from pretrain.run import Run
from pretrain.run_log import RunLog
from pretrain.run_record import read_metrics
from pretrain.trainer import Trainer

pytestmark = pytest.mark.usefixtures("world_of_one")


class Engine:
    """DeepSpeed's, as far as a step of one round asks."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.config: dict = {}
        self.eval, self.train = module.eval, module.train
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
        self.steps = 0

    def __call__(self, *arguments):
        return self.module(*arguments)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1

    def get_global_grad_norm(self) -> torch.Tensor:
        return torch.stack([parameter.grad.norm() for parameter in self.module.parameters()]).norm()


@pytest.fixture
def trainer(model_config) -> Trainer:
    torch.manual_seed(0)
    model = GeneBERT(model_config, torch.zeros(12), torch.ones(12))
    config = RunConfig(ds_config="", workers=0, log_every=1, eval_every=2, save_every=100)
    return Trainer(Engine(model), config, BatchLayout.of(4, 1, 4), 4)


@pytest.fixture
def datasets(shards) -> list[MicroBatches]:
    return [MicroBatches(ShardReader(shards, split), k=3, max_tokens=96, seed=0) for split in ("train", "val")]


@pytest.fixture
def batch(datasets) -> Batch:
    samples = np.arange(4)
    return datasets[0][MicroBatch(samples, np.zeros_like(samples), np.ones(4, np.float32))]


def test_it_says_whether_a_rank_is_asked_to_stop(trainer, batch):
    metrics, stopped = trainer.step(0, [batch], with_recall=True)
    assert not stopped
    assert metrics["loss/mgm"] == pytest.approx(math.log(69), rel=0.1)
    again, stopped = trainer.step(0, [batch], with_recall=True, stop=lambda: True)
    assert stopped
    assert again["loss/total"] == metrics["loss/total"]


def test_a_batch_without_a_masked_token_has_a_gradient(trainer, batch, monkeypatch):
    mask = Trainer.mask

    def none(self, batch: Batch, rate: float):
        rows = mask(self, batch, rate)
        return replace(rows, masked_labels=torch.full_like(rows.masked_labels, -100))

    monkeypatch.setattr(Trainer, "mask", none)
    metrics, _ = trainer.step(0, [batch], with_recall=False)
    assert metrics["loss/mgm"] == 0
    assert 0 < metrics["optim/grad_norm"] < math.inf


@pytest.fixture
def sigterm_restored():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_restored")
def test_sigterm_waits_for_no_evaluation_and_the_next_run_begins_with_it(trainer, datasets, tmp_path, monkeypatch):
    saved, drawn = [], []
    monkeypatch.setattr(checkpoint, "save", lambda engine, folder, step, state, keep: saved.append(step))

    monkeypatch.setattr(Drawing, "evaluation", lambda self, step, embeddings: drawn.append(step))

    def go_on(done: int) -> bool:
        log = RunLog(tmp_path, done, {}, "off", "p")
        return Run(trainer, *datasets, tmp_path, {}, log, None).go_on(done)

    def step(self: Engine) -> None:
        self.steps += 1
        if self.steps in (2, 6):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Engine, "step", step)
    assert not go_on(0)
    assert saved == [2]
    assert not any("val/loss/total" in row for row in read_metrics(tmp_path))
    assert go_on(2)
    assert saved[-1] == 4
    assert [row["step"] for row in read_metrics(tmp_path) if "val/loss/total" in row] == [2, 4]
    trainer.steps = 6
    assert go_on(4)  # SIGTERM came in the last step
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "val/loss/total" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "loss/total" in row] == [1, 2, 3, 4, 5, 6]
    assert drawn == [2, 4, 6]
