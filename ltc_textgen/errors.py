"""Errors that a user can act on. Each carries the exit code of the command line (see docs/command-line.md)."""


class LTCError(Exception):
    """Base of all errors whose message is meant for the user: what, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(LTCError, ValueError):
    """A value, key or combination that cannot work. Exit code 2."""

    exit_code = 2


class DataError(LTCError):
    """A corpus or tokenizer that cannot be had or read. Exit code 3."""

    exit_code = 3


class ArtifactError(LTCError):
    """A run directory, weights file or state that is rejected: corrupt, foreign or unsafe. Exit code 4."""

    exit_code = 4


class LogitsError(LTCError):
    """The model's output is no distribution: NaN, +inf, or nothing but -inf. Exit code 1."""
