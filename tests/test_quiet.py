"""Loading is silent, and leaves the libraries' settings as the user made them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from qua2sedimo.system.quiet import quiet

LIBRARIES = {"diffusers": diffusers_logging, "transformers": transformers_logging}


@pytest.fixture(autouse=True)
def bars_on() -> Iterator[None]:
    def on() -> None:
        for library in LIBRARIES.values():
            library.enable_progress_bar()
        enable_progress_bars()

    on()
    yield
    on()


def states() -> dict[str, bool]:
    bars = {name: library.is_progress_bar_enabled() for name, library in LIBRARIES.items()}
    return {**bars, "hub": not are_progress_bars_disabled()}


@pytest.mark.parametrize("off", [(), ("diffusers",), ("transformers",), ("hub",), ("diffusers", "transformers", "hub")])
def test_bars_that_the_user_turned_off_stay_off_and_others_come_back(off: tuple[str, ...]) -> None:
    for name in off:
        disable_progress_bars() if name == "hub" else LIBRARIES[name].disable_progress_bar()
    before, levels = states(), [library.get_verbosity() for library in LIBRARIES.values()]
    with quiet():
        assert not any(states().values())
    assert states() == before
    assert [library.get_verbosity() for library in LIBRARIES.values()] == levels


def test_an_error_within_restores_them_too() -> None:
    diffusers_logging.disable_progress_bar()
    before = states()
    with pytest.raises(ValueError, match="broken"), quiet():
        raise ValueError("broken")
    assert states() == before
