"""A progress bar on long work: on a terminal and in a notebook by default, silent elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import TesseraError
from .machine.notebook import in_notebook
from .packages import has, require

# None: a bar if stderr is a terminal or this is a notebook; True or False; or a function of
# (pixels done, total).
Progress = bool | None | Callable[[int, int], None]


@contextmanager
def progress_bar(total: int, title: str, progress: Progress) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many of ``total`` pixels are done."""
    if callable(progress):
        report = progress
        yield lambda done: report(done, total)
        return
    notebook = in_notebook()
    if progress is False or (progress is None and not notebook and not _on_terminal()):
        yield lambda done: None
        return
    # the bar of a page needs ipywidgets; a line of text moves in a notebook too
    widget = notebook and has("ipywidgets")
    tqdm = require("tqdm.notebook" if widget else "tqdm", "a progress bar", TesseraError).tqdm
    options: dict[str, Any] = {} if notebook else {"dynamic_ncols": True}
    bar = tqdm(total=total, desc=title, unit=" px", unit_scale=True, **options)
    try:
        yield lambda done: bar.update(done - bar.n) and None
    finally:
        bar.close()


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
