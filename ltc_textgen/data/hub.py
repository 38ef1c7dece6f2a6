"""Data sets and tokenizers of the Hugging Face hub, without waiting for a hub that does not answer.

The libraries of the hub retry for 23 to 46 seconds when it is gone, and for minutes when it hangs. So what is in the
cache is used as it is, without a request; else one request of at most `PATIENCE` seconds decides whether the hub
answers, and only if it does the libraries may go online, in a process that is ended when nothing comes (`download`).

Downloads that are given up when nothing comes: they run in a process of their own, which can be ended.

The hub's libraries wait for minutes when a server takes a request and then hangs, and their threads outlive whoever
stops waiting for them. The process only fills the caches; what is in them is then read without a network.

    python -c "from ltc_textgen.data import hub; hub.fetch(kind, name, column)"
        -> {"ready": true}      when the libraries are imported
        -> {"arrived": true}    for each block of a stream
        -> {"reason": "..."}    if it fails, with exit code 1
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltc_textgen.data import hub_stream as streaming_
from ltc_textgen.data.hub_stream import cache_directory
from ltc_textgen.data.text_files import Piece
from ltc_textgen.errors import DataError

FIRST = 5.0
"""Seconds that a hub has, once it is asked, until the first byte arrives."""

STALL = 30.0
"""Seconds that a download may stand still later on."""

LOOK = 0.25
"""Seconds between looks at a download."""

NO_PAYLOAD = {"refs", ".locks", ".no_exist", "snapshots", "CACHEDIR.TAG", ".gitignore"}
"""Folders and files of the hub's cache that are written before anything has arrived."""


def download(kind: str, name: str, column: str, caches: list[Path]) -> None:
    """Fill the caches.

    Args:
        kind: What is wanted, as `hub.fetch` names it.
        name: Its identifier.
        column: The column of a text.
        caches: Folders in which a download in progress grows.

    Raises:
        DataError: If it fails, or stands still for too long; the message is the reason alone.
    """
    code = f"from ltc_textgen.data import hub; hub.fetch({kind!r}, {name!r}, {column!r})"
    # Each retry would be told, and then the failure. Xet writes late: a slow download would seem to stand still.
    # PyTorch would be imported for nothing, which takes seconds.
    defaults = {"HF_HUB_VERBOSITY": "critical", "HF_HUB_DISABLE_XET": "1", "USE_TORCH": "0"}
    environment = {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    lines: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        _watch(process, lines, caches)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(1.0)
    if process.returncode:
        reasons = [line["reason"] for line in lines if "reason" in line]
        raise DataError(reasons[-1] if reasons else f"the download ended with code {process.returncode}")


def _watch(process: subprocess.Popen[str], lines: list[dict[str, Any]], caches: list[Path]) -> None:
    start = _size(caches)
    seen, moved, arrived = (start, 0), time.monotonic(), False
    while process.poll() is None:
        time.sleep(LOOK)
        now = (_size(caches), len(lines))
        if now != seen:
            arrived = arrived or now[0] != start or any("arrived" in line for line in lines)
            seen, moved = now, time.monotonic()
        patience = FIRST if lines and not arrived else STALL
        if time.monotonic() - moved > patience:
            what = "the download stands still" if arrived else "it takes requests, but does not send anything"
            raise DataError(f"{what} (for {patience:g} s)")


def _read(process: subprocess.Popen[str], lines: list[dict[str, Any]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and line.endswith("}\n"):  # the last may be cut off, when the process is ended
            lines.append(json.loads(line))


def _size(folders: list[Path]) -> int:
    """Bytes of all files that were downloaded or made of it; a file that vanishes meanwhile counts nothing."""
    total = 0
    for folder in folders:
        for directory, folders_in_it, names in os.walk(folder):
            folders_in_it[:] = [name for name in folders_in_it if name not in NO_PAYLOAD]
            for name in names:
                if name in NO_PAYLOAD:
                    continue
                try:
                    total += os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118
                except OSError:
                    continue
    return total


PATIENCE = 2.5
"""Seconds that a hub has for its first answer."""

CHUNK = 1 << 14
"""Bytes of a download that are written at once: so few, that a slow one is seen to go on."""

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_2 = "wikitext-2-raw-v1"
BERT = "google-bert/bert-base-uncased"

_YES = {"1", "ON", "YES", "TRUE"}
_TITLE = re.compile(r"^ = [^=].*[^=] = ?\n?$|^ = [^=\s] = ?\n?$")


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class Preflight:
    """One request, started at once and in the background, that tells whether the hub answers.

    Args:
        path: What is asked for: a file of the repository that is wanted.
    """

    def __init__(self, path: str) -> None:
        self._url = f"{endpoint()}/{path}"
        self._problem: str | None = f"no answer within {PATIENCE:g} s"
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def problem(self) -> str | None:
        """None if the hub answers, else what is wrong with it. Waits for the answer, at most `PATIENCE` seconds."""
        # A name server that hangs is not covered by the timeouts of the request; the limit of the join is.
        self._thread.join(PATIENCE)
        return self._problem

    def _ask(self) -> None:
        if _forbidden():
            self._problem = "offline mode is on (HF_HUB_OFFLINE)"
            return
        import httpx2

        try:
            status = httpx2.head(self._url, timeout=PATIENCE, follow_redirects=False).status_code
        except httpx2.TimeoutException:
            return
        except Exception as error:  # whatever it is: it did not answer
            self._problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            return
        # Too many requests, or a failing server; 501 is a server that does not know HEAD.
        failing = status == 429 or (status >= 500 and status != 501)
        self._problem = f"it answers with status {status}" if failing else None


def load_dataset(identifier: str) -> dict[str, Any]:
    """All splits of a data set of the hub, memory-mapped.

    Args:
        identifier: `user/set`, or `user/set:configuration`.

    Raises:
        DataError: If it is neither cached nor to be had; the message says why and what to do.
    """
    name = identifier.partition(":")[0]
    probe = f"datasets/{name}/resolve/main/README.md"
    return _cached_or_online("data set", identifier, probe, may_be_cached(name))


def find_dataset(identifier: str, column: str, streaming: str = "auto") -> dict[str, Any]:
    """All splits of a data set of the hub, or of a large one those to train and validate on (see `streaming`).

    Args:
        identifier: `user/set`, or `user/set:configuration`.
        column: What holds the text.
        streaming: never: as `load_dataset`. always: the text alone is kept while it streams. auto: what is here in
            either form is used; else what is large is streamed.

    Raises:
        DataError: If it is neither cached nor to be had; the message says why and what to do.
    """
    if streaming == "never":
        return load_dataset(identifier)
    if (found := streaming_.kept_whole(identifier, column)) is not None:
        return dict(found)
    name = identifier.partition(":")[0]
    probe = f"datasets/{name}/resolve/main/README.md"
    return _cached_or_online("stream" if streaming == "always" else "text", identifier, probe, True, column)


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a repository of the hub, or its vocab.txt if it has no other.

    Raises:
        DataError: If it is neither cached nor to be had; the message says why and what to do.
    """
    return _cached_or_online("tokenizer", name, f"{name}/resolve/main/tokenizer.json", True)


def _load_dataset(identifier: str, column: str) -> dict[str, Any]:
    import datasets

    name, _, configuration = identifier.partition(":")
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return dict(datasets.load_dataset(name, configuration or None))


def _load_text(identifier: str, column: str) -> dict[str, Any]:
    """What is small as a data set, what is large as the text that is kept while it streams."""
    if (found := streaming_.kept_whole(identifier, column)) is not None:
        return dict(found)
    if _online() and streaming_.is_large(identifier.partition(":")[0]):
        return _load_stream(identifier, column)
    return _load_dataset(identifier, column)


def _load_stream(identifier: str, column: str) -> dict[str, Any]:
    if _online():
        streaming_.stream(identifier, column, lambda: print(json.dumps({"arrived": True}), flush=True))
    found = streaming_.kept_whole(identifier, column)
    if found is None:
        raise FileNotFoundError("its text is not here")
    return dict(found)


def _load_tokenizer(name: str, column: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except EntryNotFoundError:
        if not _online():
            # Whether the repository has none, or it is not cached, cannot be told here.
            return Path(hf_hub_download(name, "vocab.txt"))
        with suppress(EntryNotFoundError):  # it tells whether the vocabulary is lower case
            hf_hub_download(name, "tokenizer_config.json")
        return Path(hf_hub_download(name, "vocab.txt"))


_LOADERS: dict[str, Callable[[str, str], Any]] = {
    "data set": _load_dataset,
    "text": _load_text,
    "stream": _load_stream,
    "tokenizer": _load_tokenizer,
}


def fetch(kind: str, name: str, column: str) -> None:
    """Bring something into the caches, for `download`: progress and failure go to stdout as JSON, and an exit code.

    Args:
        kind: data set, text (a data set or its text, by its size), stream (its text) or tokenizer.
        name: Its identifier.
        column: The column of a text.
    """
    if kind != "tokenizer":
        import datasets  # noqa: F401  what takes time before the first request
    else:
        from huggingface_hub import hf_hub_download  # noqa: F401
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    print(json.dumps({"ready": True}), flush=True)
    try:
        _LOADERS[kind](name, column)
    except Exception as error:
        print(json.dumps({"reason": _reason(error)}), flush=True)
        sys.exit(1)


def rows(split: Any, column: str, name: str) -> Iterator[str]:
    """The texts of a split, in order; missing ones are empty.

    Raises:
        DataError: If the split has no such column of text.
    """
    if not isinstance(split, streaming_.KeptSplit) and column not in split.column_names:
        raise DataError(
            f"{name}: no column '{column}' (columns: {', '.join(split.column_names)}); choose one with --text-column"
        )
    if isinstance(split, streaming_.KeptSplit):
        yield from split.texts()
        return
    for batch in split.select_columns([column]).with_format("arrow").iter(batch_size=1024):
        for text in batch.column(column).to_pylist():
            if text is not None and not isinstance(text, str):
                raise DataError(f"{name}: column '{column}' holds {type(text).__name__}, not text")
            yield text or ""


def row_documents(texts: Iterator[str]) -> Iterator[Piece]:
    """Every row that is not blank is a document."""
    return ((text.replace("\r\n", "\n"), True) for text in texts if text.strip())


def articles(lines: Iterator[str]) -> Iterator[Piece]:
    r"""WikiText: rows are lines; an article starts at a line ` = Title = ` between two blank ones.

    Blank rows become the blank line ` \n` that they are in the published files, so that the words counted are too.
    """
    article: list[str] = []
    held: list[str] = []  # a blank line, then perhaps a title, whose next line decides
    for row in lines:
        line = (row if row.endswith("\n") else row + "\n") if row.strip() else " \n"
        blank = not line.strip()
        if len(held) == 2:
            if blank and any(part.strip() for part in article):
                yield "".join(article), True
                article = []
            article += held
            held = []
        if blank:
            article += held
            held = [line]
        elif held and _TITLE.match(line):
            held.append(line)
        else:
            article += [*held, line]
            held = []
    article += held
    if any(part.strip() for part in article):
        yield "".join(article), True


def _cached_or_online(kind: str, name: str, probe: str, likely: bool, column: str = "") -> Any:
    load, what = _LOADERS[kind], f"{kind if kind == 'tokenizer' else 'data set'} '{name}'"
    # If the cache is unlikely to help, the hub is asked while the libraries are being imported.
    preflight = None if likely else Preflight(probe)
    try:
        with _offline():
            return load(name, column)
    except Exception:  # not in the cache, whichever way the libraries say it
        problem = (preflight or Preflight(probe)).problem()
    if problem is not None:
        raise DataError(
            f"{what} is not cached and the hub at {endpoint()} does not answer: {problem}. Connect, or set HF_ENDPOINT "
            "to a mirror or HF_HOME to a cache that has it; or use what is here: --data FILE or --data embedded"
        )
    try:
        download(kind, name, column, _caches())
        with _offline():
            return load(name, column)
    except Exception as error:
        reason = str(error) if isinstance(error, DataError) else _reason(error)
        raise DataError(f"{what} cannot be had from {endpoint()}: {reason}") from error


def _caches() -> list[Path]:
    from huggingface_hub import constants

    home = Path(constants.HF_HOME)
    places = [Path(constants.HF_HUB_CACHE), Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets"), home]
    places.append(cache_directory() / "texts")
    return [place for place in places if not any(other in place.parents for other in places)]


def may_be_cached(name: str) -> bool:
    """Whether a data set has a folder in the cache. Only a matter of time: the libraries decide."""
    from huggingface_hub import constants

    cache = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return (Path(cache) / name.replace("/", "___")).is_dir()


def _reason(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, DataError):
        return str(error)
    if name in {"DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError", "HFValidationError"}:
        return "there is no such repository, or it is private (then log in: hf auth login)"
    if name in {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
        return "the repository has no tokenizer.json or vocab.txt"
    text = " ".join(str(error).split())
    text = re.sub(r" Example of usage: .*", "; add one after a colon, as in user/set:configuration", text)
    return f"{text[:400]} ({name})"


def _forbidden() -> bool:
    """True if the user has switched the network off."""
    return any(os.environ.get(key, "").upper() in _YES for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def _online() -> bool:
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's libraries answer from the cache alone, those that were imported before too."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    datasets = sys.modules.get("datasets")
    constants.HF_HUB_OFFLINE = True
    if datasets is not None:
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        # Imported meanwhile, it has taken the value over.
        datasets = sys.modules.get("datasets")
        if datasets is not None:
            datasets.config.HF_HUB_OFFLINE = before
