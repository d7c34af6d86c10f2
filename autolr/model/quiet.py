"""Loading without the libraries' own progress bars and reports."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' and datasets' logs below errors, progress bars and warnings."""
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    datasets_verbosity = datasets_logging.get_verbosity()
    logging.set_verbosity(50)  # CRITICAL
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        datasets_logging.set_verbosity(datasets_verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
