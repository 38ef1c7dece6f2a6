"""BPTT windows of a token stream for training with carried state.

    stream   t0 t1 t2 …                      steps_per_epoch = (tokens - 1) // (rows · T)
    row 0    | window 0 | window 1 | …       every batch row is a contiguous part of the stream,
    row 1    | window 0 | window 1 | …       and window k + 1 of a row follows its window k

The state after a window is the state before the next; it is reset where an epoch starts. The target of each token is
the one after it. Tokens at the end of the stream that do not fill a window in every row are left out.

Pages of memory-mapped token files are released to the system once they were read.
"""

import mmap

import numpy as np
import torch

from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.shapes import Bool, Int, Tensor


def release_pages(tokens: np.ndarray) -> None:
    """Let go of what was read of a read-only memory map; it is read again from the file, or its cache, when needed.

    Otherwise all that a run has read of a large corpus would count as its resident memory until the system is short of
    it. Does nothing to other arrays, and where the system cannot.
    """
    base: object = tokens
    while isinstance(base, np.ndarray):
        base = base.base
    # Of a private copy, what was written would be lost.
    if isinstance(base, mmap.mmap) and not tokens.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


RELEASE = 1 << 24
"""Tokens after which the pages they were read from are released."""


class Batches:
    """BPTT windows of a token stream, one contiguous part of the stream for each batch row.

    Args:
        tokens: Token ids, one-dimensional; a memory map stays on disk.
        batch_size: Rows, over all processes.
        sequence_length: T, tokens of a window.
        rank: Which process this is, 0 to world - 1.
        world: Processes, each of which gets batch_size / world neighbouring rows.

    Raises:
        DataError: If the stream is shorter than one window.
        UsageError: If it is too short for that many rows, or the processes do not divide them evenly.
    """

    def __init__(
        self, tokens: np.ndarray, batch_size: int, sequence_length: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or sequence_length < 1:
            raise UsageError(f"batch_size and sequence_length must be >= 1, got {batch_size}, {sequence_length}")
        if not 0 <= rank < world:
            raise UsageError(f"rank must be in 0..{world - 1}, got {rank}")
        if batch_size % world:
            raise UsageError(f"batch_size: {batch_size} rows cannot be divided evenly among {world} processes")
        most = (len(tokens) - 1) // sequence_length
        if most < 1:
            raise DataError(
                f"the text has {len(tokens):,} tokens, less than one window of {sequence_length} and its last target; "
                "give more text or a smaller sequence_length"
            )
        if batch_size > most:
            raise UsageError(
                f"batch_size: {len(tokens):,} tokens fill {most} rows of {sequence_length} tokens, not {batch_size}; "
                "choose a smaller batch_size or sequence_length, or give more text"
            )
        self.steps_per_epoch = most // batch_size
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self._tokens, self._read = tokens, 0
        own = batch_size // world
        length = self.steps_per_epoch * sequence_length
        self._starts = [row * length for row in range(rank * own, (rank + 1) * own)]

    def window(self, step: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Bool[Tensor, " B"]]:
        """The window of this process at a step >= 0; depends on nothing else.

        Returns:
            Inputs, targets (the token after each input), both int64, and True for rows whose state is reset before
            the window.
        """
        if step < 0:
            raise UsageError(f"step must be >= 0, got {step}")
        index = step % self.steps_per_epoch
        offset, length = index * self.sequence_length, self.sequence_length
        rows = [self._tokens[start + offset : start + offset + length + 1] for start in self._starts]
        block = torch.from_numpy(np.stack(rows).astype(np.int64))
        self._read += block.numel()
        if self._read >= RELEASE:
            release_pages(self._tokens)
            self._read = 0
        reset = torch.full((len(rows),), index == 0)
        return block[:, :-1].contiguous(), block[:, 1:].contiguous(), reset
