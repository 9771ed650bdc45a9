"""Arithmetic of a training step: the model's floating-point operations, and what a GPU can do of them in a second.

Model FLOPs utilisation (MFU, Chowdhery et al. 2022, PaLM, appendix B) counts what the model needs, three times its
forward pass, however it is computed: not what activation checkpointing or a first pass for the embeddings computes
again, nor the slots of masked tokens that are never used. Only matrix products and convolutions count.
"""

import re
import time
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.kmer_mask import N_SPECIAL
from pretrain.batches import N_SPECIAL_TOKENS
from pretrain.config import ModelConfig
from pretrain.model import image_size, region_encoder, region_width

# Dense operations a second by torch.cuda.get_device_name(): bf16 (None: not in hardware), fp32. Makers' data sheets.
# The first name that a device's contains as whole words decides.
PEAKS = {
    "GB200": (2500e12, 80e12),
    "B200": (2250e12, 75e12),
    "H200 NVL": (836e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "GH200": (989e12, 67e12),
    "H800": (989e12, 67e12),
    "H20": (148e12, 44e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10": (125e12, 31.2e12),
    "A6000": (154.8e12, 38.7e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "V100": (None, 15.7e12),
}
BACKWARD = 2  # times a forward pass


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Operations a second of a GPU, without sparsity; None for one not known, a CPU, or a type it has no units for."""
    peaks = next((peaks for name, peaks in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), (None, None))
    return {torch.bfloat16: peaks[0], torch.float32: peaks[1]}.get(dtype)


def attainable_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second: the peak of a GPU that is known, else what a product of matrices reaches here and now."""
    known = peak_flops(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
    return known or measured_flops(device, dtype, size=8192 if device.type == "cuda" else 1024)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a product of two square matrices, [size, size]: the best of a few."""
    one, best = torch.ones(size, size, device=device, dtype=dtype), float("inf")
    for _ in range(4):
        before = time.perf_counter()
        product = one @ one
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def model_flops(config: ModelConfig, mask_rate: float = 0.15, vocabulary: int | None = None) -> float:
    """Forward and backward pass of a GeneBERT or CornBERT, a sample.

    mask_rate: share of the tokens that are masked; vocabulary: tokens, special ones included; default: all k-mers.
    """
    width, masked = config.hidden_size, mask_rate * (config.max_tokens - N_SPECIAL_TOKENS)
    forward = encoder_flops(config) + masked * token_head_flops(config, vocabulary or N_SPECIAL + 4**config.k)
    if config.region_encoder != "none":
        forward += 2 * width * (width + 2)  # pooler and next segment
        forward += region_flops(config) + 2 * (width + projected_width(config)) * config.projection_size
    return (1 + BACKWARD) * forward


def encoder_flops(config: ModelConfig) -> float:
    """Forward pass of the sequence encoder over a row: four projections, scores and their product with the values, and
    two feed-forward products in each layer."""
    tokens, width = config.max_tokens, config.hidden_size
    return config.layers * 2 * tokens * (4 * width**2 + 2 * tokens * width + 2 * width * config.intermediate_size)


def token_head_flops(config: ModelConfig, vocabulary: int) -> float:
    """Forward pass of the masked-token head, a token: its transform, and the product with the embeddings."""
    return 2 * config.hidden_size * (config.hidden_size + vocabulary)


@cache
def region_flops(config: ModelConfig) -> float:
    """Forward pass of the region encoder over an image, counted operation by operation on tensors without memory."""
    with torch.device("meta"), torch.no_grad():
        model = region_encoder(config).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 1, *image_size(model)))
    return float(counter.get_total_flops())


@cache
def projected_width(config: ModelConfig) -> int:
    """Width of the region encoder's embedding, before it is projected."""
    with torch.device("meta"):
        return region_width(region_encoder(config))


def mfu(flops_per_sample: float, samples_per_s: float, world_size: int, peak: float) -> float:
    """Share of what all ranks' GPUs can do (`peak_flops` of each) that the model needs."""
    return flops_per_sample * samples_per_s / (peak * world_size)
