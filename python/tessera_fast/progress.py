"""A progress bar on long work: on a terminal by default, silent elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# None: a bar if stderr is a terminal; True or False; or a function of (pixels done, total).
Progress = bool | None | Callable[[int, int], None]


@contextmanager
def progress_bar(total: int, title: str, progress: Progress) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many of ``total`` pixels are done."""
    if callable(progress):
        report = progress
        yield lambda done: report(done, total)
        return
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda done: None
        return
    from tqdm import tqdm

    bar = tqdm(total=total, desc=title, unit=" px", unit_scale=True, dynamic_ncols=True)
    try:
        yield lambda done: bar.update(done - bar.n) and None
    finally:
        bar.close()
