"""What commands do with their terminal, and what a user's mistake comes to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import cli

ROOT = Path(__file__).parents[1]
# A command in few lines; it needs no Keras, so that many of them start quickly.
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from absl import flags
from support import cli
from support.files import UserError, write_file

def main():
    what = flags.FLAGS.what
    if what == "mistake":
        raise UserError("a.npz: not found")
    if what == "disk":
        raise OSError(28, "No space left on device", "b.npz")
    if what == "long":
        for i in range(20000):
            print("line", i)
    if what == "streams":
        # A library may write to descriptor 2 itself.
        with open(flags.FLAGS.file, "w") as file:
            os.write(2, b"native message")
            file.write("content")
    if what == "interrupt":
        raise KeyboardInterrupt
    write_file(flags.FLAGS.file, "done")

flags.DEFINE_string("what", "", "")
flags.DEFINE_string("file", "", "")
cli.run(main)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "command.py"
    path.write_text(SCRIPT)
    return path


def shell(script, tmp_path, what, redirection=""):
    """Runs the command in a shell: what it ends with, and what it prints."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" "$1" --what={what} --file="$2" {redirection}', sys.executable]
        + [str(script), str(tmp_path / "file")],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "what, line",
    [
        ("mistake", "command.py: a.npz: not found\n"),
        ("disk", "command.py: b.npz: No space left on device\n"),
        ("x --nonsense=1", "command.py: Unknown command line flag 'nonsense'\n"),
        ("x y", "command.py: 'y' is not an option; options are written --name=value\n"),
    ],
)
def test_a_mistake_is_one_line(script, tmp_path, what, line):
    """On standard error, with status 1; on standard output where standard error is closed."""
    assert shell(script, tmp_path, what) == (1, "", line)
    assert shell(script, tmp_path, what, "2>&-") == (1, line, "")
    assert shell(script, tmp_path, what, "2>&- >&-") == (1, "", "")


def test_ctrl_c_is_status_130(script, tmp_path):
    """As shells have it."""
    assert shell(script, tmp_path, "interrupt") == (130, "", "command.py: interrupted\n")


def test_output_without_a_reader_stops_nothing(script, tmp_path):
    """`| head` ends the output and not the work."""
    status, out, err = shell(script, tmp_path, "long", "| head -2; exit ${PIPESTATUS[0]}")
    assert (status, out, err) == (0, "line 0\nline 1\n", "")
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_files(script, tmp_path, closed):
    """What is written to a closed standard error must not land in a file that got its number."""
    assert shell(script, tmp_path, "streams", closed)[0] == 0
    assert (tmp_path / "file").read_text() == "done"


def test_progress_off_a_terminal(capsys, monkeypatch):
    """Lines with true counts, none for what did not happen; on a fast run only the last."""
    with cli.Progress("Epoch 1", 5, done=1, unit="update") as progress:
        for _ in range(3):
            progress.set_postfix({"loss": 1.25}, refresh=False)
            progress.update()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "Epoch 1" in lines[0] and " 4/5 " in lines[0] and "loss=1.25" in lines[0]
    # As if each step took a minute: a line for each.
    monkeypatch.setattr(cli, "SECONDS_BETWEEN_LINES", 0)
    with cli.Progress("Epoch 1", 5, done=1, unit="update") as progress:
        for _ in range(3):
            progress.update()
    counts = [line.split("|")[2].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert counts[-3:] == ["3/5", "4/5", "4/5"]


def test_a_quiet_progress_prints_nothing(capsys):
    """A process that leaves printing to another."""
    with cli.Progress("Epoch 1", 2, quiet=True) as progress:
        progress.update()
    assert capsys.readouterr().out == ""


def test_the_first_interruption_is_a_request(capsys):
    """It is told, and the second one is Python's own; afterwards all is as before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with cli.Interruption() as interruption:
            assert not interruption.requested
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Stopping after this update" in capsys.readouterr().err
