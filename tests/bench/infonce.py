"""Speed, memory and errors of the InfoNCE loss beside what others offer for it."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from kernels.infonce import info_nce
from tests.bench.print_csv import Row

BATCHES = {"cuda": (2000, 4096, 8192, 16384, 32768, 65536), "cpu": (2000, 4096)}
HUGE_BATCH, HUGE_D = 1_048_576, 256  # for ours alone
CHUNK_ROWS = 4096
SCALE = 14.3  # 1 / 0.07, with which CLIP starts

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Goal = tuple[str, dict[str, float], Callable[[float], bool]]


def ours(sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return info_nce(sequence, region, scale, torch.ones(len(sequence), device=sequence.device))


def eager(sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A product in the inputs' dtype, everything else in that of `scale`."""
    logits = scale * (sequence @ region.T).to(scale.dtype)
    own = torch.arange(len(sequence), device=sequence.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def checkpointed(sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rows of logits in chunks, each made again in the backward pass; once for either direction."""

    def of_chunk(chunk: torch.Tensor, others: torch.Tensor, scale: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scale * (chunk @ others.T).to(scale.dtype), own, reduction="sum")

    places = torch.arange(len(sequence), device=sequence.device).split(CHUNK_ROWS)
    chunks = [
        checkpoint(of_chunk, chunk, others, scale, own, use_reentrant=False, preserve_rng_state=False)
        for rows, others in ((sequence, region), (region, sequence))
        for chunk, own in zip(rows.split(CHUNK_ROWS), places, strict=True)
    ]
    return torch.stack(chunks).sum() / (2 * len(sequence))


def open_clip(sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """In bf16 under autocast, as open_clip trains with `--precision amp_bf16`."""
    from open_clip import ClipLoss

    with torch.autocast(sequence.device.type, torch.bfloat16, enabled=sequence.dtype == torch.bfloat16):
        return ClipLoss(local_loss=True, gather_with_grad=True)(sequence, region, scale.reshape(()))


def inf_cl(sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`cal_flash_loss` is what `cal_inf_loss` runs within a rank; that one needs a process group to differentiate."""
    from inf_cl import cal_flash_loss

    scale = scale.reshape(())
    both = (cal_flash_loss(a, b, scale=scale).mean() for a, b in ((sequence, region), (region, sequence)))
    return sum(both) / 2


LOSSES: dict[str, Loss] = {
    "eager": eager,
    "ours": ours,
    "torch.compile of eager": torch.compile(eager, dynamic=False),
    "chunks, checkpointed": checkpointed,
    "open_clip": open_clip,
    "inf_cl": inf_cl,
}


def inputs(
    batch: int, d: int, dtype: torch.dtype, device: torch.device, scale: float = SCALE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random normalised sequences and regions, and the scale in fp32; all are to get gradients."""
    generator = torch.Generator(device).manual_seed(0)
    sequence, region = (
        F.normalize(torch.randn(batch, d, generator=generator, device=device), dim=1).to(dtype).requires_grad_()
        for _ in range(2)
    )
    return sequence, region, torch.full((1,), scale, device=device, requires_grad=True)


def forward_backward(loss: Loss, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    value = loss(*given)
    torch.autograd.grad(value, given)
    return value.detach()


def bench(device: torch.device, measure: Callable) -> Iterator[Row]:
    """Forward + backward, a row for each size and loss; those of a size are measured one after another."""
    last: dict[tuple, tuple[int, float]] = {}
    of_eager: dict[tuple, Row] = {}
    # Inf-CL after all others: a fault of a kernel leaves the device useless for what follows.
    for names in ([name for name in LOSSES if name != "inf_cl"], ["inf_cl"]):
        for size in sizes(device):
            dtype, d, batch = size
            given = inputs(batch, d, dtype, device)
            torch.compiler.reset()  # it gives up after some eight shapes of a function
            for name in names if batch < HUGE_BATCH else {"ours"}.intersection(names):
                case = (name, d, dtype)
                smaller, ms = last.get(case, (batch, 0.0))
                measured, value = measure(
                    lambda loss=LOSSES[name], given=given: forward_backward(loss, given),
                    device,
                    expected_s=ms * (batch / smaller) ** 2 / 1e3,
                )
                if name == "eager":
                    of_eager[size] = measured
                if measured["p50_ms"]:
                    last[case] = batch, measured["p50_ms"]
                yield {
                    "loss": name,
                    "device": device.type,
                    "batch": batch,
                    "d": d,
                    "dtype": str(dtype).removeprefix("torch."),
                    **measured,
                    "time_to_eager": ratio(measured["p50_ms"], of_eager.get(size, {}).get("p50_ms")),
                    "memory_to_eager": ratio(measured["peak_mib"], of_eager.get(size, {}).get("peak_mib")),
                    "value": "" if value is None else float(value),
                }


def sizes(device: torch.device) -> Iterator[tuple[torch.dtype, int, int]]:
    if device.type == "cuda":
        yield torch.float32, 512, 2000  # what `genebert-base` trains with
    for dtype in (torch.bfloat16,) if device.type == "cuda" else (torch.float32, torch.bfloat16):
        for d in (256, 768):
            yield from ((dtype, d, batch) for batch in BATCHES[device.type])
            if device.type == "cuda" and d == HUGE_D:
                yield dtype, d, HUGE_BATCH


def ratio(a: str | float | None, b: str | float | None) -> str | float:
    return a / b if a and b else ""


def goals(rows: list[Row]) -> list[Goal]:
    """For a GPU: the text, the figures by where they were measured, and what each must fulfil."""
    found = {
        (row["loss"], row["batch"], f"d={row['d']} {row['dtype']}"): row for row in rows if row["device"] == "cuda"
    }
    if not found:
        return []

    def of_ours(column: str, batches: set[int]) -> dict[str, float]:
        """nan where ours failed; nothing where that with which it is compared did."""
        return {
            f"B={batch} {kind}": row[column] if row["p50_ms"] else math.nan
            for (name, batch, kind), row in found.items()
            if name == "ours" and batch in batches and (row[column] or not row["p50_ms"])
        }

    against_inf_cl = {
        f"B={batch} {kind}": row["p50_ms"] / found["ours", batch, kind]["p50_ms"]
        for (name, batch, kind), row in found.items()
        if name == "inf_cl" and row["p50_ms"] and found["ours", batch, kind]["p50_ms"]
    }
    small, large, huge = {2000}, {16384, 32768, 65536}, {HUGE_BATCH}
    return [
        ("at 2000 at most 1.1 x eager's time", of_ours("time_to_eager", small), lambda x: x <= 1.1),
        ("from 16384 on no slower than eager", of_ours("time_to_eager", large), lambda x: x <= 1),
        ("from 16384 on at most 10% of its memory", of_ours("memory_to_eager", large), lambda x: x <= 0.1),
        ("at least 3 x faster than Inf-CL", against_inf_cl, lambda x: x >= 3),
        (f"{HUGE_BATCH} runs, in ms", of_ours("p50_ms", huge), lambda ms: ms > 0),
    ]


def errors(device: torch.device) -> Iterator[Row]:
    """Relative errors (norm) against fp64 of eager code in the dtype, and of ours in it. Truth takes the inputs as they
    are after rounding to the dtype."""
    names = ("loss", "d_sequence", "d_scale")
    for dtype, d, scale, batch in itertools.product(
        (torch.float32, torch.bfloat16), (64, 256, 768), (1.0, SCALE, 100.0), (400, 2000)
    ):
        given = inputs(batch, d, dtype, device, scale)
        truth = results(eager, tuple(one.detach().double().requires_grad_() for one in given))
        found = {
            who: [float((a - b).norm() / b.norm()) for a, b in zip(results(loss, given), truth, strict=True)]
            for who, loss in (("eager", eager), ("ours", ours))
        }
        row: Row = {"dtype": str(dtype).removeprefix("torch."), "d": d, "scale": scale, "batch": batch}
        row |= {f"{who}_{name}": error for who in found for name, error in zip(names, found[who], strict=True)}
        # A scalar of eager's may be right by luck: below a few ulp of fp32 nobody is better.
        floor = 4 * torch.finfo(torch.float32).eps
        against = [b / max(a, floor) for a, b in zip(found["eager"], found["ours"], strict=True)]
        yield row | {"worst_to_eager": max(against)}


def results(loss: Loss, given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """In fp64: the loss, and its gradients with respect to the sequences and the scale."""
    value = loss(*given)
    d_sequence, _, d_scale = torch.autograd.grad(value, given)
    return [one.detach().double() for one in (value, d_sequence, d_scale)]


def error_goals(rows: list[Row]) -> list[Goal]:
    worst = max(rows, key=lambda row: row["worst_to_eager"])
    where = " ".join(f"{name}={worst[name]}" for name in ("dtype", "d", "scale", "batch"))
    return [("errors at most twice eager's", {f"worst at {where}": worst["worst_to_eager"]}, lambda x: x <= 2)]
