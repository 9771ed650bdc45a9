"""The record of a run: metrics.jsonl, figures, samples, and a W&B run read back from its file."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from wandb.proto import wandb_internal_pb2

from data_prep.shard_reader import ShardReader, read_manifest
from pretrain import checkpoint, run_log
from pretrain.batches import MicroBatches
from pretrain.config import RunConfig
from pretrain.convert import load_model
from pretrain.ds_config import BatchLayout
from pretrain.evaluation import evaluate
from pretrain.run_log import RunLog, git_commit
from pretrain.run_record import figure_path, read_figures, read_metrics, read_samples
from pretrain.trainer import Trainer
from pretrain.wandb_log import mode_of

ROOT = Path(__file__).parents[2]
CONFIG = {"run": {"config": "genebert-tiny", "wandb_artifact": False}, "genome": {"name": "hg19"}}

BOTH = {
    *("loss/total", "loss/mgm", "loss/ngsp", "loss/srm", "mgm/accuracy", "mgm/perplexity", "ngsp/accuracy"),
    *("srm/recall_at_1", "srm/recall_at_5"),
}
OF_A_STEP = BOTH | {
    *("srm/temperature", "optim/lr", "optim/grad_norm"),
    *("perf/samples_per_s", "perf/tokens_per_s", "perf/mfu", "perf/data_wait_share", "perf/memory_gib"),
}
BY_CELL_TYPE = ("loss/mgm", "loss/ngsp", "mgm/accuracy", "ngsp/accuracy", "srm/recall_at_1")
OF_AN_EVALUATION = {
    *(f"val/{name}" for name in BOTH | {"srm/chance"}),
    *(f"val/{name}/{cell_type}" for name in BY_CELL_TYPE for cell_type in ("alpha", "beta", "gamma")),
}


def wandb_records(run_dir: Path) -> list[wandb_internal_pb2.Record]:
    """The records of a run folder's one W&B file: a LevelDB log after seven bytes (blocks of 32 KiB; each part of a
    record with a crc, its length, and 1 for a whole record, 2, 3, 4 for its first, middle and last part)."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    content, place, record, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def history(run_dir: Path) -> list[dict]:
    """What was logged to W&B, row by row, without what W&B adds."""
    rows = []
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items() if not name.startswith("_")})
    return rows


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, deepspeed, pretrain, ds_config) -> Path:
    """A run on two ranks whose first rank was killed past a checkpoint, and that went on, logged to W&B offline."""
    out = tmp_path_factory.mktemp("runs") / "resumed"
    arguments = ("--ds_config", str(ds_config(9)), "--out", str(out), "--save_every", "8", "--wandb", "offline")
    arguments += ("--wandb_artifact", "--workers", "0")
    process = deepspeed(2, *arguments)
    deadline = time.monotonic() + 240
    while max((row["step"] for row in read_metrics(out)), default=0) < 11:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, process.kill() or process.communicate()[0]
        time.sleep(0.02)
    os.kill(first_rank(process.pid), signal.SIGKILL)
    process.communicate(timeout=60)
    assert "resuming at step" in pretrain(2, *arguments)
    return out


def first_rank(launcher: int) -> int:
    """The process that runs pretrain/main.py as rank 0 below a launcher."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    below = {launcher}
    while True:
        more = below | {int(pid) for pid, parent, _ in rows if int(parent) in below}
        if more == below:
            break
        below = more
    (found,) = [int(pid) for pid, _, args in rows if int(pid) in below and "-u pretrain/main.py --local_rank=0" in args]
    return found


@pytest.mark.slow
def test_wandb_holds_every_name_and_each_step_once_after_a_resume(resumed):
    rows = history(resumed)
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    training = [row for row in rows if "loss/total" in row]
    held_out = [row for row in rows if "val/loss/total" in row]
    images = [row for row in rows if any(name.startswith("figures/") for name in row)]
    assert [row["step"] for row in training] == list(range(1, 21))
    assert [row["step"] for row in held_out] == [row["figures/step"] for row in images] == [10, 20]
    assert all(row.keys() >= OF_A_STEP for row in training)
    assert all(row.keys() - {"step"} == OF_AN_EVALUATION for row in held_out)
    for row in images:
        assert {name.split("/")[1] for name in row if name.startswith("figures/")} == {"step", "similarity", "tsne"}
    assert len(rows) == 24


@pytest.mark.slow
def test_wandb_and_metrics_jsonl_hold_the_same_numbers(resumed):
    logged = [row for row in history(resumed) if not any(name.startswith("figures/") for name in row)]
    assert logged == [pytest.approx(row) for row in read_metrics(resumed)]


@pytest.mark.slow
def test_wandb_holds_the_configuration_the_commit_and_the_checkpoints(resumed):
    records = wandb_records(resumed)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    written = json.loads((resumed / "config.json").read_text())
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert {name: config[name] for name in written} == written
    assert written["commit"] == git_commit()
    assert (run.run_id, run.display_name) == ((resumed / "wandb_id").read_text(), "resumed")
    assert list(run.tags) == ["smallest", "genome"]

    artifacts = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    artifacts = [artifact for artifact in artifacts if artifact.type == "model"]
    newest = checkpoint.newest(resumed)
    best = checkpoint.name_of(checkpoint.read_state(newest)["best"]["step"])
    aliases = {json.loads(artifact.metadata)["checkpoint"]: set(artifact.aliases) for artifact in artifacts}
    expected = {newest.name: {"latest"}}
    expected.setdefault(best, set()).add("best")
    assert aliases == expected
    for artifact in artifacts:
        folder = newest.parent / json.loads(artifact.metadata)["checkpoint"]
        files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        assert files == {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_evaluation_on_two_ranks_gives_what_one_gives(resumed, shards, model_config, world_of_one):
    """By cell type too, from the weights of the last checkpoint, all held-out samples in one process."""
    manifest = read_manifest(shards)
    model = load_model(checkpoint.newest(resumed), model_config, len(manifest["motifs"]))
    engine = Engine(model)
    config = RunConfig(ds_config="", workers=0)
    dataset = MicroBatches(
        ShardReader(shards, "val"), k=model_config.k, max_tokens=model_config.max_tokens, seed=config.seed
    )
    found = evaluate(Trainer(engine, config, BatchLayout.of(9, 1, 3), 20), dataset)
    written = [row for row in read_metrics(resumed) if "val/loss/total" in row][-1]
    assert found.metrics.keys() == OF_AN_EVALUATION
    assert found.metrics == pytest.approx({name: written[name] for name in found.metrics}, rel=1e-5)
    last = [sample for sample in read_samples(resumed) if sample["step"] == 20]
    for one, other in zip(found.samples, last, strict=False):
        assert (one["bases"], one["hidden"], one["start"]) == (other["bases"], other["hidden"], other["start"])


class Engine:
    """DeepSpeed's, as far as an evaluation asks."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.eval, self.train = module.eval, module.train

    def __call__(self, *arguments):
        return self.module(*arguments)


@pytest.mark.slow
def test_the_report_of_a_run_shows_its_results(resumed, tmp_path):
    out = tmp_path / "page.html"
    command = [sys.executable, "pretrain/report.py", str(resumed), "--out", str(out)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(out) in printed
    page = out.read_text()
    last = [row for row in read_metrics(resumed) if "val/loss/total" in row][-1]
    for name in ("val/loss/mgm", "val/loss/mgm/beta", "val/loss/ngsp/gamma"):
        assert f"{last[name]:.4g}" in page
    assert page.count("data:image/png;base64,") == 4
    assert "20 of 20: complete" in page
    assert git_commit() in page


def rows_of(log: RunLog) -> list[int]:
    return [row["step"] for row in read_metrics(log.run_dir)]


def test_a_resumed_record_drops_what_lies_past_its_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0, CONFIG, "off", "p")
    for step in range(1, 7):
        log.write(step, {"loss/total": 1.0})
        log.samples(step, [{"bases": "ACGT"}])
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / f"tsne-{step:06d}.png").touch()
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    log = RunLog(tmp_path, 4, CONFIG, "off", "p")
    assert rows_of(log) == [1, 2, 3, 4]
    assert list(read_figures(tmp_path)) == [1, 2, 3, 4]
    assert [sample["step"] for sample in read_samples(tmp_path)] == [1, 2, 3, 4]
    log.close()


def test_wandb_is_not_imported_where_it_is_off(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pretrain.run_log import RunLog\n"
        f"RunLog(Path(sys.argv[1]), 0, {CONFIG!r}, 'off', 'p').close()\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_a_full_disk_is_a_word_and_not_the_end_of_the_run(tmp_path, monkeypatch, capsys):
    log = RunLog(tmp_path, 0, CONFIG, "off", "p")
    with open("/dev/full", "a", buffering=1) as full:
        monkeypatch.setattr(log, "_file", full)
        for step in (1, 2):
            log.write(step, {"loss/total": 1.0})
        log.close()
    expected = f"warning: {tmp_path / 'metrics.jsonl'}: cannot be written: No space left on device\n"
    assert capsys.readouterr().err == expected


@pytest.fixture
def server(monkeypatch) -> SimpleNamespace:
    """In place of wandb: a server that keeps what runs log, by id, and can fail."""
    import wandb

    kept = SimpleNamespace(rows=[], fails=False, finished=[], ids=[])

    def init(**settings):
        kept.ids.append(settings["id"])
        summary = {name: value for row in kept.rows for name, value in row.items()}

        def log(row: dict) -> None:
            if kept.fails:
                raise ConnectionError("the\nnetwork is gone")
            kept.rows.append(row)

        return SimpleNamespace(
            id=settings["id"],
            resumed=bool(kept.rows) and settings["resume"] == "allow",
            summary=summary,
            log=log,
            define_metric=lambda *_, **__: None,
            offline=False,
            finish=lambda exit_code: kept.finished.append(exit_code),
        )

    monkeypatch.setattr(wandb, "init", init)
    return kept


def test_online_a_resumed_run_sends_what_the_server_lacks_and_nothing_twice(tmp_path, server):
    log = RunLog(tmp_path, 0, CONFIG, "online", "p")
    for step in range(1, 13):
        log.write(step, {"loss/total": 1 / step})
    server.rows = server.rows[:7]  # the last ones were still on their way
    log = RunLog(tmp_path, 10, CONFIG, "online", "p")
    for step in range(11, 15):
        log.write(step, {"loss/total": 1 / step})
    assert [row["step"] for row in server.rows] == list(range(1, 15))
    log = RunLog(tmp_path, 12, CONFIG, "online", "p")
    for step in range(13, 17):
        log.write(step, {"loss/total": 1 / step})
        if step % 2 == 0:
            log.write(step, {"val/loss/total": 1 / step})  # that of step 14 was not there when the run was killed
    assert [row["step"] for row in server.rows] == [*range(1, 15), 14, 15, 16, 16]
    assert rows_of(log) == [*range(1, 15), 14, 15, 16, 16]


def test_online_figures_that_are_late_are_sent_once_and_move_no_other_curve(tmp_path, server):
    log = RunLog(tmp_path, 0, CONFIG, "online", "p")
    (tmp_path / "figures").mkdir()
    for step in range(1, 13):
        log.write(step, {"loss/total": 1 / step})
        if step in (4, 8):
            matplotlib.image.imsave(figure_path(tmp_path, "tsne", step), np.eye(4))
        if step == 6:
            log.figures(4, read_figures(tmp_path)[4])
    RunLog(tmp_path, 12, CONFIG, "online", "p")
    assert [row["step"] for row in server.rows if "step" in row] == list(range(1, 13))
    assert [row["figures/step"] for row in server.rows if "figures/step" in row] == [4, 8]


def test_online_a_run_that_begins_anew_is_another_one(tmp_path, server):
    for resumed_at in (0, 0, 1):
        log = RunLog(tmp_path, resumed_at, CONFIG, "online", "p")
        log.write(resumed_at + 1, {"loss/total": 1.0})
    first, anew, resumed = server.ids
    assert first != anew
    assert anew == resumed == (tmp_path / "wandb_id").read_text()


def test_a_run_that_fails_is_finished_as_failed_and_one_that_ends_as_done(tmp_path, server, monkeypatch):
    calls = []
    for name in ("done", "failed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(run_log.ranks, "before_failing", calls.append)
    RunLog(tmp_path / "done", 0, CONFIG, "online", "p").close()
    RunLog(tmp_path / "failed", 0, CONFIG, "online", "p")
    for call in calls:
        call()
    assert server.finished == [0, 1]


@pytest.mark.parametrize(("wished", "mode"), [("disabled", "off"), ("dryrun", "offline"), ("offline", "offline")])
def test_the_mode_that_the_environment_asks_for(monkeypatch, wished, mode):
    monkeypatch.setenv("WANDB_MODE", wished)
    assert mode_of("auto") == mode


def test_wandb_that_fails_is_a_word_and_not_the_end_of_the_run(tmp_path, server, capsys):
    log = RunLog(tmp_path, 0, CONFIG, "online", "p")
    server.fails = True
    for step in (1, 2, 3):
        log.write(step, {"loss/total": 1.0})
    log.close()
    assert rows_of(log) == [1, 2, 3]
    assert capsys.readouterr().err == "warning: W&B: ConnectionError: the network is gone; the run goes on without it\n"


def test_the_commit_is_that_of_this_checkout_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "__file__", str(tmp_path / "pretrain" / "run_log.py"))
    assert git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == head
    (tmp_path / "file").write_text("2")
    assert git_commit() == f"{head}-dirty"
