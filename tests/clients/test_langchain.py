"""LangChain's own standard suite for chat models, with its models for each API of ours.

What a test needs beyond text is turned off by the suite's properties, whose defaults are for
models without images, audio and files.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from script import MODEL
from serving import Server


class Suite(ChatModelIntegrationTests):
    """What is the same for all of them."""

    __test__ = False
    url = ""

    @pytest.fixture(autouse=True)
    def _served(self, scripted: Server) -> None:
        type(self).url = scripted.url

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest, _served: None) -> BaseChatModel:
        """As the suite makes it, when the server is there."""
        extra = getattr(request, "param", None) or {}
        return self.chat_model_class(
            **{**self.standard_chat_model_params, **self.chat_model_params, **extra}
        )

    @property
    def model_override_value(self) -> str:
        return MODEL


class TestChatCompletions(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": f"{self.url}/v1", "api_key": "none", "model": MODEL}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestResponses(TestChatCompletions):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}


class TestMistral(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMistralAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": f"{self.url}/v1", "api_key": "none", "model_name": MODEL}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestMessages(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": "none", "model": MODEL}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
