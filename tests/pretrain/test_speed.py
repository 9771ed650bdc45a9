"""What makes training faster or smaller computes the same, under the same names."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm.layers
import torch

from data_prep.errors import InputError
from kernels.kmer_mask import Masking, mask_kmers
from pretrain.config import ModelConfig, RunConfig
from pretrain.model import GeneBERT, Outputs
from pretrain.objectives import token_objectives
from pretrain.speed import prepare

CPU = torch.device("cpu")


def build_model(config: ModelConfig) -> GeneBERT:
    torch.manual_seed(0)
    return GeneBERT(config, torch.full((12,), 0.5), torch.full((12,), 0.3))


def run(model: GeneBERT, *, padded: bool = True) -> tuple[Outputs, dict[str, torch.Tensor], int]:
    """Outputs, gradients, and bytes that are kept for the backward pass."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    tokens, n = model.config.max_tokens, 4
    window_kmers = torch.tensor([[(tokens - 3 + region) // 10 for region in range(10)]] * n)
    if padded:
        window_kmers[1:, 3] -= 4
    bases = torch.randint(4, (n, tokens - 3 + 20), generator=generator).byte()
    masking = Masking(k=3, tokens=tokens, span=3, rate=0.2, capacity=48, seed=0)
    rows = mask_kmers(bases, window_kmers, torch.arange(n), torch.zeros(n).long(), masking)
    rows = rows if padded else replace(rows, attention_mask=None)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(rows, torch.rand(n, 10, 12, generator=generator))
        parts = token_objectives(outputs, rows, torch.arange(n) % 2, torch.ones(n))
        loss = parts.mgm_loss + parts.ngsp_loss + (outputs.sequence @ outputs.region.T).exp().sum()
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return outputs, gradients, sum(kept.values())


def assert_same(one: GeneBERT, other: GeneBERT, *, padded: bool = True) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    (outputs, gradients, _), (others, expected, _) = run(one, padded=padded), run(other, padded=padded)
    for name, found in vars(outputs).items():
        torch.testing.assert_close(found, getattr(others, name))
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda message, name=name: f"{name}: {message}")


def test_checkpointed_activations_give_the_same_gradients_in_less_memory(model_config):
    config = replace(model_config, layers=6)
    plain, checkpointed = build_model(config), build_model(config)
    prepare(checkpointed, RunConfig(ds_config="", compile="off", activation_checkpointing=True), CPU)
    assert_same(checkpointed, plain)
    assert run(checkpointed)[2] < 0.7 * run(plain)[2]


def test_dropout_is_the_same_when_activations_are_computed_again(model_config):
    config = replace(model_config, dropout=0.2)
    plain, checkpointed = build_model(config), build_model(config)
    prepare(checkpointed, RunConfig(ds_config="", compile="off", activation_checkpointing=True), CPU)
    gradients = []
    for model in (plain, checkpointed):
        torch.manual_seed(7)
        gradients.append(run(model)[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_encoders_give_the_same_gradients(model_config, checkpointed):
    plain, compiled = build_model(model_config), build_model(model_config)
    options = RunConfig(ds_config="", compile="on", activation_checkpointing=checkpointed)
    prepare(compiled, options, CPU)
    for padded in (True, False):
        assert_same(compiled, plain, padded=padded)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_only_what_is_asked_for_is_compiled(model_config):
    for choice, device, expected in (("auto", "cpu", False), ("auto", "cuda", True), ("off", "cuda", False)):
        model = build_model(model_config)
        prepare(model, RunConfig(ds_config="", compile=choice), torch.device(device))
        for encoder in (model.sequence.bert.encoder, model.region):
            assert (encoder._compiled_call_impl is not None) == expected


def test_fused_window_attention_gives_the_same_gradients(model_config):
    plain = build_model(model_config)
    timm.layers.set_fused_attn(True, experimental=True)
    try:
        fused = build_model(model_config)
    finally:
        timm.layers.set_fused_attn(True)
    assert fused.region.layers[0].blocks[0].attn.fused_attn
    assert_same(fused, plain)


def test_what_cannot_be_is_refused(model_config, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler is not there"):
        prepare(build_model(model_config), RunConfig(ds_config="", compile="on"), CPU)
    model = build_model(replace(model_config, region_encoder="convit_tiny", region_encoder_arguments="{}"))
    with pytest.raises(InputError, match="convit_tiny has none"):
        prepare(model, RunConfig(ds_config="", activation_checkpointing=True), CPU)


@pytest.mark.slow
def test_whole_regions_train(tmp_path, pretrain, ds_config, shards):
    """Rows of 5120 tokens: each holds its ten regions whole."""
    arguments = ("--max_tokens", "5120", "--steps", "7", "--activation_checkpointing", "--workers", "0")
    pretrain(1, "--ds_config", str(ds_config(1)), "--out", str(tmp_path), *arguments)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    assert len(losses) == 7
    assert np.isfinite(losses).all()
