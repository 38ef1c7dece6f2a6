"""Mutations of JSON documents, safetensors files, text and raw bytes, all drawn from one `random.Random`."""

import copy
import json
import random
import struct
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400,
    0.0, -0.0, 0.5, 1e-46, 1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf"),
    "", "x", "x" * 10_000, "\0", "\ud800", "\ufeff", "\x1b[31m", "../../etc", "1", "nan", "true",
    [], {}, [[]], [None], [1, 2, 3], ["a"], {"a": 1}, {"": {}}, [2**31] * 3, list(range(300)),
]  # fmt: skip
"""Values of wrong types, at the edges of number formats, and of wrong sizes."""

PIECES = [
    b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\0", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"{", b"}", b",",
    b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"1e999", b"NaN", b"-", b" " * 1000, b"\x1b]0;x\x07", b"<|separator|>",
]  # fmt: skip
"""Byte strings that parsers trip over."""


def mutate_bytes(chance: random.Random, content: bytes) -> bytes:
    """Flip bits, cut, repeat or insert bytes."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + chance.randrange(1, 20)]
            case 3:
                data[at:at] = chance.choice(PIECES)
            case 4:
                data[at:at] = data[at : at + chance.randrange(1, 200)]
            case 5:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data)


def mutate_value(chance: random.Random, value: Any) -> Any:
    """A value instead of another."""
    if type(value) in (int, float) and chance.random() < 0.5:
        return chance.choice((value + 1, value - 1, -value, value * 2, value * 1000, value // 3, str(value), [value]))
    if isinstance(value, str) and chance.random() < 0.3:
        return chance.choice((value + "x", value[:-1], value.upper(), value * 2, value[::-1], [value]))
    if isinstance(value, list) and chance.random() < 0.5:
        return chance.choice((value * 2, value[:-1], value[1:], value[::-1], [value]))
    if chance.random() < 0.03:
        return nested(chance.choice((50, 500, 5000)), chance.choice(("list", "dict")))
    return copy.deepcopy(chance.choice(HOSTILE))


def nested(depth: int, kind: str) -> Any:
    """Lists or objects inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def mutate_json(chance: random.Random, document: Any, count: int | None = None) -> Any:
    """Replace, remove, rename, swap or add entries of a JSON document, which is changed."""
    for _ in range(count or chance.choice((1, 1, 1, 2, 4))):
        places = list(walk(document))
        if not places:
            return mutate_value(chance, document)
        parent, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[chance.choice(("", str(key) + "x", "model_type", "format"))] = parent.pop(key)
            case 2:
                other, name = chance.choice(places)
                other_value = other[name] if (name in other if isinstance(other, dict) else name < len(other)) else None
                parent[key] = copy.copy(other_value)
            case _:
                parent[key] = mutate_value(chance, parent[key])
    return document


def walk(document: Any, depth: int = 0) -> Any:
    """Every (container, key) of a document, lists by at most 40 of their indices."""
    if depth > 20:
        return
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys if len(keys) <= 40 else [*keys[:20], *keys[-20:]]:
        yield document, key
        yield from walk(document[key], depth + 1)


def dumped(document: Any) -> bytes:
    """JSON, NaN and lone surrogates included, however deep or long."""
    try:
        return json.dumps(document).encode()
    except (RecursionError, ValueError):
        return b"[" * 5000 + b"]" * 5000


def mutate_json_bytes(chance: random.Random, content: bytes) -> bytes:
    """Mostly a changed document, sometimes changed bytes."""
    if chance.random() < 0.2:
        return mutate_bytes(chance, content)
    mutated = dumped(mutate_json(chance, json.loads(content)))
    return mutate_bytes(chance, mutated) if chance.random() < 0.05 else mutated


def mutate_safetensors(chance: random.Random, content: bytes) -> bytes:
    """Change the header (shapes, types, offsets, names, metadata), the numbers, or the bytes."""
    if chance.random() < 0.1:
        return mutate_bytes(chance, content)
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    entry = header[chance.choice(names)]
    match chance.randrange(9):
        case 0:
            header = mutate_json(chance, header)
        case 1:
            entry["dtype"] = chance.choice(("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X", 3))
        case 2:
            entry["shape"] = chance.choice(
                ([], [0], [1], [2**62], [2**31, 2**31], [-1], entry["shape"][::-1], [*entry["shape"], 1])
            )
        case 3:
            resize(
                header,
                data,
                entry,
                chance.choice(([], [1], [0], [3], [*entry["shape"], 1], entry["shape"][1:], [7, 7])),
            )
        case 4:
            header[chance.choice(("x", "", "a" * 1000))] = header.pop(chance.choice(names))
        case 5:
            low, high = entry["data_offsets"]
            value = chance.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff" * 4, b"\0" * 4))
            for at in range(low, high - 3, 4 * chance.choice((1, 7, 1000))):
                data[at : at + 4] = value
        case 6:
            header["__metadata__"] = mutate_json(chance, header.get("__metadata__", {}))
        case 7:
            other = header[chance.choice(names)]
            entry["shape"], other["shape"] = other["shape"], entry["shape"]
        case 8:
            entry["data_offsets"] = [mutate_value(chance, value) for value in entry["data_offsets"]]
    text = dumped(header)
    size = len(text) if chance.random() < 0.97 else chance.choice((0, 2**63, len(text) + 1, 2**40))
    return struct.pack("<Q", size) + text + bytes(data)


def resize(header: dict[str, Any], data: bytearray, entry: dict[str, Any], shape: list[int]) -> None:
    """Give a tensor another shape and as many numbers, moving those behind it: a file that is whole."""
    width = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)
    size = width
    for length in shape:
        size *= length
    low, high = entry["data_offsets"]
    data[low:high] = bytes(data[low : min(high, low + size)]).ljust(size, b"\0")
    for name, other in header.items():
        if name != "__metadata__" and other["data_offsets"][0] >= high and other is not entry:
            other["data_offsets"] = [offset + size - (high - low) for offset in other["data_offsets"]]
    entry["data_offsets"], entry["shape"] = [low, low + size], shape


def mutate_lines(chance: random.Random, content: bytes) -> bytes:
    """Change a file of one JSON document a line."""
    lines = content.splitlines()
    for _ in range(chance.choice((1, 1, 3))):
        at = chance.randrange(len(lines))
        match chance.randrange(4):
            case 0:
                lines[at] = mutate_bytes(chance, lines[at])
            case 1:
                lines.insert(at, chance.choice((b"", b"null", b"[]", b"1", b'"x"', lines[at])))
            case _:
                try:
                    lines[at] = dumped(mutate_json(chance, json.loads(lines[at])))
                except (ValueError, RecursionError):
                    lines[at] = mutate_bytes(chance, lines[at])
    return b"\n".join(lines) + chance.choice((b"\n", b"", b"\r\n"))


def mutate_toml(chance: random.Random, content: bytes) -> bytes:
    """Change values, keys or bytes of a recipe."""
    lines = content.splitlines()
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(lines))
        key = lines[at].split(b"=")[0].strip() or b"x"
        value = dumped(mutate_value(chance, 1))
        value = value.replace(b"NaN", b"nan").replace(b"Infinity", b"inf").replace(b"null", b"1979-05-27")
        match chance.randrange(5):
            case 0:
                lines[at] = mutate_bytes(chance, lines[at])
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines.insert(
                    at,
                    chance.choice(
                        (b"[[train]]", b"[model]", b"[data.x]", b"a.b.c = 1", b"x = " + b"[" * 3000, b"'' = 1")
                    ),
                )
            case _:
                lines[at] = key + b" = " + value
    return b"\n".join(lines) + b"\n"
