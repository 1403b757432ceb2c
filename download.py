"""Fetches the sketches of the Quick, Draw! data set: sketch-rnn's data files.

python download.py --data_dir=DIR --categories=[bee,bus]
"""

import glob
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import requests
import urllib3
from absl import flags

from dataset import read_sketch_file
from hparams import parse_hparams
from support import cli
from support.files import UserError, one_line, read_text
from support.option_text import find_option_file
from support.output_dir import write_to
from support.quickdraw import CATEGORIES, nearest

MIRROR = "https://storage.googleapis.com/quickdraw_dataset/sketchrnn"
CONNECTIONS = 4
RETRIES = 5  # in a row that bring nothing
MAX_WAIT = 60.0  # seconds between two tries
TIMEOUT = (10, 30)  # seconds to connect, and to wait for the next bytes
CHUNK = 2**18
SPARE_DISK = 2**26  # bytes to leave free
ZIP = b"PK\x03\x04"  # how a data file begins
HEADERS = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file itself


class Retry(Exception):
    """Something that may go better at another try; the text says what.

    Args:
        text: what went wrong.
        wait: seconds that the server asks for, or None.
    """

    def __init__(self, text: str, wait: float | None = None):
        super().__init__(text)
        self.wait = wait


@dataclass
class Download:
    """A file to fetch.

    Attributes:
        name: of the category.
        url: where it is.
        path: where it goes.
        size: bytes, or None if the server does not say.
    """

    name: str
    url: str
    path: Path
    size: int | None = None

    @property
    def part(self) -> Path:
        """Where the bytes are until all of them are there."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def done(self) -> int:
        """How many bytes there are."""
        return self.part.stat().st_size if self.part.exists() else 0


def download(
    data_dir: str | Path,
    categories: Sequence[str],
    *,
    mirror: str = MIRROR,
    connections: int = CONNECTIONS,
    retries: int = RETRIES,
    backoff: float = 1.0,
) -> list[Path]:
    """Fetches `<mirror>/<category>.npz` into `<data_dir>/<category>.npz`.

    A file is moved to its place when it is complete and readable; until then it is a hidden
    `.part` file, with which an interrupted call goes on. Files that are there are left alone.

    Args:
        data_dir: made if it is not there.
        categories: names of Quick, Draw! categories.
        mirror: address of the directory of the files.
        connections: files fetched at a time.
        retries: tries in a row that may bring nothing before a file is given up.
        backoff: seconds before the second of such tries; doubled from try to try.

    Returns:
        The files fetched.

    Raises:
        UserError: a wrong name, too little space; files that can't be had, when all others are
            there.
    """
    data_dir = Path(data_dir)
    _check(categories, mirror, connections, retries)
    wanted = [
        Download(name, f"{mirror.rstrip('/')}/{quote(name)}.npz", data_dir / f"{name}.npz")
        for name in dict.fromkeys(categories)
    ]
    missing = [one for one in wanted if not one.path.exists()]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} files are there already.")
    if not missing:
        return []
    names = [glob.escape(path.name) for one in missing for path in (one.path, one.part)]
    with write_to(data_dir, "data", names, is_ours=lambda path: path.suffix == ".part"):
        failed = _fetch_all(data_dir, missing, connections, retries, backoff)
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        there = len(wanted) - len(failed)
        raise UserError(f"{reasons} ({there} of {len(wanted)} files are there)")
    print(f"{data_dir} has all {len(wanted)} files.")
    return [one.path for one in missing]


def _fetch_all(
    data_dir: Path, missing: list[Download], connections: int, retries: int, backoff: float
) -> dict[str, str]:
    """Fetches files, several at a time; returns what went wrong, by the category's name."""
    failed: dict[str, str] = {}
    tries = _Tries(retries, backoff)
    with requests.Session() as session, ThreadPoolExecutor(connections) as pool:

        def do(work: Callable[[Download], None]) -> None:
            futures = {pool.submit(work, one): one for one in missing if one.name not in failed}
            for future in as_completed(futures):
                try:
                    future.result()
                except UserError as error:
                    failed[futures[future].name] = str(error)

        try:
            do(lambda one: _find_size(session, one, tries))
            found = [one for one in missing if one.name not in failed]
            _check_space(data_dir, found)
            total = sum(one.size or 0 for one in found)
            done = sum(min(one.done, one.size or 0) for one in found)
            with cli.Progress("Downloading", total, done, unit="B", scaled=True) as progress:
                do(lambda one: _fetch(session, one, tries, progress))
        except BaseException:  # Ctrl-C: what is being fetched stops at its next piece
            tries.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    for one in missing:
        if one.part.exists() and not one.done:
            one.part.unlink()
    return failed


class _Tries:
    """How often and when something is tried again."""

    def __init__(self, retries: int, backoff: float):
        self.retries, self.backoff, self.stop = retries, backoff, threading.Event()

    def __call__(self, once: Callable[[], None], progress_of: Callable[[], int] = lambda: 0):
        """Calls `once` until it succeeds; a failure counts unless `progress_of` has grown."""
        failures = 0
        while True:
            before = progress_of()
            try:
                once()
                return
            except (Retry, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                failures = 0 if progress_of() > before else failures + 1
                if failures > self.retries:
                    raise UserError(
                        f"no success after {failures} tries ({one_line(error)}); call again to "
                        "go on"
                    ) from error
                wait = self.backoff * 2 ** max(failures - 1, 0) * random.uniform(0.5, 1)
                asked = getattr(error, "wait", None)
                if self.stop.wait(min(max(wait, asked or 0), MAX_WAIT)):
                    raise UserError("interrupted") from error


def _find_size(session: requests.Session, one: Download, tries: _Tries) -> None:
    """Asks how large a file is; not all servers tell."""

    def ask():
        with session.head(
            one.url, headers=HEADERS, timeout=TIMEOUT, allow_redirects=True
        ) as response:
            if response.status_code in (405, 501):  # it knows no HEAD
                return
            _check_status(response, one)
            length = response.headers.get("Content-Length", "")
            one.size = int(length) if length.isdigit() else None

    tries(ask)


def _fetch(session: requests.Session, one: Download, tries: _Tries, progress: cli.Progress) -> None:
    """Fetches one file, from where an earlier call stopped, and moves it to its place."""
    with open(one.part, "ab") as file:
        for again in (True, False):
            tries(lambda: _fetch_rest(session, one, file, tries.stop, progress), file.tell)
            file.flush()
            os.fsync(file.fileno())
            try:
                read_sketch_file(one.part)
            except UserError as error:
                # Perhaps the parts were of different editions: once more from the beginning.
                progress.update(-file.tell())
                _empty(file)
                if again:
                    continue
                one.part.unlink()
                reason = str(error).removeprefix(f"{one.part}: ")
                raise UserError(f"{one.url} is not a data file: {reason}") from error
            os.replace(one.part, one.path)
            return


def _fetch_rest(
    session: requests.Session,
    one: Download,
    file: BinaryIO,
    stop: threading.Event,
    progress: cli.Progress,
) -> None:
    """Appends what is missing of a file."""
    start = file.seek(0, os.SEEK_END)
    if one.size is not None and start == one.size:
        return
    headers = {**HEADERS, "Range": f"bytes={start}-"} if start else HEADERS
    with session.get(one.url, headers=headers, timeout=TIMEOUT, stream=True) as response:
        if start and response.status_code == 416:  # the part is not the beginning of this file
            progress.update(-start)
            _empty(file)
            raise Retry("the server refuses to go on where an earlier call stopped")
        _check_status(response, one)
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise Retry("the server sends another part than asked for")
        if start and not resumed:  # it sends all, whatever was asked for
            progress.update(-start)
            _empty(file)
        first = True
        # Unlike iter_content, it gives out what came before a connection was cut.
        while chunk := response.raw.read1(CHUNK):
            if stop.is_set():
                raise UserError("interrupted")
            if first and not resumed and not chunk.startswith(ZIP):
                kind = response.headers.get("Content-Type", "something else").split(";")[0]
                raise UserError(f"{one.url} is not a data file: the server sends {kind}")
            first = False
            file.write(chunk)
            progress.update(len(chunk))
    length = file.tell()
    if one.size is not None and length < one.size:
        raise Retry(f"cut off after {length:,} of {one.size:,} bytes")


def _check_status(response: requests.Response, one: Download) -> None:
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise Retry(f"the server answers {status}", float(wait) if wait.isdigit() else None)
    if status not in (200, 206):
        what = "is not there" if status in (404, 410) else "can't be had"
        raise UserError(f"{one.url} {what}: the server answers {status}")


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _check_space(data_dir: Path, missing: list[Download]) -> None:
    free = shutil.disk_usage(data_dir).free
    needed = sum(max((one.size or 0) - one.done, 0) for one in missing)
    if needed + SPARE_DISK > free:
        raise UserError(
            f"{data_dir}: {needed / 1e6:,.0f} MB are to be fetched, and only {free / 1e6:,.0f} MB "
            "are free"
        )


def _check(categories: Sequence[str], mirror: str, connections: int, retries: int) -> None:
    if not categories:
        raise UserError("categories: none is given; as in [bee,bus], or all")
    for name in categories:
        if name not in CATEGORIES:
            like = ", ".join(nearest(name))
            raise UserError(
                f"categories: {name!r} is none of the {len(CATEGORIES)} categories"
                + (f"; did you mean {like}?" if like else "")
            )
    if not re.match("https?://", mirror):
        raise UserError(f"mirror: {mirror!r} is not allowed; an address from http:// or https://")
    if connections < 1:
        raise UserError(f"connections: {connections} is not allowed; at least 1")
    if retries < 0:
        raise UserError(f"retries: {retries} is not allowed; at least 0")


def read_names(text: str) -> list[str]:
    """The categories of [bee,The Mona Lisa], of all, or of @FILE.

    A file holds a name a line, or a list in brackets, alone or as the value of "categories" among
    other options; or it names another option file that does. Option files of the program
    (configs/comparison) are found from everywhere.

    Raises:
        UserError: no such file.
    """
    if text == "all":
        return list(CATEGORIES)
    if text.startswith("@"):
        path = find_option_file(text[1:])
        text = "\n".join(line.partition("#")[0] for line in read_text(path).splitlines())
        if found := re.search(r"categories[\"']?\s*[=:]\s*\[([^\]]*)\]", text):
            text = found[1]
        elif re.search(r"^\s*@", text, re.MULTILINE):
            return list(parse_hparams(f"@{path}").categories)
    names = (name.strip().strip("'\"") for name in re.split(r"[,\n]", text.strip().strip("[]")))
    return [name for name in names if name]


def main() -> None:
    """Downloads as the flags say."""
    values = flags.FLAGS
    download(
        values.data_dir,
        read_names(values.categories),
        mirror=values.mirror,
        connections=values.connections,
        retries=values.retries,
    )


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory for <category>.npz.")
    flags.DEFINE_string("categories", None, "As in [bee,bus]; all; or @FILE, which has the names.")
    flags.DEFINE_string("mirror", MIRROR, "Address of the directory of the files.")
    flags.DEFINE_integer("connections", CONNECTIONS, "Files fetched at a time.")
    flags.DEFINE_integer("retries", RETRIES, "Tries in a row that may bring nothing.")
    flags.mark_flags_as_required(["data_dir", "categories"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
