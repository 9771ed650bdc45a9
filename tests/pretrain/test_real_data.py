"""DNase peaks of 164 cell types in two windows of hg19: shards, and what the tiny preset learns. `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.main import main as data_prep
from data_prep.shard_reader import read_manifest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dnase(shared_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dnase")
    peaks = map(str, sorted((shared_data / "hg19" / "dnase").iterdir()))
    genome = str(shared_data / "hg19" / "hg19_windows.fa.gz")
    data_prep(["shards", "--genome", genome, "--peaks", *peaks, "--out", str(folder / "shards")])
    return folder / "shards"


def test_every_peak_of_164_files_is_accounted_for(dnase):
    manifest = read_manifest(dnase)
    regions = [cell_type["regions"] for cell_type in manifest["cell_types"]]
    total = {name: sum(counts[name] for counts in regions) for name in regions[0]}
    assert total == {"peaks": 32_591, "merged": 58, "over_n": 0, "remainder": 1_493, "in_samples": 31_040}
    assert (len(regions), sum(manifest["samples"].values())) == (164, 3_104)


def test_pretraining_learns_to_match_regions_of_a_held_out_chromosome(dnase, tmp_path):
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    subprocess.run(
        [
            *(launcher, "--num_gpus", "2", "--master_port", str(29900 + os.getpid() % 90), "pretrain/main.py"),
            *("--ds_config", "ds_configs/zero2_cpu.json", "--config", "genebert-tiny", "--shards", str(dnase)),
            *("--steps", "300", "--eval_every", "300", "--wandb", "off", "--out", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        check=True,
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = rows[-1]
    assert held_out["val/loss/mgm"] < 8.0  # ln 4096 is 8.318
    assert held_out["val/srm/recall_at_1"] > 1.25 * held_out["val/srm/chance"]
