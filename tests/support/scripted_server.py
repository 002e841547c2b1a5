"""`maestrale`, with a scripted engine that is told what to say: SCRIPT has its options as JSON.

SILENCE: seconds after which a silent API worker counts as hung.
"""

from __future__ import annotations

import json
import os

from msgspec.structs import replace

from maestrale.cli.main import main
from maestrale.config.settings import Settings
from maestrale.engines.base import EngineConfig
from maestrale.serve import hosting
from maestrale.serve.workers import parent

_plain = hosting.engine_config


def scripted(settings: Settings, model_dir: str) -> EngineConfig:
    return replace(_plain(settings, model_dir), options=json.loads(os.environ["SCRIPT"]))


if __name__ == "__main__":
    hosting.engine_config = scripted
    if "SILENCE" in os.environ:
        parent.SILENCE = float(os.environ["SILENCE"])
    main()
