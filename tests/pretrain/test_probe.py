"""The micro-batch: given, or the largest that fits into the memory of every rank, found by a probe and kept."""

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_prep.errors import InputError
from data_prep.shard_reader import ShardReader
from pretrain import device_memory, probe, ranks
from pretrain.batches import MicroBatches
from pretrain.config import ModelConfig, RunConfig
from pretrain.ds_config import BatchLayout
from pretrain.model import GeneBERT
from pretrain.probe import Choice, EngineMemory, MemoryLine

MIB = 2**20
KEY = "a model"
PER_SAMPLE = 16 * MIB


def round_of(samples: int) -> int:
    """A round that takes 24 MiB, and 16 MiB for each sample; gives that many bytes."""
    taken = 24 * MIB + samples * PER_SAMPLE
    torch.ones(taken, dtype=torch.uint8)
    return taken


class Told:
    """Memory as each round tells it: what this process has, and gives back, depends on the tests before."""

    def peak(self, work: Callable[[], int]) -> int:
        return work()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, world_of_one):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(device_memory, "Meter", Told)


def in_new_processes(monkeypatch, work: Callable, *arguments: object, processes: int = 1) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    multiprocessing.set_forkserver_preload(["torch._inductor.compile_fx", "pretrain.probe"])
    mp.start_processes(work, arguments, nprocs=processes, start_method="forkserver")


def kept() -> dict:
    return json.loads(probe.cache_path().read_text())


# What is given.


@pytest.mark.parametrize(("flag", "in_file", "expected"), [(4, None, 4), (None, 6, 6), (6, 6, 6), (None, None, None)])
def test_a_given_micro_batch_is_taken(flag, in_file, expected):
    content = {"train_micro_batch_size_per_gpu": in_file} if in_file else {}
    assert probe.given_micro_batch(RunConfig("ds.json", micro_batch=flag), content) == expected


def test_a_ds_config_that_contradicts_the_command_line_is_refused(refused, ds_config):
    path = ds_config(8, micro_batch=6)
    line = refused("--ds_config", path, "--micro_batch", 4)
    assert f"--micro_batch 4: {path} says train_micro_batch_size_per_gpu 6; give one of them" in line


def test_a_micro_batch_of_nothing_is_refused():
    with pytest.raises(InputError, match="--micro_batch 0"):
        probe.given_micro_batch(RunConfig("ds.json", micro_batch=0), {})


def test_a_batch_smaller_than_the_world_is_refused_with_both_numbers():
    with pytest.raises(InputError, match=r"train_batch_size 8 leaves 24 of 32 ranks without a sample; .* at least 32"):
        BatchLayout.of(8, 32, None)


# What the engine holds.


def test_zero_cuts_the_optimizer_into_a_part_for_each_rank():
    config = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 50}}
    # Of 1001 parameters a rank owns 251: master weights and two moments of 4 bytes; a gradient, and a bucket of 50.
    assert EngineMemory.of(1001, 4, config) == EngineMemory(optimizer=3 * 4 * 251, reduction=4 * (251 + 50))


def test_each_type_that_is_sent_and_overlap_take_their_own_buckets():
    zero = {"stage": 2, "reduce_bucket_size": 50, "overlap_comm": True}
    config = {"zero_optimization": zero, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    assert EngineMemory.of(1000, 4, config).reduction == 4 * (250 + 4 * 50)


def test_without_zero_each_rank_holds_both_moments():
    assert EngineMemory.of(1000, 4, {"zero_optimization": {"stage": 0}}) == EngineMemory(8000, 0)


# The line, and what follows from it.


def test_the_line_is_that_of_the_memory_that_rounds_take(told):
    assert probe.measured(round_of, room=2**40) == MemoryLine(24 * MIB, PER_SAMPLE, 4)


@pytest.mark.parametrize(("room", "expected"), [(70, [1]), (100, [1, 2]), (1000, [1, 4])])
def test_a_round_that_might_not_fit_is_not_run(room, expected, told):
    ran = []

    def run(samples: int) -> int:
        ran.append(samples)
        return round_of(samples)

    line = probe.measured(run, room * MIB)
    assert ran == expected
    assert line.of(1) == 40 * MIB


@pytest.mark.parametrize("room", [200 * MIB, 1000 * MIB])
def test_the_largest_micro_batch_fills_the_room_beside_the_engine_and_a_margin(room, told):
    held = 40 * MIB
    choice = probe.largest(round_of, 1000, held, room, KEY)
    assert choice.how == "probed"
    assert choice.samples == (0.75 * room - held - 24 * MIB) // PER_SAMPLE
    assert choice.line.of(choice.samples) <= 0.75 * room - held < choice.line.of(choice.samples + 1)


def test_it_is_never_larger_than_a_ranks_share():
    assert probe.largest(round_of, 5, 0, 2**40, KEY).samples == 5


def test_where_not_one_sample_fits_the_flags_that_help_are_named(told):
    with pytest.raises(InputError, match=r"not one sample fits .* rank 0.*--activation_checkpointing.*--max_tokens"):
        probe.largest(round_of, 8, 0, 50 * MIB, KEY)
    assert not probe.cache_path().exists()


def test_where_memory_is_not_known_it_is_the_share(monkeypatch, tmp_path):
    assert probe.largest(round_of, 8, 0, None, KEY) == Choice(None, "not measured")
    monkeypatch.setattr(device_memory, "PROCESS", tmp_path)
    assert probe.largest(round_of, 8, 0, 2**40, KEY) == Choice(None, "not measured")


@pytest.fixture
def as_on_cuda(monkeypatch) -> list[int]:
    """Rounds are tried, and one of more than 30 samples does not fit though the line says so; gives those tried."""
    tried = []

    def fits(work, held: int) -> bool:
        tried.append(work.args[0])
        return work.args[0] <= 30

    monkeypatch.setattr(ranks, "on_cuda", lambda: True)
    monkeypatch.setattr(ranks, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(device_memory, "release", lambda: None)
    monkeypatch.setattr(device_memory, "fits", fits)
    monkeypatch.setattr(probe, "measured", lambda *_: MemoryLine(0, PER_SAMPLE, 4))
    return tried


def test_what_does_not_fit_after_all_is_made_smaller_until_it_does(as_on_cuda):
    choice = probe.largest(round_of, 64, 0, 60 * PER_SAMPLE, KEY)
    assert as_on_cuda == [45, 40, 36, 32, 28]
    assert choice.samples == 28
    # The next run takes the same, and tries nothing.
    assert probe.largest(round_of, 64, 0, 60 * PER_SAMPLE, KEY).samples == 28
    assert len(as_on_cuda) == 5


def test_what_takes_less_than_half_of_the_memory_is_not_tried(as_on_cuda):
    assert probe.largest(round_of, 25, 0, 60 * PER_SAMPLE, KEY).samples == 25
    assert as_on_cuda == []


# The cache.


def test_a_second_run_takes_the_line_from_the_cache(told):
    first = probe.largest(round_of, 1000, 0, 1000 * MIB, KEY)
    again = probe.largest(lambda _: pytest.fail("it ran"), 1000, 0, 1000 * MIB, KEY)
    assert again == replace(first, how="cached")
    # Another batch or less free memory need no other line.
    less = probe.largest(lambda _: pytest.fail("it ran"), 1000, 0, 500 * MIB, KEY)
    assert less.samples == (0.75 * 500 - 24) // 16


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"a model": [1, 2]}', '{"a model": [0, -1, 4]}', '{"a model": 3}']
)
def test_a_damaged_cache_is_ignored_and_written_anew(content):
    probe.cache_path().parent.mkdir()
    probe.cache_path().write_text(content)
    choice = probe.largest(round_of, 4, 0, 1000 * MIB, KEY)
    assert choice.how == "probed"
    assert kept() == {KEY: [choice.line.fixed, choice.line.per_sample, choice.line.ran]}


def test_a_cache_keeps_the_lines_of_other_models():
    probe.largest(round_of, 4, 0, 1000 * MIB, "another model")
    probe.largest(round_of, 4, 0, 1000 * MIB, KEY)
    assert set(kept()) == {"another model", KEY}


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert probe.largest(round_of, 4, 0, 1000 * MIB, KEY).samples == 4
    assert f"{tmp_path / 'file' / 'genebert' / 'micro_batch.json'}: Not a directory" in capsys.readouterr().out


def of_unequal_rank(rank: int, world: int, folder: str) -> None:
    """Ranks of which each has 400 MiB less free than the one before, and a home of its own."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/{rank}"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    found = []
    for _ in range(2):
        choice = probe.largest(round_of, 1000, 0, (1000 - 400 * rank) * MIB, KEY)
        found.append((choice.samples, choice.how, choice.rank, choice.room))
    Path(f"{folder}/{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_the_rank_with_the_least_memory_decides_for_all(tmp_path, monkeypatch):
    in_new_processes(monkeypatch, of_unequal_rank, 2, str(tmp_path), processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert [how for _, how, _, _ in first] == ["probed", "cached"]
    for samples, _, rank, room in first:
        assert (rank, room) == (1, 600 * MIB)
        assert samples == pytest.approx((0.75 * 600 - 24) / 16, abs=2)
    # The first rank's cache alone counts, and is written.
    assert [path.parent.parent.name for path in tmp_path.glob("*/genebert/micro_batch.json")] == ["0"]


# The model itself.


@pytest.fixture
def train(shards) -> MicroBatches:
    return MicroBatches(ShardReader(shards, "train"), k=3, max_tokens=96, seed=0)


def small(config: ModelConfig, **changed: object) -> GeneBERT:
    torch.manual_seed(0)
    return GeneBERT(replace(config, **changed), torch.zeros(12), torch.ones(12))


def test_the_probe_leaves_the_model_and_the_generators_as_they_were(model_config, train):
    """With a region encoder that counts in its buffers, and with dropout."""
    model = small(model_config, dropout=0.1, region_encoder="resnet10t", region_encoder_arguments="{}")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    config = RunConfig("ds.json", "smallest", shards="")
    choice = probe.choose(model, train, config, {"train_batch_size": 8, "zero_optimization": {"stage": 2}})
    assert choice.samples == choice.line.ran * 2 == 8
    assert torch.equal(torch.get_rng_state(), generator)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compiled_encoders_are_probed_without_compiling(model_config, train):
    model = small(model_config)
    model.sequence.bert.encoder.compile(backend=lambda *_: pytest.fail("it was compiled"))
    config = RunConfig("ds.json", "smallest", shards="")
    assert probe.choose(model, train, config, {"train_batch_size": 3}).samples == 3


def of_many_samples(_: int, config: ModelConfig, shards: str, found: Path) -> None:
    """In a process that has freed nothing yet, as a run's."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = small(config, hidden_size=128, layers=4, intermediate_size=512)
    with probe.probing(model):
        dataset = MicroBatches(ShardReader(shards, "train"), k=3, max_tokens=96, seed=0)
        run = probe.passes(model, dataset, RunConfig("ds.json", "smallest", shards=""), {})
        line = probe.measured(run, 2**40)
        found.write_text(json.dumps([line.of(64), device_memory.Meter().peak(lambda: run(64))]))


def test_the_line_holds_for_a_round_of_many_samples(model_config, shards, tmp_path, monkeypatch):
    in_new_processes(monkeypatch, of_many_samples, model_config, shards, tmp_path / "found")
    expected, taken = json.loads((tmp_path / "found").read_text())
    assert 0.5 * expected < taken < 1.1 * expected  # on a CPU few samples leave gaps in the heap


def test_the_precision_of_the_run_is_that_of_the_probe(model_config, train):
    model, seen = small(model_config), []
    model.sequence_projection.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    for dtype in ("bfloat16", None):
        ds_config = {"torch_autocast": {"enabled": True, "dtype": dtype}} if dtype else {}
        probe.passes(model, train, RunConfig("ds.json", "smallest", shards=""), ds_config)(1)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"layers": 3}},
        {"ds_config": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}},
        {"config": {"activation_checkpointing": True}},
        {"config": {"late_mask_rate": 0.4}},
    ],
)
def test_the_cache_tells_apart_what_takes_other_memory(model_config, changed):
    config = RunConfig("ds.json", "smallest", shards="")
    key = probe.cache_key(small(model_config), config, {})
    assert key == probe.cache_key(small(model_config), replace(config, seed=5, steps=9), {"train_batch_size": 3})
    other = small(model_config, **changed.get("model", {}))
    assert key != probe.cache_key(other, replace(config, **changed.get("config", {})), changed.get("ds_config", {}))


# The host's memory.


def test_free_memory_is_a_share_of_the_hosts(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable:    6000 kB\n")
    monkeypatch.setattr(device_memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(device_memory, "CONTROL_GROUPS", tmp_path)
    assert device_memory.free_memory(ranks_on_host=2) == 3000 * 1024


@pytest.mark.parametrize(("limited", "left"), [("", 2_500_000), ("job", 1_500_000), ("job/step", 900_000)])
def test_a_limit_of_a_control_group_above_the_process_counts(monkeypatch, tmp_path, limited, left):
    """A scheduler's: files in memory are not used, since they can be dropped."""
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    (tmp_path / "job" / "memory.max").write_text("max\n")
    group = tmp_path / limited
    (group / "memory.max").write_text(f"{left + 400_000}\n")
    (group / "memory.current").write_text("500000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    monkeypatch.setattr(device_memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(device_memory, "PROCESS", tmp_path)
    assert device_memory.free_memory(ranks_on_host=1) == left


def test_on_a_system_that_does_not_tell_free_memory_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(device_memory, "MEMORY", tmp_path / "meminfo")
    assert device_memory.free_memory(ranks_on_host=1) is None


def test_work_that_the_allocator_refuses_does_not_fit():
    assert not device_memory.fits(lambda: torch.ones(2**60, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="shape"):
        device_memory.fits(lambda: torch.ones(3) @ torch.ones(4, 5))


# The user's command.


@pytest.mark.slow
def test_a_run_finds_its_micro_batch_and_the_next_takes_it_from_the_cache(tmp_path, monkeypatch, pretrain, ds_config):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = ("--ds_config", str(ds_config(9)), "--steps", "6")
    assert "5 samples, probed: a rank's whole share" in pretrain(2, *common, "--out", str(tmp_path / "first"))
    line = kept()
    assert "5 samples, cached: a rank's whole share" in pretrain(2, *common, "--out", str(tmp_path / "second"))
    assert kept() == line
    losses = [
        [json.loads(row)["loss/total"] for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()[:6]]
        for name in ("first", "second")
    ]
    assert np.array_equal(*losses)
