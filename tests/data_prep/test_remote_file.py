import json
import sys
from pathlib import Path

import pytest

from data_prep import remote_file
from data_prep.errors import InputError
from data_prep.remote_file import is_remote, open_remote, read_remote, url
from data_prep.shard_reader import read_manifest


@pytest.fixture
def server(serve, shards):
    return serve(shards)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(remote_file, "PAUSE", 0.01)


@pytest.mark.parametrize(
    ("location", "remote"),
    [("s3://bucket/a", True), ("file:///a", True), ("/a/b", False), (Path("data/shards"), False), ("a:b", False)],
)
def test_urls_are_told_from_folders(location, remote):
    assert is_remote(location) == remote


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://bucket/shards/", "s3://bucket/shards/x.tar"),
        ("https://host/shards?sig=secret", "https://host/shards/x.tar"),
        ("https://me:secret@host/shards", "https://host/shards/x.tar"),
        ("abfs://container@account/shards", "abfs://container@account/shards/x.tar"),
    ],
)
def test_messages_show_no_keys(location, shown):
    assert url(location, "x.tar") == shown


def test_a_file_larger_than_a_block_comes_whole(server, shards):
    content = bytes(range(256)) * 4 * 9 * 1024
    assert len(content) > remote_file.BLOCK
    (shards / "large").write_bytes(content)
    for location in (server.url, f"file://{shards}"):
        assert read_remote(location, "large", 1) == content
        with open_remote(location, "large") as file:
            assert max(map(len, remote_file.blocks(file))) <= remote_file.BLOCK
    assert server.asked == {"large": 2}


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("foo://bucket/shards", "foo://bucket/shards: ValueError: Protocol not known: foo; give a folder, or a URL"),
        ("s3://bucket/shards", "s3://bucket/shards: reading s3:// needs another package: pip install s3fs"),
        ("gs://bucket/shards", "gs://bucket/shards: reading gs:// needs another package: pip install gcsfs"),
        ("memory://nothing", "memory://nothing/manifest.json: no shards there; make them with: python data_prep/main"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x/manifest.json: could not be read in 3 attempts: ClientConnect"),
        ("http://user:secret@127.0.0.1:9/x?sig=secret", "http://127.0.0.1:9/x/manifest.json: could not be read in 3 "),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_one_line_without_its_keys(location, said, monkeypatch):
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        read_manifest(location)
    line = str(error.value)
    assert line.startswith(said)
    assert "secret" not in line
    assert "\n" not in line


def test_a_missing_manifest_and_one_of_another_version_are_refused_as_those_of_a_folder(server, shards):
    with pytest.raises(InputError, match=rf"^{server.url}/x/manifest.json: no shards there; .*copy FOLDER to"):
        read_manifest(server.url + "/x")
    (shards / "manifest.json").write_text(json.dumps({"format": "genebert-shards", "format_version": 999}))
    with pytest.raises(InputError, match=rf"^{server.url}/manifest.json: .*version 999.* reads 1"):
        read_manifest(server.url)
    (shards / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=rf"^{server.url}/manifest.json: not JSON"):
        read_manifest(server.url)


@pytest.mark.parametrize(("status", "asked"), [(403, 1), (500, 3), (429, 3)])
def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(server, status, asked):
    server.status["manifest.json"] = status
    with pytest.raises(InputError, match=rf"^{server.url}/manifest.json: could not be read.*{status}"):
        read_manifest(server.url)
    assert server.asked == {"manifest.json": asked}
