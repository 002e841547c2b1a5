"""Versions, and that what is required belongs together."""

from __future__ import annotations

import pytest

from maestrale.machine import requirements as needs


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("580.95.05", (580, 95, 5)),
        ("580.95.05-0ubuntu0.22.04.1", (580, 95, 5)),
        ("20.10.24+dfsg1", (20, 10, 24)),
        ("13", (13,)),
        ("", ()),
        ("unknown", ()),
    ],
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert needs.parse_version(text) == numbers


@pytest.mark.parametrize(
    ("driver", "suffices"),
    [
        ("535.54.03", False),
        ("580.65.05", False),
        ("580.65.06", True),
        ("580.95.05", True),
        ("590.44.01", True),
        ("", False),
    ],
)
def test_the_gists_driver_is_too_old(driver: str, suffices: bool) -> None:
    assert needs.driver_suffices(driver) is suffices
