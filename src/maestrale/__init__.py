"""maestrale: run your own Mistral chat API. Start reading at `chat/service.py`."""

__version__ = "0.5.0"
