"""The loss and its gradients over several ranks are those of one process.

Over gloo, as in a data-parallel run; with threads for ranks, which runs on one GPU, too; and one rank's panel alone.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier, Lock, local

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from kernels.infonce import info_nce
from kernels.infonce_panel import Panel, gradient, log_sum_exps
from tests.kernels.infonce_oracle import (
    Answer,
    Batch,
    ExactLogits,
    amid_nan,
    answer_of,
    check,
    draw_batch,
    poisoned,
    tolerance,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # as in test_infonce.py

WEIGHTS = {
    "padding at the end": [1.0] * 45 + [0.0] * 3,
    "ranks of padding alone": [1.0] * 24 + [0.0] * 24,
    "more on some ranks": [3.0] * 12 + [0.0, 0.5] * 6 + [1.0] * 24,
}
CASES = list(product(("clip", "paper"), WEIGHTS))


def training_step(own: slice, loss: str, weights: str) -> dict[str, torch.Tensor]:
    """The loss of some of 48 samples, and its gradient with respect to an encoder and a temperature.

    The pairs resemble each other and the temperature is high: so no gradient is a small difference of large numbers,
    of which fp32 would keep fewer digits than the test asks for.
    """
    generator = torch.Generator().manual_seed(3)
    encoder = torch.randn(24, 16, generator=generator).requires_grad_()
    log_scale = torch.tensor([1.0]).requires_grad_()
    inputs = torch.randn(48, 2, 24, generator=generator).cumsum(1)[own]
    sequence, region = F.normalize(inputs @ encoder, dim=2).unbind(1)
    share = info_nce(sequence, region, log_scale.exp(), torch.tensor(WEIGHTS[weights])[own], loss)
    # Data-parallel training averages gradients over the ranks, while the ranks' shares are to be added up.
    (share * (dist.get_world_size() if dist.is_initialized() else 1)).backward()
    return {"loss": share.detach(), "encoder": encoder.grad, "temperature": log_scale.grad}


def run_rank(rank: int, worlds: tuple[int, ...], folder: str) -> None:
    """All cases as a rank of each world; the first writes down the summed losses and the averaged gradients."""
    torch.set_num_threads(1)
    for world in worlds:
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/{world}.store", rank=rank, world_size=world)
        own = slice(rank * 48 // world, (rank + 1) * 48 // world)
        results = {case: training_step(own, *case) for case in CASES}
        for result in results.values():
            for part, value in result.items():
                dist.all_reduce(value)
                value /= 1 if part == "loss" else world
        if rank == 0:
            torch.save(results, f"{folder}/{world}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def over_gloo(tmp_path_factory):
    """What 1, 2 and 4 ranks give, by the number of ranks and the case; on the CPU."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GENEBERT_KERNELS", "reference")
        mp.spawn(run_rank, ((1, 2, 4), str(folder)), nprocs=4)
    return {world: torch.load(folder / f"{world}.pt", weights_only=True) for world in (1, 2, 4)}


def check_step(found: dict[str, torch.Tensor], case: tuple[str, str]) -> None:
    for part, expected in training_step(slice(None), *case).items():
        # They differ by the order of sums alone: in fp32 by a few ulp, of 1.2e-7.
        assert (found[part] - expected).norm() <= 1e-6 * expected.norm(), part
        # The ratio to the true one: 1/2 and 1/4 where a gather loses a gradient, 2 and 4 where ranks add it twice.
        assert float((found[part] * expected).sum() / expected.square().sum()) == pytest.approx(1, abs=1e-6), part


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_over_gloo_give_what_one_process_gives(world, case, over_gloo, monkeypatch):
    monkeypatch.setenv("GENEBERT_KERNELS", "reference")
    check_step(over_gloo[world][case], case)


@pytest.mark.triton
def test_ranks_over_gloo_give_by_the_kernel_what_one_process_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("GENEBERT_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # gloo gathers on the CPU
    mp.spawn(run_rank, ((2,), str(tmp_path)), nprocs=2)
    monkeypatch.setenv("GENEBERT_KERNELS", "reference")
    for case, found in torch.load(tmp_path / "2.pt", weights_only=True).items():
        check_step(found, case)


@pytest.fixture
def on_ranks(monkeypatch) -> Callable[..., list]:
    """A function that runs `job(rank)` for each rank of a world, as a thread; only one runs at a time, because
    Triton's interpreter cannot run two kernels at once."""

    def run(job: Callable, world: int) -> list:
        this_thread, all_there, running, gathered = local(), Barrier(world, timeout=100), Lock(), {}

        def gather(rows: torch.Tensor) -> torch.Tensor:
            gathered[this_thread.gathers, this_thread.rank] = rows
            running.release()
            all_there.wait()
            running.acquire()
            every = torch.cat([gathered[this_thread.gathers, rank] for rank in range(world)])
            this_thread.gathers += 1
            return every

        def run_one(rank: int):
            this_thread.rank, this_thread.gathers = rank, 0
            with running:
                return job(rank)

        monkeypatch.setattr("kernels.infonce._place", lambda: (this_thread.rank, world))
        monkeypatch.setattr("kernels.infonce._gather", gather)
        with ThreadPoolExecutor(world) as threads:
            return list(threads.map(run_one, range(world)))

    return run


@pytest.mark.parametrize(
    ("world", "dtype", "loss"),
    [
        (2, torch.float32, "clip"),
        (2, torch.bfloat16, "paper"),
        (4, torch.float32, "paper"),
        (4, torch.bfloat16, "clip"),
    ],
)
def test_ranks_give_the_loss_and_gradients_of_fp64(world, dtype, loss, implementation, device, on_ranks):
    n = 33 * world
    batch = draw_batch(n, 100, 30.0, dtype)
    batch.weight[-33:] = 0  # the last rank has padding alone

    def share_of(rank: int) -> Answer:
        own = slice(33 * rank, 33 * (rank + 1))
        piece = Batch(batch.sequence[own], batch.region[own], batch.scale, batch.weight[own])
        return answer_of(info_nce, poisoned(piece.to(device)), loss=loss)

    shares = on_ranks(share_of, world)
    found = Answer(
        sum(share.loss for share in shares),
        torch.cat([share.sequence for share in shares]),
        torch.cat([share.region for share in shares]),
        sum(share.scale for share in shares),
    )
    check(found, batch, loss, dtype=dtype)


@pytest.mark.parametrize("loss", ["clip", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("own", "n"), [(slice(50, 83), 100), (slice(64, 128), 128), (slice(130, 131), 132), (slice(270, 400), 400)]
)
def test_some_rows_against_all_columns(own, n, dtype, loss, implementation, device):
    batch = draw_batch(n, 64, 14.3, dtype)
    exact = ExactLogits.of(batch, loss)
    kept = batch.weight > 0
    sequence, region = (torch.where(kept[:, None], rows, 0) for rows in batch[:2])
    tensors = (sequence[own], region, batch.weight[own], batch.weight, batch.scale)
    rows, columns, row_weight, column_weight, scale = (amid_nan(tensor.to(device)) for tensor in tensors)
    panel = Panel(rows, columns, row_weight, column_weight, own.start, scale, "ieee")
    bounds = tolerance(14.3, dtype)

    row_lse, column_lse, matched = (tensor.double().cpu() for tensor in log_sum_exps(panel))
    close = {"rtol": 0, "atol": float(bounds.loss)}
    torch.testing.assert_close(14.3 * row_lse[0] + row_lse[1], exact.logits[own].logsumexp(1), **close)
    torch.testing.assert_close(14.3 * column_lse[0] + column_lse[1], exact.logits[own].logsumexp(0), **close)
    torch.testing.assert_close(14.3 * matched[kept[own]], exact.logits.diagonal()[own][kept[own]], **close)

    if loss == "clip":
        lse, factor = (exact.logits.logsumexp(1), exact.logits.logsumexp(0)), 1.75 / (2 * batch.weight.sum())
    else:
        over_pairs, over_matched = exact.logits.flatten().logsumexp(0), exact.logits.diagonal().logsumexp(0)
        lse, factor = (over_pairs.repeat(n), over_matched.repeat(n)), torch.tensor(1.75)
    row_lse, column_lse, factor = (amid_nan(x.float().to(device)) for x in (lse[0][own], lse[1], factor))
    row_lse, column_lse = (torch.stack([torch.zeros_like(x), x]) for x in (row_lse, column_lse))
    d_cosines, d_scale = gradient(panel, loss, row_lse, column_lse, factor)
    expected = 1.75 * exact.gradient[own]
    assert d_cosines.dtype == dtype
    assert (d_cosines.double().cpu() - 14.3 * expected).norm() <= bounds.sequence * 14.3 * expected.norm()
    assert float(d_scale) == pytest.approx(float((expected * exact.cosines[own]).sum()), abs=float(bounds.scale))
