"""maestrale: run your own Mistral chat API. Start reading at `chat.py`."""

import sys

__version__ = "0.1.0"

# Importing openvino would report that to its makers. Where the reporter can't be imported, a
# stand-in that does nothing takes its place.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
