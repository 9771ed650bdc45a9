"""The InfoNCE loss and its gradients in closed form and in float64, and batches to ask about."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F

EPS = torch.finfo(torch.float32).eps


class Batch(NamedTuple):
    """What `info_nce` takes. sequence, region: [n, d]; scale: fp32 [1]; weight: fp32 [n]."""

    sequence: torch.Tensor
    region: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Answer:
    """The loss, a scalar, and its gradients with respect to the inputs, in float64 on the CPU."""

    loss: torch.Tensor
    sequence: torch.Tensor
    region: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, *tensors: torch.Tensor) -> "Answer":
        return cls(*(tensor.detach().double().cpu() for tensor in tensors))

    def errors(self, truth: "Answer", size: "Answer") -> dict[str, float]:
        """The norm of each part's error, relative to that of `size`; infinite where there is a NaN."""
        parts = [field.name for field in fields(self)]
        errors = ((getattr(self, part) - getattr(truth, part)).norm() / getattr(size, part).norm() for part in parts)
        return dict(zip(parts, (float(error.nan_to_num(torch.inf)) for error in errors), strict=True))


def draw_batch(n: int, d: int, scale: float = 1.0, dtype: torch.dtype = torch.float32, nearness: float = 3.0) -> Batch:
    """Unit vectors, their weights 1, 1/2, 2, 1 and 0, in turn.

    A sequence's region is nearer to it than others by `nearness` standard deviations of these; at 3 it is often the
    second or third.
    """
    generator = torch.Generator().manual_seed(0)
    sequence, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    sequence = F.normalize(sequence, dim=1)
    region = F.normalize(noise + nearness * sequence, dim=1)
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0]).repeat(n // 5 + 1)[:n]
    return Batch(sequence.to(dtype), region.to(dtype), torch.tensor([scale]), weight)


def poisoned(batch: Batch) -> Batch:
    """The same batch with NaN in the rows of weight zero, and around every tensor in its memory."""
    padding = (batch.weight == 0)[:, None]
    rows = (rows.masked_fill(padding, torch.nan) for rows in (batch.sequence, batch.region))
    return Batch(*(amid_nan(tensor) for tensor in (*rows, batch.scale, batch.weight)))


def amid_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is a slice of a buffer of NaN, so neither contiguous nor aligned to 16 bytes."""
    buffer = tensor.new_full([size + 2 * 67 for size in tensor.shape], torch.nan)
    inside = buffer[tuple(slice(67, 67 + size) for size in tensor.shape)]
    return inside.copy_(tensor)


def answer_of(function, batch: Batch, upstream: float = 1.0, **arguments) -> Answer:
    """What `function(*batch)` and autograd give; `upstream` is the gradient with respect to the loss."""
    leaves = [tensor.detach().requires_grad_() for tensor in batch[:3]]
    loss = function(*leaves, batch.weight, **arguments)
    loss.backward(torch.full_like(loss, upstream))
    return Answer.of(loss, *(leaf.grad for leaf in leaves))


@dataclass(frozen=True)
class ExactLogits:
    """The whole matrix of logits, float64 [n, n]: -inf in the rows and columns of padding.

    gradient: of the loss with respect to them, 0 there.
    """

    cosines: torch.Tensor
    logits: torch.Tensor
    gradient: torch.Tensor
    loss: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, loss: str) -> "ExactLogits":
        sequence, region, scale, weight = (tensor.detach().double().cpu() for tensor in batch)
        kept = weight > 0
        both = kept[:, None] & kept
        cosines = sequence @ region.T
        logits = (scale * cosines).masked_fill(~both, -torch.inf)
        matched = logits.diagonal()
        if loss == "clip":
            w = weight / weight.sum()
            of_rows, of_columns = logits.logsumexp(1), logits.logsumexp(0)
            value = (w * ((of_rows + of_columns) / 2 - matched))[kept].sum()
            gradient = (w[:, None] * (logits - of_rows[:, None]).exp() + w * (logits - of_columns).exp()) / 2 - w.diag()
        else:
            value = logits.flatten().logsumexp(0) - matched.logsumexp(0)
            gradient = (logits - logits.flatten().logsumexp(0)).exp() - matched.softmax(0).diag()
        return cls(cosines, logits, torch.where(both, gradient, 0), value)


def exact_answer(batch: Batch, loss: str = "clip", upstream: float = 1.0) -> Answer:
    sequence, region, scale = (tensor.detach().double().cpu() for tensor in batch[:3])
    exact = ExactLogits.of(batch, loss)
    gradient = upstream * exact.gradient
    d_scale = (gradient * exact.cosines).sum()[None]
    return Answer(exact.loss, scale * gradient @ region, scale * gradient.T @ sequence, d_scale)


def size_of_terms(batch: Batch, loss: str = "clip", upstream: float = 1.0) -> Answer:
    """Of what the loss and its gradients are differences; these may cancel, but errors are relative to them.

    The gradient with respect to the logits is probabilities less the weight of a matched pair, its share of the batch;
    those of the embeddings multiply it by the scale and unit vectors, that of the scale by cosines.
    """
    scale, weight = (tensor.detach().double().cpu() for tensor in batch[2:])
    share = weight / weight.sum() if loss == "clip" else (weight > 0) / (weight > 0).sum()
    of_embeddings = upstream * scale * share
    return Answer(1 + share.count_nonzero().log(), of_embeddings, of_embeddings, torch.tensor([upstream]).double())


def eager(sequence: torch.Tensor, region: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, loss: str = "clip"):
    """What one would write in PyTorch, all of it in the embeddings' dtype."""
    kept = weight > 0
    w = (weight[kept] / weight.sum()).to(sequence.dtype)
    logits = scale.to(sequence.dtype) * sequence[kept] @ region[kept].T
    if loss == "paper":
        return logits.flatten().logsumexp(0) - logits.diagonal().logsumexp(0)
    labels = torch.arange(len(logits), device=logits.device)
    of_rows, of_columns = (F.cross_entropy(x, labels, reduction="none") for x in (logits, logits.T))
    return (w * (of_rows + of_columns) / 2).sum()


def tolerance(scale: float, dtype: torch.dtype) -> Answer:
    """Of the errors relative to the size of the terms.

    A logit of size `scale` is rounded to an ulp of it, and so is a log-sum-exp; the softmax makes of that a relative
    error of a probability. A sum of some hundred products adds a few ulp more. In bf16 the gradient with respect to
    the logits and that of an embedding are rounded to 8 bits each, and Triton's interpreter cuts instead of rounding.
    """
    of_sums = 8 * EPS * (1 + scale)
    of_embeddings = torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else of_sums
    return Answer(*(torch.tensor(bound) for bound in (of_sums, of_embeddings, of_embeddings, of_sums)))


def check(found: Answer, batch: Batch, loss: str = "clip", upstream: float = 1.0, dtype: torch.dtype = torch.float32):
    errors = found.errors(exact_answer(batch, loss, upstream), size_of_terms(batch, loss, upstream))
    bounds = vars(tolerance(float(batch.scale), dtype))
    assert all(error <= bounds[part] for part, error in errors.items()), (errors, bounds)
