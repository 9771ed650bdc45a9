"""Which runs a table needs, how its rows are read, and what is said where something is missing."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from finetune import tables
from finetune.paper_tables import LAMBDAS, TABLES
from finetune.paper_values import REGION_ENCODERS
from finetune.table_files import Row, Score, read_csv
from finetune.table_jobs import ROOT, Job, in_order
from finetune.table_plan import Part, Plan, by_cell_type, by_tissue, models_of, rows_of
from finetune.table_runs import PAPER, SMALL, MissingDataError, Runs, model_config
from pretrain.flops import model_flops
from pretrain.model import region_encoder, region_width


def runs(scale=SMALL, check: bool = False) -> Runs:
    return Runs(scale, Path("data"), Path("out"), check=check)


def jobs_of(name: str, scale=SMALL) -> list[Job]:
    return in_order(TABLES[name](runs(scale)).jobs)


def after(command: tuple[str, ...], name: str) -> list[str]:
    """What stands after each argument of this name."""
    return [value for word, value in pairwise(command) if word == name]


@pytest.mark.parametrize("scale", [SMALL, PAPER], ids=["small", "paper"])
def test_all_tables_together_share_their_runs(scale):
    one = runs(scale)
    plans = [make(one) for make in TABLES.values()]
    alone = sum(len(in_order(plan.jobs)) for plan in plans)
    together = in_order([job for plan in plans for job in plan.jobs])
    assert len(together) < 0.85 * alone
    assert len({job.name for job in together}) == len(together)
    pretrainings = [job.command for job in together if job.name.startswith("pretrain-")]
    without_folder = [
        tuple(word for word in command if not word.startswith("out/pretrain")) for command in pretrainings
    ]
    assert len(set(without_folder)) == len(pretrainings)


def test_the_losses_are_all_that_table_5_varies():
    commands = {job.name: job.command for job in jobs_of("table5") if job.name.startswith("pretrain-")}
    assert set(commands) == {"pretrain-all", "pretrain-mgm", "pretrain-mgm-ngsp"}
    rest = {name: [word for word in command if "pretrain/" not in word] for name, command in commands.items()}
    assert rest["pretrain-mgm-ngsp"] == [*rest["pretrain-all"], "--srm_weight", "0"]
    assert rest["pretrain-mgm"] == [*rest["pretrain-all"], "--ngsp_weight", "0", "--srm_weight", "0"]


def test_a_batch_is_that_of_the_deepspeed_configuration():
    one = runs(PAPER)
    jobs = in_order(TABLES["table8"](one).jobs)
    batches = {}
    for job in jobs:
        if job.name.startswith("pretrain-"):
            (path,) = after(job.command, "--ds_config")
            batches[job.name] = one.ds_configs[Path(path)]["train_batch_size"]
    assert {name: batch for name, batch in batches.items() if "batch" in name} == {
        f"pretrain-batch-{batch}": batch for batch in (16, 32, 64, 128, 256, 512)
    }
    assert batches["pretrain-lambda-5"] == batches["pretrain-all"] == 2000  # lambda 0.5 is that of all other tables
    assert len([name for name in batches if "lambda" in name]) == len(LAMBDAS) - 1


def test_warm_up_keeps_its_share_of_the_steps():
    one = runs(SMALL)
    one.pretrained("some", steps=1000)
    (content,) = one.ds_configs.values()
    assert content["scheduler"]["params"]["total_num_steps"] == 1000
    assert content["scheduler"]["params"]["warmup_num_steps"] == 100


def test_the_hours_are_flops_over_rate():
    job = runs(PAPER).pretrained("all").needs[0]
    flops = 120_000 * 2000 * model_flops(model_config("genebert-base"))
    assert job.hours == pytest.approx(flops / (0.26 * 989e12) / 3600)
    assert replace(runs(PAPER), mfu=0.52).pretrained("all").needs[0].hours == pytest.approx(job.hours / 2)


@pytest.mark.parametrize("label", REGION_ENCODERS)
def test_every_region_encoder_of_table_7_can_be_built_small_and_reads_an_image(label):
    name, small = REGION_ENCODERS[label]
    config = replace(
        model_config(SMALL.preset), region_encoder=name, region_encoder_arguments=json.dumps(small), layers=1
    )
    encoder = region_encoder(config).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 1, *small["img_size"])).shape == (1, region_width(encoder))
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 1e6


@pytest.mark.parametrize("label", REGION_ENCODERS)
def test_every_region_encoder_of_table_7_is_known_at_full_size(label):
    (command,) = {
        job.command for job in jobs_of("table7", PAPER) if job.name == f"pretrain-region-{label.lower()}"
    } or {runs(PAPER).pretrained("all").needs[0].command}
    name = (after(command, "--region_encoder") or [model_config("genebert-base").region_encoder])[0]
    assert name == REGION_ENCODERS[label][0]
    size = {"384": 384, "224": 224}.get(label.rpartition("-")[2], 224)
    with torch.device("meta"):
        encoder = region_encoder(replace(model_config("genebert-base"), region_encoder=name))
        assert encoder(torch.empty(1, 1, size, size)).shape == (1, region_width(encoder))


SCORES = {"precision": 0.8, "recall": 0.7, "auc": 0.9, "std": {"auc": 0.01}, "seeds": 3}


def test_rows_are_read_off_the_results():
    results = {"tables": {"promoter": {"scores": {"pretrained": SCORES, "linear": SCORES | {"std": {}, "seeds": 1}}}}}
    columns = {"recall": "recall", "AUC": "auc"}
    rows = models_of({"pretrained": "ours", "linear": "floor"}, columns, {"pretrained": {"AUC": "0.894"}})(results)
    assert [row.label for row in rows] == ["ours", "floor"]
    assert rows[0].scores == {"recall": Score(0.7, None, 3), "AUC": Score(0.9, 0.01, 3)}
    assert (rows[0].paper, rows[1].paper) == ({"AUC": "0.894"}, {})


def test_a_collapsed_classifier_is_named():
    results = {"tables": {"hscr": {"scores": {"pretrained": SCORES | {"collapsed": 2}}}}}
    (row,) = models_of({"pretrained": "ours"}, {"AUC": "auc"})(results)
    assert row.note == "predicts one class throughout in 2 of 3 seeds"


def test_binding_sites_are_averaged_by_cell_type():
    def of(auc: float) -> dict:
        return {"scores": {"pretrained": SCORES | {"auc": auc}}}

    results = {
        "tables": {"smooth_muscle_cell_CTCF": of(0.8), "smooth_muscle_cell_SRF": of(0.6), "neuron_REST": of(0.7)}
    }
    rows = by_cell_type(results, {"pretrained": "ours"})
    assert [(row.label, row.scores["AUC"].mean) for row in rows] == [
        ("smooth muscle cell (2): ours", pytest.approx(0.7)),
        ("neuron (1): ours", pytest.approx(0.7)),
    ]


def test_expression_is_scored_over_all_tissues_and_by_tissue():
    scores = {"mse_log": 1.5, "mse_log/leaf": 1.0, "mse_log/root": 2.0, "std": {"mse_log/leaf": 0.1}, "seeds": 3}
    results = {"tables": {"expression": {"scores": {"mean": scores, "kmers": scores | {"mse_log/root": 1.8}}}}}
    rows = by_tissue(results, {"mean": "mean", "kmers": "5-mers"})
    found = {row.label: row.scores["MSE of log(TPM + 1)"] for row in rows}
    assert found == {
        "all tissues: mean": Score(1.5, None, 3),
        "all tissues: 5-mers": Score(1.5, None, 3),
        "leaf: mean": Score(1.0, 0.1, 3),
        "leaf: 5-mers": Score(1.0, 0.1, 3),
        "root: mean": Score(2.0, None, 3),
        "root: 5-mers": Score(1.8, None, 3),
    }


def test_rows_of_one_group_stand_together(tmp_path):
    def part(labels: list[str], name: str) -> Part:
        made = tmp_path / name
        made.write_text("{}")
        return Part(name, Job(name, ("true",), made), lambda _: [Row(label, {}) for label in labels])

    parts = (part(["CTCF: ours", "REST: ours"], "ours"), part(["REST: floor", "CTCF: floor"], "floors"))
    labels = [row.label for row in rows_of(Plan("some", (), parts, grouped=True), {})]
    assert labels == ["CTCF: ours", "CTCF: floor", "REST: ours", "REST: floor"]


# Bad input.


@pytest.fixture
def refused(capsys):
    """Runs the program where it must end with one line on stderr and exit code 2; gives the line."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            tables.main([*arguments])
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table9"], "table9: there is no such table; there are table1, table2"),
        (["table1", "--scale", "huge"], "--scale huge: give small or paper"),
        (["table1", "--parallel", "0"], "--parallel 0: give at least 1"),
        (["table1", "--mfu", "26"], "--mfu 26.0: give more than 0, at most 1"),
        (["table1", "--scale", "small", "--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(refused, arguments, said):
    assert said in refused(*arguments)


def test_a_dry_run_prints_commands_and_hours_and_writes_nothing(capsys, tmp_path):
    tables.main(["table8", "--scale", "paper", "--dry_run", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out").exists()
    trained = [line for line in lines if line.startswith("deepspeed pretrain/main.py --config genebert-base")]
    assert len(trained) == 12
    assert all(line.endswith("GPU hours") for line in trained)
    assert not any("{" in line for line in lines)
    assert lines[-2] == f"# {3 * 12} runs"
    assert "hours of one H200 (calculated)" in lines[-1]


def test_rows_whose_data_are_missing_are_named_and_the_others_made(tmp_path, capsys, monkeypatch):
    """`good` is read, `gone` has no data, `bad` fails, `after` needs what failed."""
    (tmp_path / "data").mkdir()

    def planned(runs: Runs) -> Plan:
        def job(name: str, code: str, *needs: Job) -> Job:
            return Job(name, (sys.executable, "-c", code), tmp_path / f"{name}.json", needs)

        def rows(results: dict) -> list:
            return models_of({"pretrained": "good"}, {"AUC": "auc"})(results)

        results = {"tables": {"promoter": {"scores": {"pretrained": SCORES}}}}
        good = job("good", f"open({str(tmp_path / 'good.json')!r}, 'w').write({json.dumps(results)!r})")
        bad = job("bad", "raise SystemExit('error: no luck')")
        with pytest.raises(MissingDataError) as missing:
            runs.prepared("hscr")
        parts = [("good", good), ("gone", missing.value), ("bad", bad), ("after", job("after", "", bad))]
        return Plan("A table", ("AUC",), tuple(Part(label, job, rows) for label, job in parts))

    monkeypatch.setitem(tables.TABLES, "table1", planned)
    arguments = ["table1", "--scale", "small", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_:
        tables.main(arguments)
    assert exit_.value.code == 1
    rows = {row.label: row for row in read_csv(tmp_path / "out" / "table1.csv")}
    assert list(rows) == ["good", "gone", "bad", "after"]
    assert rows["good"].scores == {"AUC": Score(0.9, 0.01, 3)}
    assert rows["gone"].note == f"{tmp_path}/data/hscr is missing; make it with: python data_prep/main.py hscr"
    assert rows["bad"].note.startswith("error: no luck; its log is")
    assert rows["after"].note == "needs bad, which failed"
    assert "not whole: see the notes" in capsys.readouterr().out


def test_missing_data_are_simulated_in_the_default_folder_alone(monkeypatch, tmp_path):
    monkeypatch.setattr("finetune.table_runs.ROOT", tmp_path)
    (job,) = runs(check=True).prepared("shards")
    assert [one.name for one in in_order([job])] == ["data-demo", "data-peaks", "data-shards"]
    assert after(job.command, "--genome") == ["data/demo/simulated_genome.fa"]
    assert len([word for word in job.command if word.endswith(".bed")]) == 6
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "data" / "shards" / "manifest.json").write_text("{}")
    assert runs(check=True).prepared("shards") == ()
    (tmp_path / "out" / "jobs").mkdir(parents=True)
    (tmp_path / "out" / "jobs" / "data-shards.json").write_text("{}")
    assert runs(check=True).prepared("shards") == (job,)  # of one's own making: the same need as before
    with pytest.raises(MissingDataError, match="mine/shards is missing"):
        replace(runs(check=True), data=Path("mine")).prepared("shards")
    with pytest.raises(MissingDataError):
        runs(PAPER, check=True).prepared("tfbs")


def test_results_that_cannot_be_had_are_dashes(tmp_path):
    plan = Plan("A table", ("AUC",), (Part("row", MissingDataError("no data"), lambda _: []),))
    (row,) = rows_of(plan, {})
    assert (row.scores, row.note) == ({"AUC": None}, "no data")


def test_the_commands_name_files_of_the_repository():
    for name in TABLES:
        for job in jobs_of(name):
            script = next(word for word in job.command if word.endswith(".py"))
            assert (ROOT / script).is_file()
