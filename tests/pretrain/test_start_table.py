"""The table that a run prints at its start."""

from dataclasses import replace

import pytest
import torch

from pretrain import device_memory, flops, hosts, start_table
from pretrain.config import RunConfig
from pretrain.ds_config import BatchLayout
from pretrain.model import GeneBERT
from pretrain.probe import Choice, MemoryLine
from pretrain.start_table import Start, duration

GIB = 2**30
pytestmark = pytest.mark.usefixtures("world_of_one")
ZERO2 = {"stage": 2, "reduce_bucket_size": 1000}


@pytest.fixture
def model(model_config) -> GeneBERT:
    return GeneBERT(model_config, torch.zeros(12), torch.ones(12))


@pytest.fixture
def start() -> Start:
    """Of a run on 8 ranks that does not fit at once."""
    return Start(
        RunConfig("ds.json", "smallest", seed=7),
        {"train_batch_size": 2000, "zero_optimization": ZERO2},
        BatchLayout.of(2000, 8, 64),
        Choice(64, "probed", MemoryLine(GIB, GIB // 16, 64), 7 * GIB, 3),
        steps=120_000,
        done=0,
        samples=(100_000, 2_500),
        genome="hg19",
        kernels="triton",
    )


def rows(start: Start, model: GeneBERT) -> dict[str, str]:
    title, *lines = start_table.start_table(start, model).splitlines()
    assert all(line.startswith("  ") for line in lines)
    return {"title": title} | {line[2:15].strip(): line[15:].strip() for line in lines}


def test_it_says_what_was_decided(start, model):
    table = rows(start, model)
    assert table["title"] == ("training: smallest, 120000 steps of 2000 samples on 8 ranks (4 x 63 each, 16 padded)")
    assert table["data"] == "100,000 training and 2,500 held-out samples of hg19"
    assert table["steps"] == "120,000, 2,400.0 epochs"
    assert table["batch"] == "2,000 samples, 16 padding"
    assert table["micro-batch"] == "63 samples, probed: at most 64 fit on rank 3"
    assert table["accumulation"] == "4 rounds in two passes, each pair told from all of the batch"
    assert table["tokens a step"] == "192,000 at most, 2,000 x 96"
    assert table["compute"] == "cpu, fp32, triton kernels"
    assert table["seed"] == "7"


@pytest.mark.parametrize(
    ("choice", "micro_batch", "expected"),
    [
        (Choice(64, "given"), 64, "63 samples, as given"),
        (Choice(250, "cached", MemoryLine(0, 1, 4), GIB, 0), 250, "250 samples, cached: a rank's whole share"),
        (Choice(None, "not measured"), None, "250 samples, a rank's whole share: memory cannot be measured here"),
    ],
)
def test_it_says_how_the_micro_batch_came_about(start, model, choice, micro_batch, expected):
    layout = BatchLayout.of(2000, 8, micro_batch)
    assert rows(replace(start, choice=choice, layout=layout), model)["micro-batch"] == expected


def test_parameters_are_counted_by_encoder(start, model):
    text = rows(start, model)["parameters"]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert text.startswith(f"{total / 1e6:.3g} M: sequence ")
    parts = [float(part.split()[-1]) for part in text.partition(": ")[2].split(", ")]
    assert sum(parts) == pytest.approx(total / 1e6, rel=0.01)


def test_memory_is_that_of_the_line_and_the_rank_with_the_least(start, model):
    text = rows(start, model)["memory"]
    # 1 GiB and 63 times a sixteenth for activations; 7 GiB are free; the model itself takes next to nothing.
    assert text.startswith("4.94 of 7 GiB, which rank 3 has free, the least: weights ")
    assert text.endswith("activations 4.9")


def test_activations_that_were_not_measured_are_not_claimed(start, model):
    text = rows(replace(start, choice=Choice(64, "given")), model)["memory"]
    assert text.endswith("activations were not measured")


def test_one_round_runs_once(start, model):
    assert rows(replace(start, layout=BatchLayout.of(2000, 32, 64)), model)["accumulation"] == "1 round"
    micro = replace(start, config=replace(start.config, srm_negatives="micro"))
    assert rows(micro, model)["accumulation"] == "4 rounds in one pass"


def test_a_resumed_run_says_where_it_goes_on(start, model):
    assert rows(replace(start, done=400), model)["title"].startswith("resuming at step 400: smallest, 120000 steps")


def test_precision_is_that_of_the_ds_config(start, model):
    ds_config = start.ds_config | {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    assert rows(replace(start, ds_config=ds_config), model)["compute"] == "cpu, bfloat16 autocast, triton kernels"


def test_the_hosts_are_those_of_the_hostfile(start, model, monkeypatch):
    monkeypatch.setattr(hosts, "of_ranks", lambda: [f"node{n}" for n in range(10) for _ in range(8)])
    expected = "10: node0, node1, node2, node3, node4, node5, node6, node7 and 2 more"
    assert rows(start, model)["nodes"] == expected


def test_time_follows_from_the_peak_of_a_known_gpu_and_the_passes(start, model, monkeypatch):
    assert rows(start, model)["time"] == "measured after the first steps"
    monkeypatch.setattr(device_memory, "device_name", lambda: "NVIDIA H200 (140 GiB)")
    peak, work = 67e12, 120_000 * 2000 * flops.model_flops(model.config, 0.15)
    once = replace(start, config=replace(start.config, srm_negatives="micro"))
    seconds = work / (0.4 * peak * 8)
    assert rows(once, model)["time"] == f"{duration(seconds)} if 40% of the peak is reached"
    # Embeddings first, and each layer again: two more forward passes, a third of the work each.
    twice = replace(start, config=replace(start.config, activation_checkpointing=True), done=60_000)
    assert rows(twice, model)["time"] == f"{duration(seconds * 5 / 3 / 2)} if 40% of the peak is reached"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(3, "1 min"), (3570, "1 h 0 min"), (8000, "2 h 13 min"), (262_000, "3 d 0 h")]
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
