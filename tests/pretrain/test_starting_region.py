"""timm's weights to start from: fitted to one channel and to other input sizes; any that do not fit are refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from data_prep.errors import InputError
from pretrain.config import ModelConfig
from pretrain.model import GeneBERT
from pretrain.starting_weights import load_region

SWIN = "swin_tiny_patch4_window7_224"
SWIN_SIZES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}


def genebert(config: ModelConfig) -> GeneBERT:
    return GeneBERT(config, torch.zeros(12), torch.ones(12)).eval()


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every weight random, also those that start as zeros or ones."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def pretrained() -> torch.nn.Module:
    """A small Swin as timm trains it: 3 x 224 x 224, with a classifier of 1000 classes."""
    return scattered(timm.create_model(SWIN, **SWIN_SIZES))


@pytest.fixture
def file(tmp_path, pretrained) -> Path:
    save_file(pretrained.state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def of_224(model_config) -> ModelConfig:
    return replace(model_config, region_encoder=SWIN, region_encoder_arguments=json.dumps(SWIN_SIZES))


def test_one_channel_stands_for_three_that_are_alike(file, pretrained, of_224):
    model = genebert(of_224)
    said = load_region(model, str(file))
    assert said == f"--init_region {file}: {SWIN} for 1 x 224 x 224, without its classifier"
    image = torch.randn(2, 1, 224, 224)
    expected = pretrained.forward_head(pretrained.forward_features(image.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(model.region(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", ["pth", "bin"])
def test_swins_first_files_are_read(tmp_path, file, of_224, ending):
    expected = genebert(of_224)
    load_region(expected, str(file))
    # Its names of 2021: the classifier is `head`, a stage is narrowed at its end.
    weights = {
        name.replace("head.fc.", "head.").replace("layers.1.downsample", "layers.0.downsample"): weight
        for name, weight in load_file(file).items()
    }
    torch.save({"model": weights}, tmp_path / f"swin.{ending}")
    model = genebert(of_224)
    load_region(model, str(tmp_path / f"swin.{ending}"))
    for name, weight in expected.region.state_dict().items():
        torch.testing.assert_close(model.region.state_dict()[name], weight)


def test_other_input_sizes_are_resized_by_timm(file, pretrained, model_config):
    model = genebert(model_config)  # reads 28 x 56, where windows are 7 x 7 in the first stage, 3 x 7 in the second
    said = load_region(model, str(file))
    assert said.endswith("for 1 x 28 x 56, without its classifier")
    loaded, stored = model.region.state_dict(), pretrained.state_dict()
    tables = [name for name in loaded if name.endswith("relative_position_bias_table")]
    assert any(loaded[name].shape != stored[name].shape for name in tables)
    for name, weight in loaded.items():
        if name == "patch_embed.proj.weight":
            torch.testing.assert_close(weight, stored[name].sum(1, keepdim=True))
        elif weight.shape == stored[name].shape:
            assert torch.equal(weight, stored[name])
        else:
            assert name in tables
            torch.testing.assert_close(weight.std(), stored[name].std(), rtol=0.5, atol=0)
    assert model.region(torch.randn(2, 1, 28, 56)).isfinite().all()


def test_a_bias_by_columns_alone_stays_so_where_windows_lose_rows(tmp_path, file, model_config):
    weights, by_column = load_file(file), torch.linspace(-1, 1, 13)
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    weights[name] = by_column.repeat(13)[:, None].repeat(1, 2)  # [13 x 13 offsets, heads]
    save_file(weights, tmp_path / "columns.safetensors")
    model = genebert(model_config)
    load_region(model, str(tmp_path / "columns.safetensors"))
    rows = 2 * model.region.layers[1].blocks[0].attn.window_size[0] - 1
    assert rows < 13
    expected = by_column.repeat(rows)[:, None].repeat(1, 2)
    torch.testing.assert_close(model.region.state_dict()[name], expected, rtol=0, atol=0.03)


def test_weights_of_one_channel_are_loaded_as_they_are(tmp_path, model_config):
    source = scattered(genebert(model_config))
    timm.models.save_for_hf(source.region, tmp_path, safe_serialization=True)
    model = genebert(model_config)
    load_region(model, str(tmp_path / "model.safetensors"))
    for name, weight in source.region.state_dict().items():
        assert torch.equal(model.region.state_dict()[name], weight)


@pytest.mark.parametrize(
    "other", [{"depths": [1, 2]}, {"depths": [1], "num_heads": [1]}, {"embed_dim": 32}, {"num_heads": [2, 2]}]
)
def test_weights_of_another_architecture_are_refused(file, of_224, other):
    arguments = json.dumps(SWIN_SIZES | other)
    with pytest.raises(InputError, match=f"not the weights of {SWIN} ") as refused:
        load_region(genebert(replace(of_224, region_encoder_arguments=arguments)), str(file))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_weights_that_lack_one_or_hold_more_are_refused(tmp_path, file, of_224):
    weights = load_file(file)
    save_file(weights | {"layers.7.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    del weights["norm.bias"]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"Unexpected key.*layers\.7\.weight"):
        load_region(genebert(of_224), str(tmp_path / "more.safetensors"))
    with pytest.raises(InputError, match=r"Missing key.*norm\.bias"):
        load_region(genebert(of_224), str(tmp_path / "less.safetensors"))


def test_files_that_hold_no_weights_are_refused(tmp_path, file, model_config):
    model = genebert(model_config)
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(InputError, match="weights cannot be read"):
        load_region(model, str(file))
    for missing in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(InputError, match="no such file; give a file of timm's weights, or imagenet"):
            load_region(model, str(missing))
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(InputError, match=r"list\.bin: the weights cannot be read"):
        load_region(model, str(tmp_path / "list.bin"))


@pytest.fixture
def offline_hub(tmp_path, monkeypatch) -> Path:
    """The hub's cache, empty, on a machine that cannot reach the hub; gives where the region encoder's weights lie."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = timm.create_model(SWIN, **SWIN_SIZES).pretrained_cfg["hf_hub_id"].replace("/", "--")
    repository = tmp_path / "hub" / f"models--{name}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    return repository / "snapshots" / commit


def test_imagenet_is_what_timm_names_on_the_hub(offline_hub, file, of_224):
    expected = genebert(of_224)
    load_region(expected, str(file))
    shutil.copy(file, offline_hub / "model.safetensors")
    model = genebert(of_224)
    assert "--init_region imagenet: " in load_region(model, "imagenet")
    for name, weight in expected.region.state_dict().items():
        assert torch.equal(model.region.state_dict()[name], weight)


def test_a_hub_out_of_reach_is_one_line(offline_hub, of_224):
    with pytest.raises(InputError, match=r"timm/swin_tiny\S+ cannot be had from the hub: .*; give a file") as refused:
        load_region(genebert(of_224), "imagenet")
    assert "\n" not in str(refused.value)
