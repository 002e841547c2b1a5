"""`maestrale`, with a scripted engine that is told what to say: SCRIPT has its options as JSON, or
SCRIPT_FILE names a file of them, as it is at the start.

SILENCE: seconds after which a silent API worker counts as hung. ONE_ENGINE: the memory doesn't hold
the engines of two servers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from msgspec.structs import replace

from maestrale.cli.main import main
from maestrale.config.settings import Settings
from maestrale.engines.base import EngineConfig
from maestrale.serve import hosting
from maestrale.serve.handover import predecessors
from maestrale.serve.workers import parent

SCRIPT = os.environ.get("SCRIPT") or Path(os.environ["SCRIPT_FILE"]).read_text()
_plain = hosting.engine_config


def scripted(settings: Settings, model_dir: str) -> EngineConfig:
    return replace(_plain(settings, model_dir), options=json.loads(SCRIPT))


if __name__ == "__main__":
    hosting.engine_config = scripted
    if "SILENCE" in os.environ:
        parent.SILENCE = float(os.environ["SILENCE"])
    if "ONE_ENGINE" in os.environ:
        vars(predecessors)["memory_to_use"] = lambda: 0
    main()
