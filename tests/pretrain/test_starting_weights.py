"""A BERT to start from: what is loaded computes what it did before, and what does not fit is refused in one line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from data_prep.errors import InputError
from data_prep.kmers import kmer_vocabulary
from pretrain import checkpoint, convert, main, ranks
from pretrain.config import ModelConfig
from pretrain.convert import write_tokenizer
from pretrain.cornbert import CornBERT
from pretrain.model import GeneBERT, sequence_config
from pretrain.starting_weights import load_region, load_sequence, with_vocabulary


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
def folder_config(model_config) -> Callable[[int], BertConfig]:
    """DNABERT's configuration in the model's sizes: dropout, and 40 positions."""

    def make(k: int) -> BertConfig:
        config = sequence_config(replace(model_config, k=k, max_tokens=40))
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.1
        return config

    return make


@pytest.fixture
def dnabert(tmp_path, folder_config) -> Callable[[int], tuple[Path, BertForMaskedLM]]:
    """A function that writes a folder as DNABERT's are: files and names of 2020, no model_type, a masked LM alone."""

    def write(k: int) -> tuple[Path, BertForMaskedLM]:
        source = scattered(BertForMaskedLM(folder_config(k)))
        folder = tmp_path / f"{k}-new-12w-0"
        folder.mkdir()
        names = ("hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads")
        content = {name: getattr(source.config, name) for name in (*names, "num_hidden_layers", "vocab_size")}
        content |= {"architectures": ["BertForMaskedLM"], "num_rnn_layer": 1, "split": 10, "eos_token_ids": 0}
        (folder / "config.json").write_text(json.dumps(content))
        (folder / "vocab.txt").write_text("\n".join(kmer_vocabulary(k)) + "\n")
        weights = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
            for name, weight in source.state_dict().items()
        }
        weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
        del weights["cls.predictions.decoder.bias"]
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        return folder, source

    return write


def rewrite(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_dnaberts_folder_gives_its_k_and_computes_the_same(dnabert, model_config, k):
    folder, source = dnabert(k)
    config = with_vocabulary(replace(model_config, max_tokens=40), str(folder))
    assert config == replace(model_config, max_tokens=40, k=k)
    model = genebert(config)
    said = load_sequence(model, str(folder))
    tokens = torch.randint(5, 5 + 4**k, (2, 40))
    torch.testing.assert_close(model.sequence(tokens).prediction_logits, source(tokens).logits)
    assert said.endswith("random: bert.pooler, cls.seq_relationship")


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_dnaberts_own_vocabularies_and_configurations_are_taken(shared_data, k):
    config = ModelConfig(k=3 if k == 6 else 6)
    assert with_vocabulary(config, str(shared_data / "dnabert" / f"{k}mer")) == replace(config, k=k)


def test_what_the_file_lacks_stays_as_it_was(dnabert, model_config):
    folder, _ = dnabert(3)
    model = genebert(replace(model_config, max_tokens=40))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    load_sequence(model, str(folder))
    same = {name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])}
    assert same == {
        name for name in before if not name.startswith("sequence.") or "pooler" in name or "seq_relationship" in name
    }


@pytest.mark.parametrize("part", ["whole", "encoder alone", "several files"])
def test_folders_of_transformers_are_loaded_whole(tmp_path, model_config, folder_config, part):
    source = scattered(BertForPreTraining(folder_config(3)))
    saved = source.bert if part == "encoder alone" else source
    saved.save_pretrained(tmp_path, max_shard_size="20KB" if part == "several files" else "1GB")
    write_tokenizer(tmp_path, model_config)
    (tmp_path / "vocab.txt").unlink()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or part != "several files"
    config = with_vocabulary(replace(model_config, k=6, max_tokens=40), str(tmp_path))
    assert config.k == 3
    model = genebert(config)
    said = load_sequence(model, str(tmp_path))
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(
            (model.sequence.bert if saved is source.bert else model.sequence).state_dict()[name], weight
        )
    assert said.endswith("random: cls.predictions, cls.seq_relationship" if saved is source.bert else "none is missing")


@pytest.mark.parametrize(("tokens", "said"), [(16, "cut from 40 to 16"), (100, "lengthened from 40 to 100")])
def test_positions_are_cut_or_repeated(dnabert, model_config, tokens, said):
    folder, source = dnabert(3)
    model = genebert(replace(model_config, max_tokens=tokens))
    assert f"position table {said} rows" in load_sequence(model, str(folder))
    learnt = source.bert.embeddings.position_embeddings.weight
    table = model.sequence.bert.embeddings.position_embeddings.weight
    assert len(table) == tokens
    for row in range(tokens):
        assert torch.equal(table[row], learnt[row % 40])
    short = torch.randint(5, 69, (2, 16))
    torch.testing.assert_close(model.sequence(short).prediction_logits, source(short).logits)


def test_positions_of_padding_come_once(tmp_path, model_config):
    config = replace(model_config, sequence_encoder="roberta", region_encoder="none", max_tokens=20)
    source = scattered(CornBERT(config, 60).sequence)
    source.save_pretrained(tmp_path)
    model = CornBERT(replace(config, max_tokens=50), 60).eval()
    assert "position table lengthened from 22 to 52 rows, none is missing" in load_sequence(model, str(tmp_path))
    learnt, table = (m.roberta.embeddings.position_embeddings.weight for m in (source, model.sequence))
    for row in range(52):
        assert torch.equal(table[row], learnt[row if row < 2 else 2 + (row - 2) % 20])
    tokens = torch.randint(5, 60, (2, 20))
    torch.testing.assert_close(model.sequence(tokens).logits, source(tokens).logits)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("hidden_size", "hidden_size"),
        ("layers", "num_hidden_layers"),
        ("heads", "num_attention_heads"),
        ("intermediate_size", "intermediate_size"),
    ],
)
def test_an_encoder_of_other_sizes_is_refused(dnabert, model_config, flag, name):
    folder, _ = dnabert(3)
    rewrite(folder, **{name: 128})
    with pytest.raises(InputError, match=f"{name} is 128 there, --{flag} {getattr(model_config, flag)} here"):
        with_vocabulary(model_config, str(folder))


def test_another_computation_is_refused(dnabert, model_config):
    folder, _ = dnabert(3)
    rewrite(folder, hidden_act="relu")
    with pytest.raises(InputError, match="hidden_act is relu there, and must be gelu"):
        with_vocabulary(model_config, str(folder))


def test_a_vocabulary_in_another_order_is_refused_by_its_first_row(dnabert, model_config):
    folder, _ = dnabert(3)
    rows = kmer_vocabulary(3)
    rows[6], rows[7] = rows[7], rows[6]
    (folder / "vocab.txt").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"row 7 \(id 6\) is 'AAC', and should be 'AAT'"):
        with_vocabulary(model_config, str(folder))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (kmer_vocabulary(3)[:-1], r"vocab_size of config.json is 69, but the vocabulary holds 68"),
        ([*kmer_vocabulary(2), *["##word"] * 48], r"row 6 \(id 5\) is 'AA', and should be 'AAA'"),
        ([], "the vocabulary holds 0 tokens"),
    ],
)
def test_another_vocabulary_is_refused(dnabert, model_config, rows, message):
    folder, _ = dnabert(3)
    (folder / "vocab.txt").write_text("\n".join(rows))
    with pytest.raises(InputError, match=message):
        with_vocabulary(model_config, str(folder))


def test_a_vocabulary_of_words_is_refused(dnabert, model_config):
    folder, _ = dnabert(3)
    (folder / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(100)))
    rewrite(folder, vocab_size=100)
    with pytest.raises(InputError, match=r"100 tokens are no vocabulary of k-mers \(69 for k = 3, 261 for k = 4"):
        with_vocabulary(model_config, str(folder))


def test_a_folder_of_something_else_is_refused(tmp_path, dnabert, model_config):
    with pytest.raises(InputError, match=r"nowhere: config\.json cannot be read"):
        with_vocabulary(model_config, str(tmp_path / "nowhere"))
    folder, _ = dnabert(3)
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match=r"neither vocab\.txt nor tokenizer\.json"):
        with_vocabulary(model_config, str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        with_vocabulary(model_config, str(folder))


def no_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    os.truncate(path, path.stat().st_size // 2)


def cut_short_safetensors(folder: Path) -> None:
    save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    os.truncate(folder / "model.safetensors", 1000)


def foreign(folder: Path) -> None:
    torch.save({"stem.weight": torch.zeros(3)}, folder / "pytorch_model.bin")


def without_a_layer(folder: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save({name: w for name, w in weights.items() if "layer.1." not in name}, folder / "pytorch_model.bin")


def with_another_layer(folder: Path) -> None:
    weights = torch.load(folder / "pytorch_model.bin")
    weights |= {name.replace("layer.1.", "layer.2."): weight for name, weight in weights.items()}
    torch.save(weights, folder / "pytorch_model.bin")


def of_other_positions(folder: Path) -> None:
    rewrite(folder, max_position_embeddings=512)


def of_no_positions(folder: Path) -> None:
    rewrite(folder, max_position_embeddings="many")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_weights, "weights cannot be read"),
        (cut_short, "weights cannot be read"),
        (cut_short_safetensors, "weights cannot be read"),
        (foreign, "do not fill the encoder: bert.embeddings.LayerNorm.bias is missing, and 36 more"),
        (without_a_layer, r"bert.encoder.layer.1.attention.output.LayerNorm.bias is missing, and 15 more"),
        (with_another_layer, r"layer.2.\S+ has no place in the layers of its config.json"),
        (of_no_positions, r"config.json: max_position_embeddings is 'many'"),
        (of_other_positions, r"position_embeddings.weight is \[40, 32\] there, \[512, 32\] here"),
    ],
)
def test_weights_that_do_not_fill_the_encoder_are_refused(dnabert, model_config, damage, message):
    folder, _ = dnabert(3)
    damage(folder)
    with pytest.raises(InputError, match=message) as refused:
        load_sequence(genebert(model_config), str(folder))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path, dnabert, model_config):
    folder, _ = dnabert(3)
    for content in (pickle.dumps(Payload(tmp_path / "ran"), protocol=2), None):
        file = folder / "pytorch_model.bin"
        if content:
            file.write_bytes(content)
        else:
            torch.save({"weight": Payload(tmp_path / "ran")}, file)
        with pytest.raises(InputError, match="weights cannot be read"):
            load_sequence(genebert(model_config), str(folder))
    assert not (tmp_path / "ran").exists()


# The program.


def test_the_program_refuses_an_encoder_of_another_width(
    dnabert, preset, shards, ds_config, tmp_path, monkeypatch, capsys
):
    folder, _ = dnabert(3)
    rewrite(folder, hidden_size=64)
    store = dist.HashStore()
    monkeypatch.setattr(ranks, "join", lambda *_: dist.init_process_group("gloo", store=store, rank=0, world_size=1))
    given = ["--ds_config", ds_config(), "--config", preset, "--shards", shards, "--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as exit_:
        main.main([*map(str, given), "--init_sequence", str(folder)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --init_sequence {folder}: hidden_size is 64 there, --hidden_size 32 here; "
        "give --hidden_size 64, or another folder\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_starts_from_both_and_goes_on_without_them(dnabert, model_config, tmp_path, pretrain, ds_config):
    folder, _ = dnabert(4)
    file = tmp_path / "region.safetensors"
    sizes = json.loads(model_config.region_encoder_arguments) | {"img_size": 224}
    save_file(scattered(timm.create_model(model_config.region_encoder, **sizes)).state_dict(), file)
    content = json.loads(ds_config().read_text())
    content["optimizer"]["params"]["lr"] = content["scheduler"]["params"]["warmup_max_lr"] = 1e-12
    content["scheduler"]["params"]["warmup_num_steps"] = 1
    (tmp_path / "ds_config.json").write_text(json.dumps(content))
    out = tmp_path / "run"
    given = ["--ds_config", str(tmp_path / "ds_config.json"), "--out", str(out), "--workers", "0"]
    given += ["--init_sequence", str(folder), "--init_region", str(file)]
    output = pretrain(2, *given, "--steps", "2")
    assert "its vocabulary is of 4-mers, so k is 4, not 3" in output
    assert "position table lengthened from 40 to 96 rows" in output
    assert f"--init_region {file}: {model_config.region_encoder} for 1 x 28 x 56" in output
    assert json.loads((out / "config.json").read_text())["model"]["k"] == 4

    newest = checkpoint.newest(out)
    config = ModelConfig(**checkpoint.read_state(newest)["model"])
    assert config.k == 4
    trained = convert.load_model(newest, config, 12)
    expected = genebert(config)
    load_sequence(expected, str(folder))
    load_region(expected, str(file))
    for name, weight in expected.state_dict().items():
        if not any(part in name for part in ("pooler", "seq_relationship", "projection", "binding", "logit_scale")):
            torch.testing.assert_close(trained.state_dict()[name], weight, rtol=0, atol=1e-7, msg=name)

    shutil.rmtree(folder)
    file.unlink()
    assert "resuming at step 2" in pretrain(2, *given, "--steps", "3")
    assert json.loads((out / "config.json").read_text())["model"]["k"] == 4
