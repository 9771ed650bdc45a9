"""A run that is killed goes on where it was, and ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import region_store, shard_writer
from data_prep.main import main
from data_prep.output_folder import output_folder, write_json

# Runs the command, and kills it with all its processes when `function` of `module` is called for the `nth` time:
# before the call, after it, or in the middle of what it writes.
KILLED = """
import os, signal, sys, importlib
from pathlib import Path
module, function, nth, when, *arguments = sys.argv[1:]
from data_prep import region_store
region_store._CHUNK_REGIONS = 8
main_process = os.getpid()
def kill():
    os.kill(main_process, signal.SIGKILL)
    signal.pause()
owner = importlib.import_module(module)
*path, name = function.split(".")
for part in path:
    owner = getattr(owner, part)
called, calls = getattr(owner, name), 0
def counted(*given, **options):
    global calls
    calls += 1
    if calls < int(nth):
        return called(*given, **options)
    if when == "before":
        kill()
    called(*given, **options)
    if when == "middle":
        target = next(path for path in given if isinstance(path, Path))
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    kill()
setattr(owner, name, counted)
from data_prep.main import main
main(arguments)
"""
POINTS = {
    "before any base is read": ("data_prep.region_store", "_copy_bases", 1, "before"),
    "while bases are read": ("data_prep.region_store", "_copy_bases", 3, "after"),
    "before the scan": ("data_prep.region_store", "_scan", 1, "before"),
    "while a chunk is scanned": ("data_prep.region_store", "_Table.write", 12, "before"),
    "after a chunk was scanned": ("data_prep.region_store", "_scan", 3, "after"),
    "before the first shard": ("data_prep.shard_writer", "_write_shard", 1, "before"),
    "in the middle of a shard": ("data_prep.shard_writer", "write_shard", 2, "middle"),
    "between a shard and its entry": ("data_prep.shard_writer", "Path.write_text", 3, "before"),
    "after a shard": ("data_prep.shard_writer", "_write_shard", 2, "after"),
    "after the last shard": ("data_prep.shard_writer", "write_shards", 1, "after"),
    "in the middle of the summary": ("data_prep.shards", "write_json", 1, "middle"),
    "in the middle of the manifest": ("data_prep.shards", "write_json", 2, "middle"),
    "after the manifest": ("data_prep.shards", "write_json", 2, "after"),
    "before the folder's renaming": ("data_prep.output_folder", "_publish", 1, "before"),
    "in the middle of clearing scratch": ("os", "unlink", 5, "after"),
    "between scratch and renaming": ("data_prep.output_folder", "shutil.rmtree", 1, "after"),
}

USUAL = {
    "while bases are read",
    "while a chunk is scanned",
    "in the middle of a shard",
    "in the middle of the manifest",
    "between scratch and renaming",
}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "summary.json"}


def run_killed(point: tuple, arguments: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, point), *arguments], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, id=name, marks=[] if name in USUAL else pytest.mark.slow) for name, point in POINTS.items()],
)
def test_a_killed_run_ends_with_the_same_bytes(synthetic, tmp_path, monkeypatch, point):
    monkeypatch.setattr(region_store, "_CHUNK_REGIONS", 8)
    arguments = [*synthetic.arguments, "--workers", "1", "--out", str(tmp_path / "shards")]
    run_killed(point, arguments)
    assert not (tmp_path / "shards").exists()
    main(arguments)
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_what_is_done_is_not_done_again(synthetic, tmp_path, monkeypatch):
    monkeypatch.setattr(region_store, "_CHUNK_REGIONS", 8)
    arguments = [*synthetic.arguments, "--workers", "1", "--out", str(tmp_path / "shards")]
    run_killed(("data_prep.shard_writer", "_write_shard", 3, "before"), arguments)
    there = {path.name: path.stat().st_ino for path in (tmp_path / "shards.partial").glob("*.tar")}
    assert len(there) == 2

    def forbidden(*_):
        raise AssertionError("done again")

    monkeypatch.setattr(region_store, "_copy_bases", forbidden)
    monkeypatch.setattr(region_store, "_scan", forbidden)
    main(arguments)
    assert {name: (tmp_path / "shards" / name).stat().st_ino for name in there} == there
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


def test_other_options_do_not_go_on_from_a_killed_run(synthetic, tmp_path):
    arguments = [*synthetic.arguments, "--out", str(tmp_path / "shards")]
    run_killed(("data_prep.shard_writer", "_write_shard", 2, "before"), [*arguments, "--affinity", "hits"])
    main(arguments)
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


def test_a_run_killed_while_it_clears_anothers_work_leaves_nothing_to_go_on_from(synthetic, tmp_path):
    arguments = [*synthetic.arguments, "--workers", "1", "--out", str(tmp_path / "shards")]
    run_killed(("data_prep.shards", "write_json", 2, "before"), arguments)
    run_killed(("data_prep.output_folder", "Path.unlink", 8, "after"), [*arguments, "--affinity", "hits"])
    assert len(list((tmp_path / "shards.partial").glob("*.tar"))) < 4
    main(arguments)
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


@pytest.mark.parametrize("point", ["in the middle of clearing scratch", "between scratch and renaming"])
def test_finished_shards_are_not_made_again(synthetic, tmp_path, monkeypatch, capsys, point):
    arguments = [*synthetic.arguments, "--workers", "1", "--out", str(tmp_path / "shards")]
    run_killed(POINTS[point], arguments)
    monkeypatch.setattr("data_prep.shards.read_atlas", None)
    main(arguments)
    assert "up to date" in capsys.readouterr().out
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


@pytest.mark.parametrize("nth", [1, 2], ids=["before the old ones move", "between the two renamings"])
def test_a_run_killed_while_it_replaces_shards_ends_with_the_new_ones(synthetic, tmp_path, nth):
    arguments = [*synthetic.arguments, "--workers", "1", "--out", str(tmp_path / "shards")]
    main([*arguments, "--affinity", "hits"])
    # In the main process, after the fingerprint's own renaming.
    run_killed(("data_prep.output_folder", "Path.rename", 1 + nth, "before"), [*arguments, "--overwrite"])
    main([*arguments, "--overwrite"])
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


def test_what_another_program_puts_in_the_folder_meanwhile_is_kept(synthetic, tmp_path, monkeypatch, capsys):
    out = tmp_path / "shards"

    def write_beside(path, content):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("years of work")
        write_json(path, content)

    monkeypatch.setattr("data_prep.shards.write_json", write_beside)
    with pytest.raises(SystemExit) as exit_:
        main([*synthetic.arguments, "--out", str(out)])
    assert exit_.value.code == 2
    assert "was changed by another program" in capsys.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["years of work"]
    (out / "thesis.txt").unlink()
    monkeypatch.undo()
    main([*synthetic.arguments, "--out", str(out)])
    assert bytes_of(out) == bytes_of(synthetic.shards)


def test_an_error_of_the_program_keeps_what_is_done(synthetic, tmp_path, monkeypatch):
    def failing(*_):
        raise MemoryError

    arguments = [*synthetic.arguments, "--out", str(tmp_path / "shards")]
    monkeypatch.setattr("data_prep.shards.summarise", failing)
    with pytest.raises(MemoryError):
        main(arguments)
    monkeypatch.undo()
    monkeypatch.setattr(shard_writer, "write_shard", None)
    main(arguments)
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


def test_ctrl_c_keeps_what_is_done_and_says_so(synthetic, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    arguments = [*synthetic.arguments, "--out", str(tmp_path / "shards")]
    monkeypatch.setattr("data_prep.shards.write_shards", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    monkeypatch.undo()
    assert exit_.value.code == 130
    line = capsys.readouterr().err
    assert line.startswith("interrupted; what is done is kept in ")
    assert line.count("\n") == 1
    main(arguments)
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


def test_a_killed_worker_is_missed(synthetic, tmp_path, capsys, monkeypatch):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shard_writer, "write_shard", killed)
    with pytest.raises(SystemExit) as exit_:
        main([*synthetic.arguments, "--out", str(tmp_path / "shards")])
    assert exit_.value.code == 2
    assert "a worker process was killed" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
    monkeypatch.undo()
    main([*synthetic.arguments, "--out", str(tmp_path / "shards")])
    assert bytes_of(tmp_path / "shards") == bytes_of(synthetic.shards)


def test_workers_end_with_their_parent(tmp_path):
    script = (
        "import os, signal, time\n"
        "from pathlib import Path\n"
        "from data_prep import workers\n"
        "def work(folder, number):\n"
        "    (folder / str(os.getpid())).touch()\n"
        "    time.sleep(60)\n"
        f"list(workers.unordered(work, [1, 2, 3], 2, Path({str(tmp_path)!r})))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_runs_do_not_write_one_folder(synthetic, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_prep.output_folder._PATIENCE", 0.2)
    with output_folder(tmp_path / "shards") as folder:
        (folder / "first").touch()
        with pytest.raises(SystemExit):
            main([*synthetic.arguments, "--out", str(tmp_path / "shards")])
        assert "another run is writing it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["first"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("seen", ["before", "in the middle", "in the binding matrix"])
def test_a_full_disk_ends_in_one_line_without_a_manifest(synthetic, small_disk, capsys, monkeypatch, seen):
    if seen != "before":
        monkeypatch.setattr("data_prep.shards.check_room", lambda *_: None)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40_000 if seen != "in the binding matrix" else 75_000))
    arguments = [*synthetic.arguments, "--out", str(small_disk / "shards")]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {small_disk / 'shards'}")
    assert line.count("\n") == 1
    assert "make room" in line
    assert not list(small_disk.rglob("manifest.json"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    main(arguments)
    assert bytes_of(small_disk / "shards") == bytes_of(synthetic.shards)


def test_a_killed_runs_workers_hold_the_folder_until_they_end(tmp_path):
    """A new run waits for them: they might still write."""
    script = (
        "import os, signal, time\n"
        "from pathlib import Path\n"
        "from data_prep.output_folder import output_folder\n"
        f"with output_folder(Path({str(tmp_path / 'out')!r})):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1.5)\n"
        "        os._exit(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script])
    started = time.monotonic()
    with output_folder(tmp_path / "out"):
        assert time.monotonic() - started > 0.5
