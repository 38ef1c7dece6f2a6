from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltc_textgen.data import batches as module
from ltc_textgen.data.batches import Batches, release_pages
from ltc_textgen.errors import DataError, UsageError


@given(count=st.integers(7, 400), batch=st.integers(1, 5), length=st.integers(1, 9), epochs=st.integers(1, 2))
def test_windows_of_a_batch_row_follow_each_other(count: int, batch: int, length: int, epochs: int) -> None:
    if (count - 1) // length < batch:
        return
    batches = Batches(np.arange(count, dtype=np.uint16), batch, length)
    per_epoch = batches.steps_per_epoch
    assert per_epoch == (count - 1) // (batch * length)
    windows = [batches.window(step) for step in range(per_epoch * epochs)]
    for step, (inputs, targets, reset) in enumerate(windows):
        assert inputs.shape == targets.shape == (batch, length)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)
        assert reset.tolist() == [step % per_epoch == 0] * batch
        if step % per_epoch:
            assert torch.equal(inputs[:, 0], windows[step - 1][0][:, -1] + 1)
    seen = torch.cat([inputs for inputs, _, _ in windows[:per_epoch]], dim=1).flatten()
    assert torch.equal(seen, torch.arange(batch * per_epoch * length))
    for step in range(per_epoch, len(windows)):
        assert torch.equal(windows[step][0], windows[step - per_epoch][0])


def test_batch_rows_are_divided_among_processes(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(70_000, dtype=np.uint32).tofile(path)
    tokens = np.memmap(path, np.uint32, "r")
    whole = Batches(tokens, 6, 50)
    parts = [Batches(tokens, 6, 50, rank, 3) for rank in range(3)]
    for step in (0, 5, 233, 1000):
        for ours, theirs in zip(whole.window(step), zip(*(p.window(step) for p in parts), strict=True), strict=True):
            assert torch.equal(ours, torch.cat(theirs))
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch}


def test_too_little_text() -> None:
    with pytest.raises(DataError, match="sequence_length"):
        Batches(np.arange(64), 1, 64)
    Batches(np.arange(65), 1, 64)
    with pytest.raises(UsageError, match="batch_size.* 3 "):
        Batches(np.arange(200), 4, 64)


def test_wrong_use() -> None:
    tokens = np.arange(100)
    with pytest.raises(UsageError, match="batch_size"):
        Batches(tokens, 4, 5, 0, 3)
    with pytest.raises(UsageError, match="rank"):
        Batches(tokens, 4, 5, 2, 2)
    with pytest.raises(UsageError, match="batch_size.* 0, 5"):
        Batches(tokens, 0, 5)
    with pytest.raises(UsageError, match="step"):
        Batches(tokens, 2, 5).window(-1)


def resident(path: Path) -> int:
    """Bytes of the mappings of a file that are in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(
        int(next(row for row in lines if row.startswith("Rss:")).split()[1]) * 1024
        for line in lines
        if line.endswith(str(path))
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_pages_that_were_read_are_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.bin"
    (np.arange(1 << 25) % 65536).astype(np.uint16).tofile(path)
    tokens = np.memmap(path, np.uint16, "r")
    length = 1 << 16
    batches = Batches(tokens, 2, length)
    monkeypatch.setattr(module, "RELEASE", 1 << 40)
    for step in range(batches.steps_per_epoch):
        batches.window(step)
    assert resident(path) > 56 << 20
    monkeypatch.setattr(module, "RELEASE", 1 << 20)
    peak = 0
    for step in range(batches.steps_per_epoch):
        inputs, _, _ = batches.window(step)
        peak = max(peak, resident(path)) if step > 16 else 0
        start = (batches.steps_per_epoch + step) * length
        assert inputs[1, [0, 1, -1]].tolist() == [token % 65536 for token in (start, start + 1, start + length - 1)]
    assert peak < 24 << 20
    private = np.memmap(path, np.uint16, "c")
    private[5] = 77
    release_pages(private)
    assert private[5] == 77
    release_pages(np.arange(5))
