"""What is said before the first step of a run, and that it is true."""

from types import SimpleNamespace

import pytest
from training_runs import Listener, settings

from ltc_textgen.config import TrainConfig
from ltc_textgen.data.token_cache import TokenData
from ltc_textgen.training.budget import FRACTION, VALIDATIONS, Budget, duration
from ltc_textgen.training.loop import train
from ltc_textgen.training.outlook import Outlook


class Text(SimpleNamespace):
    """Stands in for a tokenised corpus."""

    @property
    def __class__(self) -> type:
        return TokenData


TEXT = Text(train_characters=1_000_000, train_words=180_000, tokenizer=SimpleNamespace(vocab_size=65))


def outlook(step_seconds: float | None, validation_seconds: float | None = None, **length) -> Outlook:
    budget = Budget.plan(TrainConfig(**length), 100, 10)
    return Outlook.of(TEXT, budget, 100, step_seconds, validation_seconds)


def test_a_run_by_time_reads_what_its_steps_read() -> None:
    ahead = outlook(0.1, 1.0, time_budget=100.0)
    assert ahead.pass_seconds == pytest.approx(10.0)
    assert ahead.passes == pytest.approx((100 - 10) / 10)
    assert ahead.advice() is None
    first, second = ahead.lines()
    assert "1,000,000 characters" in first
    assert "180,000 words" in first
    assert "9.0 passes" in second


def test_a_run_by_steps_needs_no_measurement() -> None:
    assert outlook(None, max_steps=250).passes == 2.5
    assert outlook(None, epochs=3).passes == 3


def test_what_to_choose_is_said_where_text_and_time_do_not_fit() -> None:
    short = outlook(2.0, time_budget=50.0)
    assert short.passes == pytest.approx(0.25)
    assert "--time-budget 3m20s" in (short.advice() or "")
    assert "passes" in (outlook(0.001, time_budget=100.0).advice() or "")


@pytest.mark.parametrize(
    ("validation", "count"), [(0.001, VALIDATIONS), (1.0, 10), (4.0, 2), (5.0, 2), (9.0, 1), (50.0, 1)]
)
def test_all_validations_take_a_tenth_of_the_time(validation, count) -> None:
    budget = Budget.plan(TrainConfig(time_budget=100.0), 100, 10)
    assert budget.validations(validation) == count
    assert count * validation <= FRACTION * 100 or count == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (80, "80s"), (600, "10m"), (5400, "1h30m"), (3600, "1h"), (200, "3m20s")]
)
def test_a_duration_is_as_a_user_writes_it(seconds, text) -> None:
    from ltc_textgen.cli.common import seconds as read

    assert duration(seconds) == text
    assert read(text) == max(1, round(seconds))


@pytest.mark.slow
def test_a_run_says_them_before_its_first_step(corpus, tmp_path) -> None:
    listener = Listener(lambda pace: listener.notes.append("step") if pace.step == 1 else None)
    train(settings(corpus, time_budget=0.5), tmp_path / "run", reporter=listener)
    before = listener.notes[: listener.notes.index("step")]
    text = corpus.read_text()
    characters = next(note for note in before if note.startswith("text: "))
    assert abs(int(characters.split()[1].replace(",", "")) - 0.9 * len(text)) < 100
    assert any("passes" in note for note in before)
    after = Listener()
    train(settings(corpus, time_budget=2.0), tmp_path / "run", resume=True, reporter=after)
    assert not any(note.startswith("text: ") for note in after.notes)
