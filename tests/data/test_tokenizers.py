import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import BERT, bert_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import PROSE, made, metaspace_json
from tokenizers import Tokenizer, models

from ltc_textgen.data.token_cache import find_tokenizer
from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.data.train_tokenizer import character_tokenizer, read_tokenizer, train_wordpiece
from ltc_textgen.errors import DataError, LTCError, UsageError

HARD = [
    "",
    " ",
    "\n\n\n\n\n\n\n",
    "x" * 5000,
    " " * 300 + "\t" * 40 + "\r\r\r",
    "a<|separator|>b [SEP] </s> ▁ ##ing Ġ",
    "\x00\x01\x7f \u2028\u2029\u0085 e\u0301\u0301 👩‍👩‍👧 𝔘𝔫𝔦 \ufeff \uffff",
    "don't I'll WE'VE 'tis 12345678 1,000.50 --- !!!!!!!!!!!!!!!!!!!!",
]


KINDS = ["char", "byte", "wordpiece", "bert", "gpt2", "metaspace", "fallback"]
LOSSLESS = ["byte", "wordpiece", "gpt2"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(kind: str, text: str) -> None:
    tokenizer = made(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("text", [*HARD, PROSE])
def test_hard_text_comes_back(kind: str, text: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.lossless


def test_every_byte_is_a_piece_so_that_nothing_is_unknown() -> None:
    tokenizer = made("wordpiece")
    assert tokenizer.unk_token_id is None
    assert tokenizer.vocab_size <= 700
    for byte in range(256):
        text = chr(byte) + "zz" + chr(byte)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_outside_the_vocabulary_are_unknown() -> None:
    tokenizer = character_tokenizer("cab")
    assert [tokenizer.token(i) for i in range(3)] == ["a", "b", "c"]
    assert tokenizer.encode("abc?") == [0, 1, 2, tokenizer.unk_token_id]
    assert tokenizer.decode(tokenizer.encode("abc?\n")) == "abc��"
    assert tokenizer.lossless


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_stream_writes_what_decode_does(kind: str, data: st.DataObject) -> None:
    tokenizer = made(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)) + tokenizer.encode(
        data.draw(st.text(max_size=20))
    )
    stream = tokenizer.stream()
    parts, forks = [], []
    for index in ids:
        forks.append(stream.fork())
        parts.append(stream.push(index))
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)
    for place, fork in enumerate(forks):
        rest = "".join([fork.push(index) for index in ids[place:]]) + fork.flush()
        assert "".join(parts[:place]) + rest == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["char", "byte", "wordpiece", "gpt2", "metaspace", "fallback"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_decode_agrees_with_the_library(kind: str, data: st.DataObject) -> None:
    """For all but bert, whose spaces we set better."""
    tokenizer = made(kind)
    alphabet = PROSE if kind in {"char", "metaspace"} else None
    text = data.draw(st.text(alphabet, max_size=40) if alphabet else st.text(max_size=40))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == Tokenizer.from_str(tokenizer.content).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte", "wordpiece", "gpt2"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_broken_characters_are_shown_as_the_library_does(kind: str, data: st.DataObject) -> None:
    tokenizer = made(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    ids = [index for index in ids if index != tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == Tokenizer.from_str(tokenizer.content).decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte", "fallback"])
def test_broken_characters_do_not_hold_a_stream_up(kind: str) -> None:
    tokenizer = made(kind)
    broken = next(i for i in range(tokenizer.vocab_size) if tokenizer.token(i) in {"<0xFF>", "ÿ"})
    stream = tokenizer.stream()
    assert "".join(stream.push(broken) for _ in range(12)).count("\ufffd") >= 8


def test_half_a_character_at_the_end_is_shown() -> None:
    assert made("byte").decode("né".encode()[:2]) == "n\ufffd"


@pytest.mark.parametrize("kind", ["char", "byte"])
@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_the_fast_path_agrees_with_the_library(kind: str, text: str) -> None:
    theirs = Tokenizer.from_str(made(kind).content)
    theirs.encode_special_tokens = True
    assert made(kind).encode(text) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_eos_tokens_decode_to_nothing(kind: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode([tokenizer.eos_token_id, *ids, tokenizer.eos_token_id]) == tokenizer.decode(ids)
    assert tokenizer.decode([tokenizer.eos_token_id]) == ""


@pytest.mark.parametrize("wrong", [["<eos>"], {"content": "<eos>"}, 3, None], ids=str)
@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_a_token_that_is_no_text_is_rejected(place: str, wrong: object, tmp_path: Path) -> None:
    made("char").save(tmp_path)
    content = json.loads((tmp_path / place).read_text())
    if place == "tokenizer.json":
        content["added_tokens"][0]["content"] = wrong
    else:
        content["ltc_textgen"]["eos_token"] = wrong
    (tmp_path / place).write_text(json.dumps(content))
    with pytest.raises(DataError):
        TextTokenizer.load(tmp_path)


@pytest.mark.filterwarnings("ignore:characters unknown")
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = made(kind)
    ours.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    text = "the cat sat on 1,000 mats.\n[SEP]<|separator|></s> é"
    assert again.encode(text) == ours.encode(text)
    assert again.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    for name in ("kind", "vocab_size", "eos_token_id", "unk_token_id", "fingerprint", "lossless"):
        assert getattr(again, name) == getattr(ours, name), name
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eos_token_id
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ('He said : " I don \' t know . " ( He did , too ! )', 'he said: "i don\'t know." (he did, too!)'),
        ("1 @,@ 200 well @-@ known 3 @.@ 5 things", "1,200 well-known 3.5 things"),
        ("he said ' stop ' and ' go ' , it ' s", "he said 'stop' and 'go', it's"),
        ("a @ b @- c @", "a @ b @ - c @"),
        ("zebra crossed Ünïcode", "zebra crossed unicode"),
        ("the 日 city", "the [UNK] city"),
    ],
)
def test_bert_writes_as_in_print(text: str, printed: str) -> None:
    tokenizer = made("bert")
    assert tokenizer.decode(tokenizer.encode(text)) == printed
    assert not tokenizer.lossless


def test_bert_splits_words_into_pieces() -> None:
    tokenizer = made("bert")
    pieces = [tokenizer.token(index) for index in tokenizer.encode("Lobsters")]
    assert pieces == ["lobster", "##s"]
    assert tokenizer.encode("x" * 101) == [tokenizer.unk_token_id]


@pytest.mark.slow
def test_training_is_deterministic_across_processes() -> None:
    code = (
        "import random\nfrom ltc_textgen.data.train_tokenizer import train_wordpiece\n"
        "draw = random.Random(0)\n"
        "words = [''.join(draw.choices('abcdefghijklmnopqrstuvwxyz', k=draw.randint(2, 9))) for _ in range(3000)]\n"
        "print(train_wordpiece([' '.join(words * 2)], 2000).fingerprint)"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout
        for _ in range(4)
    }
    assert len(runs) == 1


def test_the_vocabulary_has_the_size_asked_for() -> None:
    words = [f"word{n} w{n * 7919 % 1000}ord" for n in range(3000)]
    assert train_wordpiece(words * 2, 900).vocab_size == 900
    assert train_wordpiece(["short"], 5000).vocab_size == 513
    assert train_wordpiece(["short"], 300).vocab_size == 513


def test_half_a_surrogate_pair_is_rejected() -> None:
    for kind in ("char", "byte", "wordpiece"):
        with pytest.raises(UsageError, match="character 1"):
            made(kind).encode("a\ud800")


def test_ids_outside_the_vocabulary_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"0\.\.256.*1\.\.257"):
        made("byte").decode([1, 257])
    with pytest.raises(UsageError, match=r"got -1\.\.-1"):
        made("byte").decode([-1])


def test_a_tokenizer_of_special_tokens_alone_is_rejected(tmp_path: Path) -> None:
    """What transformers makes of a folder without tokenizer.json: five special tokens, silently."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    with pytest.raises(DataError, match=r"tokenizer.json.*5 tokens"):
        read_tokenizer(tmp_path)


def test_a_path_names_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(bert_vocabulary()) + "\n", encoding="utf-8")
    expected = made("bert").encode("the lobster crossed 1,000")
    assert find_tokenizer(str(tmp_path)).encode("the lobster crossed 1,000") == expected
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = find_tokenizer(str(tmp_path / "vocab.txt"))
    assert cased.encode("The") == [cased.unk_token_id]
    (tmp_path / "other.json").write_text(metaspace_json())
    assert find_tokenizer(str(tmp_path / "other.json")).eos_token == "</s>"
    made("char").save(tmp_path / "saved")
    assert find_tokenizer(str(tmp_path / "saved")).kind == "char"


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "tokenizer"), ("[1]", "JSON object"), ("{", "JSON"), (None, "tokenizer.json")],
)
def test_what_is_no_tokenizer_is_rejected(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as failure:
        find_tokenizer(str(path))
    assert str(path) in str(failure.value)
    with pytest.raises(DataError):
        TextTokenizer.load(tmp_path)


def test_a_foreign_or_incomplete_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer.json.*vocab.txt"):
        read_tokenizer(tmp_path)
    made("byte").save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "X"}))
    with pytest.raises(DataError, match="tokenizer_config.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab\.txt.*\[UNK\]"):
        read_tokenizer(tmp_path / "vocab.txt")


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"'wordpeice'.*'wordpiece'"):
        find_tokenizer("wordpeice")
    with pytest.raises(DataError, match="nowhere"):
        find_tokenizer("./nowhere/tokenizer.json")


def test_loading_imports_neither_transformers_nor_torch(tmp_path: Path) -> None:
    made("bert").save(tmp_path)
    code = (
        "import sys, pathlib\nfrom ltc_textgen.data.tokenizers import TextTokenizer\n"
        f"print(TextTokenizer.load(pathlib.Path({str(tmp_path)!r})).encode('the'))\n"
        "assert not {'transformers', 'torch', 'datasets'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_the_id_of_bert_is_bert(hub: object) -> None:
    assert find_tokenizer(BERT).kind == "bert"


def test_saving_replaces_whole_files_and_leaves_what_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltc_textgen.io import atomic

    character_tokenizer(set("ab")).save(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    character_tokenizer(set("ab")).save(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()} == before

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(LTCError, match="No space left on device"):
        character_tokenizer(set("abc")).save(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "words",
    [
        ["हिन्दी", "विकिपीडिया", "समुद्र", "किताबें", "मिलीं"],
        ["العَرَبِيَّة", "كِتَاب", "مَدِينَة"],
        ["தமிழ்", "புத்தகம்", "கடல்"],
        ["e\u0301te\u0301", "e\u0301le\u0300ve", "n\u0303andu\u0301"],
        ["می\u200cخواهم", "کتاب\u200cها"],
    ],
)
def test_marks_stay_with_their_letters(words: list[str]) -> None:
    text = "\n".join(" ".join(words[n % len(words)] for n in range(start, start + 7)) for start in range(200))
    tokenizer = train_wordpiece([text], 2048)
    ids = tokenizer.encode(text)
    assert len(ids) / len(text.split()) < 1.5
    assert tokenizer.decode(ids) == text


def test_vocabularies_in_any_case_and_of_other_tools(tmp_path: Path) -> None:
    vocabulary = "\ufeff" + "\r\n".join(bert_vocabulary()) + "\r\n"
    (tmp_path / "VOCAB.TXT").write_bytes(vocabulary.encode())
    for path in (tmp_path, tmp_path / "VOCAB.TXT"):
        assert find_tokenizer(str(path)).encode("the lobster") == made("bert").encode("the lobster")
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    (gpt2 / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (gpt2 / "merges.txt").write_text("#version: 0.2\na b\n")
    for path in (gpt2, gpt2 / "vocab.json"):
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            find_tokenizer(str(path))


@pytest.mark.parametrize("index", [2**31, 2**24, -1, "1", 1.5, 10**400, 100_000, 4])
def test_ids_of_a_stranger_are_checked_before_they_are_used(tmp_path: Path, index: object) -> None:
    parts = json.loads(made("char").content)
    parts["model"]["vocab"][" "] = index
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(DataError) as failure:
        find_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(failure.value)
    with pytest.raises(DataError):
        TextTokenizer(json.dumps(parts), "char")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"model":' * 5000, '{"model": ' + "9" * 5000 + "}", '{"model": []}']
)
def test_nested_and_long_json_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError):
        read_tokenizer(tmp_path)
    with pytest.raises(DataError):
        TextTokenizer(content, "custom")


def test_unknown_letters_and_strings_that_cannot_occur_are_named() -> None:
    char = character_tokenizer("abc\n")
    assert char.unknown_characters("aZbüZ") == ["Z", "ü"]
    assert char.unwritable_characters("ab\n") == []
    assert char.unwritable_characters("\\n") == ["\\", "n"]
    assert made("byte").unwritable_characters("\\n") == []
    assert made("byte").unknown_characters("Zü") == []
    assert made("bert").unwritable_characters("日") == ["日"]
    assert made("bert").unwritable_characters("the lobster ") == []
    assert made("gpt2").spelled_specials("a <|endoftext|> b <|im_start|>") == {"<|endoftext|>": 1, "<|im_start|>": 1}
