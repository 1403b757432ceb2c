"""The README and the pages in docs/ say what the software does."""

import re
from pathlib import Path

import pytest
from absl import flags

import compare
import convert
import doodles
import download
import figures
import import_checkpoint
import recognition
import retrieval
import sample
import train
from hparams import option_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()


def test_every_option_is_in_the_table():
    """Name, default, allowed values and meaning of each option are those of the code."""
    rows = [f"| `{n}` | `{d}` | {allowed} | {text} |" for n, d, allowed, text in option_rows()]
    assert "\n".join(rows) in COMMANDS


SCRIPTS = [train, sample, retrieval, recognition, compare, figures]
SCRIPTS += [import_checkpoint, convert, download, doodles]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_there_with_its_default(script):
    """No flag without a word about it, no default that is another."""
    before = set(flags.FLAGS)
    script.define_flags()
    names = sorted(set(flags.FLAGS) - before)
    defaults = {name: flags.FLAGS[name].default for name in names}
    for name in names:  # another script may have a flag of the same name
        delattr(flags.FLAGS, name)
    assert names
    tables = re.findall(r"(?:^\|.*\n)+", COMMANDS, re.MULTILINE)
    own = [t for t in tables if set(re.findall(r"^\| `--(\w+)", t, re.MULTILINE)) == set(names)]
    assert len(own) == (script is not import_checkpoint)  # whose few flags are in the text
    for name, default in defaults.items():
        assert f"--{name}" in COMMANDS, name
        for shown in re.findall(rf"^\| `--{name}=(\S+)`", "".join(own), re.MULTILINE):
            if isinstance(default, float):
                assert float(shown) == default, name
            elif name not in ("resume_training", "random_seed"):
                assert shown == str(default), name


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_what_is_named_exists(page):
    """Commands, modules and pictures that a page names are there."""
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for name in re.findall(r"`([\w/]+\.py)`|python ([\w/]+\.py)", text):
        assert (ROOT / (name[0] or name[1])).is_file(), name
    for path in re.findall(r"\]\(([\w/.]+)\)", text):
        assert (page.parent / path).exists(), path


def test_the_readme_is_short():
    """A newcomer's page; the rest is in docs/."""
    assert len(README.splitlines()) <= 280
