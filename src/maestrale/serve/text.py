"""What an API process needs to make tokens of a model's text, and text of its tokens.

Tokenizer, template and vocabulary take tens of megabytes. They are read at the start, where what is
wrong with them is told, kept while their model is loaded, and read again when somebody asks for a
model that isn't.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maestrale.api.deployment import Deployment
from maestrale.chat.service import ChatService, Vetter, drawn_from
from maestrale.engines.base import Engine
from maestrale.errors import ModelError
from maestrale.serve.hosting import in_thread
from maestrale.serve.memory import return_free_memory

if TYPE_CHECKING:
    from maestrale.models.vocabulary import Vocabulary
    from maestrale.prompt.encode import PromptEncoder

    Text = tuple[PromptEncoder, Vocabulary]


class TextSource:
    """Reads what text needs of one deployment's model, as often as it is let go."""

    def __init__(self, folder: Path, deployment: Deployment) -> None:
        """`folder`: of the prepared model. Raises: ModelError for a template that can't be read."""
        from maestrale.prompt.encode import read_template

        self._folder, self._deployment = folder, deployment
        self._template = read_template(deployment.settings.chat_template)

    async def read(self) -> Text:
        """Raises: ModelError."""
        return await in_thread(self._read)

    def _read(self) -> Text:
        from maestrale.models.vocabulary import load_vocabulary
        from maestrale.prompt.encode import encoder_for

        parser = self._deployment.settings.tool_call_parser
        try:
            encoder = encoder_for(self._folder, self._template, parser)
            vocabulary = load_vocabulary(self._folder)
        except OSError as error:
            raise ModelError(f"The tokenizer can't be read: {error}") from error
        return_free_memory()
        return encoder, vocabulary


class Services:
    """Makes a deployment's service on its engine, of what text needs."""

    def __init__(
        self, source: TextSource, deployment: Deployment, engine: Engine, vetter: Vetter
    ) -> None:
        self._source, self._engine, self._vetter = source, engine, vetter
        self._observe_gap = deployment.observe_gap
        self._seeds = drawn_from(deployment.settings.seed)

    def of(self, text: Text) -> ChatService:
        """The service, of what was read."""
        encoder, vocabulary = text
        seeds, on_gap = self._seeds, self._observe_gap
        return ChatService(
            self._engine, encoder, vocabulary, self._vetter, seeds=seeds, on_gap=on_gap
        )

    async def make(self) -> ChatService:
        """See `MakesServices.make`."""
        return self.of(await self._source.read())

    async def freed(self) -> None:
        """See `MakesServices.freed`."""
        await in_thread(return_free_memory)
