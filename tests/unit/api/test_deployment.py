"""What text needs of a model is held while the model is loaded, and let go with it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from api_app import MODEL, ByteEncoder, DirectVetter, make_settings
from maestrale.api.backend import Backend
from maestrale.api.deployment import LINGER, Deployment
from maestrale.chat.service import ChatService
from maestrale.engines.base import EngineConfig, EngineHealth, EngineState
from maestrale.engines.scripted import ScriptedEngine
from maestrale.errors import ModelError, Unavailable
from maestrale.models.vocabulary import byte_vocabulary

pytestmark = pytest.mark.anyio


class Engine(ScriptedEngine):
    state: EngineState = "ready"

    async def health(self) -> EngineHealth:
        return EngineHealth(self.state)


class Services:
    def __init__(self, engine: Engine) -> None:
        self.made = self.freed_ = 0
        self.fault = ""
        self._engine = engine

    async def make(self) -> ChatService:
        await asyncio.sleep(0)
        if self.fault:
            raise ModelError(self.fault)
        self.made += 1
        return ChatService(self._engine, ByteEncoder(None, None), byte_vocabulary(), DirectVetter())

    async def freed(self) -> None:
        self.freed_ += 1


async def opened(*, again: bool = True) -> tuple[Deployment, Engine, Services]:
    engine = Engine(
        EngineConfig(engine="scripted", model_dir="", max_num_seqs=4, kv_cache_bytes=1 << 20)
    )
    services = Services(engine)
    deployment = Backend(make_settings(cache_dir=Path("/where/models/are"))).deployments.default
    service = await services.make()
    deployment.open(engine, MODEL, service=service, services=services if again else None)
    return deployment, engine, services


def forget_when_it_was_asked(deployment: Deployment) -> None:
    deployment.last_used = time.time() - LINGER


async def test_it_is_let_go_once_the_model_is_unloaded_and_nobody_asked_for_a_moment() -> None:
    deployment, engine, services = await opened()
    first = await deployment.service()
    await deployment.tend()
    engine.state = "unloaded"
    await deployment.tend()
    assert (await deployment.service(), services.freed_) == (first, 0)  # asked for just now
    forget_when_it_was_asked(deployment)
    async with deployment.admission.slot("-", 1, 1):
        await deployment.tend()
        assert services.freed_ == 0
    await deployment.tend()
    await deployment.tend()
    assert (services.made, services.freed_) == (1, 1)


async def test_it_is_read_once_for_all_who_ask() -> None:
    deployment, engine, services = await opened()
    engine.state = "unloaded"
    await deployment.tend()
    found = await asyncio.gather(*(deployment.service() for _ in range(5)))
    assert (len({id(each) for each in found}), services.made) == (1, 2)
    await deployment.tend()
    assert (await deployment.service() is found[0], services.freed_) == (True, 1)


@pytest.mark.parametrize("state", ["loading", "ready", "degraded"])
async def test_it_is_read_when_the_model_is_loaded_before_anybody_asks(state: EngineState) -> None:
    deployment, engine, services = await opened()
    engine.state = "unloaded"
    await deployment.tend()
    engine.state = state
    await deployment.tend()
    await deployment.tend()
    assert (services.made, services.freed_) == (2, 1)


async def test_what_can_t_be_read_again_is_told_without_folders_and_tried_again() -> None:
    deployment, engine, services = await opened()
    engine.state = "unloaded"
    await deployment.tend()
    services.fault = "The tokenizer /where/models/are/tokenizer.json can't be read."
    with pytest.raises(Unavailable, match=r"The tokenizer are/tokenizer\.json can") as caught:
        await deployment.service()
    assert (caught.value.status, caught.value.retry_after is not None) == (503, True)
    engine.state = "ready"
    await deployment.tend()  # it is logged, and nothing else happens
    services.fault = ""
    assert await deployment.service()


async def test_what_can_t_be_made_again_is_kept() -> None:
    deployment, engine, _ = await opened(again=False)
    first = await deployment.service()
    engine.state = "unloaded"
    forget_when_it_was_asked(deployment)
    await deployment.tend()
    assert await deployment.service() is first


async def test_what_the_model_can_do_is_known_meanwhile() -> None:
    deployment, engine, _ = await opened()
    engine.state = "unloaded"
    await deployment.tend()
    assert (deployment.tool_call_format, deployment.fills_gaps) == (None, False)
