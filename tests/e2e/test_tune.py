"""`maestrale tune`: measured in a process of its own, shown, and kept for `serve`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from maestrale.cli import main as cli
from maestrale.engines.base import EngineConfig
from maestrale.engines.openvino import tuning
from maestrale.engines.openvino.measuring import Measured
from maestrale.engines.openvino.tuning import tuned
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
    chosen = re.search(r"Chosen: (\w+) weights, 1 thread, \d+ MiB for the", done.stdout)
    assert chosen is not None, done.stdout
    assert "Kept for this machine" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    (kept,) = cache.rglob("tuning.json")
    assert "original" in kept.read_text()
    config = EngineConfig(engine="openvino", model_dir=str(kept.parent), threads=1)
    measured_again: list[str] = []
    found = tuned(config, lambda phase, fraction: measured_again.append(phase))
    assert found.options["weight_format"] == chosen[1]
    assert measured_again == []


def test_what_can_not_be_kept_is_not_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_mistral(tmp_path / "tiny-mistral.gguf")
    cache = tmp_path / "cache"
    folder = prepare(str(model), cache, lambda *_: None)
    (folder / "tuning.json" / "in-the-way").mkdir(parents=True)
    as_fast = {"decode_1": 1.0, "decode_8": 2.0, "decode_32": 3.0, "prefill": 4.0}
    monkeypatch.setattr(
        tuning,
        "measure",
        lambda config, choices, *_: tuple(Measured(choice=one, **as_fast) for one in choices),
    )
    with pytest.raises(SystemExit) as ended:
        cli.run(["tune", str(model), "--threads", "1", "--cache-dir", str(cache)])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "Chosen: original weights" in printed.out
    assert "Kept" not in printed.out
    assert "It can't be kept" in printed.err
    assert str(folder / "tuning.json") in printed.err
