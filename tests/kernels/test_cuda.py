"""The kernels on a CUDA device give what they give on a CPU. Run with `make test-cuda`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kernels.infonce import info_nce
from kernels.kmer_mask import SpanRule, mask_kmers

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"),
]


@pytest.mark.parametrize("rule", ["dnabert", "bases=2"])
def test_masks_are_the_same_bit_for_bit(rule):
    rng = np.random.default_rng(0)
    kmers = torch.from_numpy(rng.integers(0, 50, size=(200, 10)).astype(np.int32))
    bases = torch.from_numpy(rng.integers(0, 5, size=(200, 600)).astype(np.uint8))
    sample, epoch = torch.arange(200), torch.arange(200) % 3
    span = SpanRule.parse(rule, 6)
    arguments = {"k": 6, "tokens": 512, "rate": 0.15, "capacity": 200, "seed": 4, "rule": span}
    on_cpu = mask_kmers(bases, kmers, sample, epoch, **arguments)
    on_cuda = mask_kmers(bases.cuda(), kmers.cuda(), sample.cuda(), epoch.cuda(), **arguments)
    for name, tensor in vars(on_cpu).items():
        assert torch.equal(getattr(on_cuda, name).cpu(), tensor)


@pytest.mark.parametrize("loss", ["clip", "paper"])
def test_infonce_and_its_gradients_are_the_same(loss):
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(2000, 256, generator=generator), dim=1) for _ in range(2)]
    weight = torch.ones(2000)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [tensor.to(device).requires_grad_() for tensor in (*rows, torch.tensor([14.3]))]
        value = info_nce(*leaves, weight.to(device), loss)
        value.backward()
        found.append([value.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
