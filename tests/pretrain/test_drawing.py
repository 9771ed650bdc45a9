"""The process that draws beside a run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pretrain import drawing
from pretrain.drawing import Drawing, Embeddings
from pretrain.run_log import RunLog
from pretrain.run_record import read_figures, undrawn_path

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def embeddings(n: int) -> Embeddings:
    vectors = np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32)
    return Embeddings(vectors, vectors, vectors, np.array(["type"] * n))


@pytest.fixture
def log(tmp_path, monkeypatch) -> RunLog:
    log = RunLog(tmp_path, 0, {}, "off", "p")
    log.logged = []
    monkeypatch.setattr(log, "figures", lambda step, figures: log.logged.append((step, set(figures))))
    log.write(1, {"loss/total": 1.0})
    return log


def test_figures_are_logged_in_the_order_of_steps_once_they_are_ready(log, tmp_path):
    drawing = Drawing(log, 8, 3)
    began = time.monotonic()
    drawing.evaluation(10, embeddings(300))
    drawing.look()
    assert time.monotonic() - began < 1
    assert log.logged == []
    drawing.evaluation(20, embeddings(5))
    drawing.wait()
    assert log.logged == [(10, {"similarity", "tsne"}), (20, {"similarity"})]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        *("similarity-000010.png", "tsne-000010.png", "similarity-000020.png")
    }
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert not psutil.Process().children()


def test_what_fails_there_is_one_warning(log, tmp_path, capsys):
    drawing = Drawing(log, 8, 3)
    (tmp_path / "curves.png").mkdir()
    for step in (10, 20):
        drawing.evaluation(step, embeddings(5))
    drawing.wait()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'figures'}: those of step 10 are not drawn: IsADirectoryError: ")
    assert log.logged == [(10, set()), (20, set())]


def test_a_drawing_that_takes_too_long_is_done_without(log, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drawing, "LONGEST", 0.2)
    late = Drawing(log, 8, 3)
    late.evaluation(10, embeddings(300))
    late.wait()
    assert capsys.readouterr().err.endswith("those of step 10 are not drawn: not ready after 0.2 s\n")
    assert not undrawn_path(tmp_path, 10).exists()
    assert not psutil.Process().children()


def test_what_is_left_at_the_end_of_a_run_is_drawn_by_the_next_up_to_its_checkpoint(log, tmp_path, capsys):
    ended = Drawing(log, 8, 3)
    ended.evaluation(10, embeddings(5))
    psutil.Process().children()[0].terminate()  # as a scheduler does
    ended.leave(60)
    ended.evaluation(20, embeddings(5))
    ended.leave(0)
    assert (log.logged, read_figures(tmp_path)) == ([], {})
    (tmp_path / "figures" / "similarity-000020.png").touch()
    resumed = Drawing(log, 8, 3)
    resumed.resume(10)
    resumed.wait()
    assert log.logged == [(10, {"similarity"})]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["similarity-000010.png"]
    assert capsys.readouterr().err == ""


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from pretrain.drawing import Drawing, Embeddings
from pretrain.run_log import RunLog
vectors = np.random.default_rng(0).normal(size=(5000, 256)).astype(np.float32)
log = RunLog(Path(sys.argv[1]), 0, {}, "off", "p")
Drawing(log, 8, 3).evaluation(10, Embeddings(vectors, vectors, vectors, np.array(["type"] * 5000)))
print("drawing", flush=True)
time.sleep(60)
"""


def test_the_process_ends_with_the_run(tmp_path):
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}  # else DeepSpeed prints that it found no GPU
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "drawing\n"
    (process,) = psutil.Process(run.pid).children()
    until = time.monotonic() + 60
    while not list((tmp_path / "figures").glob("*.png")):  # the t-SNE is next
        assert time.monotonic() < until
        time.sleep(0.05)
    run.kill()
    run.communicate()
    assert psutil.wait_procs([process], timeout=3)[1] == []
    assert [path.name for path in (tmp_path / "figures").glob("*.png")] == ["similarity-000010.png"]
    assert undrawn_path(tmp_path, 10).exists()
