"""CornBERT: promoters of two species, stage 1 on both, conversion, stage 2 on one species from stage 1's weights."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.bases import decode
from data_prep.bpe import BOS, EOS, MASK, PAD, read_shards_tokenizer, read_tokenizer
from data_prep.errors import InputError
from data_prep.main import main as data_prep
from data_prep.shard_reader import ShardReader, read_manifest
from kernels.kmer_mask import MaskedBatch
from pretrain import checkpoint, starting_weights
from pretrain.config import ModelConfig, RunConfig, read_preset
from pretrain.convert import convert, weights_of
from pretrain.cornbert import CornBERT
from pretrain.data_order import MicroBatch
from pretrain.token_batches import TokenBatches

ROOT = Path(__file__).parents[2]
MAX_TOKENS = 48
PRESET = f"""
sequence_encoder: roberta
region_encoder: none
max_tokens: {MAX_TOKENS}
hidden_size: 32
layers: 2
heads: 2
intermediate_size: 64
mask_rate: 0.15
late_mask_rate: 0.15
ngsp_weight: 0
srm_weight: 0
log_every: 1
eval_every: 10
save_every: 10
workers: 1
wandb: "off"
"""
CONFIG = ModelConfig(
    sequence_encoder="roberta",
    region_encoder="none",
    max_tokens=MAX_TOKENS,
    hidden_size=32,
    layers=2,
    heads=2,
    intermediate_size=64,
)
BOXES = ("TATAAATA", "CACGTGGC", "GCCGCC", "TTGACC")


def write_fasta(path: Path, seed: int, n: int) -> Path:
    """Promoters of 60 to 260 bp made of a few boxes, so that there is something to learn; some do not fit a row."""
    rng = np.random.default_rng(seed)
    with open(path, "w") as file:
        for number in range(n):
            parts = [*rng.choice(BOXES, 6), *("".join(rng.choice(list("ACGT"), 10)) for _ in range(30))]
            sequence = "".join(rng.permutation(parts))[: rng.integers(60, 260)]
            file.write(f">gene{number}\n{sequence}\n")
    return path


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> tuple[Path, Path]:
    """Shards of the first stage, of two species, and of the second, of one, with the first one's tokenizer."""
    folder = tmp_path_factory.mktemp("promoters")
    maize, sorghum = write_fasta(folder / "maize.fa", 1, 160), write_fasta(folder / "sorghum.fa", 2, 120)
    common = ("--val_share", "0.2", "--samples_per_shard", "40", "--workers", "1")
    both, one = folder / "all", folder / "maize"
    data_prep(
        ["promoters", "--promoters", str(maize), str(sorghum), "--out", str(both), "--vocabulary", "300", *common]
    )
    tokenizer = str(both / "tokenizer.json")
    data_prep(["promoters", "--promoters", str(maize), "--out", str(one), "--tokenizer", tokenizer, *common])
    return both, one


@pytest.fixture(scope="module")
def cornbert(tmp_path_factory, pretrain) -> Callable[..., str]:
    """A function that runs `pretrain` with the smallest CornBERT and cornbert_lamb.json at a batch of 9, in fp32."""
    folder = tmp_path_factory.mktemp("cornbert")
    (folder / "cornbert-smallest.yaml").write_text(PRESET)

    def run(n_ranks: int, shards: Path, out: Path, *arguments: str, micro_batch: int, **changed: object) -> str:
        content = json.loads((ROOT / "ds_configs" / "cornbert_lamb.json").read_text()) | changed
        content |= {"train_batch_size": 9, "train_micro_batch_size_per_gpu": micro_batch}
        content["torch_autocast"] = changed.get("torch_autocast", {"enabled": False})
        content["optimizer"]["params"]["lr"] = content["scheduler"]["params"]["warmup_max_lr"] = 0.01
        content["scheduler"]["params"] |= {"warmup_num_steps": 5, "total_num_steps": 20}
        path = folder / f"ds-{out.name}.json"
        path.write_text(json.dumps(content))
        preset = ("--config", str(folder / "cornbert-smallest.yaml"), "--ds_config", str(path))
        return pretrain(n_ranks, *preset, "--shards", str(shards), "--out", str(out), *arguments)

    return run


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory, cornbert, stages) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stage1"
    cornbert(2, stages[0], out, micro_batch=3)
    return out


@pytest.fixture(scope="module")
def converted(tmp_path_factory, stage_1) -> Path:
    out = tmp_path_factory.mktemp("converted") / "cornbert"
    convert(stage_1, out, "latest", overwrite=False)
    return out


def test_a_run_has_masked_tokens_as_its_one_objective(stage_1):
    rows = metrics(stage_1)
    training, held_out = [row for row in rows if "loss/mgm" in row], [row for row in rows if "val/loss/mgm" in row]
    assert [row["step"] for row in training] == list(range(1, 21))
    assert all(row["loss/total"] == row["loss/mgm"] for row in training)
    assert not any("ngsp" in name or "srm" in name for row in rows for name in row)
    assert all(row["optim/grad_norm"] > 0 and row["perf/tokens_per_s"] > 0 for row in training)
    assert {"val/loss/mgm/maize", "val/loss/mgm/sorghum"} <= held_out[-1].keys()
    assert held_out[-1]["val/loss/mgm"] < held_out[0]["val/loss/mgm"] < math.log(304)


@pytest.mark.slow
def test_a_run_resumes_on_other_ranks_and_rounds_and_its_curve_joins(tmp_path, stage_1, stages, cornbert):
    """From step 10 on one rank takes the whole batch at once; two ranks took it in two rounds, with padding."""
    out = tmp_path / "resumed"
    shutil.copytree(stage_1, out)
    shutil.rmtree(out / "checkpoints" / "step-000020")
    assert "resuming at step 10" in cornbert(1, stages[0], out, "--workers", "0", micro_batch=9)
    for found, expected in zip(metrics(out), metrics(stage_1), strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            if not name.startswith("perf/"):
                assert found[name] == pytest.approx(expected[name], rel=1e-5), (name, expected["step"])


BARE = """
import sys
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder, sequences, out = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(folder)
batch = tokenizer(sequences, padding=True, truncation=True, return_tensors="pt")
model, masked_lm = AutoModel.from_pretrained(folder).eval(), AutoModelForMaskedLM.from_pretrained(folder).eval()
with torch.no_grad():
    hidden, logits = model(**batch).last_hidden_state, masked_lm(**batch).logits
assert not any(name.split(".")[0] in ("pretrain", "data_prep", "kernels", "finetune") for name in sys.modules)
torch.save({"ids": batch["input_ids"], "mask": batch["attention_mask"], "hidden": hidden, "logits": logits}, out)
"""


def test_a_process_without_this_project_reads_the_converted_model(tmp_path, stage_1, stages, converted):
    reader, tokenizer = ShardReader(stages[0], "val"), read_tokenizer(stages[0] / "tokenizer.json")
    sequences = [decode(reader[number].bases) for number in range(6)]
    command = [sys.executable, "-c", BARE, str(converted / "sequence"), ",".join(sequences), str(tmp_path / "out.pt")]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = TokenBatches(reader, tokenizer, MAX_TOKENS)[MicroBatch(np.arange(6), np.zeros(6, int), np.ones(6))]
    longest = found["ids"].shape[1]
    assert torch.equal(found["ids"], expected["token_ids"][:, -longest:].long())

    held = torch.load(checkpoint.newest(stage_1) / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    model = CornBERT(CONFIG, tokenizer.get_vocab_size()).eval()
    model.load_state_dict(held)
    ids, place = found["ids"], torch.arange(longest).expand(6, longest)
    rows = MaskedBatch(ids, torch.zeros_like(ids), found["mask"], None, place, None)
    with torch.no_grad():
        logits = model(rows).mgm_logits
    used = found["mask"].bool()
    torch.testing.assert_close(found["logits"][used], logits[used], rtol=0, atol=1e-5)
    assert found["hidden"].shape == (6, longest, 32)


def test_the_converted_folder_says_what_it_is(converted, stages, capsys, stage_1):
    assert sorted(path.name for path in converted.iterdir()) == ["genebert.json", "sequence"]
    description = json.loads((converted / "genebert.json").read_text())
    assert description["tokenizer"] == read_manifest(stages[0])["tokenizer"]
    assert description["step"] == 20
    assert "k" not in description
    convert(stage_1, converted, "latest", overwrite=False)
    assert "up to date" in capsys.readouterr().out


def test_a_run_whose_tokenizer_was_exchanged_is_not_converted(tmp_path, stage_1):
    shutil.copytree(stage_1, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(path.read_text().replace("<mask>", "<Mask>"))
    with pytest.raises(InputError, match=r"tokenizer\.json: not the tokenizer of this run"):
        convert(tmp_path / "run", tmp_path / "out", "latest", overwrite=False)


@pytest.mark.slow
def test_stage_2_goes_on_from_the_weights_of_stage_1(tmp_path, stages, stage_1, converted, cornbert):
    """In bf16 and with checkpointed activations, as on a cluster."""
    options = ("--init_sequence", str(converted / "sequence"), "--activation_checkpointing", "--eval_every", "2")
    bf16 = {"enabled": True, "dtype": "bfloat16"}
    output = cornbert(2, stages[1], tmp_path / "stage2", *options, "--steps", "6", micro_batch=5, torch_autocast=bf16)
    assert "none is missing" in output
    before = metrics(stage_1)[-1]["val/loss/mgm/maize"]
    held_out = [row["val/loss/mgm"] for row in metrics(tmp_path / "stage2") if "val/loss/mgm" in row]
    assert held_out[0] == pytest.approx(before, rel=0.02)  # the rate is still 0; masks are drawn for other samples
    assert held_out[-1] < held_out[0]
    out = tmp_path / "converted"
    convert(tmp_path / "stage2", out, "latest", overwrite=False)
    after, start = (weights_of(checkpoint.newest(run)) for run in (tmp_path / "stage2", stage_1))
    name = "sequence.roberta.embeddings.word_embeddings.weight"
    assert 0.5 < torch.nn.functional.cosine_similarity(after[name].flatten(), start[name].flatten(), dim=0) < 1


def test_weights_of_another_tokenizer_are_refused(tmp_path, stages, converted, world_of_one):
    other = tmp_path / "other"
    fasta = write_fasta(tmp_path / "rice.fa", 3, 40)
    data_prep(["promoters", "--promoters", str(fasta), "--out", str(other), "--vocabulary", "300", "--workers", "1"])
    run = RunConfig(ds_config="", init_sequence=str(converted / "sequence"))
    tokenizers = {folder: read_shards_tokenizer(folder, read_manifest(folder)) for folder in (*stages, other)}
    for folder in stages:
        starting_weights.load(CornBERT(CONFIG, 304), run, tokenizers[folder])
    with pytest.raises(InputError, match=r"its tokenizer is not that of --shards; make the shards with: .*promoters"):
        starting_weights.load(CornBERT(CONFIG, 304), run, tokenizers[other])


@pytest.fixture(scope="module")
def reader(stages) -> ShardReader:
    return ShardReader(stages[0], "train")


def test_rows_are_padded_and_cut_on_the_left(reader, stages):
    tokenizer = read_tokenizer(stages[0] / "tokenizer.json")
    batches = TokenBatches(reader, tokenizer, MAX_TOKENS)
    numbers = np.array([5, 0, 17, 5, *range(60, 90)])
    epoch, weight = np.zeros(len(numbers), int), np.ones(len(numbers), np.float32)
    batch = batches[MicroBatch(numbers, epoch, weight)]
    n_cut = 0
    for row, number in zip(batch["token_ids"].tolist(), numbers.tolist(), strict=True):
        ids = tokenizer.encode(decode(reader[number].bases)).ids[1:-1]
        n_cut += len(ids) > MAX_TOKENS - 2
        kept = ids[-(MAX_TOKENS - 2) :]
        assert row == [PAD] * (MAX_TOKENS - 2 - len(kept)) + [BOS, *kept, EOS]
    assert 0 < n_cut < len(numbers)
    assert (batch["cell_type"].numpy() == reader.cell_type[numbers]).all()
    assert torch.equal(batch["token_ids"][0], batch["token_ids"][3])


def test_padding_changes_nothing():
    """Positions count from <s>, and no token attends to padding."""
    torch.manual_seed(0)
    model = CornBERT(CONFIG, 304).eval()
    tokens = torch.randint(4, 304, (3, 20))
    tokens[:, 0], tokens[:, -1], tokens[1, 5] = BOS, EOS, MASK
    padded = torch.nn.functional.pad(tokens, (MAX_TOKENS - 20, 0), value=PAD)
    outputs = []
    for ids in (tokens, padded):
        place = torch.arange(ids.shape[1] - 20, ids.shape[1]).expand(3, 20)
        rows = MaskedBatch(ids, torch.zeros_like(ids), (ids != PAD).long(), None, place, None)
        with torch.no_grad():
            outputs.append(model(rows))
    torch.testing.assert_close(outputs[0].mgm_logits, outputs[1].mgm_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].cls, outputs[1].cls, rtol=0, atol=1e-5)
    assert outputs[0].region is outputs[0].sequence is outputs[0].ngsp_logits is None


def test_the_preset_is_the_papers_model():
    content = read_preset("cornbert")
    config = ModelConfig(**{name: content[name] for name in ModelConfig.__dataclass_fields__ if name in content})
    with torch.device("meta"):
        model = CornBERT(config, 5004)
    encoder = model.sequence.config
    assert (encoder.num_hidden_layers, encoder.num_attention_heads, encoder.hidden_size) == (6, 6, 768)
    assert encoder.max_position_embeddings == 256 + 2
    assert model.sequence.roberta.embeddings.padding_idx == PAD
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(47.2e6, rel=0.01)


def test_a_model_and_shards_that_do_not_go_together_are_refused(refused, stages, shards, tmp_path_factory):
    line = refused("--shards", stages[0])
    assert "shards of promoters; --sequence_encoder bert takes those of regions" in line
    path = tmp_path_factory.mktemp("preset") / "cornbert.yaml"
    path.write_text(PRESET)
    line = refused("--config", path, "--shards", shards)
    assert "shards of regions; --sequence_encoder roberta takes those of promoters" in line
    assert "--region_encoder none: roberta, and it alone" in refused("--region_encoder", "none")
    line = refused("--config", path, "--shards", stages[0], "--srm_weight", "0.5")
    assert "--ngsp_weight 0 --srm_weight 0.5: --sequence_encoder roberta has masked tokens as its one" in line
