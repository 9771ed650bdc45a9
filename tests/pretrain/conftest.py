"""A small atlas as shards, a model of a few thousand weights, and the command of a user."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from data_prep.main import main as data_prep
from data_prep.motifs import load_motifs
from pretrain import main, ranks
from pretrain.config import ModelConfig, read_preset

ROOT = Path(__file__).parents[2]
PRESET = """
k: 3
max_tokens: 96
hidden_size: 32
layers: 2
heads: 2
intermediate_size: 64
region_encoder: swin_tiny_patch4_window7_224
region_encoder_arguments: {img_size: [28, 56], embed_dim: 16, depths: [1, 1], num_heads: [1, 2]}
projection_size: 16
log_every: 1
eval_every: 20
workers: 1
wandb: "off"
"""


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Shards of three cell types: 76 training samples in 10 shards, 24 held out; regions of 60 to 300 bp, 12 motifs."""
    folder = tmp_path_factory.mktemp("atlas")
    rng = np.random.default_rng(5)
    (folder / "genome.fa").write_text(
        "".join(f">{name}\n{''.join(rng.choice(list('ACGT'), 120_000))}\n" for name in ("chr1", "chr2", "chr3"))
    )
    for cell_type in ("alpha", "beta", "gamma"):
        lines = []
        for name in ("chr1", "chr2", "chr3"):
            ends = np.cumsum(rng.integers(70, 500, size=(230, 2)).clip(max=[300, 500]), axis=None)
            lines += [
                f"{name}\t{end - rng.integers(60, 70)}\t{end}\n" for end in ends[: 230 if name != "chr3" else 160 : 2]
            ]
        (folder / f"{cell_type}.bed").write_text("".join(lines))
    few = load_motifs("JASPAR2018")[:12]
    rows = (
        f">{m.matrix_id} {m.name}\n"
        + "".join(f"{x} [{' '.join(map(str, c))}]\n" for x, c in zip("ACGT", m.counts.astype(int), strict=True))
        for m in few
    )
    (folder / "few.jaspar").write_text("".join(rows))
    peaks = [str(folder / f"{name}.bed") for name in ("alpha", "beta", "gamma")]
    data_prep(
        [
            *("shards", "--genome", str(folder / "genome.fa"), "--motifs", str(folder / "few.jaspar")),
            *("--peaks", *peaks, "--val-chroms", "chr3", "--samples-per-shard", "8", "--workers", "1"),
            *("--out", str(folder / "shards")),
        ]
    )
    return folder / "shards"


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory) -> Iterator[None]:
    """A cache of micro-batches of the tests' own, that the first run fills for the others."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def preset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "smallest.yaml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="session")
def model_config(preset) -> ModelConfig:
    content = read_preset(str(preset))
    return ModelConfig(**{name: content[name] for name in ModelConfig.__dataclass_fields__ if name in content})


@pytest.fixture(scope="session")
def ds_config(tmp_path_factory) -> Callable[..., Path]:
    """A function that writes ds_configs/zero2_cpu.json with other batch sizes, over 20 steps."""
    folder = tmp_path_factory.mktemp("ds_configs")

    def write(train_batch_size: int = 8, micro_batch: int | None = None) -> Path:
        content = json.loads((ROOT / "ds_configs" / "zero2_cpu.json").read_text())
        content["train_batch_size"] = train_batch_size
        content["scheduler"]["params"] |= {"warmup_num_steps": 5, "total_num_steps": 20}
        if micro_batch:
            content["train_micro_batch_size_per_gpu"] = micro_batch
        path = folder / f"batch{train_batch_size}-micro{micro_batch}.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture(scope="session")
def deepspeed(shards, preset) -> Callable[..., subprocess.Popen]:
    """A function that starts `deepspeed --num_gpus N pretrain/main.py ...` as a user does."""

    def start(n_ranks: int, *arguments: str) -> subprocess.Popen:
        launcher = Path(sys.executable).with_name("deepspeed")
        return subprocess.Popen(
            [
                *(str(launcher), "--num_gpus", str(n_ranks), "--master_port", str(29600 + os.getpid() % 300)),
                *("pretrain/main.py", "--config", str(preset), "--shards", str(shards), *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def pretrain(deepspeed) -> Callable[..., str]:
    """A function that runs it to its end and gives what it printed; fails where it fails."""

    def run(n_ranks: int, *arguments: str) -> str:
        process = deepspeed(n_ranks, *arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    return run


@pytest.fixture(scope="session")
def one_line() -> Callable[[str], str]:
    """A function that holds what a program wrote to stderr to be one line, and gives it."""

    def check(stderr: str) -> str:
        assert stderr.startswith("error: ")
        assert stderr.endswith("\n")
        assert stderr.count("\n") == 1, stderr
        return stderr

    return check


@pytest.fixture(scope="module")
def world_of_one():
    """The process group that a program without a launcher makes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch, world_of_one, one_line, preset, shards, ds_config) -> Callable[..., str]:
    """Runs pretrain/main.py in this process where it must be refused before it writes; gives the line."""
    monkeypatch.setattr(ranks, "join", lambda *_: None)
    monkeypatch.setattr(ranks, "leave", lambda: None)
    monkeypatch.setattr(main.deepspeed, "initialize", lambda **_: pytest.fail("it was not refused"))

    def run(*changed: object, out: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        out = out or tmp_path / "run"
        given = ["--ds_config", ds_config(), "--config", preset, "--shards", shards, "--out", out, *changed]
        with pytest.raises(SystemExit) as exit_:
            main.main([*map(str, given)])
        line = one_line(capsys.readouterr().err)
        assert exit_.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run
