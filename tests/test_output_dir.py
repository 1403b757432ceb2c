"""A directory has one writer at a time, who replaces only what is its own."""

import json
import multiprocessing
import os
import signal
import socket

import pytest

from support.files import UserError
from support.output_dir import write_to

CONTEXT = multiprocessing.get_context("spawn")


def hold(folder, connection):
    """Writes to a directory until it is killed."""
    with write_to(folder, "samples", ["a.*"]):
        connection.send("entered")
        connection.recv()


@pytest.fixture
def writer(tmp_path):
    """Another process that writes to tmp_path / "out"."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path / "out", theirs))
    process.start()
    assert ours.recv() == "entered"
    yield process
    process.kill()
    process.join(60)


def test_a_second_writer_is_told_of_the_first(tmp_path, writer):
    """Whatever it would write; the line names host and process, and nothing is changed."""
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    for content in ("samples", "model"):
        expected = f"process {writer.pid} on {socket.gethostname()} writes there now"
        with pytest.raises(UserError, match=expected), write_to(tmp_path / "out", content, ["b"]):
            pass
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_a_killed_writer_holds_nothing(tmp_path, writer):
    """The system gives the lock back when a process dies, however it dies."""
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    with write_to(tmp_path / "out", "samples", ["a.*"]):
        (tmp_path / "out" / "a.1").write_text("new")


def test_own_files_are_replaced(tmp_path):
    """By a later call, for which the manifest is all that tells whose they are."""
    for text in ("old", "new"):
        with write_to(tmp_path / "out", "samples", ["a.*"]):
            (tmp_path / "out" / "a.1").write_text(text)
    assert (tmp_path / "out" / "a.1").read_text() == "new"


def test_files_of_another_program_are_not(tmp_path):
    """Not even the lock is left in a directory that holds something of another program."""
    (tmp_path / "a.1").write_text("mine")
    refused = pytest.raises(UserError, match=r"a\.1: is not of this program")
    with refused, write_to(tmp_path, "samples", ["a.*"]):
        raise AssertionError("entered")
    assert [path.name for path in tmp_path.iterdir()] == ["a.1"]


def test_other_contents_are_kept_apart(tmp_path):
    """Samples may lie beside a model, and can't replace its files."""
    with write_to(tmp_path, "model", ["best.npz"]):
        (tmp_path / "best.npz").write_text("weights")
    with write_to(tmp_path, "samples", ["a.*"]):
        (tmp_path / "a.1").write_text("sample")
    refused = pytest.raises(UserError, match=r"best\.npz: belongs to the model there")
    with refused, write_to(tmp_path, "classifier", ["best.npz"]):
        raise AssertionError("entered")
    assert (tmp_path / "best.npz").read_text() == "weights"
    manifest = json.loads((tmp_path / ".manifest.json").read_text())
    assert manifest == {"model": ["best.npz"], "samples": ["a.*"]}


def test_what_earlier_releases_wrote_is_recognised(tmp_path):
    """They left no manifest; the caller knows them by what they hold."""
    (tmp_path / "a.1").write_text("old release")
    with write_to(tmp_path, "samples", ["a.*"], is_ours=lambda path: path.name == "a.1"):
        (tmp_path / "a.1").write_text("new")
    assert (tmp_path / "a.1").read_text() == "new"


def test_a_directory_made_in_vain_is_removed(tmp_path):
    """An error before anything was written leaves nothing behind."""
    with pytest.raises(RuntimeError), write_to(tmp_path / "a" / "out", "samples", ["a"]):
        raise RuntimeError
    assert not (tmp_path / "a" / "out").exists()


def test_a_file_in_the_place_of_the_directory(tmp_path):
    """One line that names it."""
    (tmp_path / "out").write_text("")
    refused = pytest.raises(UserError, match="out: can't be written to")
    with refused, write_to(tmp_path / "out", "samples", ["a"]):
        raise AssertionError("entered")


def test_a_damaged_manifest(tmp_path):
    """It is not guessed what it said."""
    for text in ("{", "[]", '{"samples": 3}', '{"samples": [3]}'):
        (tmp_path / ".manifest.json").write_text(text)
        refused = pytest.raises(UserError, match="manifest.json: damaged")
        with refused, write_to(tmp_path, "samples", ["a"]):
            raise AssertionError("entered")
