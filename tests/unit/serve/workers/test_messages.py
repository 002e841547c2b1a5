from __future__ import annotations

from pathlib import Path

import pytest

from maestrale.config.settings import Settings
from maestrale.errors import (
    ConstraintError,
    EngineError,
    MaestraleError,
    ReplayMismatch,
    Unavailable,
)
from maestrale.serve.workers.messages import (
    Fault,
    error_of,
    fault_of,
    pack_settings,
    unpack_settings,
)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("Full.", code="queue_full", retry_after=2),
        ReplayMismatch("Other tokens."),
        ConstraintError("No schema."),
        EngineError("It stopped."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was_sent(error: MaestraleError) -> None:
    again = error_of(fault_of(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_of_an_unknown_class_is_an_engine_error() -> None:
    assert type(error_of(Fault("NoSuchError", "Odd."))) is EngineError


def test_settings_arrive_as_they_were_sent() -> None:
    settings = Settings(
        cache_dir=Path("/some where"),
        api_key=("one", "two"),
        key_file=Path("keys.json"),
        grace=1.5,
        max_model_len=100,
    )
    assert unpack_settings(pack_settings(settings)) == settings


def test_paths_of_any_bytes_arrive() -> None:
    settings = Settings(model="/m\udcff.gguf", chat_template=Path("/t\udcfd"), cache_dir=Path("/c"))
    assert unpack_settings(pack_settings(settings)) == settings
