"""The fine-tuning program, end to end: its files, what it goes on from, and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, precision_score, recall_score, roc_auc_score

from finetune import linear_baseline, training
from finetune.run import main

MODELS = ["pretrained", "scratch", "linear"]
FILES = ["predictions.tsv", "results.csv", "results.json", "roc_pr.png"]
METRICS = ("precision", "recall", "auc", "mcc", "collapsed")


def scores(out: Path) -> dict[str, dict]:
    """What was measured of each model, without the time that it took."""
    (table,) = json.loads((out / "results.json").read_text())["tables"].values()
    return {
        name: {key: value for key, value in row.items() if key != "seconds"} for name, row in table["scores"].items()
    }


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def arguments(checkpoint, promoters) -> list[str]:
    """Of a run of two epochs of all models, but --out."""
    return [
        *("--task", "promoter", "--data", str(promoters), "--checkpoint", str(checkpoint)),
        *("--epochs", "2", "--batch_size", "16", "--learning_rate", "5e-3", "--seed", "7"),
    ]


@pytest.fixture(scope="session")
def out(tmp_path_factory, arguments) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "all"
    main([*arguments, "--out", str(folder)])
    return folder


def test_every_model_is_scored_and_every_file_is_there(out):
    assert {path.name for path in out.iterdir()} >= set(FILES)
    assert (out / "roc_pr.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert list(scores(out)) == MODELS
    assert (results["task"], results["simulated"]) == ("promoter", False)
    assert results["tables"]["promoters0"]["rows"] == {"train": 240, "dev": 60, "test": 80}
    assert results["checkpoint"]["step"] == 20
    assert results["config"]["seed"] == 7


def test_the_csv_and_the_json_agree(out):
    with open(out / "results.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == MODELS
    for name, score in scores(out).items():
        assert {key: rows[name][key] for key in METRICS} == {key: str(score[key]) for key in METRICS}
        assert (float(rows[name]["auc_low"]), float(rows[name]["auc_high"])) == tuple(score["interval"]["auc"])
        assert (rows[name]["task"], rows[name]["evaluated_on"]) == ("promoter", "test")


@pytest.fixture(scope="session")
def predictions(out) -> list[dict[str, str]]:
    with open(out / "predictions.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_predictions_are_of_the_rows_of_test_in_order(predictions, promoters):
    with open(promoters / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sequence"], row["label"]) for row in predictions] == [(r["sequence"], r["label"]) for r in rows]


@pytest.mark.parametrize("name", MODELS)
def test_the_scores_are_those_of_the_predictions(out, predictions, name):
    labels = np.array([int(row["label"]) for row in predictions])
    score = np.array([float(row[name]) for row in predictions])
    predicted = score > 0.5
    assert {key: scores(out)[name][key] for key in METRICS} == pytest.approx(
        {
            "precision": precision_score(labels, predicted, average="macro", zero_division=0),
            "recall": recall_score(labels, predicted, average="macro"),
            "auc": roc_auc_score(labels, score),
            "mcc": matthews_corrcoef(labels, predicted),
            "collapsed": int(len(set(predicted)) == 1),
        },
        abs=2e-3,  # probabilities are written with six digits, which can tie a pair of the 1,600
    )


def test_the_baseline_finds_the_planted_motif(out):
    assert scores(out)["linear"]["auc"] > 0.9


def test_the_same_run_again_is_up_to_date_and_trains_nothing(out, arguments, capsys, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    monkeypatch.setattr(linear_baseline, "predict", None)
    before = state(out)
    main([*arguments, "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"{out}: up to date" in printed
    assert all(name in printed for name in MODELS)
    assert state(out) == before


def test_a_model_scores_the_same_alone_and_beside_others(out, arguments, tmp_path):
    main([*arguments, "--out", str(tmp_path / "alone"), "--models", "scratch"])
    assert scores(tmp_path / "alone") == {"scratch": scores(out)["scratch"]}


def test_another_seed_scores_otherwise(out, arguments, tmp_path):
    main([*arguments, "--out", str(tmp_path / "other"), "--models", "scratch", "--seed", "8"])
    assert scores(tmp_path / "other")["scratch"] != scores(out)["scratch"]


def test_an_interrupted_run_leaves_no_results_and_goes_on(out, arguments, tmp_path, monkeypatch, capsys):
    fit, calls = training.fit, []

    def interrupted_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args)

    here = tmp_path / "interrupted"
    monkeypatch.setattr(training, "fit", interrupted_at_the_second)
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--out", str(here)])
    assert exit_.value.code == 130
    assert not {path.name for path in here.iterdir()} & set(FILES)
    monkeypatch.undo()
    trained = {path: t for path, t in state(here / "pretrained").items() if path.name == "model.safetensors"}
    assert trained
    main([*arguments, "--out", str(here)])
    assert scores(here) == scores(out)
    assert {path: state(here).get(path) for path in trained} == trained
    assert not (here / "work").exists()


def test_a_run_interrupted_within_an_epoch_scores_as_if_it_had_not_been(out, arguments, tmp_path, monkeypatch):
    training_step, calls = training.TaskTrainer.training_step, []

    def interrupted_in_the_second_epoch(*args, **kwargs):
        calls.append(args)
        if len(calls) == 15 + 7:
            raise KeyboardInterrupt
        return training_step(*args, **kwargs)

    given = [*arguments, "--out", str(tmp_path / "interrupted"), "--models", "pretrained"]
    monkeypatch.setattr(training.TaskTrainer, "training_step", interrupted_in_the_second_epoch)
    with pytest.raises(SystemExit):
        main(given)
    monkeypatch.undo()
    main(given)
    assert scores(tmp_path / "interrupted") == {"pretrained": scores(out)["pretrained"]}


def half_written(folder: Path) -> None:
    """A checkpoint of the Trainer whose process was killed after the weights."""
    (checkpoint,) = folder.glob("work/*/scratch-7/training/checkpoint-15")
    for path in checkpoint.iterdir():
        if path.name != "model.safetensors":
            path.unlink()


def cut_short(folder: Path) -> None:
    (folder / "run.json").write_text('{\n "fingerpr')


@pytest.mark.parametrize(("damage", "more"), [(half_written, []), (cut_short, ["--overwrite"])])
def test_a_run_killed_while_it_wrote_can_be_started_again(out, arguments, tmp_path, monkeypatch, damage, more):
    here = tmp_path / "killed"
    given = [*arguments, "--out", str(here), "--models", "scratch"]
    training_step, calls = training.TaskTrainer.training_step, []

    def interrupted_in_the_second_epoch(*args, **kwargs):
        calls.append(args)
        if len(calls) == 15 + 7:
            raise KeyboardInterrupt
        return training_step(*args, **kwargs)

    monkeypatch.setattr(training.TaskTrainer, "training_step", interrupted_in_the_second_epoch)
    with pytest.raises(SystemExit):
        main(given)
    monkeypatch.undo()
    damage(here)
    main([*given, *more])
    assert scores(here)["scratch"] == scores(out)["scratch"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun", "--nproc_per_node", "2"],
        ["deepspeed", "--num_gpus", "2", "--master_port", str(29500 + os.getpid() % 90)],
    ],
    ids=lambda launcher: launcher[0],
)
def test_two_processes_train_one_model(arguments, tmp_path, launcher):
    """Half of each batch on each, so that the batch is the same as one process's."""
    root = Path(__file__).parents[2]
    more = ["--batch_size", "8", "--models", "pretrained", "linear", "--out", str(tmp_path / "out")]
    if launcher[0] == "deepspeed":
        more += ["--deepspeed", "ds_configs/finetune_zero2.json"]
    command = [str(Path(sys.executable).with_name(launcher[0])), *launcher[1:], "finetune/run.py", *arguments, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("240 training rows") == 1
    found = scores(tmp_path / "out")
    assert list(found) == ["pretrained", "linear"]
    assert found["pretrained"]["auc"] > 0.6
    again = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert "up to date" in again.stdout


def test_dev_is_scored_where_there_is_no_test(arguments, promoters, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(promoters, data, ignore=shutil.ignore_patterns("test.csv"))
    main([*arguments, "--data", str(data), "--out", str(tmp_path / "out"), "--models", "linear"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tables"]["data"]["evaluated_on"] == "dev"
    assert len((tmp_path / "out" / "predictions.tsv").read_text().splitlines()) == 1 + 60


def test_what_recurs_is_reported_and_dropped_on_request(arguments, promoters, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(promoters, data)
    _, *rows = (data / "train.csv").read_text().splitlines()
    opposite = rows[3].split(",")[0].translate(str.maketrans("ACGT", "TGCA"))[::-1]
    with open(data / "test.csv", "a") as file:
        file.write(f"{rows[0]}\n{rows[1]}\n{opposite},{rows[3][-1]}\n")
    counts, given = [], [*arguments, "--data", str(data), "--models", "linear"]
    for name, more in (("kept", []), ("dropped", ["--dedup"])):
        main([*given, "--out", str(tmp_path / name), *more])
        printed = capsys.readouterr().out
        assert "2 stand in an earlier split, 1 as reverse complement" in printed
        assert name in printed
        table = json.loads((tmp_path / name / "results.json").read_text())["tables"]["data"]
        counts.append((table["rows"]["test"], table["audit"]["test"]["seen"], table["audit"]["test"]["seen_rc"]))
    assert counts == [(83, 2, 1), (80, 2, 1)]


def test_simulated_data_are_called_simulated(arguments, promoters, tmp_path, capsys):
    data = tmp_path / "demo" / "promoter"
    shutil.copytree(promoters, data)
    (data.parent / "manifest.json").write_text('{"simulated": true}')
    main([*arguments, "--data", str(data), "--out", str(tmp_path / "out"), "--models", "linear"])
    assert json.loads((tmp_path / "out" / "results.json").read_text())["simulated"] is True
    assert "simulated" in capsys.readouterr().out


def test_a_collapsed_model_is_named(arguments, tmp_path, capsys, monkeypatch):
    def one_class(train, labels, test, seed):
        return np.tile([0.9, 0.1], (len(test), 1))

    monkeypatch.setattr(linear_baseline, "predict", one_class)
    main([*arguments, "--out", str(tmp_path / "out"), "--models", "linear"])
    assert scores(tmp_path / "out")["linear"]["collapsed"] == 1
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("linear")]
    assert "collapsed" in row


def test_sequences_that_the_encoder_cannot_hold_are_counted(arguments, promoters, write_table, tmp_path, capsys):
    """64 tokens of [CLS], 3-mers and [SEP] hold 64 bp; a run says how many rows are cut to that."""
    data = tmp_path / "data"
    shutil.copytree(promoters, data)
    rng = np.random.default_rng(1)
    long = [("".join(rng.choice(list("ACGT"), n)), n % 2) for n in (64, 65, 80, 81)]
    write_table(data / "test.csv", [*long, ("ACGTACGTAC", 0), ("ACGTACGTAG", 1)])
    main([*arguments, "--data", str(data), "--out", str(tmp_path / "out"), "--models", "scratch", "--epochs", "1"])
    printed = capsys.readouterr().out
    assert any("3 sequences" in line and "64" in line for line in printed.splitlines())


def test_an_unknown_task_names_those_there_are(refused):
    line = refused("--task", "enhancer")
    assert "--task enhancer" in line
    assert "promoter" in line


def test_an_unknown_model_is_named(refused):
    line = refused("--models", "linear", "resnet")
    assert "--models resnet" in line
    assert all(name in line for name in MODELS)


def test_a_missing_checkpoint_names_the_command_that_makes_it(refused, tmp_path):
    line = refused("--checkpoint", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in line
    assert "python pretrain/convert.py" in line


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_description_of_a_checkpoint_is_named(refused, checkpoint, tmp_path, content):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / "genebert.json").write_text(content)
    assert str(tmp_path / "damaged" / "genebert.json") in refused("--checkpoint", tmp_path / "damaged")


def test_a_checkpoint_without_weights_is_named(refused, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "partial", ignore=shutil.ignore_patterns("model.safetensors"))
    assert str(tmp_path / "partial" / "sequence") in refused("--checkpoint", tmp_path / "partial")


def test_missing_data_are_named(refused, tmp_path):
    assert f"{tmp_path / 'nowhere'}: no such folder" in refused("--data", tmp_path / "nowhere")


def test_a_bad_row_is_named_with_its_line(refused, promoters, tmp_path):
    shutil.copytree(promoters, tmp_path / "data")
    with open(tmp_path / "data" / "dev.csv", "a") as file:
        file.write("ACGTXACGT,0\n")
    assert f"{tmp_path / 'data' / 'dev.csv'}:62: " in refused("--data", tmp_path / "data")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_which_dedup_leaves_no_two_classes_is_refused(refused, promoters, tmp_path, split):
    data = tmp_path / "data"
    shutil.copytree(promoters, data)
    header, *rows = (data / "train.csv").read_text().splitlines()
    if split == "train":
        (data / "train.csv").write_text(f"{header}\n{rows[0][:-1]}0\n{rows[0][:-1]}1\n")
    else:
        shutil.copyfile(data / "train.csv", data / "test.csv")
    assert str(data / f"{split}.csv") in refused("--data", data, "--dedup", "--models", "linear")


@pytest.mark.parametrize(("flag", "value"), [("--batch_size", 0), ("--epochs", -1), ("--seed", -1), ("--rate", 1)])
def test_a_flag_or_value_that_no_run_can_have_is_refused(refused, flag, value):
    assert flag in refused(flag, value, "--models", "scratch")


def test_a_folder_with_files_of_the_users_is_kept_even_on_overwrite(arguments, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--out", str(tmp_path), "--models", "linear", "--overwrite"])
    assert exit_.value.code == 2
    assert "not of this program" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("at", ["--data", "--checkpoint"])
def test_the_input_is_not_overwritten(arguments, at, capsys):
    folder = Path(arguments[arguments.index(at) + 1])
    before = state(folder)
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--out", str(folder), "--models", "linear", "--overwrite"])
    assert exit_.value.code == 2
    assert "holds the input" in capsys.readouterr().err
    assert state(folder) == before


def test_results_of_other_arguments_are_kept_unless_overwritten(out, arguments, capsys):
    before = state(out)
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--out", str(out), "--epochs", "1"])
    assert exit_.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert state(out) == before
