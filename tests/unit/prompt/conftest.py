"""Encoders made straight from tokenizers, without any weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from maestrale.config.settings import BUNDLED_MODEL
from maestrale.models.catalog import find_model, packaged_weights
from maestrale.models.gguf_file import read_gguf
from maestrale.models.gguf_tokenizer import byte_level_tokenizer, byte_level_vocabulary
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.encode import PromptEncoder, encoder_for_name
from maestrale.prompt.template import TemplateEncoder

Make = Callable[..., TemplateEncoder]


@pytest.fixture(scope="session")
def smollm_metadata() -> dict[str, Any]:
    known = find_model(BUNDLED_MODEL)
    assert known is not None
    weights = packaged_weights(known)
    assert weights is not None
    return read_gguf(weights).metadata


@pytest.fixture(scope="session")
def smollm_document(smollm_metadata: dict[str, Any]) -> dict[str, Any]:
    return byte_level_tokenizer(smollm_metadata)


@pytest.fixture(scope="session")
def smollm_vocabulary(smollm_metadata: dict[str, Any]) -> Vocabulary:
    return byte_level_vocabulary(smollm_metadata, 49152)


@pytest.fixture(scope="session")
def smollm_template(smollm_metadata: dict[str, Any]) -> str:
    template = smollm_metadata["tokenizer.chat_template"]
    assert isinstance(template, str)
    return template


@pytest.fixture(scope="session")
def encoder_with(smollm_document: dict[str, Any], smollm_vocabulary: Vocabulary) -> Make:
    """`encoder_with(template)`: SmolLM2's tokenizer under any template."""

    def make(
        template: str | None,
        text_prefix: tuple[int, ...] = (),
        tool_call_parser: str | None = None,
    ) -> TemplateEncoder:
        return TemplateEncoder(
            copy.copy(smollm_document),
            smollm_vocabulary,
            template,
            {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            text_prefix,
            tool_call_parser,
        )

    return make


@pytest.fixture(scope="session")
def smollm(encoder_with: Make, smollm_template: str) -> TemplateEncoder:
    return encoder_with(smollm_template)


@pytest.fixture(scope="session")
def mistral_v1() -> PromptEncoder:
    return encoder_for_name("mistralai/Mistral-7B-Instruct-v0.2")


@pytest.fixture(scope="session")
def mistral_v3() -> PromptEncoder:
    return encoder_for_name("mistralai/Mistral-7B-Instruct-v0.3")
