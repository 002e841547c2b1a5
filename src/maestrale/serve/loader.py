"""Loads models when requests ask for them, and unloads them, as the rules of `residency.py` say.

Requests wait in their model's queue (`api/admission.py`), which tells of their coming and going,
and is told up to which of them may go on to the engine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from maestrale.api.backend import Steering
from maestrale.config.settings import Settings
from maestrale.engines.base import Engine, EngineConfig, Unloadable
from maestrale.errors import (
    Conflict,
    MaestraleError,
    ModelDoesNotFit,
    NoMemoryLeft,
    SettingsError,
    Unavailable,
)
from maestrale.logs import LOGGER
from maestrale.models.fit_cpu import SPARE, memory_to_use
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.hosting import in_thread
from maestrale.serve.progress import StartProgress
from maestrale.serve.residency import Load, Residency

KEEP_ALIVE = 300.0  # seconds, where several models are served and nothing else was said
MIB = 1 << 20
# What helps a model that doesn't fit: one whose size is chosen, and one whose size is found.
_SMALLER = (
    "Give it a smaller --kv-cache-memory or --max-model-len, or pin fewer models; 'maestrale plan' "
    "shows the account."
)
_MORE = "Its engine needs that beside a GPU's memory: raise --memory-budget, or pin fewer models."


@dataclass(frozen=True)
class _Arrivals:
    """What one model's queue tells."""

    arrived_: Callable[[int], None]
    left_: Callable[[int], None]

    def arrived(self, number: int) -> None:
        self.arrived_(number)

    def left(self, number: int) -> None:
        self.left_(number)


class ModelLoader:
    """The models of one server, each in memory or not."""

    def __init__(
        self,
        settings: Settings,
        hosts: int,
        changed: Callable[[], Awaitable[None]],
        prepare: Callable[[DeploymentHost], Awaitable[None]],
    ) -> None:
        """`hosts`: how many models there are. `changed` is awaited after a model was loaded or
        unloaded, or could not be, before any request learns of it. `prepare` makes one ready that
        could not be prepared before, or raises why it still can't be, and has `forget` called.
        """
        budget = settings.budget_bytes
        self._given = budget is not None
        self._budget = budget if budget is not None else max(0, memory_to_use() - SPARE)
        self._residency = Residency(self._budget)
        self._number = hosts
        self._changed = changed
        self._prepare = prepare
        self._broken: dict[str, DeploymentHost] = {}  # those that could not be prepared
        self._preparing: dict[str, asyncio.Task[None]] = {}  # those of them that are tried again
        self._hosts: dict[str, DeploymentHost] = {}
        self._adopted: dict[str, tuple[tuple[str, ...], str]] = {}  # names, and whence it comes
        self._tasks: set[asyncio.Task[None]] = set()
        self._outcomes: dict[str, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._stopped = False

    async def adopt(
        self, host: DeploymentHost, name: str, config: EngineConfig, progress: StartProgress
    ) -> Engine:
        """The model's engine: known, and not started until it is asked for. One that can't be
        known beforehand is started here, and what its processes then hold counts as its size; one
        on Ray is started, too. `name` is the model's own.

        Raises: ModelError, EngineError where it can't be had, or never fits.
        """
        settings, deployment = host.settings, host.deployment
        names = settings.served_model_name or (name,)
        pinned = bool({*names, settings.model} & {*settings.pinned})
        room = max(0, int(self._residency.room(pinned=pinned)))
        try:
            foreseen = await in_thread(lambda: host.forecast(config, room))
        except NoMemoryLeft as error:
            if not self._given:
                raise
            raise ModelDoesNotFit(
                f"{names[0]} doesn't fit in {_mib(room)} of memory, which is what "
                f"{self._told_budget()}. Give a larger budget, or take a smaller model or "
                "quantisation; 'maestrale plan' shows the account."
            ) from error
        if foreseen is None:
            progress.update("Starting the engine", None)
            engine = await host.start(config)
            size = await in_thread(host.taken)
        else:
            size = foreseen.memory
        if size > room:
            raise ModelDoesNotFit(
                f"{names[0]} takes {_mib(size)} of memory when it is loaded"
                f"{', and stays beside the others' if pinned else ''}: {_mib(size - room)} more "
                f"than {self._told_budget()}. {_SMALLER if foreseen else _MORE}"
            )
        if foreseen is not None:
            engine = host.expect(foreseen)
        self._adopted[deployment.id] = names, settings.model
        if host.stays or not isinstance(engine, Unloadable):
            return engine
        deployment.pinned, deployment.memory = pinned, size or None
        id_, now = deployment.id, self._now()
        self._hosts[id_] = host
        keep_alive = settings.keep_alive_seconds
        if settings.keep_alive is None and (self._number > 1 or host.from_zero):
            keep_alive = KEEP_ALIVE
        self._residency.add(id_, size, pinned=pinned, keep_alive=keep_alive)
        if foreseen is None:
            self._residency.loaded(id_, now)
        admission = deployment.admission
        admission.arrivals = _Arrivals(partial(self._arrived, id_), partial(self._left, id_))
        self._step()
        return engine

    def at_start(self, host: DeploymentHost) -> bool:
        """Whether it is loaded at the server's start: the first is, unless its replicas begin at
        none, and those that are pinned.
        """
        deployment = host.deployment
        first = next(iter(self._hosts), None) == deployment.id and not host.from_zero
        return deployment.id in self._hosts and (first or deployment.pinned)

    async def load(self, host: DeploymentHost) -> None:
        """Load it now, and wait for that. Raises: EngineError, ModelError with the reason."""
        id_ = host.deployment.id
        if self._residency.place(id_) == "loaded":
            return
        outcome = self._outcomes.setdefault(id_, asyncio.get_running_loop().create_future())
        self._residency.call(id_, self._now())
        self._step()
        await asyncio.shield(outcome)

    def forget(self, host: DeploymentHost) -> None:
        """It could not be prepared, however far that came. `steer` has it tried again."""
        id_ = host.deployment.id
        self._broken[id_] = host
        if self._hosts.pop(id_, None) is not None:
            self._residency.remove(id_)
        self._adopted.pop(id_, None)
        host.deployment.admission.arrivals = None

    def steer(self, id_: str, steering: Steering) -> None:
        """The operator wants this model loaded, or unloaded: begin it.

        Raises: Conflict where that can't be.
        """
        if id_ in self._broken or id_ in self._preparing:
            self._steer_broken(id_, steering)
            return
        if id_ not in self._hosts:
            raise Conflict(f"The model {id_} can't be loaded or unloaded: it stays as it is.")
        if steering == "load":
            self._hosts[id_].deployment.forgive()
            self._residency.call(id_, self._now())
        elif not self._residency.dismiss(id_):
            raise Conflict(
                f"The model {id_} has requests in work or waiting, or is being loaded: it is "
                "unloaded once it is idle. Try again then."
            )
        self._step()

    def check_pinned(self, settings: Settings) -> None:
        """Raises: SettingsError for a name under --pinned that no model has."""
        if len(self._adopted) < self._number:
            return  # it may be the name of one that can't be served, which the log tells
        names = {name for each, _ in self._adopted.values() for name in each}
        for name in settings.pinned:
            if name not in names | {source for _, source in self._adopted.values()}:
                raise SettingsError(
                    f"--pinned: no model is called {name!r}; there is {', '.join(sorted(names))}."
                )

    def stop(self) -> None:
        """Begin nothing more; the engines are closed by who owns them."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._preparing.values():
            task.cancel()

    def pause(self) -> None:
        """Begin nothing more, until `resume`."""
        self._stopped = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._stopped = False
        self._step()

    async def close(self) -> None:
        """Wait until nothing is being loaded or unloaded, once the engines are closed."""
        self.stop()
        await asyncio.gather(*self._tasks, *self._preparing.values(), return_exceptions=True)

    # What the queues tell

    def _arrived(self, id_: str, number: int) -> None:
        self._hosts[id_].deployment.touch()
        if self._residency.arrived(id_, number, self._now()):
            self._step_soon()

    def _left(self, id_: str, number: int) -> None:
        if self._residency.left(id_, number, self._now()):
            self._step_soon()

    # Within

    def _steer_broken(self, id_: str, steering: Steering) -> None:
        if steering == "unload":
            raise Conflict(f"The model {id_} could not be prepared: there is nothing to unload.")
        if id_ not in self._preparing:
            host = self._broken.pop(id_)
            host.deployment.forgive()
            self._preparing[id_] = asyncio.create_task(self._try_again(host))

    async def _try_again(self, host: DeploymentHost) -> None:
        id_ = host.deployment.id
        try:
            await self._prepare(host)
        except MaestraleError:  # which is logged, and kept for who asks
            return
        except Exception as error:
            LOGGER.exception("%s could not be prepared", id_)
            self.forget(host)
            await host.fail(MaestraleError(f"It failed in a way nobody expected: {error}"))
            return
        finally:
            self._preparing.pop(id_, None)
        if id_ in self._hosts and not self._stopped:
            self._residency.call(id_, self._now())
            self._step()

    def _step_soon(self) -> None:
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Begin what is to be done, and let those requests on that may go."""
        self._soon = False
        if self._stopped:
            return
        loop, now = asyncio.get_running_loop(), self._now()
        for action in self._residency.decide(now):
            host = self._hosts[action.id]
            host.deployment.loading = isinstance(action, Load)
            work = self._load(host) if isinstance(action, Load) else self._unload(host, action.why)
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for id_, host in self._hosts.items():
            host.deployment.admission.let_on(self._residency.horizon(id_))
        if self._timer is not None:
            self._timer.cancel()
        wake = self._residency.wake_at(now)
        self._timer = None if wake is None else loop.call_at(max(wake, now), self._step)

    async def _load(self, host: DeploymentHost) -> None:
        deployment = host.deployment
        begun, id_ = self._now(), deployment.id
        fault = await _tried(host)
        deployment.loading = False
        if fault is not None:
            await self._fail(host, fault)
        else:
            deployment.forgive()
            LOGGER.info("%s is loaded (%.1f s).", host.deployment.name, self._now() - begun)
            await self._changed()
            self._residency.loaded(id_, self._now())
            self._settle(id_, None)
        self._step()

    async def _unload(self, host: DeploymentHost, why: str) -> None:
        LOGGER.info("Unloading %s: %s.", host.deployment.name, why)
        try:
            await host.unload()
        except Exception:
            LOGGER.exception("%s was not unloaded in order", host.deployment.name)
        await self._changed()
        self._residency.unloaded(host.deployment.id)
        self._step()

    async def _fail(self, host: DeploymentHost, error: MaestraleError) -> None:
        """It is not tried again for a while; who waits for it is told why."""
        deployment = host.deployment
        if self._stopped:
            return
        pause = self._residency.failed(deployment.id, self._now())
        LOGGER.error("%s can't be loaded: %s", host.deployment.name, error)
        deployment.fail(str(error).partition("\n")[0], pause)
        await self._changed()
        told = Unavailable(
            deployment.failure, code="model_not_loaded", retry_after=math.ceil(pause)
        )
        deployment.admission.refuse_waiting(told)
        self._settle(deployment.id, error)

    def _settle(self, id_: str, error: MaestraleError | None) -> None:
        outcome = self._outcomes.pop(id_, None)
        if outcome is None:
            return
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(error)

    def _told_budget(self) -> str:
        source = "--memory-budget" if self._given else "what is free here"
        return f"{source} leaves of {_mib(self._budget)}"

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _tried(host: DeploymentHost) -> MaestraleError | None:
    """Load it; what kept it from being loaded, if anything did."""
    try:
        await host.load()
    except MaestraleError as error:
        return error
    except Exception as error:
        LOGGER.exception("%s could not be loaded", host.deployment.name)
        return MaestraleError(f"It failed in a way nobody expected: {error}")
    return None


def _mib(size: int) -> str:
    return f"{math.ceil(size / MIB):,} MiB"
