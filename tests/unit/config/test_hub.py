"""How the hub is reached: Hugging Face's variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestrale.config.hub import hub_settings
from maestrale.errors import SettingsError


def test_defaults_are_those_of_the_hubs_own_tools(tmp_path: Path) -> None:
    settings = hub_settings({"HOME": str(tmp_path)})
    assert settings.endpoint == "https://huggingface.co"
    assert settings.cache == tmp_path / ".cache" / "huggingface" / "hub"
    assert (settings.token, settings.token_source, settings.offline) == (None, "", False)


def test_each_variable_is_obeyed(tmp_path: Path) -> None:
    settings = hub_settings(
        {
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": "http://127.0.0.1:9/",
            "HF_HUB_OFFLINE": "1",
            "HUGGING_FACE_HUB_TOKEN": "hf_older",
        }
    )
    assert settings.endpoint == "http://127.0.0.1:9"
    assert settings.cache == tmp_path / "hub"
    assert settings.offline
    assert (settings.token, settings.token_source) == ("hf_older", "HUGGING_FACE_HUB_TOKEN")


def test_the_newer_variable_goes_first_and_the_login_last(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_login\n")
    environment = {"HF_HOME": str(tmp_path)}
    assert hub_settings(environment).token == "hf_login"
    environment |= {"HUGGING_FACE_HUB_TOKEN": "hf_older"}
    assert hub_settings(environment).token == "hf_older"
    environment |= {"HF_TOKEN": "hf_newer"}
    assert hub_settings(environment).token == "hf_newer"
    assert hub_settings(environment | {"HF_TOKEN": " "}).token == "hf_older"


def test_the_cache_can_be_named_alone(tmp_path: Path) -> None:
    settings = hub_settings({"HF_HOME": "/other", "HF_HUB_CACHE": str(tmp_path)})
    assert settings.cache == tmp_path


def test_a_token_is_not_shown() -> None:
    assert "hf_secret" not in repr(hub_settings({"HOME": "/h", "HF_TOKEN": "hf_secret"}))


@pytest.mark.parametrize("wrong", [{"HF_ENDPOINT": "huggingface.co"}, {"HF_TOKEN": "two words"}])
def test_what_is_wrong_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        hub_settings({"HOME": "/h", **wrong})
