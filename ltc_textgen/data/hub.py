"""Data sets and tokenizers of the Hugging Face hub, without waiting for a hub that does not answer.

The hub's libraries retry for 23 to 46 seconds when it cannot be reached, and for minutes when it hangs. So what is
cached is used without a request; else one request of at most `PATIENCE` seconds decides whether the hub answers, and
only then the libraries go online, in a process that is ended when nothing arrives (`hub_download`).
"""

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltc_textgen.data import hub_stream
from ltc_textgen.data.cache import cache_directory
from ltc_textgen.data.hub_download import download
from ltc_textgen.data.text_files import Chunk
from ltc_textgen.errors import DataError
from ltc_textgen.io.output import one_line

PATIENCE = 2.5
"""Seconds within which the hub must answer the first request."""

CHUNK = 1 << 14
"""Bytes of a download that are written at once: few, so that a slow download shows progress."""

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_2 = "wikitext-2-raw-v1"
BERT = "google-bert/bert-base-uncased"

_YES = {"1", "ON", "YES", "TRUE"}
_TITLE = re.compile(r"^ = [^=].*[^=] = ?\n?$|^ = [^=\s] = ?\n?$")


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class Preflight:
    """One request in the background, started at once, that decides whether the hub answers.

    Args:
        path: File of the wanted repository that is requested.
    """

    def __init__(self, path: str) -> None:
        self._url = f"{endpoint()}/{path}"
        self._problem: str | None = f"no answer within {PATIENCE:g} s"
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def problem(self) -> str | None:
        """None if the hub answers, else why not. Waits for the answer, at most `PATIENCE` seconds."""
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
        except Exception as error:  # of any kind: there was no answer
            self._problem = one_line(error)
            return
        # Too many requests, or a failing server; 501 is a server that does not know HEAD.
        failing = status == 429 or (status >= 500 and status != 501)
        self._problem = f"it answers with status {status}" if failing else None


def load_dataset(identifier: str) -> dict[str, Any]:
    """All splits of a data set of the hub, memory-mapped.

    Args:
        identifier: `user/set`, or `user/set:configuration`.

    Raises:
        DataError: If it is neither cached nor available from the hub; the message says why and what to do.
    """
    name = identifier.partition(":")[0]
    probe = f"datasets/{name}/resolve/main/README.md"
    return _cached_or_online("data set", identifier, probe, may_be_cached(name))


def find_dataset(identifier: str, column: str, streaming: str = "auto") -> dict[str, Any]:
    """All splits of a data set of the hub, or of a large one those to train and validate on (see `streaming`).

    Args:
        identifier: `user/set`, or `user/set:configuration`.
        column: What holds the text.
        streaming: never: as `load_dataset`. always: only the text column is stored while it streams. auto: a
            cached copy of either form; else large data sets are streamed.

    Raises:
        DataError: If it is neither cached nor available from the hub; the message says why and what to do.
    """
    if streaming == "never":
        return load_dataset(identifier)
    if (found := hub_stream.kept_whole(identifier, column)) is not None:
        return dict(found)
    name = identifier.partition(":")[0]
    probe = f"datasets/{name}/resolve/main/README.md"
    return _cached_or_online("stream" if streaming == "always" else "text", identifier, probe, True, column)


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a repository of the hub, or its vocab.txt if it has no other.

    Raises:
        DataError: If it is neither cached nor available from the hub; the message says why and what to do.
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
    """A small data set as such, a large one as its text column, which is stored while it streams."""
    if (found := hub_stream.kept_whole(identifier, column)) is not None:
        return dict(found)
    if _online() and hub_stream.is_large(identifier.partition(":")[0]):
        return _load_stream(identifier, column)
    return _load_dataset(identifier, column)


def _load_stream(identifier: str, column: str) -> dict[str, Any]:
    if _online():
        hub_stream.stream(identifier, column, lambda: print(json.dumps({"arrived": True}), flush=True))
    found = hub_stream.kept_whole(identifier, column)
    if found is None:
        raise FileNotFoundError("its text is not cached")
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
            # Offline, a repository without one looks like one that is not cached.
            return Path(hf_hub_download(name, "vocab.txt"))
        with suppress(EntryNotFoundError):  # it says whether the vocabulary is lower case
            hf_hub_download(name, "tokenizer_config.json")
        return Path(hf_hub_download(name, "vocab.txt"))


_LOADERS: dict[str, Callable[[str, str], Any]] = {
    "data set": _load_dataset,
    "text": _load_text,
    "stream": _load_stream,
    "tokenizer": _load_tokenizer,
}


def fetch(kind: str, name: str, column: str) -> None:
    """Fill the caches, for `download`: progress and failure go to stdout as JSON, and an exit code.

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


def rows(split: Any, column: str, name: str) -> Iterator[str | None]:
    """The texts of a split, in order; None for a row without text.

    Raises:
        DataError: If the split has no such column of text.
    """
    if not isinstance(split, hub_stream.KeptSplit) and column not in split.column_names:
        raise DataError(
            f"{name}: no column '{column}' (columns: {', '.join(split.column_names)}); choose one with --text-column"
        )
    if isinstance(split, hub_stream.KeptSplit):
        yield from split.texts()
        return
    for batch in split.select_columns([column]).with_format("arrow").iter(batch_size=1024):
        for text in batch.column(column).to_pylist():
            if text is not None and not isinstance(text, str):
                raise DataError(f"{name}: column '{column}' holds {type(text).__name__}, not text")
            yield text


def articles(lines: Iterator[str]) -> Iterator[Chunk]:
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
            "to a mirror or HF_HOME to a cache that has it; or use local text: --data FILE or --data embedded"
        )
    try:
        download(kind, name, column, _caches())
        with _offline():
            return load(name, column)
    except Exception as error:
        reason = str(error) if isinstance(error, DataError) else _reason(error)
        raise DataError(f"{what} is not available from {endpoint()}: {reason}") from error


def _caches() -> list[Path]:
    from huggingface_hub import constants

    home = Path(constants.HF_HOME)
    places = [Path(constants.HF_HUB_CACHE), Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets"), home]
    places.append(cache_directory() / "texts")
    return [place for place in places if not any(other in place.parents for other in places)]


def may_be_cached(name: str) -> bool:
    """Whether a data set has a folder in the cache. It only saves time: the libraries decide."""
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
    text = one_line(error)
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
        # If it was imported meanwhile, it has copied the value.
        datasets = sys.modules.get("datasets")
        if datasets is not None:
            datasets.config.HF_HUB_OFFLINE = before
