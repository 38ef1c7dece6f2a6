"""What the commands change about their process."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
if sys.argv[1] == "tuned":
    from ltc_textgen.cli import process_env
    process_env.tune()
import torch
torch.set_num_threads(1)
for size in (5_000_000, 20_000_000, 20_000_000):
    for _ in range(4):
        torch.ones(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    assert faults("tuned") < 100 < faults("as it is")


def test_threads_spin_shortly_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltc_textgen.cli import process_env

    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    process_env.tune()
    assert process_env.os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    process_env.tune()
    assert process_env.os.environ["GOMP_SPINCOUNT"] == "10000"
