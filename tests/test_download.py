"""download.py against a server on this machine that behaves badly in each way that is known."""

import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

import dataset
import download
from doodles import write_doodles
from hparams import HParams
from support import quickdraw
from support.files import UserError

ROOT = Path(__file__).parents[1]
FAST = {"backoff": 0.001}


class Server(ThreadingHTTPServer):
    """Serves `files` by name; `faults` of a name are used up by one GET each.

    A fault is a status to answer; ("cut", n) sends n bytes and closes; "ignore" sends everything
    although a range was asked for; "shift" sends another range than asked for.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = defaultdict(list)
        self.kinds: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.head = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/sketchrnn"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def name(self):
        return unquote(self.path).removeprefix("/sketchrnn/").removesuffix(".npz")

    def do_HEAD(self):
        self.server.requests.append(("HEAD", self.path, None))
        body = self.server.files.get(self.name())
        self.send_response(405 if not self.server.head else 200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append(("GET", self.path, asked))
        body = self.server.files.get(self.name())
        faults = self.server.faults[self.name()]
        fault = faults.pop(0) if faults else None
        if body is None or isinstance(fault, int):
            self.send_error(fault or 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if fault == "ignore":
            start = 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            start -= fault == "shift"
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", self.server.kinds.get(self.name(), "binary/octet-stream"))
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        self.wfile.write(body[: fault[1]] if isinstance(fault, tuple) else body)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """Three real data files under the names of Quick, Draw! categories."""
    folder = tmp_path_factory.mktemp("bodies")
    write_doodles(folder, categories=("fish", "tree", "house"), train=8, valid=2, test=2)
    return {
        name: (folder / f"{doodle}.npz").read_bytes()
        for name, doodle in (("fish", "fish"), ("bee", "tree"), ("The Mona Lisa", "house"))
    }


@pytest.fixture
def server(bodies):
    with Server() as server:
        server.files.update(bodies)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder):
    """What is in a directory, except the notes of `support.output_dir`."""
    if not folder.exists():
        return set()
    return {path.name for path in folder.iterdir()} - {".manifest.json", ".lock"}


def ranges(server, name):
    return [asked for kind, path, asked in server.requests if kind == "GET" and name in path]


def test_files_arrive_whole(server, bodies, tmp_path):
    """Several at a time, spaces escaped in the address, byte by byte what the server has."""
    fetched = download.download(tmp_path / "data", list(bodies), mirror=server.url, **FAST)
    assert {path.name for path in fetched} == {f"{name}.npz" for name in bodies}
    for name, body in bodies.items():
        assert (tmp_path / "data" / f"{name}.npz").read_bytes() == body
    assert names(tmp_path / "data") == {f"{name}.npz" for name in bodies}
    assert any("/The%20Mona%20Lisa.npz" in path for _, path, _ in server.requests)


def test_what_is_there_is_skipped(server, tmp_path, capsys):
    """A file that is there is neither asked for nor touched, whatever it holds."""
    (tmp_path / "fish.npz").write_bytes(b"mine")
    download.download(tmp_path, ["fish", "bee"], mirror=server.url, **FAST)
    assert (tmp_path / "fish.npz").read_bytes() == b"mine"
    assert not any("fish" in path for _, path, _ in server.requests)
    assert "1 of 2 files are there already" in capsys.readouterr().out
    assert download.download(tmp_path, ["fish", "bee"], mirror=server.url, **FAST) == []


def test_cut_connections_are_resumed(server, bodies, tmp_path):
    """Each next request asks for the bytes that are missing, however often it is cut."""
    server.faults["fish"] = [("cut", 1000), ("cut", 0), ("cut", 500)]
    download.download(tmp_path, ["fish"], mirror=server.url, **FAST)
    assert (tmp_path / "fish.npz").read_bytes() == bodies["fish"]
    assert ranges(server, "fish") == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]


def test_a_partial_file_is_resumed_by_the_next_call(server, bodies, tmp_path):
    """What an earlier call had fetched is not fetched again."""
    server.faults["fish"] = [("cut", 1000), 500]
    with pytest.raises(UserError, match="fish: no success after 1 tries .*500.*call again"):
        download.download(tmp_path, ["fish"], mirror=server.url, retries=0, **FAST)
    assert names(tmp_path) == {".fish.npz.part"}
    server.faults["fish"] = []
    download.download(tmp_path, ["fish"], mirror=server.url, **FAST)
    assert (tmp_path / "fish.npz").read_bytes() == bodies["fish"]
    assert ranges(server, "fish")[-1] == "bytes=1000-"


@pytest.mark.parametrize("fault", ["ignore", "shift", 416, 500, 503, 429])
def test_answers_to_a_range(server, bodies, tmp_path, fault):
    """A server that ignores the range, sends another, or refuses: the file is right in the end."""
    server.faults["fish"] = [("cut", 1000), fault]
    download.download(tmp_path, ["fish"], mirror=server.url, **FAST)
    assert (tmp_path / "fish.npz").read_bytes() == bodies["fish"]


@pytest.mark.parametrize("extra", [b"", b"and more"])
def test_a_part_that_is_no_beginning_of_the_file(server, bodies, tmp_path, extra):
    """Another edition's part, as long as the file or longer: fetched from the beginning."""
    (tmp_path / ".fish.npz.part").write_bytes(bytes(len(bodies["fish"])) + extra)
    download.download(tmp_path, ["fish"], mirror=server.url, **FAST)
    assert (tmp_path / "fish.npz").read_bytes() == bodies["fish"]
    assert names(tmp_path) == {"fish.npz"}


def test_a_server_without_head(server, bodies, tmp_path):
    """Sizes are unknown then; the files come all the same."""
    server.head = False
    server.faults["fish"] = [("cut", 1000)]
    download.download(tmp_path, ["fish"], mirror=server.url, **FAST)
    assert (tmp_path / "fish.npz").read_bytes() == bodies["fish"]


def test_bad_files_do_not_get_in(server, bodies, tmp_path):
    """404, a web page with status 200, a truncated file: one line; the good file is there."""
    del server.files["fish"]
    server.files["cat"], server.kinds["cat"] = b"<html>sign in first</html>", "text/html"
    server.files["dog"] = bodies["fish"][:-500]
    with pytest.raises(UserError) as error:
        download.download(tmp_path, ["fish", "cat", "dog", "bee"], mirror=server.url, **FAST)
    text = str(error.value)
    assert "\n" not in text
    assert re.search(r"fish: http\S*/fish.npz is not there: the server answers 404", text)
    assert re.search(r"cat: http\S*/cat.npz is not a data file: the server sends text/html", text)
    assert re.search(r"dog: http\S*/dog.npz is not a data file: ", text)
    assert "1 of 4 files are there" in text
    assert names(tmp_path) == {"bee.npz"}


def test_it_gives_up(server, tmp_path):
    """After so many tries that bring nothing; nothing is left."""
    server.faults["fish"] = [500] * 10
    with pytest.raises(UserError, match="no success after 3 tries"):
        download.download(tmp_path / "data", ["fish"], mirror=server.url, retries=2, **FAST)
    assert len(ranges(server, "fish")) == 3
    assert names(tmp_path / "data") == set()


def test_no_server(tmp_path):
    """One line."""
    with pytest.raises(UserError, match="no success after 2 tries") as error:
        download.download(tmp_path, ["fish"], mirror="http://127.0.0.1:9", retries=1, **FAST)
    assert "\n" not in str(error.value)


def test_a_full_disk(server, tmp_path, monkeypatch):
    """Too little space is found before anything is fetched."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="0 MB are to be fetched, and only 0 MB are free"):
        download.download(tmp_path / "data", ["fish"], mirror=server.url, **FAST)
    assert not ranges(server, "fish") and names(tmp_path / "data") == set()


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["fihs"], "'fihs' is none of the 345 categories; did you mean fish"),
        (["mona lisa"], "did you mean The Mona Lisa"),
        (["palm_tree"], "did you mean palm tree"),
        (["qqqqqqq"], "'qqqqqqq' is none of the 345 categories$"),
        ([], "none is given"),
    ],
)
def test_wrong_names(tmp_path, categories, message):
    """The nearest of the 345 are named; no server is asked."""
    with pytest.raises(UserError, match=message):
        download.download(tmp_path / "data", categories)
    assert not (tmp_path / "data").exists()


def test_the_categories():
    """345 different names; some of the first, the last and the odd ones."""
    assert len(set(quickdraw.CATEGORIES)) == len(quickdraw.CATEGORIES) == 345
    odd = {"aircraft carrier", "zigzag", "t-shirt", "teddy-bear", "The Great Wall of China"}
    assert odd < set(quickdraw.CATEGORIES)
    assert all(name == " ".join(name.split()) for name in quickdraw.CATEGORIES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[bee,The Mona Lisa]", ["bee", "The Mona Lisa"]),
        ("bee, 'bus'", ["bee", "bus"]),
        ("[]", []),
        ("@bee\n# a comment\nThe Mona Lisa\n", ["bee", "The Mona Lisa"]),
        ('@{"batch_size": 3, "categories": ["bee", "bus"]}', ["bee", "bus"]),
        ("@num_steps=3,categories=[bee,bus],seed=1", ["bee", "bus"]),
    ],
)
def test_lists_of_names(tmp_path, text, expected):
    """On the command line, in a file of names, among other options in a file."""
    if text.startswith("@"):
        (tmp_path / "names").write_text(text[1:])
        text = f"@{tmp_path / 'names'}"
    assert download.read_names(text) == expected
    assert len(download.read_names("all")) == 345


def test_train_names_the_command(tmp_path):
    """Whoever lacks a category reads how to get it, or what it may be called."""
    for name, advice in (("bee", r"python download.py --data_dir=\S+ --categories=\[bee\]"),):
        with pytest.raises(UserError, match=advice):
            dataset.load_dataset(tmp_path, HParams(categories=(name,)))
    with pytest.raises(UserError, match="the nearest are fish"):
        dataset.load_dataset(tmp_path / "absent", HParams(categories=("fihs",)))


@pytest.mark.slow
def test_the_command_line(server, bodies, tmp_path):
    """The flags arrive; the files can be read; a mistake is one line and exit status 1."""
    command = [sys.executable, str(ROOT / "download.py"), f"--data_dir={tmp_path}"]
    command += [f"--mirror={server.url}/", "--retries=1"]
    done = subprocess.run(
        [*command, "--categories=[bee,The Mona Lisa]"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Downloading: 100%" in done.stdout
    assert len(dataset.read_sketch_file(tmp_path / "The Mona Lisa.npz")["train"]) == 8
    done = subprocess.run([*command, "--categories=[bees]"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "did you mean bee" in done.stderr
    np.testing.assert_equal(names(tmp_path), {"bee.npz", "The Mona Lisa.npz"})
