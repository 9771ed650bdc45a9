"""The HTML page of a run: self-contained, escaped, and made of runs at any stage."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_prep.errors import InputError
from pretrain.report import main, page

HOSTILE = '<script>alert("x")</script> & T\'s'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Holds tags to be closed as they were opened, and keeps text and attributes."""

    def __init__(self, content: str):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run of 40 steps at step 30, evaluated once, with a cell type and a motif of hostile names."""
    folder = tmp_path / "a <b>run"
    folder.mkdir()
    config = {
        "commit": "0123abc",
        "model": {"k": 6, "layers": 2, "hidden_size": 128, "max_tokens": 256, "region_encoder": "swin"},
        "run": {"config": "genebert-tiny", "seed": 0, "out": HOSTILE},
        "layout": {"global_batch": 100, "world_size": 2, "accumulation": 1, "micro_batch": 50},
        "steps": 40,
        "genome": {"name": HOSTILE},
        "motifs": [HOSTILE],
        "shards": "f" * 64,
        "cell_types": {HOSTILE: {"train": 10, "val": 7}, "B cells": {"train": 10, "val": 1234}},
    }
    rows = [
        {"step": step, "loss/total": 9 - step / 10, "loss/mgm": 8.0, "perf/samples_per_s": 2.0, "perf/mfu": 0.5}
        for step in (10, 20, 30)
    ]
    held_out = {"val/loss/total": 8.75, "val/loss/mgm": 8.25, "val/srm/chance": 0.01}
    safe = "script_alert_x_script_T_s"
    rows.insert(2, {"step": 20, **held_out, "val/loss/mgm/B_cells": 8.125, f"val/loss/mgm/{safe}": 8.375})
    sample = {
        **{"step": 20, "cell_type": HOSTILE, "chromosome": "chr<1>", "start": 1000, "end": 1100, "bases": "ACGT"},
        **{"hidden": [0, 1, 0, 0], "kmers": [{"at": 0, "true": "ACG", "predicted": "AAA", "probability": 0.25}]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (folder / "figures").mkdir()
    for step in (10, 20):
        (folder / "figures" / f"tsne-{step:06d}.png").write_bytes(f"png of {step}".encode())
    return folder


def test_the_page_holds_all_it_shows_and_escapes_it(run_dir):
    content = page(run_dir)
    parsed = Page(content)
    text = " ".join(parsed.text)
    assert "script" not in parsed.tags
    assert text.count(HOSTILE) >= 3
    assert parsed.sources
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert "http" not in content.replace("http-equiv", "")
    assert "a <b>run" in text


def test_the_page_tells_how_far_the_run_is_and_its_results_by_cell_type(run_dir):
    text = " ".join(" ".join(Page(page(run_dir)).text).split())
    assert "30 of 40: 8 min left at its last rate" in text  # 1,000 samples at 2 a second
    assert "8.7500 at step 20" in text
    assert f"{HOSTILE} 7 8.375" in text
    assert "B cells 1,234 8.125" in text
    assert "MFU (share of the peak) 0.5" in text
    assert "chr<1>:1,000-1,100" in text
    assert "0 ACG AAA 0.250" in text
    assert "8.318" in text  # chance: ln 4096
    assert "0123abc" in text


def test_the_newest_figure_of_a_kind_is_shown(run_dir):
    sources = Page(page(run_dir)).sources
    assert f"data:image/png;base64,{base64.b64encode(b'png of 20').decode()}" in sources
    assert f"data:image/png;base64,{base64.b64encode(b'png of 10').decode()}" not in sources


def test_a_run_that_has_just_begun_has_a_page(run_dir):
    (run_dir / "samples.jsonl").unlink()
    for figure in (run_dir / "figures").iterdir():
        figure.unlink()
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "loss/total": 9.0}\n{"step": 2, "lo')
    text = " ".join(" ".join(Page(page(run_dir)).text).split())
    assert "1 of 40: under way" in text
    assert "Held-out samples" not in text


def test_a_folder_without_a_run_is_one_line(tmp_path, run_dir, capsys):
    with pytest.raises(InputError, match=r"metrics.jsonl: not there or empty; give the --out folder"):
        page(tmp_path)
    (run_dir / "config.json").write_text("{")
    with pytest.raises(SystemExit) as exit_:
        main([str(run_dir)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {run_dir}: the record of the run cannot be read")


def test_out_names_the_pages_file(run_dir, tmp_path, capsys):
    main([str(run_dir)])
    main([str(run_dir), "--out", str(tmp_path / "x.html")])
    assert (run_dir / "report.html").read_text() == (tmp_path / "x.html").read_text()
    with pytest.raises(SystemExit):
        main([str(run_dir), "--out", str(tmp_path / "none" / "x.html")])
    assert "cannot be written: No such file or directory; choose another --out" in capsys.readouterr().err
