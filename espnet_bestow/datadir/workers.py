"""Spread independent work over processes, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm


def map_in_processes[Item, Result](
    function: Callable[[Item], Result], items: Sequence[Item], nj: int, description: str
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``.

    Args:
        function: Picklable function of one item.
        items: Picklable items.
        nj: Number of processes; 1 works in this one.
        description: Title of the progress bar on stderr.
    """
    if nj < 1:
        raise ValueError(f"nj must be at least 1, got {nj}")
    if nj == 1 or len(items) < 2:
        yield from tqdm(map(function, items), description, len(items))
        return
    # Small chunks keep the bar moving, large ones keep the overhead of messages low.
    chunk = max(1, min(32, len(items) // (4 * nj)))
    # Fresh processes: a fork would copy the threads' locks of whoever calls this.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(nj, len(items)), mp_context=spawn) as pool:
        yield from tqdm(pool.map(function, items, chunksize=chunk), description, len(items))
