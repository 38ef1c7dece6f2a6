"""Attempts of a job that torchrun starts again: each agrees on a name of its own in their common store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from ltc_textgen.errors import LTCError
from ltc_textgen.training import distributed

AT_ONCE = timedelta(0)


def attempt(store: HashStore, world: int) -> set[str]:
    """The names that the processes of an attempt come to."""
    with ThreadPoolExecutor(world) as pool:
        ranks = range(world)
        return set(pool.map(lambda rank: distributed.agree(store, rank, world, timedelta(minutes=1)), ranks))


def test_every_attempt_has_one_name_that_no_other_had() -> None:
    store, names = HashStore(), []
    for world in (3, 3, 1, 2, 4):
        (name,) = attempt(store, world)
        names.append(name)
    assert len(set(names)) == len(names)


def test_attempts_that_died_while_they_met_do_not_mislead_the_next() -> None:
    store = HashStore()
    with pytest.raises(LTCError, match="process 0 .*--resume"):
        distributed.agree(store, 1, 3, AT_ONCE)  # posts its word, gets no answer
    first = attempt(store, 3)
    assert len(first) == 1
    with pytest.raises(LTCError, match="process 1 "):
        distributed.agree(store, 0, 3, AT_ONCE)  # answers the words of the attempt before
    second = attempt(store, 3)
    assert len(second) == 1
    assert first.isdisjoint(second)


def test_only_attempts_with_a_common_store_meet_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, method in (("True", "ltc-attempt://"), ("False", None), (None, None)):
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        if value:
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", value)
        assert distributed.method() == method
