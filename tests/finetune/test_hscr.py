"""Risk of disease from haplotypes: what a model reads of each person, calibration, the baseline, and whole runs."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from data_prep import main as data_prep
from data_prep.bases import encode
from finetune import calibration, hscr
from finetune.config import FinetuneConfig
from finetune.encoder import Encoder
from finetune.run import main
from finetune.task import Table, Unit
from finetune.tasks import TASKS


@pytest.fixture(scope="module")
def haplotypes(cohort_data) -> list[str]:
    return pd.read_csv(cohort_data / "haplotypes.tsv.gz", sep="\t")["sequence"].tolist()


def table_of(cohort_data: Path, checkpoint: Path, **settings: object) -> Table:
    (table,) = hscr.read(cohort_data, Encoder.at(checkpoint), FinetuneConfig("hscr", **settings)).values()
    return table


@pytest.fixture(scope="module")
def table(cohort_data, checkpoint) -> Table:
    return table_of(cohort_data, checkpoint)


def test_a_person_is_two_rows_of_windows_that_the_encoder_reads_and_that_cover_each_haplotype(
    cohort_data, table, haplotypes, checkpoint
):
    encoder = Encoder.at(checkpoint)
    overlap, longest = encoder.k - 1, encoder.longest + encoder.k - 3
    assert max(len(sequence) for sequence in table.train.sequences) == table.bp <= longest
    for name, split in table.splits.items():
        people = pd.read_csv(cohort_data / f"{name}.tsv.gz", sep="\t", dtype=str)
        assert split.names == people["sample"].tolist()
        for row, person in zip(split.rows, people.itertuples(), strict=True):
            for windows, ids in zip(row, (person.haplotype_1, person.haplotype_2), strict=True):
                short, *rest = (split.sequences[number] for number in windows)
                whole = [haplotypes[int(i)] for i in ids.split(",")]
                assert short == whole[0]
                assert len(rest) == 3  # 140 bp in windows of at most 64 bp, which overlap by 2
                joined = rest[0] + "".join(window[overlap:] for window in rest[1:])
                assert joined == whole[1]
                assert all(a[-overlap:] == b[:overlap] for a, b in pairwise(rest))


@pytest.mark.parametrize(("bp", "n"), [(64, 1), (65, 2), (126, 2), (127, 3)])
def test_a_region_is_cut_into_as_few_windows_as_can_be(bp, n, tmp_path):
    sequences = ["ACGT" * 40, "C" * 6]
    locus = hscr.Locus(tmp_path, np.array([0, 0]), [sequences[0][:bp], sequences[1]], {})
    for windows, sequence in zip(locus.windows(64, 2), locus.sequences, strict=True):
        assert len(windows) == n
        assert windows[0] + "".join(window[2:] for window in windows[1:]) == sequence
        assert all(2 < len(window) <= 64 for window in windows)
    assert locus.windows(None, 0) == [[sequence] for sequence in locus.sequences]


def test_features_are_the_copies_of_each_allele(cohort, table):
    _, alleles = cohort
    for split in table.splits.values():
        people = [int(name.removeprefix("p")) for name in split.names]
        np.testing.assert_array_equal(split.features, alleles[people].sum(axis=1))


def test_the_binding_of_a_window_is_that_of_its_haplotype_as_prepared(cohort_data, checkpoint, haplotypes, monkeypatch):
    scanned = Encoder.at(checkpoint).scanner.scan([encode(sequence) for sequence in haplotypes])
    monkeypatch.setattr(Encoder, "scanner", None)
    table = table_of(cohort_data, checkpoint, modality="multimodal")
    for name, split in table.splits.items():
        people = pd.read_csv(cohort_data / f"{name}.tsv.gz", sep="\t", dtype=str)
        for row, person in zip(split.rows, people.itertuples(), strict=True):
            ids = [[int(i) for i in each.split(",")] for each in (person.haplotype_1, person.haplotype_2)]
            expected = [[scanned[short], *[scanned[long]] * 3] for short, long in ids]
            np.testing.assert_array_equal(split.binding[row], expected)


def test_haplotypes_prepared_with_other_motifs_are_scanned_again(cohort, cohort_data, checkpoint, tmp_path, capsys):
    prepared = table_of(cohort_data, checkpoint, modality="multimodal")
    motifs = tmp_path / "motifs.txt"
    text = Path(cohort[0][-1]).read_text()
    motifs.write_text(text[: text.rindex(">")])
    data_prep.main(["hscr", *cohort[0], "--motifs", str(motifs), "--out", str(tmp_path / "other")])
    capsys.readouterr()
    other = table_of(tmp_path / "other", checkpoint, modality="multimodal")
    assert "of other motifs than the checkpoint's; the haplotypes are scanned again" in capsys.readouterr().out
    np.testing.assert_array_equal(other.train.binding, prepared.train.binding)


def test_without_both_modalities_there_is_no_binding_and_a_window_stands_once(table):
    assert table.train.binding is None
    assert len(set(table.train.sequences)) == len(table.train.sequences)


def test_the_baseline_finds_the_causal_variant_and_reads_nothing_of_the_test_labels(table, tmp_path):
    config = FinetuneConfig("hscr")
    found = hscr.polygenic(Unit(table, config, 0, tmp_path))
    labels = table.test.targets
    assert roc_auc_score(labels, found[:, 1]) > 0.8
    np.testing.assert_allclose(found.sum(axis=1), 1)
    turned = replace(table, splits=table.splits | {"test": replace(table.test, targets=1 - labels)})
    np.testing.assert_array_equal(hscr.polygenic(Unit(turned, config, 0, tmp_path)), found)


def test_calibration_of_a_worked_example():
    labels = np.array([0, 1, 1, 0, 1])
    risk = np.array([0.12, 0.18, 0.95, 0.91, 1.0])
    found = calibration.reliability(labels, risk)
    assert found.people.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 3]
    assert (found.predicted[1], found.observed[1]) == (pytest.approx(0.15), 0.5)
    assert (found.predicted[9], found.observed[9]) == (pytest.approx(2.86 / 3), pytest.approx(2 / 3))
    ece = (2 * (0.5 - 0.15) + 3 * (2.86 / 3 - 2 / 3)) / 5
    assert calibration.scores(labels, risk) == {
        "brier": pytest.approx((0.12**2 + 0.82**2 + 0.05**2 + 0.91**2) / 5),
        "ece": pytest.approx(ece),
    }


people = st.lists(st.tuples(st.integers(0, 1), st.floats(0.01, 0.99)), min_size=1, max_size=40)


@given(people)
def test_calibration_is_what_scikit_learn_finds(people):
    labels = np.array([label for label, _ in people])
    risk = np.floor([100 * risk for _, risk in people]) / 100 + 0.005  # off the borders of the bins
    found = calibration.reliability(labels, risk)
    observed, predicted = calibration_curve(labels, risk, n_bins=calibration.BINS)
    there = found.people > 0
    np.testing.assert_allclose(found.observed[there], observed)
    np.testing.assert_allclose(found.predicted[there], predicted)
    assert calibration.scores(labels, risk)["brier"] == pytest.approx(brier_score_loss(labels, risk, pos_label=1))


@pytest.mark.parametrize("modality", ["sequence", "multimodal"])
def test_a_run_scores_every_model_and_draws_curves_and_reliability(
    cohort, cohort_data, checkpoint, tmp_path, modality, monkeypatch
):
    monkeypatch.setitem(TASKS, "hscr", replace(hscr.HSCR, resamples=20))
    out = tmp_path / "run"
    main(
        [
            *("--task", "hscr", "--data", str(cohort_data), "--checkpoint", str(checkpoint), "--out", str(out)),
            *("--epochs", "1", "--batch_size", "16", "--modality", modality, "--rc"),
        ]
    )
    (results,) = json.loads((out / "results.json").read_text())["tables"].values()
    assert list(results["scores"]) == ["pretrained", "scratch", "polygenic"]
    assert sum(results["rows"].values()) == len(cohort[1])
    for name in ("roc_pr.png", "reliability.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    predictions = pd.read_csv(out / "predictions.tsv", sep="\t")
    for name, score in results["scores"].items():
        expected = calibration.scores(predictions["label"].to_numpy(), predictions[name].to_numpy())
        assert {key: score[key] for key in expected} == pytest.approx(expected, abs=2e-3)
        assert score["auc"] == pytest.approx(roc_auc_score(predictions["label"], predictions[name]), abs=1e-2)
        assert set(score["interval"]) == set(hscr.HSCR.columns)


@pytest.fixture
def copied(cohort_data, tmp_path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in cohort_data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("manifest.json", "has no manifest.json of this task; make the folder with: python data_prep/main.py hscr"),
        ("haplotypes.tsv.gz", "haplotypes.tsv.gz: is missing, or not as manifest.json says"),
        ("binding.npy", "binding.npy: is missing, or not as manifest.json says"),
        ("train.tsv.gz", "needs train.csv"),
    ],
)
@pytest.mark.parametrize("gone", [True, False])
def test_a_folder_that_is_not_as_it_was_written_is_refused(copied, checkpoint, tmp_path, capsys, name, message, gone):
    if gone:
        (copied / name).unlink()
    else:
        (copied / name).write_bytes(b"{}")
        message = message.replace("needs train.csv", "train.tsv.gz: is missing, or not as manifest.json says")
    with pytest.raises(SystemExit) as exit_:
        main(["--task", "hscr", "--data", str(copied), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "run")])
    line = capsys.readouterr().err
    assert (exit_.value.code, line.count("\n")) == (2, 1)
    assert message in line
