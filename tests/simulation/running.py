"""Chunks of numbered runs over some processes: the same for random schedules and for Twins scenarios."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from tests.simulation.totals import Progress, Totals

Chunk = tuple[int, int]
"""First run and how many."""


def run_chunks(
    progress: Progress,
    chunks: list[Chunk],
    work: Callable[[Chunk], Totals],
    jobs: int,
    say: Callable[[Chunk, Progress], Any],
) -> Totals:
    """Run every chunk that is not done; `say` hears of each that is finished. Returns the totals, old ones included."""
    left = [chunk for chunk in chunks if chunk[0] not in progress.done]
    if jobs == 1:
        for chunk in left:
            progress.note(chunk[0], work(chunk))
            say(chunk, progress)
        return progress.totals
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for chunk, totals in pool.imap_unordered(_Worker(work), left):
            progress.note(chunk[0], totals)
            say(chunk, progress)
    return progress.totals


class _Worker:
    """Names the chunk beside its result; a class, so that it can travel to another process."""

    def __init__(self, work: Callable[[Chunk], Totals]) -> None:
        self.work = work

    def __call__(self, chunk: Chunk) -> tuple[Chunk, Totals]:
        return chunk, self.work(chunk)
