"""`serve --durable` where the ledger can't be used: told at the start, not at the first request."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from api_app import make_settings
from maestrale.errors import SettingsError
from maestrale.serve.server import check_ledger


def settings(file: Path, **fields: Any) -> Any:
    return make_settings(store=True, store_file=file, **{"durable": True, **fields})


def test_a_ledger_that_can_be_used(tmp_path: Path) -> None:
    check_ledger(settings(tmp_path / "state" / "kept.db"))
    assert (tmp_path / "state" / "kept.ledger.db").is_file()


def test_of_another_version(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "kept.ledger.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(SettingsError, match=r"--durable: .*version 99.*--store-file"):
        check_ledger(settings(tmp_path / "kept.db"))


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(SettingsError, match=r"--durable: .*can't be used"):
        check_ledger(settings(tmp_path / "folder" / "kept.db"))


def test_without_durable_nothing_is_opened(tmp_path: Path) -> None:
    check_ledger(settings(tmp_path / "state" / "kept.db", durable=False))
    assert not (tmp_path / "state").exists()
