import json
import threading
from pathlib import Path

import pytest
from hub import BERT, WIKITEXT, Hub, bert_vocabulary, dead_endpoint, wikitext_rows

from ltc_textgen.config import DataConfig
from ltc_textgen.data import hub as library
from ltc_textgen.data import hub_download
from ltc_textgen.data.corpora import load_corpus
from ltc_textgen.data.token_cache import find_tokenizer, prepare
from ltc_textgen.errors import DataError


@pytest.mark.slow
def test_wikitext_comes_with_its_splits_articles_and_bert(hub: Hub) -> None:
    said: list[str] = []
    data = prepare(DataConfig(), said.append)
    corpus = data.corpus
    assert (data.corpus_name, data.tokenizer.kind, data.tokenizer.vocab_size) == (
        "wikitext-2",
        "bert",
        len(bert_vocabulary()),
    )
    assert not data.tokenizer.lossless
    assert len(said) == 1
    assert "made in" in said[0]
    articles = list(corpus.train())
    assert len(articles) == 40
    assert articles[3].startswith(" \n = Article 3 = \n \n ")
    assert len(list(corpus.valid())) == 5
    assert [text.split("\n")[1] for text in corpus.test()] == [f" = Article {n} = " for n in (2000, 2001, 2002)]
    lines = [row if row.endswith("\n") else " \n" for row in wikitext_rows(5, 1000)]
    assert "".join(corpus.valid()) == "".join(lines)
    assert data.valid_words == sum(len(line.split()) + 1 for line in lines)
    assert data.valid_bytes == len("".join(lines).encode())


@pytest.mark.slow
def test_what_is_cached_is_used_without_a_request(hub: Hub) -> None:
    first = prepare(DataConfig())
    hub.requests.clear()
    hub.mode = "hanging"
    again = prepare(DataConfig())
    assert hub.requests == []
    assert again.fingerprint == first.fingerprint
    assert again.corpus_name == "wikitext-2"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hanging", "failing", "dead"])
def test_a_hub_that_does_not_answer(hub: Hub, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.mode = mode
    if mode == "dead":
        monkeypatch.setenv("HF_ENDPOINT", dead_endpoint())
    said: list[str] = []
    corpus = load_corpus(DataConfig(), said.append)
    assert corpus.name == "embedded"
    assert corpus.default_tokenizer() == "wordpiece"
    assert len(said) == 1
    assert "embedded corpus" in said[0]
    assert "does not answer" in said[0]
    assert "\n" not in said[0]
    assert len(hub.requests) == (0 if mode == "dead" else 1)

    hub.requests.clear()
    with pytest.raises(DataError, match=r"--data FILE.*--data embedded") as failure:
        load_corpus(DataConfig(data="wikitext-2"))
    assert len(hub.requests) == (0 if mode == "dead" else 1), "no library tries again"
    assert failure.value.exit_code == 3
    assert "\n" not in str(failure.value)


def test_offline_mode_of_the_user_is_respected(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        load_corpus(DataConfig(data="wikitext-2"))
    assert hub.requests == []


def test_the_libraries_are_online_again_afterwards(hub: Hub) -> None:
    import datasets
    from huggingface_hub import constants

    hub.mode = "failing"
    with pytest.raises(DataError):
        library.tokenizer_file(BERT)
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.slow
def test_a_hub_without_wikitext_leads_to_the_embedded_corpus(hub: Hub) -> None:
    del hub.files["datasets", WIKITEXT]
    said: list[str] = []
    assert load_corpus(DataConfig(), said.append).name == "embedded"
    assert "no such repository" in said[0]


def test_bert_asked_by_name_is_not_replaced(hub: Hub) -> None:
    hub.mode = "failing"
    with pytest.raises(DataError, match="google-bert/bert-base-uncased"):
        prepare(DataConfig(tokenizer="bert"))


@pytest.mark.slow
def test_wikitext_with_another_tokenizer_needs_no_bert(hub: Hub) -> None:
    del hub.files["models", BERT]
    data = prepare(DataConfig(tokenizer="char"))
    assert (data.corpus_name, data.tokenizer.kind) == ("wikitext-2", "char")
    assert data.tokenizer.decode(data.valid.tolist()) == "".join(data.corpus.valid())


@pytest.mark.slow
def test_any_other_data_set(hub: Hub) -> None:
    texts = [f"Text number {n}.\r\n" for n in range(50)] + ["", None]
    hub.add_dataset("someone/things", {"train": {"body": texts}}, "small")
    config = DataConfig(data="someone/things:small", text_column="body", valid_fraction=0.2)
    corpus = load_corpus(config)
    everything = "".join(f"Text number {n}.\n" for n in range(50))
    assert "".join(corpus.train()) + "".join(corpus.valid()) == everything
    assert len("".join(corpus.train())) == int(len(everything) * 0.8)
    assert len(list(corpus.train())) == 41
    assert corpus.default_tokenizer() == "char"
    other = load_corpus(config.model_copy(update={"valid_fraction": 0.3}))
    assert other.fingerprint != corpus.fingerprint


@pytest.mark.slow
def test_what_a_data_set_can_lack(hub: Hub) -> None:
    hub.add_dataset("someone/things", {"train": {"body": ["a b c"] * 9, "n": list(range(9))}}, "small")
    with pytest.raises(DataError, match=r"'text'.*body, n.*--text-column"):
        load_corpus(DataConfig(data="someone/things"))
    with pytest.raises(DataError, match="'n'.* int"):
        load_corpus(DataConfig(data="someone/things", text_column="n"))
    with pytest.raises(DataError, match=r"someone/things:big.*small"):
        load_corpus(DataConfig(data="someone/things:big"))
    with pytest.raises(DataError, match="'someone/else'"):
        load_corpus(DataConfig(data="someone/else"))
    hub.add_dataset("someone/splits", {"one": {"text": ["a b"]}, "two": {"text": ["a b"]}})
    with pytest.raises(DataError, match=r"'train'.*one, two"):
        load_corpus(DataConfig(data="someone/splits"))


@pytest.mark.slow
def test_a_tokenizer_by_its_id(hub: Hub) -> None:
    hub.add_bert("someone/pieces", only_vocabulary=True)
    hub.add("models", "someone/nothing", {"README.md": b"nothing"})
    ours, theirs = find_tokenizer("someone/pieces"), find_tokenizer("bert")
    text = "The river, a lobster: 1 @,@ 200 people [SEP] don't \U0001f600"
    assert ours.kind == "custom"
    assert ours.encode(text) == theirs.encode(text)
    assert theirs.vocab_size == len(bert_vocabulary())
    # The file asks for truncation to 16 tokens.
    assert len(theirs.encode("the city " * 50)) == 100
    assert json.loads(theirs.content)["truncation"] is None
    with pytest.raises(DataError, match=r"tokenizer.json.*vocab.txt"):
        find_tokenizer("someone/nothing")
    with pytest.raises(DataError, match="someone/else"):
        find_tokenizer("someone/else")
    hub.mode = "failing"
    assert find_tokenizer("someone/pieces").encode(text) == ours.encode(text)


def test_articles_start_at_titles_between_blank_lines() -> None:
    rows = [
        "",
        " = One = \n",
        "",
        " text \n",
        " = 5 = \n",
        "",
        " = 6 = \n",
        " = 7 = \n",
        " = = Part = = \n",
        "",
        " = Two = \n",
        "",
        " more \n",
    ]
    documents = [text for text, _ in library.articles(iter(rows))]
    assert documents == [
        " \n = One = \n \n text \n = 5 = \n \n = 6 = \n = 7 = \n = = Part = = \n",
        " \n = Two = \n \n more \n",
    ]
    assert [text for text, _ in library.articles(iter(["", " "]))] == []


def test_a_folder_that_looks_like_an_id_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "things").mkdir(parents=True)
    (tmp_path / "someone" / "things" / "a.txt").write_text("local text")
    assert "".join(load_corpus(DataConfig(data="someone/things")).train()) == "local tex"


@pytest.mark.slow
@pytest.mark.parametrize(("data", "kind"), [("wikitext-2", "data set"), ("embedded", "tokenizer")])
def test_a_hub_that_answers_and_then_hangs_is_given_up(hub: Hub, data: str, kind: str) -> None:
    hub.mode = "stalling"
    with pytest.raises(DataError, match=f"{kind} ") as failure:
        prepare(DataConfig(data=data, tokenizer="bert"))
    assert "\n" not in str(failure.value)
    assert not [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]


@pytest.mark.slow
def test_a_download_that_stands_still_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_download, "STALL", 2.5)
    monkeypatch.setattr(hub_download, "FIRST", 20.0)
    hub.mode, hub.seconds = "slow", 400.0
    hub.files["models", BERT]["tokenizer.json"] += b" " * 500_000
    with pytest.raises(DataError, match="download"):
        library.tokenizer_file(BERT)


@pytest.mark.slow
def test_a_slow_download_is_not_cut(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_download, "FIRST", 4.0)
    monkeypatch.setattr(hub_download, "STALL", 4.0)
    hub.mode, hub.seconds = "slow", 10.0  # longer than either, with room for a busy machine
    hub.files["models", BERT]["tokenizer.json"] += b" " * 500_000
    assert library.tokenizer_file(BERT).stat().st_size > 500_000
