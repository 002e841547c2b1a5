"""`maestrale tune`: measured, shown, and kept for `serve`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from maestrale.cli import main as cli
from maestrale.engines.base import EngineConfig
from maestrale.engines.cpu import tuning
from maestrale.engines.cpu.tuning import Measured, tuned
from maestrale.models.resolve import prepare
from serving import clean_environment
from tiny_mistral import write_tiny_mistral

pytestmark = pytest.mark.slow


def test_what_it_finds_is_shown_and_kept(tmp_path: Path) -> None:
    model = write_tiny_mistral(tmp_path / "tiny-mistral.gguf")
    cache = tmp_path / "cache"
    options = ("--threads", "1", "--cache-dir", str(cache))
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", "tune", str(model), *options],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    chosen = re.search(r"Chosen: 1 thread, steps of up to (\d+) tokens", done.stdout)
    assert chosen is not None, done.stdout
    assert "Kept for this machine" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    (kept,) = cache.rglob("tuning.json")
    config = EngineConfig(engine="cpu", model_dir=str(kept.parent), threads=1)
    assert tuned(config, lambda *_: None).max_num_batched_tokens == int(chosen[1])


def test_what_can_not_be_kept_is_not_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_mistral(tmp_path / "tiny-mistral.gguf")
    cache = tmp_path / "cache"
    folder = prepare(str(model), cache, lambda *_: None)
    (folder / "tuning.json" / "in-the-way").mkdir(parents=True)
    rates = [(name, 1.0) for name in Measured.__struct_fields__ if name != "choice"]
    monkeypatch.setattr(tuning, "_rates", lambda decoder, choice: rates)
    with pytest.raises(SystemExit) as ended:
        cli.run(["tune", str(model), "--threads", "1", "--cache-dir", str(cache)])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "Chosen: 1 thread" in printed.out
    assert "Kept" not in printed.out
    assert "It can't be kept" in printed.err
    assert str(folder / "tuning.json") in printed.err
