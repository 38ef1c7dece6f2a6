"""Which files a corpus of paths consists of: suffixes in any case, patterns, links to folders, and what is skipped."""

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ltc_textgen.data.sniff import MEDIA, not_text_by_name
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.io.paths import os_reason, special_file

PLAIN = (".txt", ".text", ".md", ".markdown", ".rst")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".bz2", ".xz")
EXAMPLES = 5
"""Names of files that are listed when many are skipped."""


def kind_of(path: Path) -> str:
    """The suffix that decides how a file is read, in lower case and without .gz, .bz2 or .xz; "" for plain text."""
    suffix = unpacked_name(path)
    return next((kind for kind in ROWS if suffix.endswith(kind)), "")


def unpacked_name(path: Path) -> str:
    """The name of a file in lower case, without the suffix of its compression."""
    name = path.name.lower()
    return next((name.removesuffix(packed) for packed in PACKED if name.endswith(packed)), name)


def corpus_files(path: Path, notify: Callable[[str], None] = lambda _: None, include: Sequence[str] = ()) -> list[Path]:
    """The files of a corpus in reading order: the file itself, or those of a folder and the folders in it.

    Args:
        path: File or folder. Links to folders are followed; hidden files and folders are left out.
        notify: Called with one line that says how many files of a folder are skipped, and names some.
        include: Patterns such as `*.py` or `notes/*.txt`: only files whose name, or whose path in the folder,
            matches one of them are read, whatever their suffix.

    Raises:
        DataError: If the path is missing or unreadable, is no file and no folder, holds nothing to read, or if more
            bytes of a folder would be skipped than read and no pattern says that this is wanted.
        UsageError: If patterns are given for a single file.
    """
    try:
        kind = special_file(path)
        if kind != "a directory":
            if kind is not None:
                raise DataError(f"{path}: {kind}, neither a file nor a folder")
            if include:
                raise UsageError(
                    f"--include {include[0]}: {path} is a file; patterns choose among the files of a folder"
                )
            return [path]
        visible = _visible(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({os_reason(error, path)})") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r}: cannot be read ({error})") from error
    names = {file: file.relative_to(path).as_posix() for file in visible}
    if include:
        found = [file for file in visible if any(_matches(names[file], pattern) for pattern in include)]
        if not found:
            raise DataError(f"{path}: no file in this folder matches {' or '.join(include)}")
        return found
    found = [file for file in visible if unpacked_name(file).endswith(PLAIN + ROWS)]
    kinds = ", ".join(PLAIN + ROWS)
    if not found:
        known = sorted({file.suffix.lower() for file in visible if file.suffix})[:EXAMPLES]
        others = f"; it holds {', '.join(known)}: choose with --include '*{known[0]}'" if known else ""
        raise DataError(f"{path}: no text in this folder; looked for {kinds}, also packed (.gz, .bz2, .xz){others}")
    chosen = set(found)
    skipped = [file for file in visible if file not in chosen]
    if skipped:
        _report_skipped(path, found, skipped, [names[file] for file in skipped], notify)
    return found


def _visible(path: Path) -> list[Path]:
    """All files below a folder that are not hidden, by their path; each folder once, however many links lead to it."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({os_reason(error, Path(error.filename))})") from error

    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=fail, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(filter(Path.is_file, files), key=lambda file: file.relative_to(path).as_posix())


def _matches(name: str, pattern: str) -> bool:
    name, pattern = name.lower(), pattern.lower().removeprefix("./")
    return fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern)


def _report_skipped(
    path: Path, found: list[Path], skipped: list[Path], names: list[str], notify: Callable[[str], None]
) -> None:
    read = sum(file.stat().st_size for file in found)
    left = sum(file.stat().st_size for file in skipped if file.suffix.lower() not in MEDIA)
    count = f"{len(skipped)} files" if len(skipped) > 1 else "1 file"
    examples = ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")
    if left > read:
        suffix = next((file.suffix for file in skipped if file.suffix and not not_text_by_name(file)), "")
        wanted = f"--include '*{suffix}'" if suffix else "--include PATTERN"
        raise DataError(
            f"{path}: only {size_text(read)} of {size_text(read + left)} can be read; {count} of other kinds would be "
            f"skipped: {examples}. Choose what to read: --include '*{found[0].suffix}' for these alone, {wanted} for "
            "others (several are allowed)"
        )
    notify(f"{path}: skipped {count} of other kinds than {', '.join(PLAIN + ROWS)}: {examples}")


def size_text(size: int) -> str:
    """A number of bytes in words: 5 kB, 30.1 MB."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
