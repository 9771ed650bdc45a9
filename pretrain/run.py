"""A run over its steps: training, evaluation, checkpoints, and their record."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from pretrain import checkpoint, pre_emption, ranks
from pretrain.batches import MicroBatches, loader
from pretrain.data_order import DataOrder
from pretrain.drawing import Drawing
from pretrain.evaluation import evaluate
from pretrain.flops import attainable_flops, model_flops
from pretrain.run_log import RunLog
from pretrain.run_record import read_metrics
from pretrain.throughput import Throughput
from pretrain.trainer import Trainer

SECONDS_TO_DRAW_AFTER_SIGTERM = 3.0


@dataclass
class Run:
    """state: what a checkpoint of any step says of the run; log, drawing: on the first rank alone; best: the held-out
    metrics of the best evaluation so far, and its step."""

    trainer: Trainer
    train: MicroBatches
    val: MicroBatches
    folder: Path
    state: dict
    log: RunLog | None
    best: dict | None
    drawing: Drawing | None = field(default=None, init=False)

    def __post_init__(self):
        if self.log:
            model = self.trainer.model.config
            of_kmers = model.sequence_encoder == "bert"
            self.drawing = Drawing(self.log, self.trainer.layout.global_batch, model.k if of_kmers else None)

    def go_on(self, done: int) -> bool:
        """Train from step `done` to the end; False where SIGTERM ended it before, after a checkpoint."""
        with pre_emption.held_back() as sigterm:
            return self._go_on(done, sigterm)

    def _go_on(self, done: int, sigterm: Callable[[], bool]) -> bool:
        config, layout, steps = self.trainer.config, self.trainer.layout, self.trainer.steps
        order = DataOrder([shard["samples"] for shard in self.train.reader.shards], config.seed)
        asked = order.micro_batches(layout, dist.get_rank(), range(done, steps))
        batches = loader(self.train, asked, config.workers, ranks.on_cuda())
        model = self.trainer.model
        flops = model_flops(model.config, config.mask_rate, model.sequence.config.vocab_size)
        throughput = Throughput(layout, flops, attainable_flops(ranks.device(), self.trainer.dtype))
        if done:
            ranks.saved(done)
            if self.drawing:
                self.drawing.resume(done)
        stopped = False
        progress = tqdm(
            initial=done, total=steps, unit="step", disable=None if ranks.is_first() else True, dynamic_ncols=True
        )
        if done and len(self.val) and done % config.eval_every == 0 and not self.evaluated(done):
            self.evaluate(done, progress)  # SIGTERM came first
            throughput.restart()
        for step in range(done, steps):
            number, last = step + 1, step + 1 == steps
            logged = number % config.log_every == 0 or last
            metrics, stopped = self.trainer.step(step, throughput.micro_batches(batches), logged, sigterm)
            stopped = stopped and not last  # after the last step there is no more to do than to end
            shown = ((name, metrics.get(f"loss/{name}")) for name in ("mgm", "ngsp", "srm"))
            progress.set_postfix({name: f"{loss:.3f}" for name, loss in shown if loss is not None}, refresh=False)
            progress.update()
            if logged and self.log:
                self.log.write(number, metrics | throughput.read())
                self.drawing.look()
            if logged or step == done:  # the first step compiles
                throughput.restart()
            is_best = False
            if len(self.val) and not stopped and (number % config.eval_every == 0 or last):
                is_best = self.evaluate(number, progress)
                throughput.restart()
            if number % config.save_every == 0 or last or is_best or stopped:
                self.save(number)
                throughput.restart()
            if stopped:  # on all ranks, though a scheduler may signal the hosts at different times
                break
        progress.close()
        if stopped:
            ranks.say(f"SIGTERM: step {number} of {steps} is saved; run the same command to go on")
        if self.log:
            self.end_log(stopped)
        return not stopped

    def end_log(self, stopped: bool) -> None:
        """stopped: by a scheduler, which gives little time."""
        if stopped:
            self.drawing.leave(SECONDS_TO_DRAW_AFTER_SIGTERM)
        else:
            steps = self.trainer.steps
            if not len(self.val):
                self.drawing.curves(steps)
            self.drawing.wait()
            if self.trainer.config.wandb_artifact:
                self.log.checkpoints(self.checkpoint(steps), self.checkpoint(self.best["step"]) if self.best else None)
        self.log.close()

    def evaluated(self, step: int) -> bool:
        """True where the record holds a step's evaluation. A collective."""
        rows = read_metrics(self.folder) if self.log else []
        return ranks.gathered(any(row["step"] == step and "val/loss/total" in row for row in rows))[0]

    def evaluate(self, step: int, progress: tqdm) -> bool:
        """Evaluate on the held-out samples; True where the run was never better."""
        evaluation = evaluate(self.trainer, self.val)
        held_out = evaluation.metrics
        loss = held_out["val/loss/total"]
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best["val/loss/total"])
        if is_best:
            self.best = {"step": step, **held_out}
        if self.log:
            self.log.write(step, held_out)
            self.log.samples(step, evaluation.samples)
            progress.write(summary(step, held_out))
            self.drawing.evaluation(step, evaluation.embeddings)
        return is_best

    def checkpoint(self, step: int) -> Path:
        return checkpoint.folder(self.folder) / checkpoint.name_of(step)

    def save(self, step: int) -> None:
        epoch = step * self.trainer.layout.global_batch // len(self.train)
        state = {**self.state, "best": self.best, "epoch": epoch}
        checkpoint.save(self.trainer.engine, self.folder, step, state, self.trainer.config.keep_last)
        ranks.saved(step)


def summary(step: int, held_out: dict[str, float]) -> str:
    """The line that is printed of an evaluation."""
    shown = {
        "val/loss/total": "held-out loss",
        "val/loss/mgm": "mgm",
        "val/mgm/accuracy": "mgm accuracy",
        "val/ngsp/accuracy": "ngsp accuracy",
        "val/srm/recall_at_1": "srm recall@1",
    }
    return f"step {step}: " + ", ".join(
        f"{what} {held_out[name]:.3f}" for name, what in shown.items() if name in held_out
    )
