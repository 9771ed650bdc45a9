"""The program that explains a model, on promoters whose only mark is a TATA box at a known place: its files and what it
refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.motifs import load_motifs
from finetune.encoder import Encoder
from finetune.explain import main
from finetune.explained_rows import aligned
from finetune.model import Target, new_model, save
from finetune.run import main as finetune
from finetune.tasks import TASKS

TATA_BOX, FIRST, BP = "GTATAAAAGGCG", 24, 110  # of which the model reads 64
INSIDE = slice(FIRST - 2, FIRST + len(TATA_BOX) + 2)  # a k-mer over its ends reaches 2 bp further
BY_BASE = ["attention", "mutagenesis", "gradients"]
FILES = [
    *("attribution.tsv", "examples.png", "location.png", "location.tsv", "manifest.json", "motifs.png", "motifs.tsv"),
    *("mutagenesis.tsv.gz", "profile.png", "rows.tsv"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_table) -> Path:
    folder = tmp_path_factory.mktemp("tata")
    rng = np.random.default_rng(8)
    for split, n in (("train", 320), ("test", 100)):
        rows = []
        for label in rng.permutation(np.arange(n) % 2).tolist():
            sequence = "".join(rng.choice(list("ACGT"), BP))
            box = TATA_BOX if label else sequence[FIRST : FIRST + len(TATA_BOX)]
            rows.append((sequence[:FIRST] + box + sequence[FIRST + len(TATA_BOX) :], label))
        write_table(folder / f"{split}.csv", rows)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, data, checkpoint) -> Path:
    """Fine-tuned until it tells them apart."""
    out = tmp_path_factory.mktemp("model") / "finetune"
    given = ["--task", "promoter", "--data", str(data), "--checkpoint", str(checkpoint), "--models", "pretrained"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TASKS, "promoter", replace(TASKS["promoter"], resamples=10))
        finetune([*given, "--epochs", "4", "--batch_size", "16", "--learning_rate", "5e-3", "--out", str(out)])
    (scores,) = json.loads((out / "results.json").read_text())["tables"].values()
    assert scores["scores"]["pretrained"]["auc"] > 0.95
    return out / "pretrained"


@pytest.fixture(scope="module")
def arguments(data, tuned) -> list[str]:
    return ["--task", "promoter", "--checkpoint", str(tuned), "--data", str(data), "--rows", "3"]


@pytest.fixture(scope="module")
def out(tmp_path_factory, arguments) -> Path:
    folder = tmp_path_factory.mktemp("explained") / "out"
    main([*arguments, "--out", str(folder)])
    return folder


def test_all_files_are_written(out):
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_the_rows_of_the_highest_predictions_are_explained(out, tuned):
    rows = pd.read_csv(out / "rows.tsv", sep="\t")
    predictions = pd.read_csv(tuned.parent / "predictions.tsv", sep="\t")
    best = predictions.sort_values("pretrained", ascending=False).head(3)
    assert rows["predicted"].to_numpy() == pytest.approx(best["pretrained"].to_numpy(), abs=1e-5)
    assert predictions["sequence"][rows["row"]].tolist() == rows["name"].tolist()
    assert rows["name"].str.contains(TATA_BOX).all()


@pytest.mark.parametrize("method", ["mutagenesis", "gradients"])
def test_the_profile_peaks_at_the_planted_site(out, method):
    bases = pd.read_csv(out / "attribution.tsv", sep="\t")
    profile = bases[method].abs().groupby(bases["position"]).mean().to_numpy()
    assert len(profile) == BP
    assert INSIDE.start <= profile.argmax() < INSIDE.stop
    assert profile[INSIDE].sum() > 0.6 * profile.sum()


def test_the_planted_motif_is_named(arguments, tmp_path):
    main([*arguments, "--out", str(tmp_path / "out"), "--methods", "gradients", "--rows", "40"])
    best = pd.read_csv(tmp_path / "out" / "motifs.tsv", sep="\t").iloc[0]
    assert (best["method"], best["name"]) == ("gradients", "TBP")
    assert best["q"] < 1e-3


def test_tables_hold_every_base_of_every_row(out):
    rows, bases = pd.read_csv(out / "rows.tsv", sep="\t"), pd.read_csv(out / "attribution.tsv", sep="\t")
    assert list(bases.columns) == ["row", "position", "base", *BY_BASE]
    letters = bases.groupby("row", sort=False)["base"].agg("".join)
    assert letters.index.tolist() == rows["row"].tolist()
    assert letters.tolist() == rows["name"].tolist()
    changes = pd.read_csv(out / "mutagenesis.tsv.gz", sep="\t")
    assert len(changes) == 3 * len(bases)
    assert (changes["alt"] != changes["base"]).all()
    mean = changes["change"].abs().groupby([changes["row"], changes["position"]], sort=False).mean().to_numpy()
    np.testing.assert_allclose(mean, bases["mutagenesis"], rtol=1e-4, atol=1e-6)


def test_location_is_the_mean_over_the_rows_and_highest_at_the_planted_site(out):
    table = pd.read_csv(out / "location.tsv", sep="\t")
    assert table.groupby("L").size().tolist() == [BP - size + 1 for size in range(1, 7)]
    assert (table["rows"] == 3).all()
    peak = table.loc[table["change"].idxmax()]
    assert FIRST - 5 <= peak["position"] < FIRST + len(TATA_BOX)
    inside = table["position"].between(FIRST - 5, FIRST + len(TATA_BOX))
    assert table["change"][inside].mean() > 3 * table["change"][~inside].mean()


def test_rows_of_different_lengths_are_aligned_by_position():
    rows = [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0, 5.0]])]
    nan = np.nan
    np.testing.assert_array_equal(aligned(rows, [0, 0]), [[[1, 2, nan]], [[3, 4, 5]]])
    np.testing.assert_array_equal(aligned(rows, [-2, -3]), [[[nan, 1, 2]], [[3, 4, 5]]])
    np.testing.assert_array_equal(aligned(rows, [1, -1]), [[[nan, nan, 1, 2]], [[3, 4, 5, nan]]])


def test_a_second_run_is_up_to_date(out, arguments, capsys):
    main([*arguments, "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: up to date\n"


def test_the_same_arguments_give_the_same_tables(arguments, tmp_path):
    few = [*arguments, "--rows", "1", "--methods", "mutagenesis"]
    for name in ("one", "again"):
        main([*few, "--out", str(tmp_path / name)])
    for name in ("rows.tsv", "attribution.tsv", "mutagenesis.tsv.gz", "motifs.tsv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_one_method_of_another_class_writes_its_own_files(arguments, tmp_path, capsys):
    out = tmp_path / "one"
    main([*arguments, "--out", str(out), "--methods", "gradients", "--output", "other", "--rows", "2"])
    names = ["attribution.tsv", "examples.png", "manifest.json", "motifs.png", "motifs.tsv", "profile.png", "rows.tsv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert list(pd.read_csv(out / "attribution.tsv", sep="\t").columns) == ["row", "position", "base", "gradients"]
    assert json.loads((out / "manifest.json").read_text())["explained"] == "logit of other"
    assert not pd.read_csv(out / "rows.tsv", sep="\t")["name"].str.contains(TATA_BOX).any()
    assert "promoter, logit of other: explains the 2 rows of" in capsys.readouterr().out


def test_promoters_are_explained_by_distance_from_the_gene_and_named_by_motifs_of_plants(checkpoint, tmp_path, capsys):
    """By a model of tissues with drawn weights; promoters of 30 to 33 bp, of which it reads 31."""
    encoder, data = Encoder.at(checkpoint), tmp_path / "data"
    target = Target("values", ("leaf", "root"))
    save(
        new_model(encoder, target, "sequence", True, 31, 0),
        encoder,
        tmp_path / "model",
        **{"task": "expression", "longest": 31, "bp": 33, "both_strands": False, "row_shape": [1, 1]},
    )
    data.mkdir()
    rng = np.random.default_rng(2)
    for split in ("train", "test"):
        lines = [f"gene{i}\t{''.join(rng.choice(list('ACGT'), 30 + i % 4))}\t1.5\t{i}\n" for i in range(8)]
        (data / f"{split}.tsv").write_text("gene\tsequence\tleaf\troot\n" + "".join(lines))
    out = tmp_path / "out"
    given = ["--task", "expression", "--checkpoint", str(tmp_path / "model"), "--data", str(data), "--out", str(out)]
    main([*given, "--methods", "attention", "location"])
    assert json.loads((out / "manifest.json").read_text())["explained"] == "root"
    assert pd.read_csv(out / "rows.tsv", sep="\t")["predicted"].is_monotonic_decreasing
    table = pd.read_csv(out / "location.tsv", sep="\t").query("L == 1")
    assert table["position"].tolist() == [*range(-33, 0)]
    assert table["rows"].tolist() == [2, 4, 6, *[8] * 30]
    bases = pd.read_csv(out / "attribution.tsv", sep="\t").groupby("row")["position"]
    assert bases.max().tolist() == [-1] * 8
    assert "4 of them are not read whole, but 31 bp of each at least" in capsys.readouterr().out
    plants = {motif.matrix_id for motif in load_motifs("JASPAR2018", "plants")}
    assert set(pd.read_csv(out / "motifs.tsv", sep="\t")["matrix_id"]) == plants


# What is refused.


def test_what_does_not_exist_is_refused(refused):
    assert "--methods saliency: give some of attention" in refused("--methods", "gradients", "saliency")
    assert "--output enhancer" in refused("--output", "enhancer")
    assert "other, promoter; give one of these" in refused("--output", "enhancer")
    assert "there is no such task" in refused("--task", "enhancer")
    assert "--rows 0: give at least 1" in refused("--rows", 0)
    assert "--table CTCF" in refused("--table", "CTCF")
    assert "is not a tax group" in refused("--tax_group", "mammoths")


def test_a_folder_without_a_fine_tuned_model_is_refused(refused, tmp_path, checkpoint):
    assert "holds no fine-tuned model" in refused("--checkpoint", tmp_path)
    assert "holds no fine-tuned model" in refused("--checkpoint", checkpoint)


def test_models_of_people_and_of_other_tasks_are_refused(refused, tuned, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(tuned, folder)
    content = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(content | {"task": "tfbs"}))
    assert "a model of tfbs; give --task tfbs" in refused("--checkpoint", folder)
    assert "score people with and without it: python finetune/predict.py" in refused("--task", "hscr")


def test_data_that_are_not_there_or_too_short_are_refused(refused, tmp_path, write_table):
    assert "no such folder" in refused("--data", tmp_path / "nowhere")
    for split in ("train", "test"):
        write_table(tmp_path / "short" / f"{split}.csv", [("ACGTAC", 0), ("AC", 1)])
    assert "the shortest usable is 3" in refused("--data", tmp_path / "short")


def test_a_table_is_named_where_there_are_several(refused, data, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(data, tmp_path / "several" / name)
    assert "holds one, two; give one of these" in refused("--data", tmp_path / "several")
