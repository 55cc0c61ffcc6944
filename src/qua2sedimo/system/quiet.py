"""Load models without the progress bars and messages of other libraries; the messages are kept for the caller."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging


class _Kept(logging.Handler):
    """Keeps messages instead of printing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence progress bars and messages of diffusers, transformers and the hub client.

    Yields the list of what diffusers and transformers warned of so far: most is nothing that a user can act on, but
    some must be said, such as weights that a text encoder lacks.
    """
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    hub_was_silent = are_progress_bars_disabled()
    kept = _Kept()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    handlers = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Cannot (en|dis)able progress bars")  # an environment variable decides
        for library in libraries:
            library.set_verbosity_warning()
            library.disable_progress_bar()
        for logger in loggers:
            logger.handlers, logger.propagate = [kept], False
        try:
            yield kept.messages
        finally:
            for logger, those, propagate in handlers:
                logger.handlers, logger.propagate = those, propagate
            for library, level, had_bars in before:
                library.set_verbosity(level)
                if had_bars:
                    library.enable_progress_bar()
            # Last, since transformers switches the hub's bars together with its own.
            (disable_progress_bars if hub_was_silent else enable_progress_bars)()
