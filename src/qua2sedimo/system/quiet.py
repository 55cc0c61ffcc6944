"""Load models without the progress bars and messages of other libraries, on which a user cannot act."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, and messages below error level, of diffusers, transformers and the hub client."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    hub_was_silent = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Cannot (en|dis)able progress bars")  # an environment variable decides
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level, had_bars in before:
                library.set_verbosity(level)
                if had_bars:
                    library.enable_progress_bar()
            # Last, since transformers switches the hub's bars together with its own.
            (disable_progress_bars if hub_was_silent else enable_progress_bars)()
