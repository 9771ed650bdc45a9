"""The task of expression: its tables and scores, and runs of k-mer and of CornBERT's encoders, end to end."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, RobertaModel

from data_prep.bpe import EOS, PAD, train_tokenizer
from data_prep.errors import InputError
from finetune import model as task_model
from finetune import training
from finetune.encoder import Encoder
from finetune.examples import Examples
from finetune.expression import EXPRESSION, read_table, score
from finetune.expression_baselines import mean_of_training
from finetune.model import Target
from finetune.run import main
from finetune.task import Table
from pretrain.config import ModelConfig
from pretrain.convert import write_bpe_tokenizer
from pretrain.cornbert import roberta_config

TISSUES = ("root", "ear", "tip")
MODELS = ["pretrained", "scratch", "mean", "motifs", "kmers"]
MAX_TOKENS = 40


def write_split(path: Path, rng: np.random.Generator, n: int) -> Path:
    """Promoters of 150 to 180 bp; each TATA box multiplies what is expressed."""
    rows = []
    for number in range(n):
        letters, boxes = rng.choice(list("ACGT"), rng.integers(150, 180)), rng.integers(0, 4)
        for at in 10 + 30 * np.arange(boxes):
            letters[at : at + 8] = list("TATAAATA")
        tpm = np.expm1(1 + boxes + 0.2 * rng.normal(size=3)) * (1, 1, boxes > 0)
        rows.append([f"{path.name[:2]}{number}", "".join(letters), *np.round(tpm, 6)])
    pd.DataFrame(rows, columns=["gene", "sequence", *TISSUES]).to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("expression"), np.random.default_rng(8)
    for split, n in (("train", 200), ("dev", 60), ("test", 80)):
        write_split(folder / f"{split}.tsv.gz", rng, n)
    return folder


@pytest.fixture(scope="module")
def cornbert(tmp_path_factory, data) -> Path:
    """What pretrain/convert.py makes of CornBERT: a RoBERTa of BPE tokens, which reads promoters from their end."""
    folder = tmp_path_factory.mktemp("converted") / "cornbert"
    config = ModelConfig(
        sequence_encoder="roberta",
        region_encoder="none",
        max_tokens=MAX_TOKENS,
        hidden_size=32,
        layers=4,
        heads=2,
        intermediate_size=64,
    )
    tokenizer = train_tokenizer(pd.read_csv(data / "train.tsv.gz", sep="\t").sequence, 320)
    torch.manual_seed(0)
    encoder = RobertaModel(roberta_config(config, tokenizer.get_vocab_size()), add_pooling_layer=False)
    encoder.save_pretrained(folder / "sequence")
    tokenizer.save(str(folder / "tokenizer.json"))
    write_bpe_tokenizer(folder / "sequence", folder / "tokenizer.json", config)
    (folder / "genebert.json").write_text(json.dumps({"step": 5}))
    return folder


@pytest.fixture(scope="module")
def arguments(data, cornbert) -> list[str]:
    """Of CornBERT's recipe, but --out."""
    return [
        *("--task", "expression", "--data", str(data), "--checkpoint", str(cornbert), "--unfreeze", "2"),
        *("--optimizer", "lamb", "--epochs", "2", "--batch_size", "25", "--learning_rate", "0.05"),
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory, arguments) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cornbert"
    main([*arguments, "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def results(out) -> dict:
    (table,) = json.loads((out / "results.json").read_text())["tables"].values()
    return table


@pytest.fixture(scope="module")
def predictions(out) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.tsv", sep="\t").set_index(["name", "output"])


def test_every_model_is_scored_and_every_file_is_there(out, results):
    assert list(results["scores"]) == MODELS
    assert results["rows"] == {"train": 200, "dev": 60, "test": 80}
    assert (out / "expression.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} >= {"predictions.tsv", "results.csv", "pretrained", "scratch"}


def test_the_constant_mean_lies_0_per_cent_below_itself_and_elements_below_it(results):
    scores = results["scores"]
    assert scores["mean"]["mse_log_reduction"] == scores["mean"]["mae_tpm_reduction"] == 0.0
    assert scores["motifs"]["mse_log_reduction"] > 50
    assert scores["motifs"]["interval"]["mse_log"][0] < scores["motifs"]["mse_log"]
    assert all(f"{name}/{tissue}" in scores["pretrained"] for name in ("mse_log", "mae_tpm") for tissue in TISSUES)


def test_predictions_are_of_the_genes_of_test_and_log_tpm(predictions, data):
    rows = pd.read_csv(data / "test.tsv.gz", sep="\t")
    assert len(predictions) == len(rows) * len(TISSUES)
    for tissue in TISSUES:
        found = predictions.xs(tissue, level="output")
        assert found.index.tolist() == rows.gene.tolist()
        np.testing.assert_allclose(found.value, np.log1p(rows[tissue]), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_scores_are_those_of_the_predictions(results, predictions, name):
    error = (predictions.value - predictions[name]) ** 2
    tpm_error = (np.expm1(predictions.value) - np.expm1(predictions[name].clip(lower=0))).abs()
    floor = (predictions.value - predictions["mean"]) ** 2
    within = predictions.value - predictions.value.groupby("output").transform("mean")
    scores = results["scores"][name]
    assert scores["mse_log"] == pytest.approx(error.mean(), rel=1e-4)
    assert scores["mae_tpm"] == pytest.approx(tpm_error.mean(), rel=1e-4)
    assert scores["mse_log/ear"] == pytest.approx(error.xs("ear", level="output").mean(), rel=1e-4)
    assert scores["mse_log_reduction"] == pytest.approx(100 * (1 - error.mean() / floor.mean()), abs=1e-2)
    assert scores["r2"] == pytest.approx(1 - error.sum() / (within**2).sum(), abs=1e-4)


def test_the_fine_tuned_cornbert_is_read_back_and_predicts_the_same(out, cornbert, predictions, data):
    model, encoder, about = task_model.load(out / "pretrained")
    assert (about["task"], about["longest"], model.target) == ("expression", MAX_TOKENS, Target("values", TISSUES))
    test, _ = read_table(data / "test.tsv.gz", 6)
    collate = training.Collator(encoder.tokens, about["longest"])
    with torch.no_grad():
        batch = collate([training.Rows(test)[number] for number in range(5)])
        found = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
        expected = predictions.pretrained.to_numpy().reshape(80, 3)[:5]
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
        alone = collate([training.Rows(test)[0]])
        one = model(**{name: value for name, value in alone.items() if name != "labels"})["logits"]
    np.testing.assert_allclose(one[0].numpy(), expected[0], atol=2e-5)


def test_a_promoter_too_long_keeps_its_end_beside_the_gene_and_padding_stands_on_the_left(cornbert):
    tokens = Encoder.at(cornbert).tokens
    whole = AutoTokenizer.from_pretrained(cornbert / "sequence")("ACGT" * 100)["input_ids"]
    cut = tokens.ids("ACGT" * 100, MAX_TOKENS).tolist()
    assert len(cut) == min(MAX_TOKENS, len(whole))
    assert cut[0] == whole[0]
    assert cut[1:] == whole[-len(cut) + 1 :]
    examples = Examples.of_sequences(["ACGT" * 50, "AC"], np.zeros((2, 3), np.float32), Path("x"))
    batch = training.Collator(tokens, MAX_TOKENS)([training.Rows(examples)[number] for number in range(2)])
    ids = batch["input_ids"][batch["rows"].ravel()]
    assert ids[:, -1].tolist() == [EOS, EOS]
    assert ids[1, 0] == PAD


def test_the_same_seed_gives_the_same_predictions(out, arguments, tmp_path):
    main([*arguments, "--out", str(tmp_path / "again"), "--models", "pretrained", "motifs"])
    again = pd.read_csv(tmp_path / "again" / "predictions.tsv", sep="\t")
    first = pd.read_csv(out / "predictions.tsv", sep="\t")
    pd.testing.assert_frame_equal(again[["pretrained", "motifs"]], first[["pretrained", "motifs"]])


def test_an_encoder_of_kmers_does_it_too(data, checkpoint, tmp_path):
    given = ["--task", "expression", "--data", str(data), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")]
    main([*given, "--models", "pretrained", "mean", "--epochs", "1"])
    with open(tmp_path / "o" / "results.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["mean"]["mse_log_reduction"]) == 0
    assert np.isfinite(float(rows["pretrained"]["mse_log/tip"]))


def test_a_promoter_has_a_strand(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--rc", "--out", str(tmp_path / "out")])
    assert "--rc: a sequence of expression has a strand" in capsys.readouterr().err


def table_of(train: list[list[float]], test: list[list[float]]) -> Table:
    splits = {
        name: Examples.of_sequences(["A"] * len(rows), np.array(rows, np.float32), Path(name))
        for name, rows in (("train", train), ("test", test))
    }
    return Table(splits, Target("values", ("root", "tip")), 1)


def test_scores_are_those_worked_by_hand():
    """Train means: 1 in root, 2 in tip. Measured: 0 and 2, then ln 3 (2 TPM) and 1; predicted: -1 (0 TPM) and 2, then
    ln 2 (1 TPM) and 2."""
    ln2, ln3, e = np.log(2), np.log(3), np.e
    table = table_of([[0, 2], [2, 2]], [[0, 2], [ln3, 1]])
    found = score(table.test.targets, np.array([[-1, 2], [ln2, 2]]), table)
    root, tip = (1 + (ln3 - ln2) ** 2) / 2, 0.5
    assert found["mse_log/root"] == pytest.approx(root)
    assert found["mse_log/tip"] == pytest.approx(tip)
    assert found["mse_log"] == pytest.approx((root + tip) / 2)
    assert found["mae_tpm/root"] == pytest.approx((0 + 1) / 2)
    assert found["mae_tpm/tip"] == pytest.approx((0 + (e**2 - e)) / 2)
    assert found["mae_tpm"] == pytest.approx((1 + e**2 - e) / 4)
    floor_root, floor_tip = (1 + (ln3 - 1) ** 2) / 2, 0.5
    assert found["mse_log_reduction/root"] == pytest.approx(100 * (1 - root / floor_root))
    assert found["mse_log_reduction/tip"] == pytest.approx(0)
    assert found["mse_log_reduction"] == pytest.approx(100 * (1 - (root + tip) / (floor_root + floor_tip)))
    floor_tpm = ((e - 1) + (e - 1 - 2)) if e - 1 > 2 else ((e - 1) + (2 - (e - 1)))
    assert found["mae_tpm_reduction/root"] == pytest.approx(100 * (1 - 1 / floor_tpm))
    assert found["r2"] == pytest.approx(1 - (2 * root + 2 * tip) / (ln3**2 / 2 + 0.5))


def test_the_constant_mean_scores_exactly_0():
    rng = np.random.default_rng(0)
    table = table_of(rng.gamma(2, size=(501, 2)).tolist(), rng.gamma(2, size=(77, 2)).tolist())
    found = score(table.test.targets, mean_of_training(table), table)
    assert {value for name, value in found.items() if "reduction" in name} == {0.0}


def test_tissues_in_which_the_floor_errs_nowhere_have_no_reduction():
    table = table_of([[1, 0], [1, 2]], [[1, 0], [1, 2]])
    found = score(table.test.targets, np.ones((2, 2)), table)
    assert np.isnan(found["mse_log_reduction/root"])
    assert found["mse_log_reduction/tip"] == 0


@pytest.fixture
def refused(data, tmp_path) -> Callable[[str], str]:
    """Reads a table of the given text; gives the error."""

    def read(text: str) -> str:
        path = tmp_path / "train.tsv.gz"
        with gzip.open(path, "wt") as file:
            file.write(text)
        with pytest.raises(InputError) as error:
            read_table(path, 6)
        return str(error.value)

    return read


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gene\tsequence\troot\ng1\tACGTACGT\t-1\n", ":2: root: TPM '-1'"),
        ("gene\tsequence\troot\ng1\tACGTACGT\tmany\n", ":2: root: TPM 'many'"),
        ("gene\tsequence\troot\ng1\tACGTACGT\tinf\n", ":2: root: TPM 'inf'"),
        ("gene\tsequence\troot\ttip\ng1\tACGTACGT\t1\n", ":2: tip: TPM ''"),
        ("gene\tsequence\troot\ng1\tACG\t1\n", ":2: 3 bp"),
        ("gene\tsequence\troot\ng1\tACGT!CGT\t1\n", ":2: not a DNA sequence"),
        ("gene\tsequence\ng1\tACGTACGT\n", "no column of TPM"),
        ("gene\tsequence\troot\n", "holds no gene"),
        ("sequence\troot\nACGTACGT\t1\n", "no column 'gene'"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(refused, text, why):
    assert why in refused(text)


def test_splits_of_different_tissues_are_refused(data, checkpoint, tmp_path):
    for split in ("train", "test"):
        rows = pd.read_csv(data / f"{split}.tsv.gz", sep="\t")
        rows = rows.rename(columns={"ear": "leaf"}) if split == "test" else rows
        rows.to_csv(tmp_path / f"{split}.tsv.gz", sep="\t", index=False)
    with pytest.raises(InputError, match="its tissues are root, leaf, tip; those of train are root, ear, tip"):
        EXPRESSION.read(tmp_path, Encoder.at(checkpoint), None)
