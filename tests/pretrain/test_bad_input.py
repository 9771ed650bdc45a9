"""Bad input ends in one line that says what and where, with exit code 2, and leaves nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.shard_reader import read_manifest
from pretrain.config import parse
from pretrain.model import GeneBERT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(tmp_path, one_line, preset, shards, ds_config) -> Callable[..., str]:
    """Starts pretrain/main.py as a user does, without a launcher, where it must be refused; gives the line."""

    def run(*changed: object) -> str:
        out = tmp_path / "run"
        given = ["--ds_config", ds_config(), "--config", preset, "--shards", shards, "--out", out, *changed]
        ended = subprocess.run(
            [sys.executable, "pretrain/main.py", *map(str, given)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ended.returncode == 2, ended.stderr
        assert not out.exists()
        return one_line(ended.stderr)

    return run


@pytest.mark.slow
def test_the_program_refuses_a_missing_ds_config(program, tmp_path):
    line = program("--ds_config", tmp_path / "nowhere.json")
    assert f"--ds_config {tmp_path / 'nowhere.json'}: No such file or directory" in line
    assert "ds_configs/" in line


def test_the_program_refuses_a_truncated_shard_and_names_both_sha256(program, tmp_path, shards):
    shutil.copytree(shards, tmp_path / "shards")
    entry = read_manifest(shards)["shards"][3]
    path = tmp_path / "shards" / entry["name"]
    os.truncate(path, path.stat().st_size - 512)
    found = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    line = program("--shards", tmp_path / "shards")
    assert str(path) in line
    assert entry["sha256"] in line
    assert found in line


# The command line and its defaults.


def test_an_unknown_preset_names_those_there_are(refused):
    line = refused("--config", "genebert-huge")
    assert "--config genebert-huge" in line
    assert "genebert-base, genebert-tiny" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("k: 3\nlayerz: 2\n", "layerz"),
        ("k: [\n", "not YAML"),
        ("- k\n", "not a mapping"),
        ("3: k\n", "3"),
        ("k: 5.5\n", "k"),
        ("hidden_size: null\n", "hidden_size"),
        ("resume: sometimes\n", "resume"),
        ("mask_span: 3\n", "mask_span"),
    ],
)
def test_a_yaml_file_that_cannot_be_used_is_named_with_the_key(refused, tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    line = refused("--config", path)
    assert str(path) in line or f"--{said}" in line
    assert said in line


def test_off_without_quotes_in_a_yaml_file_means_off(tmp_path, preset):
    """YAML reads a bare `off` as false."""
    path = tmp_path / "mine.yaml"
    path.write_text(preset.read_text().replace('"off"', "off"))
    _, run = parse(["--ds_config", "ds.json", "--config", str(path)], "")
    assert run.wandb == "off"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--k", 2),
        ("--k", 7),
        ("--seed", -1),
        ("--seed", 2**32),
        ("--mask_span", "bases=0"),
        ("--mask_span", "words"),
        ("--mask_rate", 1.5),
        ("--steps", 0),
        ("--save_every", 0),
        ("--heads", 5),
        ("--heads", 0),
        ("--layers", -1),
        ("--max_tokens", 3),
        ("--workers", -1),
        ("--dropout", 2),
        ("--region_encoder", "swin_of_nowhere"),
        ("--region_encoder_arguments", "img_size=28"),
        ("--region_encoder_arguments", '{"depths": [1, 1], "num_heads": [1]}'),
        ("--layerz", 2),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(refused, flag, value):
    assert flag.removesuffix("_arguments") in refused(flag, value)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_the_input_size_of_any_timm_model_is_known(model_config, name):
    config = replace(model_config, region_encoder=name, region_encoder_arguments="{}")
    assert GeneBERT(config, torch.zeros(4), torch.ones(4)).image_size == (224, 224)


# Shards.


@pytest.mark.parametrize(
    ("asked", "said"), [("cuda", "give reference or triton"), ("triton", "needs TRITON_INTERPRET=1 beside it")]
)
def test_kernels_that_cannot_run_are_refused(refused, monkeypatch, asked, said):
    monkeypatch.setenv("GENEBERT_KERNELS", asked)
    line = refused()
    assert f"GENEBERT_KERNELS={asked}: " in line
    assert said in line


def test_missing_shards_name_the_command_that_makes_them(refused, tmp_path):
    line = refused("--shards", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "manifest.json") in line
    assert "python data_prep/main.py shards" in line


@pytest.fixture
def manifest(shards, tmp_path) -> Callable[..., Path]:
    """A function that copies the shards and alters their manifest."""

    def write(**changed: object) -> Path:
        shutil.copytree(shards, tmp_path / "shards")
        (tmp_path / "shards" / "manifest.json").write_text(json.dumps(read_manifest(shards) | changed))
        return tmp_path / "shards"

    return write


def test_shards_of_another_format_version_are_refused(refused, manifest):
    folder = manifest(format_version=99)
    line = refused("--shards", folder)
    assert str(folder / "manifest.json") in line
    assert "format version 99" in line


def test_shards_without_training_samples_are_refused(refused, manifest, shards):
    folder = manifest(shards=[entry for entry in read_manifest(shards)["shards"] if entry["split"] == "val"])
    assert f"{folder}: holds no training samples" in refused("--shards", folder)


@pytest.mark.parametrize("kind", ["name", "index"])
def test_a_missing_file_of_a_shard_is_named(refused, manifest, shards, kind):
    missing = manifest() / read_manifest(shards)["shards"][-1][kind]
    missing.unlink()
    assert str(missing) in refused("--shards", missing.parent)


def test_an_altered_index_of_a_shard_is_named(refused, manifest, shards):
    index = manifest() / read_manifest(shards)["shards"][0]["index"]
    content = bytearray(index.read_bytes())
    content[-1] ^= 1
    index.write_bytes(content)
    line = refused("--shards", index.parent)
    assert str(index) in line
    assert "sha256" in line
