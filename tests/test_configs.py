"""The option files in configs/, and how `--hparams=@FILE` is read."""

from pathlib import Path

import pytest

import download
from hparams import HParams, parse_hparams
from support.files import UserError
from support.quickdraw import CATEGORIES

CONFIGS = Path(__file__).parents[1] / "configs"
EIGHT = ("bee", "bus", "car", "cat", "flower", "giraffe", "horse", "pig")


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_each_says_its_command_and_what_is_known(path, tmp_path, monkeypatch):
    """A file is read from any directory, and its comments say how to use it."""
    monkeypatch.chdir(tmp_path)
    hparams = parse_hparams(f"@configs/{path.name}")
    text = path.read_text()
    for part in ("# Train: ", "# Hardware: ", "# Result: "):
        assert part in text
    assert "train.py" in text and f"@configs/{path.name}" in text
    # The one command that fetches categories takes them from the same file.
    assert tuple(download.read_names(f"@configs/{path.name}")) == hparams.categories
    if "download.py" in text:
        assert set(hparams.categories) <= set(CATEGORIES)


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("sp_gra2seq", 8, EIGHT),
        ("sketchhealer", 17, ("alarm clock", "belt", "The Great Wall of China")),
        ("sketchlattice", 10, ("airplane", "spider", "The Great Wall of China")),
        ("dc_gra2seq", 5, ("bee", "bus", "flower", "giraffe", "pig")),
    ],
)
def test_category_sets_of_the_articles(name, count, some):
    """Each method's own file has its method and its published categories."""
    hparams = parse_hparams(f"@configs/{name}")
    assert hparams.method == name
    assert len(hparams.categories) == count and set(some) <= set(hparams.categories)


def test_the_settings_of_the_article_are_the_defaults():
    assert parse_hparams("@configs/sp_gra2seq") == HParams(categories=EIGHT)


def test_what_is_given_beside_a_file_comes_first(tmp_path):
    """Wherever it stands; of two files the later one counts; a file may name another."""
    (tmp_path / "a").write_text(
        "# a comment\n\ncategories=[\n  bee,\n  The Great Wall of China  # far away\n]\n"
        "batch_size = 24, z_size=8,\n"
    )
    (tmp_path / "b, c").write_text(f"@{tmp_path}/a\nz_size=9\n")
    hparams = parse_hparams(f"batch_size=3,@'{tmp_path}/b, c'")
    assert hparams.categories == ("bee", "The Great Wall of China")
    assert (hparams.batch_size, hparams.z_size) == (3, 9)
    assert parse_hparams(f"@'{tmp_path}/b, c',@{tmp_path}/a").z_size == 8
    base = HParams(seed=5, batch_size=7)
    assert parse_hparams(f"@{tmp_path}/a", base) == base.replace(
        categories=("bee", "The Great Wall of China"), batch_size=24, z_size=8
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        (b"\xff\xfe", "no text"),
        (b"z_size", "FILE: option 'z_size' has no '='"),
        (b"z_size=1,z_size=2", "FILE: option 'z_size' is given twice"),
        (b"@FILE", "names itself"),
        (b"z_size=many", "option z_size: 'many' is not allowed"),
        (b"lattice_size=8", "method=sp_gra2seq does not use it"),
    ],
)
def test_a_wrong_file_is_one_line(content, message, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content.replace(b"FILE", str(path).encode()))
    with pytest.raises(UserError) as caught:
        parse_hparams(f"@{path}")
    assert message.replace("FILE", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)
