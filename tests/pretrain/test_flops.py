import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.kmer_mask import IGNORED, Masking, mask_kmers
from pretrain.config import ModelConfig, read_preset
from pretrain.flops import encoder_flops, mfu, model_flops, peak_flops, region_flops
from pretrain.model import GeneBERT
from pretrain.objectives import token_objectives


def swin_flops(size: tuple[int, int], patch: int, window: int, width: int, depths: list[int]) -> int:
    """Forward pass of a Swin transformer by the formula of its paper (Liu et al. 2021, section 3.2), for images of
    whole windows."""
    tokens = size[0] // patch * (size[1] // patch)
    total = 2 * tokens * patch**2 * width
    for stage, depth in enumerate(depths):
        if stage:
            tokens, width = tokens // 4, 2 * width
            total += 2 * tokens * (2 * width) * width  # merging: four patches of half the width
        total += depth * 2 * tokens * (4 * width**2 + 2 * window**2 * width + 8 * width**2)
    return total


def test_the_region_encoders_flops_are_those_of_the_formula():
    assert region_flops(ModelConfig()) == swin_flops((224, 224), 4, 7, 128, [2, 2, 18, 2])
    # As published: 15.4 G multiply-adds, for three channels.
    assert region_flops(ModelConfig()) / 2 == pytest.approx(15.4e9, rel=0.01)


def test_the_formula_counts_what_a_step_computes(model_config):
    """But for the gradient of the image, which nobody asks for."""
    torch.manual_seed(0)
    model, n = GeneBERT(model_config, torch.zeros(12), torch.ones(12)), 2
    kmers = model_config.max_tokens - 3
    masking = Masking(k=3, tokens=model_config.max_tokens, span=3, rate=0.5, capacity=40, seed=0)
    window_kmers = torch.tensor([[(kmers + region) // 10 for region in range(10)]] * n)
    rows = mask_kmers(
        torch.zeros(n, kmers + 20, dtype=torch.uint8), window_kmers, torch.arange(n), torch.zeros(n).long(), masking
    )
    assert (rows.masked_labels != IGNORED).all()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = model(rows, torch.rand(n, 10, 12))
        parts = token_objectives(outputs, rows, torch.zeros(n).long(), torch.ones(n))
        forward = counter.get_total_flops()
        (parts.mgm_loss + parts.ngsp_loss + (outputs.sequence * outputs.region).sum()).backward()
    expected = n * model_flops(model_config, mask_rate=40 / kmers)
    assert forward == expected / 3
    patches = n * 7 * 14 * 2 * (4 * 4) * 16
    assert counter.get_total_flops() == expected - patches


def test_the_base_presets_flops():
    config = ModelConfig(**read_preset("genebert-base"))
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    # Scores and their product with the values: 12 L^2 d a layer, forward and back (PaLM, appendix B).
    assert 3 * encoder_flops(config) == 6 * weights * 512 + 12 * 12 * 512**2 * 768
    assert model_flops(config, 0.2) - model_flops(config, 0.15) == pytest.approx(6 * 0.05 * 509 * 768 * (768 + 4101))
    assert model_flops(config) == pytest.approx(384e9, rel=0.01)


def test_utilisation_is_the_share_of_what_all_gpus_can_do():
    assert mfu(384e9, samples_per_s=9000, world_size=4, peak=1e15) == pytest.approx(0.864)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 836e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA RTX A4000", None),
        ("cpu", None),
    ],
)
def test_peaks_are_those_of_the_device(name, bf16):
    assert peak_flops(name, torch.bfloat16) == bf16
    assert peak_flops(name, torch.float64) is None


def test_a_model_without_regions_counts_its_encoder_and_head():
    content = read_preset("cornbert")
    config = ModelConfig(**{name: content[name] for name in ModelConfig.__dataclass_fields__ if name in content})
    layer = 2 * 256 * (4 * 768**2 + 2 * 256 * 768 + 2 * 768 * 3072)
    head = 0.15 * 253 * 2 * 768 * (768 + 5004)
    assert model_flops(config, 0.15, vocabulary=5004) == pytest.approx(3 * (6 * layer + head))
