"""What the model's makers advise, read from each kind of source."""

from __future__ import annotations

import pytest

from maestrale.models.catalog import find_model
from maestrale.models.sampling_defaults import (
    NEUTRAL,
    SamplingDefaults,
    of_generation_config,
    of_gguf,
)


def test_a_generation_config_is_followed() -> None:
    config = {
        "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
        "repetition_penalty": 1.05, "max_new_tokens": 5, "eos_token_id": 2,
    }  # fmt: skip
    assert of_generation_config(config) == SamplingDefaults(
        temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05
    )


@pytest.mark.parametrize(
    "value", [None, "warm", -1, 3, float("nan"), float("inf"), True, [0.5], 10**400]
)
def test_what_no_request_could_ask_for_is_left_out(value: object) -> None:
    assert of_generation_config({"temperature": value}) == NEUTRAL


def test_a_gguf_file_may_say_it() -> None:
    assert of_gguf({"general.name": "x"}) is None
    found = of_gguf({"general.sampling.temp": 0.15, "general.sampling.top_k": 40})
    assert found == SamplingDefaults(temperature=0.15, top_k=40)


def test_the_bundled_models_card() -> None:
    known = find_model("smollm2-135m-instruct")
    assert known is not None
    assert known.sampling == SamplingDefaults(temperature=0.2, top_p=0.9)
