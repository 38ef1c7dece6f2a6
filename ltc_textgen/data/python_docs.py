"""The corpus that is always there: the English documentation inside the running Python.

Docstrings of the standard library and the language reference of `pydoc_data`, about 1.7 MB of prose. Nothing is
imported to read them, and one version of Python always gives the same text.
"""

import ast
import functools
import hashlib
import importlib.util
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from ltc_textgen.errors import DataError

# Tests and translation tables: many files, hardly any prose.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "__pycache__", "ensurepip"}
_SHORTEST = 60
_PROSE = 0.64


def source_files() -> list[Path]:
    """The Python files of the standard library that are read, in a fixed order.

    Raises:
        DataError: If this Python brings no sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    topics = importlib.util.find_spec("pydoc_data.topics")
    files = [path for path in root.rglob("*.py") if not _LEFT_OUT.intersection(path.relative_to(root).parts[:-1])]
    if topics is not None and topics.origin is not None:
        files.append(Path(topics.origin))
    if not files:
        raise DataError("embedded: this Python comes without the sources of its library; name a file with --data")
    return sorted(set(files), key=lambda path: path.as_posix())


def embedded_fingerprint() -> str:
    """sha256 of everything the corpus is made from."""
    digest = hashlib.sha256(f"1 {sys.version}".encode())
    for path in source_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def embedded_documents() -> tuple[str, ...]:
    """The cleaned texts: long enough, prose, without duplicates, and shuffled so that any part is representative."""
    found: dict[str, str] = {}
    for path in source_files():
        for text in _texts(path):
            clean = clean_text(text)
            if len(clean) >= _SHORTEST:
                found.setdefault(re.sub(r"\W+", " ", clean).lower(), clean)
    return tuple(sorted(found.values(), key=lambda text: hashlib.sha256(text.encode()).digest()))


def clean_text(text: str) -> str:
    """Documentation, dedented, as prose: no interpreter sessions, rules, code blocks or tables of symbols.

    Paragraphs that are mostly letters stay, with their line breaks; indentation and mark-up of reStructuredText go.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.expandtabs().replace("\r\n", "\n")):
        prose = re.split(r"^\s*>>>", paragraph, maxsplit=1, flags=re.MULTILINE)[0]
        lines = [line for line in prose.splitlines() if re.search(r"\w", line)]
        block = "\n".join(_clean_line(line) for line in lines)
        if block and not _is_code(lines) and _prose_fraction(block) >= _PROSE:
            paragraphs.append(block)
    return "\n\n".join(paragraphs)


def _texts(path: Path) -> Iterator[str]:
    """Docstrings in the order of the file; for the language reference, its topics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # lib2to3 keeps Python 2
            return
    if path.name == "topics.py":
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                yield from (v.value for v in node.values if isinstance(v, ast.Constant) and isinstance(v.value, str))
        return
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text
            pending.extend(reversed(node.body))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            pending.extend(reversed(node.body))


def _clean_line(line: str) -> str:
    line = re.sub(r":(?:\w+:)?(?:class|func|meth|mod|exc|attr|data|term|ref|const|pep|keyword|option):`", "`", line)
    line = re.sub(r"(``|`|\*\*|\*)([^`*\s](?:[^`*]*[^`*\s])?)\1", r"\2", line)
    return re.sub(r"\s+", " ", line).strip().replace("::", ":")


def _is_code(lines: list[str]) -> bool:
    """A grammar production, or something indented that reads like statements."""
    marks = sum(bool(re.search(r"^\s*(?:\.\.\.|[|+$#%]|@)|::=|^\s{4,}.*[=(\[{:]\s*$|->|==", line)) for line in lines)
    statements = sum(
        bool(re.search(r"^\s*(?:def|class|import|from|return|for|if|while|try|with)\b.*[:)(]?$", line))
        for line in lines
        if line.rstrip().endswith((":", ")")) and line.startswith(" ")
    )
    return marks + statements > len(lines) / 4


def _prose_fraction(text: str) -> float:
    """Fraction of the characters in plain words and the spaces and commas between them."""
    words = re.findall(r"(?<![\w.(])[A-Za-z][a-z'’-]*(?=[\s,.;:!?)\"']|$)", text)
    return (sum(map(len, words)) + text.count(" ") + text.count("\n")) / len(text)
