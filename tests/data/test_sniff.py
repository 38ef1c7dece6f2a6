import gzip
import io
import tarfile
from pathlib import Path

import pytest
from documents import put, rejection

from ltc_textgen.data.sniff import likely_encoding, looks_like, not_text


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        content = b"text " * 100
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("text".encode("utf-16"), "UTF-16"),
        ("some longer text".encode("utf-16-le"), "UTF-16LE"),
        ("some longer text".encode("utf-16-be"), "UTF-16BE"),
        ("text".encode("utf-32"), "UTF-32"),
        (b"PK\x03\x04....", "zip"),
        (gzip.compress(b"text", mtime=0), ".gz"),
        (tar(), "tar"),
        (b"{\\rtf1 text}", "RTF"),
        (b"%PDF-1.4", "PDF"),
        (bytes(range(256)) * 20, "binary"),
        (b"\x00" * 5000, "binary"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_what_is_no_text_is_rejected_whatever_its_name(tmp_path: Path, name: str, content: bytes, fact: str) -> None:
    for errors in ("strict", "ignore"):
        rejection(put(tmp_path / name, content), fact, errors=errors)


@pytest.mark.parametrize(
    "name", ["c.tar", "c.tar.gz", "c.TGZ", "a.docx", "a.pdf", "a.rtf", "a.epub", "a.html", "a.xlsx"]
)
def test_what_is_no_text_by_its_name(tmp_path: Path, name: str) -> None:
    rejection(put(tmp_path / name, b"text that is text"), name)


@pytest.mark.parametrize(
    ("name", "codec", "text"),
    [
        ("WINDOWS-1252", "cp1252", "Das Café öffnet für jeden – “schönen” Tag"),
        ("WINDOWS-1252", "cp1252", "It’s calm. "),
        ("MACINTOSH", "mac_roman", "It’s calm near the Café. “Días”, él dice."),
        ("WINDOWS-1251", "cp1251", "Море было спокойно, и Старый рыбак молчал"),
        ("KOI8-R", "koi8_r", "Море было спокойно, и Старый рыбак молчал"),
        ("WINDOWS-1253", "cp1253", "Η θάλασσα ήταν ήρεμη και ο γέρος σιωπούσε"),
        ("SHIFT_JIS", "shift_jis", "海は静かだった。老人は黙っていた。"),
        ("GB18030", "gb18030", "大海很平静,老人沉默不语。他看着远方的船。"),
    ],
)
def test_the_likely_encoding(name: str, codec: str, text: str) -> None:
    assert likely_encoding(text.encode(codec) * 3) == name


def test_plain_text_is_no_other_format() -> None:
    assert not_text("The sea.\r\n\tTab é".encode()) is None
    for prose in ("Once, there was.\nNow, not.\n" * 9, "(a) {b}\n", "1 < 2\n", "{ brace\n", ""):
        assert looks_like(prose) is None
    assert ".csv" in (looks_like("id,name,text\n" * 6) or "")
    assert ".tsv" in (looks_like("id\ttext\n" * 6) or "")
    assert "XML" in (looks_like("<?xml version='1.0'?><a/>") or "")
    assert "JSON" in (looks_like('{"text": "a"}\n{"text": "b"}\n') or "")
