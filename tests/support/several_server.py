"""`maestrale` with several models on scripted engines. MODELS, JSON: by name the model, what its
engine is told (`options`) and what it has of settings (`settings`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from msgspec.structs import replace

from maestrale.cli.main import main
from maestrale.config.settings import Settings
from maestrale.engines.base import EngineConfig
from maestrale.serve import hosting, server

_plain_config, _plain_run = hosting.engine_config, server.run
MODELS: dict[str, Any] = json.loads(os.environ["MODELS"])


def scripted(settings: Settings, model_dir: str) -> EngineConfig:
    """The engine of this model, told what to say."""
    options = MODELS[settings.served_model_name[0]]["options"]
    return replace(_plain_config(settings, model_dir), options=options)


def run(settings: Settings, **_: Any) -> None:
    """Serve them all, in order."""
    models = [
        dataclasses.replace(
            settings,
            model=each["model"],
            served_model_name=(name,),
            **each.get("settings", {}),
        )
        for name, each in MODELS.items()
    ]
    _plain_run(settings, models=models)


if __name__ == "__main__":
    hosting.engine_config = scripted
    setattr(server, "run", run)  # noqa: B010 - told of all models, it takes fewer words
    main()
