import pytest

from data_prep.errors import InputError, ends_on_input_error
from data_prep.output_folder import MANIFEST, fingerprint, is_up_to_date, output_folder, write_json


def filled(out, content: str = "whole") -> None:
    with output_folder(out) as folder:
        (folder / "file").write_text(content)


def test_a_folder_appears_only_when_its_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with output_folder(out) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["file"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, InputError])
@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_block_leaves_what_was_there_before(tmp_path, interruption, before):
    out = tmp_path / "out"
    if before:
        filled(out, "before")

    def interrupted():
        with output_folder(out) as folder:
            (folder / "file").write_text("half")
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("file")} == (
        {(out / "file").relative_to(tmp_path): "before"} if before else {}
    )
    assert len(list(tmp_path.iterdir())) == before


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    filled(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_left_overs_of_a_killed_run_are_no_obstacle(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").write_text("old")
    filled(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_up_to_date_for_its_own_fingerprint_only(tmp_path):
    out = tmp_path / "out"
    assert not is_up_to_date(out, "a", overwrite=False)
    out.mkdir()
    assert not is_up_to_date(out, "a", overwrite=False)
    write_json(out / MANIFEST, {"fingerprint": "a"})
    assert is_up_to_date(out, "a", overwrite=False)
    assert is_up_to_date(out, "a", overwrite=True)
    assert not is_up_to_date(out, "b", overwrite=True)
    with pytest.raises(InputError, match=str(out)):
        is_up_to_date(out, "b", overwrite=False)


@pytest.mark.parametrize("content", ["not JSON", "[]", "{}", b"\xff\xfe"])
def test_a_folder_with_a_foreign_manifest_is_not_replaced_unasked(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=str(tmp_path)):
        is_up_to_date(tmp_path, "a", overwrite=False)
    assert not is_up_to_date(tmp_path, "a", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_folders_place_is_refused(tmp_path, overwrite):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=str(tmp_path / "out")):
        is_up_to_date(tmp_path / "out", "a", overwrite)


def test_a_folder_under_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        filled(tmp_path / "file" / "out")


def test_fingerprints_tell_inputs_apart_and_not_their_order():
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1)
    assert len({fingerprint(a=1), fingerprint(a=2), fingerprint(b=1), fingerprint(a="1"), fingerprint(a=[1])}) == 5


@pytest.mark.parametrize(("error", "code"), [(InputError("x.bed:3: spaces"), 2), (KeyboardInterrupt(), 130)])
def test_a_program_ends_with_one_line_and_its_code(capsys, error, code):
    @ends_on_input_error
    def program():
        raise error

    with pytest.raises(SystemExit) as exit_:
        program()
    assert exit_.value.code == code
    assert capsys.readouterr().err.count("\n") == 1
