"""The user's command, end to end: the real launcher, engine, readers and files, with the smallest model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shard_reader import ShardReader, read_manifest
from pretrain import checkpoint
from pretrain.convert import convert, load_model

ROOT = Path(__file__).parents[2]
EVALUATED = ("--eval_every", "10")
CURVES = ("loss/total", "loss/mgm", "loss/ngsp", "loss/srm", "optim/grad_norm")


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def curve(run_dir: Path, name: str = "loss/total") -> dict[int, float]:
    return {row["step"]: row[name] for row in metrics(run_dir) if name in row}


def assert_same_curves(one: Path, other: Path) -> None:
    for name in CURVES:
        found, expected = curve(one, name), curve(other, name)
        assert found.keys() == expected.keys()
        for step in expected:
            assert found[step] == pytest.approx(expected[step], rel=1e-5), (name, step)
    for name in ("val/loss/total", "val/srm/recall_at_1", "val/ngsp/accuracy"):
        assert curve(one, name) == pytest.approx(curve(other, name), rel=1e-4)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory, pretrain, ds_config) -> Path:
    out = tmp_path_factory.mktemp("runs") / "two"
    output = pretrain(
        2, "--ds_config", str(ds_config(9)), "--out", str(out), "--save_every", "8", "--keep_last", "2", *EVALUATED
    )
    assert "20 steps of 9 samples on 2 ranks (1 x 5 each, 1 padded)" in output
    return out


def test_a_run_logs_every_step_and_draws_its_curves(on_two_ranks):
    assert list(curve(on_two_ranks)) == list(range(1, 21))
    assert list(curve(on_two_ranks, "val/loss/total")) == [10, 20]
    last = metrics(on_two_ranks)[-2]
    expected = last["loss/mgm"] + last["loss/ngsp"] + 0.5 * last["loss/srm"]
    assert last["loss/total"] == pytest.approx(expected)
    for name in ("mgm/perplexity", "srm/recall_at_5", "srm/temperature", "perf/samples_per_s", "perf/data_wait_share"):
        assert np.isfinite(last[name])
    assert (on_two_ranks / "curves.png").stat().st_size > 10_000


def test_the_learning_rate_warms_up_and_decays(on_two_ranks):
    rates = list(curve(on_two_ranks, "optim/lr").values())
    peak = int(np.argmax(rates))
    assert 3 <= peak <= 6
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.2 * max(rates)


def test_checkpoints_are_kept_as_asked(on_two_ranks):
    newest = checkpoint.newest(on_two_ranks)
    assert newest.name == "step-000020"
    best = checkpoint.name_of(checkpoint.read_state(newest)["best"]["step"])
    kept = {path.name for path in (on_two_ranks / "checkpoints").glob("step-*")}
    assert kept == {"step-000016", "step-000020", best}
    losses = curve(on_two_ranks, "val/loss/total")
    assert best == checkpoint.name_of(min(losses, key=losses.get))


@pytest.fixture
def run_dir(on_two_ranks, tmp_path) -> Path:
    return Path(shutil.copytree(on_two_ranks, tmp_path / "run"))


@pytest.mark.parametrize("name", ["state.json", "mp_rank_00_model_states.pt"])
@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_missing_or_cut_file_is_seen_without_reading_the_others(run_dir, name, how):
    newest = checkpoint.newest(run_dir)
    assert newest.name == "step-000020"
    (newest / name).unlink() if how == "removed" else os.truncate(newest / name, 40)
    assert name in checkpoint.fault(newest)
    assert checkpoint.newest(run_dir).name == "step-000016"


def test_a_checkpoint_folder_that_is_gone_is_still_known_by_latest(run_dir):
    newest = checkpoint.newest(run_dir)
    shutil.rmtree(newest)
    assert checkpoint.written(run_dir)[0] == newest
    assert checkpoint.newest(run_dir).name == "step-000016"


@pytest.mark.parametrize(
    ("n_ranks", "micro_batch", "layout"),
    [
        pytest.param(1, None, "on 1 ranks (1 x 9 each, 0 padded)", marks=pytest.mark.slow),
        (2, 3, "on 2 ranks (2 x 3 each, 3 padded)"),
    ],
)
def test_the_curve_does_not_depend_on_ranks_rounds_and_padding(
    tmp_path, pretrain, ds_config, on_two_ranks, n_ranks, micro_batch, layout
):
    path = str(ds_config(9, micro_batch))
    output = pretrain(n_ranks, "--ds_config", path, "--out", str(tmp_path), "--workers", "0", *EVALUATED)
    assert layout in output
    assert_same_curves(tmp_path, on_two_ranks)


@pytest.mark.slow
def test_the_triton_kernels_train_as_their_references_do(tmp_path, monkeypatch, pretrain, ds_config, on_two_ranks):
    monkeypatch.setenv("GENEBERT_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    output = pretrain(2, "--ds_config", str(ds_config(9, 3)), "--out", str(tmp_path), "--workers", "0", *EVALUATED)
    assert "triton kernels" in output
    assert_same_curves(tmp_path, on_two_ranks)


BARE = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer
import timm  # the encoder of regions

folder, out = sys.argv[1:]
assert not any(name.split(".")[0] in ("pretrain", "data_prep", "kernels", "finetune") for name in sys.modules)
batch = torch.load(out, weights_only=True)
model = AutoModel.from_pretrained(folder + "/sequence").eval()
with torch.no_grad():
    hidden = model(batch["ids"], token_type_ids=batch["segments"], attention_mask=batch["mask"]).last_hidden_state
    config = json.load(open(folder + "/region/config.json"))
    by_path = timm.create_model(config["architecture"], checkpoint_path=folder + "/region/model.safetensors",
                                **config["model_args"]).eval()
    by_folder = timm.create_model("local-dir:" + folder + "/region", pretrained=True).eval()
    region = by_path(batch["image"])
    assert torch.equal(region, by_folder(batch["image"]))
tokenizer = AutoTokenizer.from_pretrained(folder + "/sequence")
ids = tokenizer("ACGTacgtnACG")["input_ids"]
vocabulary = tokenizer.get_vocab()
torch.save({"hidden": hidden, "region": region, "ids": torch.tensor(ids), "size": len(tokenizer)}, out)
assert not any(name.split(".")[0] in ("pretrain", "data_prep", "kernels", "finetune") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def converted(on_two_ranks, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "genebert"
    convert(on_two_ranks, out, "latest", overwrite=False)
    return out


def test_a_process_without_this_project_reads_the_converted_model(
    on_two_ranks, converted, model_config, shards, tmp_path
):
    torch.manual_seed(0)
    reader = ShardReader(shards, "val")
    binding = torch.from_numpy(np.stack([reader[i].binding for i in range(4)]))
    model = load_model(checkpoint.newest(on_two_ranks), model_config, binding.shape[-1])
    description = json.loads((converted / "genebert.json").read_text())
    transform = {name: torch.tensor(description["transform"][name]) for name in ("mean", "std")}
    standardised = (binding.float() - transform["mean"]) / transform["std"]
    image = torch.nn.functional.interpolate(
        standardised[:, None], tuple(description["transform"]["resize"]["size"]), mode="bilinear", antialias=True
    )
    ids = torch.randint(0, 69, (4, 30))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    segments = (torch.arange(30) > 14).long().expand(4, 30).contiguous()
    path = tmp_path / "exchange.pt"
    torch.save({"ids": ids, "segments": segments, "mask": mask, "image": image}, path)
    subprocess.run([sys.executable, "-c", BARE, str(converted), str(path)], cwd=tmp_path, check=True)
    found = torch.load(path, weights_only=True)
    with torch.no_grad():
        hidden = model.sequence.bert(ids, token_type_ids=segments, attention_mask=mask).last_hidden_state
        region = model.region(image)
    torch.testing.assert_close(found["hidden"], hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["region"], region, rtol=0, atol=1e-5)
    vocabulary = (converted / "sequence" / "vocab.txt").read_text().split()
    kmers = ["ACG", "CGT", "GTA", "TAC", "ACG", "CGT", "GTN", "TNA", "NAC", "ACG"]
    expected = ["[CLS]", *(kmer if "N" not in kmer else "[UNK]" for kmer in kmers), "[SEP]"]
    assert [vocabulary[i] for i in found["ids"].tolist()] == expected
    assert found["size"] == len(vocabulary) == 69


def test_the_converted_model_equals_the_one_that_trained(on_two_ranks, model_config, shards):
    """Both ranks' optimizer partitions, put together, are the weights that DeepSpeed broadcast to the model."""
    newest = checkpoint.newest(on_two_ranks)
    held = torch.load(newest / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    model = load_model(newest, model_config, len(read_manifest(shards)["motifs"]))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, held[name], rtol=0, atol=0)


def test_genebert_json_names_the_motifs_in_order(converted, shards):
    description, manifest = json.loads((converted / "genebert.json").read_text()), read_manifest(shards)
    assert description["motifs"] == manifest["motifs"]
    assert description["transform"]["mean"] == pytest.approx(manifest["binding_mean"], rel=1e-6)
    assert (description["k"], description["step"]) == (3, 20)


def test_converting_again_changes_nothing(on_two_ranks, converted, capsys):
    before = {path: path.stat().st_mtime_ns for path in converted.rglob("*")}
    convert(on_two_ranks, converted, "latest", overwrite=False)
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in converted.rglob("*")}
