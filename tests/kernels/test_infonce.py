import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from kernels.infonce import info_nce, info_nce_reference


def batch(n: int, d: int, seed: int = 0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1).to(dtype)  # noqa: E731
    return draw(), draw()


def gradients(function, sequence, region, scale, upstream=1.0, **kwargs):
    leaves = [sequence.clone().requires_grad_(), region.clone().requires_grad_(), scale.clone().requires_grad_()]
    loss = function(*leaves, **kwargs)
    (loss * upstream).backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("loss", ["clip", "paper"])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("n", [1, 2, 65])
def test_loss_and_gradients_equal_autograd_in_fp64(n, scale, loss):
    sequence, region = batch(n, 64)
    weight = torch.ones(n)
    scale = torch.tensor([scale], dtype=torch.float64)
    expected, expected_gradients = gradients(
        info_nce_reference, sequence, region, scale, upstream=0.5, weight=weight, loss=loss
    )
    found, found_gradients = gradients(
        info_nce, sequence.float(), region.float(), scale.float(), upstream=0.5, weight=weight, loss=loss
    )
    # fp32 logits of size `scale` carry an error of about scale * 1e-7, and so do the softmaxes
    tolerance = 1e-6 + 2e-7 * scale.item()
    assert abs(found - expected) <= tolerance * max(1, abs(expected))
    for a, b in zip(found_gradients, expected_gradients, strict=True):
        # ... which the gradient of an embedding multiplies by the scale once more
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6 + 1e-8 * scale.item() ** 2)


@pytest.mark.parametrize("loss", ["clip", "paper"])
def test_padding_of_weight_zero_changes_nothing_even_where_it_is_nan(loss):
    sequence, region = batch(20, 32, dtype=torch.float32)
    scale = torch.tensor([10.0])
    expected, expected_gradients = gradients(info_nce, sequence, region, scale, weight=torch.ones(20), loss=loss)
    nan = torch.full((5, 32), torch.nan)
    weight = torch.cat([torch.ones(20), torch.zeros(5)])
    found, found_gradients = gradients(
        info_nce, torch.cat([sequence, nan]), torch.cat([region, nan]), scale, weight=weight, loss=loss
    )
    torch.testing.assert_close(found, expected)
    for a, b in zip(found_gradients[:2], expected_gradients[:2], strict=True):
        torch.testing.assert_close(a[:20], b)
        assert (a[20:] == 0).all()
    torch.testing.assert_close(found_gradients[2], expected_gradients[2])


def test_matched_pairs_alone_give_the_loss_of_chance_at_scale_zero():
    sequence, region = batch(64, 16, dtype=torch.float32)
    assert info_nce(sequence, region, torch.zeros(1), torch.ones(64)).item() == pytest.approx(np.log(64), rel=1e-6)


def _one_rank(rank: int, world: int, port: int, loss: str, folder: str) -> None:
    """As a rank of a data-parallel run: its rows of a batch whose last three are padding, gradients averaged."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    encoder, scale, inputs, weight = problem()
    rows = slice(rank * len(inputs) // world, (rank + 1) * len(inputs) // world)
    share = loss_of(encoder, scale, inputs[rows], weight[rows], loss)
    (share * world).backward()  # data parallelism averages over ranks
    result = {"loss": share.detach().clone(), "encoder": encoder.grad, "scale": scale.grad}
    for name, value in result.items():
        dist.all_reduce(value)
        result[name] = value if name == "loss" else value / world
    if rank == 0:
        torch.save(result, f"{folder}/{world}.pt")
    dist.destroy_process_group()


def problem():
    generator = torch.Generator().manual_seed(3)
    encoder = torch.randn(24, 16, generator=generator).requires_grad_()
    scale = torch.tensor([2.66]).requires_grad_()
    return encoder, scale, torch.randn(32, 2, 24, generator=generator), torch.tensor([1.0] * 29 + [0.0] * 3)


def loss_of(encoder, scale, inputs, weight, loss):
    sequence, region = (F.normalize(inputs[:, i] @ encoder, dim=1) for i in range(2))
    return info_nce(sequence, region, scale.exp(), weight, loss)


@pytest.mark.parametrize("loss", ["clip", "paper"])
def test_gradients_do_not_depend_on_the_number_of_ranks(tmp_path, loss, free_port):
    encoder, scale, inputs, weight = problem()
    whole = loss_of(encoder, scale, inputs, weight, loss)
    whole.backward()
    for world in (2, 4):
        mp.spawn(_one_rank, (world, free_port(), loss, str(tmp_path)), nprocs=world)
        found = torch.load(tmp_path / f"{world}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], whole.detach(), rtol=1e-6, atol=0)
        ratio = found["encoder"].norm() / encoder.grad.norm()
        assert ratio == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(found["encoder"], encoder.grad, rtol=1e-5, atol=1e-7)
        assert (found["scale"] / scale.grad).item() == pytest.approx(1.0, abs=1e-5)
