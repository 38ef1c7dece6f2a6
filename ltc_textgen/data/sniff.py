"""What a file holds, judged by its name and its first bytes: text, a format that is not text, another encoding."""

import codecs
import json
import re
import unicodedata
from pathlib import Path

PANDOC = "extract the text, for example: pandoc -t plain -o text.txt"
UNPACK = "unpack it and give the folder"

NOT_TEXT = {
    ".tar": f"a tar archive: {UNPACK}",
    ".tgz": f"a tar archive: {UNPACK}",
    ".tbz2": f"a tar archive: {UNPACK}",
    ".txz": f"a tar archive: {UNPACK}",
    ".zip": f"a zip archive: {UNPACK}",
    ".7z": f"a 7z archive: {UNPACK}",
    ".rar": f"a rar archive: {UNPACK}",
    ".zst": "compressed with zstd: unpack it (unzstd) or use .gz, .bz2 or .xz",
    ".pdf": "a PDF file: extract the text, for example: pdftotext",
    ".rtf": f"an RTF document: {PANDOC}",
    ".epub": f"an EPUB book: {PANDOC}",
    ".doc": "a Word document: save it as plain text",
    ".docx": f"a Word document: {PANDOC}",
    ".odt": f"an OpenDocument text: {PANDOC}",
    ".html": f"an HTML page: {PANDOC}; to learn its tags too, name it .txt",
    ".htm": f"an HTML page: {PANDOC}; to learn its tags too, name it .txt",
    ".xhtml": f"an HTML page: {PANDOC}; to learn its tags too, name it .txt",
    ".xml": "an XML file: extract the text; to learn its tags too, name it .txt",
    ".xls": "a spreadsheet: save it as .csv",
    ".xlsx": "a spreadsheet: save it as .csv",
    ".ods": "a spreadsheet: save it as .csv",
    ".ipynb": "a notebook: export its text, for example: jupyter nbconvert --to markdown",
    ".arrow": "an Arrow file: write it as .parquet",
    ".sqlite": "a database: export a table as .csv",
    ".db": "a database: export a table as .csv",
    ".npy": "a NumPy array, not text",
    ".pkl": "a pickle, which is never loaded",
    ".bin": "a binary file, not text",
}
"""Suffixes of files that are rejected by name, and what to do instead."""

MEDIA = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".svg",
        ".ico",
        ".mp3",
        ".wav",
        ".flac",
        ".ogg",
        ".m4a",
        ".mp4",
        ".mkv",
        ".avi",
        ".mov",
        ".webm",
        ".ttf",
        ".otf",
        ".woff",
        ".woff2",
        ".so",
        ".dll",
        ".exe",
        ".o",
        ".a",
        ".pyc",
        ".class",
        ".safetensors",
        ".pt",
        ".pth",
        ".ckpt",
        ".onnx",
        ".gguf",
        ".npy",
        ".npz",
        ".bin",
    ]
)
"""Suffixes of files that hold no text: they do not count as skipped text."""

_SIGNATURES = (
    (0, b"PK\x03\x04", f"a zip archive (or a document in one): {UNPACK}, or {PANDOC}"),
    (0, b"\x1f\x8b", "gzip data: give the file the suffix .gz"),
    (0, b"BZh", "bzip2 data: give the file the suffix .bz2"),
    (0, b"\xfd7zXZ\x00", "xz data: give the file the suffix .xz"),
    (0, b"\x28\xb5\x2f\xfd", NOT_TEXT[".zst"]),
    (0, b"7z\xbc\xaf\x27\x1c", NOT_TEXT[".7z"]),
    (0, b"Rar!", NOT_TEXT[".rar"]),
    (257, b"ustar", NOT_TEXT[".tar"]),
    (0, b"PAR1", "a Parquet file: give it the suffix .parquet"),
    (0, b"ARROW1", NOT_TEXT[".arrow"]),
    (0, b"SQLite format 3", NOT_TEXT[".db"]),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF", NOT_TEXT[".pdf"]),
    (0, b"{\\rtf", NOT_TEXT[".rtf"]),
    (0, b"\xd0\xcf\x11\xe0", NOT_TEXT[".doc"]),
    (0, b"\x7fELF", "a program"),
    (0, codecs.BOM_UTF32_LE, "UTF-32 text: convert it, iconv -f UTF-32 -t UTF-8"),
    (0, codecs.BOM_UTF32_BE, "UTF-32 text: convert it, iconv -f UTF-32 -t UTF-8"),
    (0, codecs.BOM_UTF16_LE, "UTF-16 text: convert it, iconv -f UTF-16 -t UTF-8"),
    (0, codecs.BOM_UTF16_BE, "UTF-16 text: convert it, iconv -f UTF-16 -t UTF-8"),
)

_CODE_PAGES = (
    ("WINDOWS-1252", "cp1252"),
    ("WINDOWS-1251", "cp1251"),
    ("KOI8-R", "koi8_r"),
    ("IBM866", "cp866"),
    ("WINDOWS-1250", "cp1250"),
    ("WINDOWS-1253", "cp1253"),
    ("WINDOWS-1255", "cp1255"),
    ("WINDOWS-1256", "cp1256"),
    ("SHIFT_JIS", "shift_jis"),
    ("GB18030", "gb18030"),
    ("EUC-JP", "euc_jp"),
    ("BIG5", "big5"),
    ("EUC-KR", "euc_kr"),
    ("MACINTOSH", "mac_roman"),
)


def not_text_by_name(path: Path) -> str | None:
    """Why a file of this name is no text, and what to do; None if it may be text."""
    name = path.name.lower()
    for packed in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(packed)
    return next((reason for suffix, reason in NOT_TEXT.items() if name.endswith(suffix)), None)


def not_text(head: bytes) -> str | None:
    """Why a file that begins with these bytes is no UTF-8 text, and what to do; None if it may be text."""
    for at, signature, what in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return what
    even, odd = head[0::2], head[1::2]
    for byte_order, zero, other in (("LE", odd, even), ("BE", even, odd)):
        if len(head) >= 8 and zero.count(0) > 0.4 * len(zero) and other.count(0) < 0.05 * len(other):
            encoding = f"UTF-16{byte_order}"
            return f"like {encoding} text without a byte order mark: convert it, iconv -f {encoding} -t UTF-8"
    control = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 or byte == 127 for byte in head)
    if control > len(head) // 20:
        return f"binary data: {control} control bytes in the first {len(head)}"
    return None


def likely_encoding(sample: bytes) -> str:
    """The encoding, as `iconv` names it, that makes the most plausible words of bytes that are not UTF-8.

    A letter counts for an encoding if its neighbours are letters of its own script and its case fits, and against it
    otherwise; common marks of print count too.
    """
    best, best_score = _CODE_PAGES[0][0], float("-inf")
    for name, codec in _CODE_PAGES:
        text = sample.decode(codec, "replace")
        score = sum(_plausible(text, at) for at, character in enumerate(text) if character > "\x7f")
        if score > best_score:
            best, best_score = name, score
    return best


def _plausible(text: str, at: int) -> float:
    character = text[at]
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if character == "’" and before.isalpha() and after.isalpha():  # an apostrophe, as likely as a letter
        return 1.0
    if character in "–—‘’“”„…«»§°€·、。「」，":
        return 0.5
    script = _script(character)
    if character == "\ufffd" or script in {"", "HALFWIDTH"}:
        return -1.0
    if "\u3040" <= character <= "\u30ff":  # kana: every other letter of Japanese, and of nothing else
        return 2.0
    neighbours = [_script(c) for c in (before, after) if c.isalpha()]
    if any(neighbour != script for neighbour in neighbours):
        return -1.0
    if character.isupper() and before.islower():
        return -1.0
    return 1.0 if neighbours else 0.25


def _script(character: str) -> str:
    """The first word of a letter's Unicode name, as LATIN or CYRILLIC; Japanese and Chinese letters are one script."""
    if not character or not character.isalpha():
        return ""
    script = unicodedata.name(character, "").split(" ")[0]
    return "CJK" if script in {"HIRAGANA", "KATAKANA"} else script


def looks_like(head: str) -> str | None:
    """What plain text seems to be instead, and what to do; None if it is like prose.

    Args:
        head: The first characters of a file that is read as one document.
    """
    start = head.lstrip()
    if re.match(r"(?i)<!doctype html|<html[\s>]|<head[\s>]|<body[\s>]", start):
        return "HTML: its tags are learned too; " + PANDOC
    if re.match(r"<\?xml\s", start):
        return "XML: its tags are learned too; extract the text"
    lines = head.split("\n")[:-1][:20] or head.split("\n")
    if start.startswith(("{", "[{")) and _is_json(lines[0].strip()):
        return "JSON lines: its keys and braces are learned too; name it .jsonl to read its rows"
    for delimiter, suffix in (("\t", ".tsv"), (",", ".csv"), (";", ".csv")):
        counts = [line.count(delimiter) for line in lines if line.strip()]
        if len(counts) >= 5 and counts[0] >= 1 + (delimiter != "\t") and len(set(counts)) == 1:
            return f"a table: its columns are learned too; name it {suffix} to read a column with --text-column"
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith("[{")
    return True
