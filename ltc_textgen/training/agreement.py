"""The same checkpoint in all processes of a run, on machines that share a disk and on machines that do not."""

from collections.abc import Callable
from pathlib import Path

from ltc_textgen.errors import ArtifactError, LTCError
from ltc_textgen.io.checked import sha256_file
from ltc_textgen.training.checkpoint import CHECKPOINTS, MANIFEST, Checkpoint, newest_checkpoint, read_checkpoint
from ltc_textgen.training.runtime import Runtime


def agreed_checkpoint(run: Path, runtime: Runtime, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest usable checkpoint that the main process finds, in every process. Must be called by all.

    A process that sees the same checkpoint on its disk reads it there; if one does not, the main process sends it.

    Args:
        run: Run directory, which may be absent on machines other than that of the main process.
        runtime: The processes.
        report: Told about checkpoints that are refused and passed over.

    Raises:
        ArtifactError: In all processes, if the main one finds checkpoints and every one is damaged.
    """
    found: Checkpoint | None = None
    error: LTCError | None = None
    if runtime.is_main:
        try:
            found = newest_checkpoint(run, report)
        except LTCError as refused:
            error = refused
    name, digest = (found.path.name, sha256_file(found.path / MANIFEST)) if found else ("", "")
    name, digest, error = runtime.from_main((name, digest, error))
    if error:
        raise error
    if not name or runtime.world == 1:
        return found
    if not runtime.is_main:
        found = _read_same(run / CHECKPOINTS / name, digest)
    lacking = runtime.sum([float(found is None)])[0]
    return runtime.from_main(found) if lacking else found


def _read_same(path: Path, digest: str) -> Checkpoint | None:
    """The checkpoint at `path`, if it is there, whole, and the one whose manifest has this digest."""
    manifest = path / MANIFEST
    try:
        return read_checkpoint(path) if manifest.is_file() and sha256_file(manifest) == digest else None
    except (ArtifactError, OSError):
        return None
