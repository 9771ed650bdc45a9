"""A checkpoint of another run ends in one line and changes nothing; which of its own a run keeps."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.errors import InputError
from data_prep.shard_reader import read_manifest
from pretrain import checkpoint, convert, main, resumption
from pretrain.config import RunConfig

STEPS = 20


@pytest.fixture
def run_dir(tmp_path, model_config, shards) -> Path:
    """A run folder as one of 8 of 20 steps leaves it, but without DeepSpeed's files, which are read last."""
    folder = tmp_path / "earlier"
    manifest = read_manifest(shards)
    identity = {"motifs": manifest["motifs"], "shards": manifest["fingerprint"], "seed": 0, "global_batch": 8}
    identity["optimizer"] = "adamw"
    identity |= {name: getattr(RunConfig(ds_config=""), name) for name in resumption.OBJECTIVE}
    record = {"steps": STEPS, "motifs": manifest["motifs"]}
    for step in (4, 8):
        kept = checkpoint.folder(folder) / checkpoint.name_of(step)
        kept.mkdir(parents=True)
        state = {"step": step, "model": asdict(model_config), "run": identity, "config": record, "best": None}
        state |= {"world_size": 1, "files": {}, "epoch": 0}
        (kept / checkpoint.STATE).write_text(json.dumps(state))
    (checkpoint.folder(folder) / "latest").write_text("step-000008")
    return folder


@pytest.fixture
def alter_state(run_dir) -> Callable[..., None]:
    """A function that replaces entries of the newest checkpoint's description of its run."""

    def alter(**changed: object) -> None:
        path = checkpoint.newest(run_dir) / checkpoint.STATE
        state = json.loads(path.read_text())
        path.write_text(json.dumps(state | {"run": state["run"] | changed}))

    return alter


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hidden_size", 64], "hidden_size 32 there, 64 here"),
        (["--k", 4], "k 3 there, 4 here"),
        (["--seed", 1], "seed 0 there, 1 here"),
    ],
)
def test_a_checkpoint_of_another_model_or_seed_is_refused(refused, run_dir, flags, said):
    line = refused(*flags, out=run_dir)
    assert str(checkpoint.newest(run_dir)) in line
    assert said in line


def test_a_checkpoint_of_another_batch_is_refused(refused, run_dir, ds_config):
    assert "global_batch 8 there, 16 here" in refused("--ds_config", ds_config(16), out=run_dir)


def test_a_checkpoint_of_other_shards_is_refused(refused, run_dir, alter_state, shards):
    alter_state(shards="others")
    assert f"shards others there, {read_manifest(shards)['fingerprint']} here" in refused(out=run_dir)


def test_a_checkpoint_of_other_motifs_names_how_many(refused, run_dir, alter_state):
    alter_state(motifs=["MA0001.1", "MA0002.1"])
    assert "motifs 2 (MA0001.1 ...) there, 12 (" in refused(out=run_dir)


def test_fewer_steps_than_were_done_are_refused(refused, run_dir):
    line = refused("--steps", 6, out=run_dir)
    assert "8 steps were done already, more than --steps 6" in line


def test_no_resume_refuses_a_folder_with_a_checkpoint(refused, run_dir):
    line = refused("--no_resume", out=run_dir)
    assert f"{run_dir}: holds a checkpoint already" in line
    assert "--out" in line


def test_a_run_of_the_same_arguments_that_is_done_changes_nothing(refused, run_dir, capsys, preset, shards, ds_config):
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    given = ["--ds_config", ds_config(), "--config", preset, "--shards", shards, "--out", run_dir, "--steps", 8]
    main.main([*map(str, given)])
    assert "complete, 8 steps were done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


# The converter.


@pytest.fixture
def not_converted(tmp_path, capsys, one_line) -> Callable[..., str]:
    """Runs pretrain/convert.py where it must be refused, leaving nothing; gives the line."""

    def run(*arguments: object) -> str:
        out = tmp_path / "converted"
        with pytest.raises(SystemExit) as exit_:
            convert.main([str(arguments[0]), str(out), *map(str, arguments[1:])])
        assert exit_.value.code == 2
        assert not list(tmp_path.glob("converted*"))
        return one_line(capsys.readouterr().err)

    return run


def test_a_folder_without_a_checkpoint_is_not_converted(not_converted, tmp_path):
    line = not_converted(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: holds no checkpoint" in line
    assert "pretrain/main.py" in line


def test_an_unknown_checkpoint_names_those_there_are(not_converted, run_dir):
    line = not_converted(run_dir, "--checkpoint", "step-000006")
    assert "step-000006: no such checkpoint" in line
    assert "step-000004, step-000008" in line


def test_the_best_of_a_run_that_was_never_evaluated_is_not_converted(not_converted, run_dir):
    assert f"{run_dir}: was never evaluated" in not_converted(run_dir, "--checkpoint", "best")


def test_a_checkpoint_without_deepspeeds_files_is_not_converted(not_converted, run_dir):
    assert str(checkpoint.newest(run_dir)) in not_converted(run_dir)


def test_a_folder_with_other_files_is_not_replaced_by_a_converted_model(run_dir, tmp_path, capsys, one_line):
    kept = tmp_path / "mine" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("chapter one")
    with pytest.raises(SystemExit) as exit_:
        convert.main([str(run_dir), str(kept.parent)])
    assert exit_.value.code == 2
    assert "not of this program" in one_line(capsys.readouterr().err)
    assert list(kept.parent.iterdir()) == [kept]


# Saving.


@dataclass
class OneFileEngine:
    """What `checkpoint.save` asks of DeepSpeed's engine: each checkpoint is one file."""

    checkpoint_engine: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(save=lambda state_dict, path: Path(path).write_text("weights"))
    )

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir(parents=True)
        self.checkpoint_engine.save({}, str(Path(folder) / tag / "weights.pt"))


def save(run_dir: Path, step: int, keep_last: int, best: int | None = None) -> None:
    state = {"model": {}, "run": {}, "config": {}, "epoch": 0, "best": {"step": best} if best else None}
    checkpoint.save(OneFileEngine(), run_dir, step, state, keep_last)


def steps(run_dir: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.written(run_dir)]


def test_the_last_and_the_best_checkpoints_are_kept(world_of_one, tmp_path):
    for step in range(1, 7):
        save(tmp_path, step, keep_last=2, best=2 if step > 1 else None)
    assert steps(tmp_path) == [6, 5, 2]


def test_torn_checkpoints_do_not_count_as_the_last(world_of_one, tmp_path):
    """A run that went on from step 2, passing over a torn 3, keeps what it writes."""
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=3)
    (checkpoint.folder(tmp_path) / checkpoint.name_of(3) / "weights.pt").write_text("cut")
    save(tmp_path, 2, keep_last=1)
    assert checkpoint.newest(tmp_path).name == checkpoint.name_of(2)
    assert steps(tmp_path) == [3, 2]


def test_a_best_checkpoint_that_is_gone_is_no_longer_the_best(world_of_one, tmp_path):
    save(tmp_path, 1, keep_last=1)
    save(tmp_path, 2, keep_last=2, best=1)
    newest = checkpoint.newest(tmp_path)
    assert resumption.best_of(newest) == {"step": 1}
    shutil.rmtree(newest.with_name(checkpoint.name_of(1)))
    assert resumption.best_of(newest) is None


def test_a_run_folder_that_nodes_do_not_share_is_refused(world_of_one, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    resumption.check_shared(tmp_path / "config.json")
    monkeypatch.setattr(resumption, "SECONDS_TO_SEE", 0)
    monkeypatch.setattr(resumption.ranks, "is_first", lambda: False)  # what rank 0 wrote is not what is seen here
    with pytest.raises(InputError, match="all nodes must share --out"):
        resumption.check_shared(tmp_path / "config.json")
