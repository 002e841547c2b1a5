"""maestrale: run your own Mistral chat API. Start reading at `chat.py`."""

__version__ = "0.1.0"
