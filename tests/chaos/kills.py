"""SIGKILL at random moments, and the signals that ask."""

import signal
import time
from pathlib import Path

from faults import STEPS, MissError, Place, expect, fault
from training_runs import Process

from ltc_textgen.training.checkpoint import list_checkpoints


@fault(1, "SIGKILL inside checkpoint writing", "the last whole checkpoint is found; same weights")
def inside_writing(place: Place) -> str:
    def moment(process: Process) -> bool:
        for _ in range(place.draw.randint(1, 3)):
            if not process.wait_for_any("saving "):
                return False
        time.sleep(place.draw.uniform(0, 1.2 * duration))
        return True

    duration = _seconds_of_writing(place)
    return _kill_again_and_again(place, moment, inside=True)


@fault(2, "SIGKILL between steps", "resumes from the checkpoint; same loss curve and weights")
def between_steps(place: Place) -> str:
    def moment(process: Process) -> bool:
        return all(process.wait_for_any("made ") for _ in range(place.draw.randint(1, 9)))

    return _kill_again_and_again(place, moment, inside=False)


@fault(3, "SIGTERM, SIGINT, SIGHUP", "finishes the step, saves, exits 143, 130, 129; same weights when resumed")
def asked_to_stop(place: Place) -> str:
    out = place.fresh() / "run"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        process = Process(place.plan(), out, resume=True)
        for _ in range(4):
            process.wait_for("made ")
        process.send(number)
        got = process.end()
        expect(got == code, f"{number.name}: exit {got}")
        made = [int(line.split()[1]) for line in process.lines if line.startswith("made ")][-1]
        expect(_newest(out) == made, f"{number.name}: step {made} was made, step {_newest(out)} saved")
    return f"143, 130, 129; {place.finish(out)}"


@fault(3, "a second signal", "ends at once, without saving; same weights when resumed")
def forced_to_stop(place: Place) -> str:
    out = place.fresh() / "run"
    process = Process(place.plan(), out)
    process.wait_for("made 5")
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)
    got = process.end()
    expect(got == -signal.SIGTERM, f"exit {got}")
    return f"ended by SIGTERM; {place.finish(out)}"


def _kill_again_and_again(place: Place, moment: object, *, inside: bool) -> str:
    """Start, kill and resume until the kills are used; a run that ends before is compared and another begun."""
    killed = missed = runs = 0
    out = place.fresh() / "run"
    while killed < place.kills or _newest(out) != STEPS:
        process = Process(place.plan(), out, resume=True)
        if killed < place.kills and moment(process):  # type: ignore[operator]
            process.send(signal.SIGKILL)
        code = process.end()
        if code == -signal.SIGKILL:
            hit = _was_writing(process.lines) is inside
            killed, missed = killed + hit, missed + (not hit)
            expect(missed < 3 * place.kills, f"only {killed} of {killed + missed} kills fell where they should")
        elif code != 0:
            raise MissError(f"exit {code}: {process.lines[-1:]}")
        elif killed < place.kills:
            place.same(out)
            runs, out = runs + 1, place.fresh() / "run"
    return f"{killed} of {place.kills} kills survived in {runs + 1} runs; {place.same(out)}"


def _was_writing(lines: list[str]) -> bool:
    reported = [line for line in lines if line.startswith(("saving ", "saved "))]
    return bool(reported) and reported[-1].startswith("saving ")


def _seconds_of_writing(place: Place) -> float:
    process = Process(place.plan(max_steps=12), place.fresh() / "run")
    times = []
    while process.wait_for_any("saving "):
        start = time.perf_counter()
        process.wait_for("saved ")
        times.append(time.perf_counter() - start)
    expect(process.end() == 0, process.lines)
    return sum(times) / len(times)


def _newest(out: Path) -> int:
    found = list_checkpoints(out)
    return int(found[0].name.removeprefix("step-")) if found else 0
