"""benchmarks/corpus_memory.py at a small size: resident memory does not grow with the text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "corpus_memory.py"

MEGABYTES = 100
BOUND = 80e6
"""Bytes by which a text a hundred times as long may raise memory. In memory, the text would take 100 MB and its tokens
200; two identical runs differ by about 20."""


@pytest.mark.slow
def test_resident_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--megabytes", str(MEGABYTES), "--steps", "5", "--folder", str(tmp_path)]
    # Every tokenising process takes memory, whatever the length of the text.
    environment = os.environ | {"LTC_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    *table, document = done.stdout.splitlines()
    found = json.loads(document)
    rows = found["rows"]
    assert list(rows) == ["small", "large", "large, cached"]
    for name, row in rows.items():
        assert row["result"]["step"] == 5
        assert row["peak"] > row["private"] > 50e6
        assert any(line.startswith(f"{name} ") and f"{row['peak'] / 1e6:,.0f} MB" in line for line in table)
    assert "100,000,001" in rows["large"]["made"]
    assert "1,000,001" in rows["small"]["made"]
    assert not rows["large, cached"]["made"], "its tokens were there"
    assert found["beyond"] == rows["large"]["peak"] - rows["small"]["peak"]
    assert f"{MEGABYTES} MB of text cost {found['beyond'] / 1e6:,.0f} MB of resident memory" in table
    # Pages of memory-mapped token files count as resident too, but the system reclaims them when needed.
    assert rows["large"]["private"] - rows["small"]["private"] < BOUND
    assert list(tmp_path.iterdir()) == [], "the texts are removed again"
