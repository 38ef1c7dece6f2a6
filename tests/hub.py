"""A Hugging Face hub on loopback, for the tests: WikiText-2-shaped Parquet files, any other data set, BERT tokenizers.

with Hub() as hub:                  # hub.url goes into HF_ENDPOINT
    hub.add_wikitext(); hub.add_bert()
    hub.requests                    # what was asked for
    hub.tokens                      # with which token each upload came
Hub(mode="hanging")                 # accepts connections and never answers
Hub(mode="stalling")                # answers HEAD, and hangs in GET
Hub(mode="slow")                    # sends a file a little at a time, in `Hub.seconds` in all
Hub(mode="failing")                 # answers every request with status 500
dead_endpoint()                     # an address without a server
"""

import base64
import hashlib
import io
import json
import re
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet
import yaml

WIKITEXT = "Salesforce/wikitext"
BERT = "google-bert/bert-base-uncased"
_SUBJECTS = ["the river", "a lobster", "the old church", "this ship", "the band", "her novel", "the storm", "a king"]
_VERBS = ["crossed", "described", "was built near", "reached", "recorded", "destroyed", "is a part of", "inspired"]
_OBJECTS = ["the city", "an island", "the second album", "a small village", "1 @,@ 200 people", "the coast", "a film"]


def wikitext_rows(articles: int, start: int = 0) -> list[str]:
    """Rows as in wikitext-2-raw-v1: one line a row, blank rows empty, titles ` = Title = `."""
    rows = []
    for n in range(start, start + articles):
        rows += ["", f" = Article {n} = \n", ""]
        for section in range(3):
            sentences = [
                f"{_SUBJECTS[(n * 7 + section * 3 + k) % 8]} {_VERBS[(n + k * 5) % 8]} {_OBJECTS[(n * 3 + k) % 7]} ."
                for k in range(6)
            ]
            rows += [" " + " ".join(sentences) + " \n", "", f" = = Part {section} = = \n", ""]
    return rows


def bert_vocabulary() -> list[str]:
    """Pieces of a small BERT: special tokens, all of ASCII on its own and continuing, and the words of the rows."""
    ascii_ = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = sorted(
        {w for group in (_SUBJECTS, _VERBS, _OBJECTS) for text in group for w in text.split() if w.isalpha()}
    )
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_, *("##" + c for c in ascii_ if c.isalnum())]
    return pieces + [word for word in [*words, "article"] if len(word) > 1]


def bert_tokenizer_json() -> str:
    """The tokenizer.json of `bert_vocabulary`, with the truncation that many repositories carry."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {piece: index for index, piece in enumerate(bert_vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_truncation(16)
    return tokenizer.to_str()


def parquet_bytes(columns: dict[str, list[object]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def dead_endpoint() -> str:
    """An address of a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class Hub:
    """The server; a context manager.

    Args:
        mode: ok, hanging, stalling, slow or failing; may be changed while it runs.
    """

    def __init__(self, mode: str = "ok") -> None:
        self.mode = mode
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.seconds = 3.0
        self._release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, kind: str, repository: str, files: dict[str, bytes]) -> None:
        """Serve files as a repository; `kind` is models or datasets."""
        self.files[kind, repository] = files

    def add_wikitext(self, articles: int = 40) -> None:
        """Salesforce/wikitext with the configuration wikitext-2-raw-v1 and its three splits."""
        splits = {"train": (articles, 0), "validation": (max(2, articles // 8), 1000), "test": (3, 2000)}
        name = "wikitext-2-raw-v1"
        self.add_dataset(WIKITEXT, {s: {"text": wikitext_rows(*of)} for s, of in splits.items()}, name)

    def add_dataset(self, repository: str, splits: dict[str, dict[str, list[object]]], config: str = "default") -> None:
        """A data set with one configuration, one Parquet file a split."""
        lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        files = {f"{config}/{s}-00000-of-00001.parquet": parquet_bytes(c) for s, c in splits.items()}
        self.add("datasets", repository, {"README.md": "\n".join([*lines, "---", ""]).encode(), **files})

    def add_bert(self, repository: str = BERT, *, only_vocabulary: bool = False) -> None:
        """A BERT tokenizer: tokenizer.json and the rest, or vocab.txt alone."""
        vocabulary = "\n".join(bert_vocabulary()).encode() + b"\n"
        files = {"vocab.txt": vocabulary, "tokenizer_config.json": json.dumps({"do_lower_case": True}).encode()}
        if not only_vocabulary:
            files["tokenizer.json"] = bert_tokenizer_json().encode()
            files["config.json"] = json.dumps({"model_type": "bert", "vocab_size": len(bert_vocabulary())}).encode()
        self.add("models", repository, files)

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_POST(self) -> None:
                hub.requests.append(f"POST {self.path}")
                hub.tokens.append(self.headers.get("Authorization"))
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._send(*hub._take(unquote(urlsplit(self.path).path), content), True)

            def _answer(self, body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                if hub.mode == "hanging" or (hub.mode == "stalling" and body):
                    hub._release.wait(60)
                    self.close_connection = True
                elif hub.mode == "failing":
                    self._send(500, b"broken", {}, body)
                else:
                    self._send(*hub._find(unquote(urlsplit(self.path).path)), body)

            def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
                if status == 200 and (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
                    first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
                    headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
                    status, content = 206, content[first : last + 1]
                    hub.ranges.append((self.path, first, last + 1))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body and hub.mode == "slow" and "/resolve/" in self.path:
                    with suppress(OSError):  # the client has given up
                        for n in range(12):
                            self.wfile.write(content[len(content) * n // 12 : len(content) * (n + 1) // 12])
                            hub._release.wait(hub.seconds / 12)
                elif body:
                    self.wfile.write(content)

        return Handler

    def _take(self, path: str, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """What an upload asks for: a repository, a check of the card's header, how to send each file, a commit."""
        parts = path.strip("/").split("/")
        status, answer = 404, {}
        if path == "/api/repos/create":
            wanted = json.loads(content)
            repository = f"{wanted['organization'] or 'somebody'}/{wanted['name']}"
            status, answer = (409 if ("models", repository) in self.files else 200), {"url": f"{self.url}/{repository}"}
            self.files.setdefault(("models", repository), {})
        elif path == "/api/validate-yaml":
            header = re.match(r"---\n(.*?)\n---\n", json.loads(content)["content"], re.DOTALL)
            fine = header and isinstance(yaml.safe_load(header[1]), dict)
            status, answer = (200, {}) if fine else (400, {"errors": [{"message": "the header is no YAML"}]})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
            files = json.loads(content)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            status, answer = 200, {"files": modes}
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
            repository = "/".join(parts[2:4])
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    data = base64.b64decode(line["value"]["content"])
                    self.files["models", repository][line["value"]["path"]] = data
            oid = _commit(self.files["models", repository])
            status, answer = 200, {"commitUrl": f"{self.url}/{repository}/commit/{oid}", "commitOid": oid}
        return status, json.dumps(answer).encode(), {"Content-Type": "application/json"}

    def _find(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        parts = path.strip("/").split("/")
        if parts[:1] == ["api"] and parts[1:2] in (["models"], ["datasets"]):
            return self._api(parts[1], parts[2:])
        kind = "datasets" if parts[:1] == ["datasets"] else "models"
        parts = parts[1:] if kind == "datasets" else parts
        repository, rest = "/".join(parts[:2]), parts[2:]
        files = self.files.get((kind, repository))
        if files is None:
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if len(rest) < 3 or rest[0] != "resolve" or "/".join(rest[2:]) not in files:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        content = files["/".join(rest[2:])]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": _commit(files)}
        return 200, content, headers | {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}

    def _api(self, kind: str, parts: list[str]) -> tuple[int, bytes, dict[str, str]]:
        repository, rest = "/".join(parts[:2]), parts[2:]
        files = self.files.get((kind, repository))
        if files is None:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        answer: object
        if rest[:1] == ["tree"]:
            answer = _tree(files, "".join(part + "/" for part in rest[2:]))
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            answer = {"id": repository, "sha": _commit(files), "siblings": siblings, "private": False, "tags": []}
            answer |= {"downloads": 0, "likes": 0, "gated": False, "disabled": False}
        return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}


def _tree(files: dict[str, bytes], under: str) -> list[dict[str, object]]:
    """Files of a folder, and the folders in it."""
    names = {name for name in files if name.startswith(under)}
    folders = sorted({under + name[len(under) :].split("/")[0] for name in names if "/" in name[len(under) :]})
    entries: list[dict[str, object]] = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in folders]
    for name in sorted(name for name in names if "/" not in name[len(under) :]):
        oid = hashlib.sha1(files[name]).hexdigest()
        entries.append({"type": "file", "path": name, "size": len(files[name]), "oid": oid})
    return entries


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
