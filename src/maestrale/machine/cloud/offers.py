"""What the clouds offer, at what price, and which of it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from maestrale.errors import NoSuchOffer
from maestrale.machine.cloud.machine_spec import MachineSpec, possible
from maestrale.machine.cloud.pilot import Pilot
from maestrale.machine.cloud.providers import CATALOGUE_ROWS, PROVIDERS

HOURS_A_MONTH = 730
SHOWN = 8


@dataclass(frozen=True)
class Offer:
    """One machine of one region. `price` in dollars an hour; `memory` in GiB."""

    cloud: str
    region: str
    instance: str
    gpu: str
    count: int
    cpus: float | None
    memory: float | None
    spot: bool
    price: float

    def line(self) -> str:
        """What it is, in one line, with its price."""
        gpu = f"{self.count} x {self.gpu}, " if self.gpu else ""
        size = f"{self.cpus or 0:g} vCPUs, {self.memory or 0:g} GiB" if self.cpus else "any size"
        place = f" in {self.region}" if self.region else ""
        spot = ", spot" if self.spot else ""
        what = f"{PROVIDERS[self.cloud].title} {self.instance}".strip() + place
        return f"{what}: {gpu}{size}{spot}, {self.cost()}"

    def cost(self) -> str:
        if not self.price:
            return "no price of its own"
        return f"${self.price:.2f} an hour (${self.price * HOURS_A_MONTH:,.0f} a month)"


@dataclass(frozen=True)
class Market:
    """All offers, cheapest first, and why a cloud has none (`problems`: cloud → text)."""

    offers: tuple[Offer, ...]
    problems: dict[str, str]


def ask(pilot: Pilot, spec: MachineSpec) -> Market:
    """Look at the catalogues. Raises: NoSuchOffer when nothing fits; as Pilot.call."""
    clouds = possible(spec)
    if not clouds:
        raise NoSuchOffer("No cloud can do all that was asked for together: spot, disk, machine.")
    answer = pilot.call(
        "offers",
        clouds=[one.name for one in clouds],
        gpu=spec.gpu,
        count=spec.count,
        disk=spec.disk,
        spot=spec.spot,
        region=spec.region,
        rows=CATALOGUE_ROWS,
    )
    found = tuple(Offer(**one) for one in answer["offers"])
    problems = {
        cloud: _problem(cloud, spec, problem["kind"], problem["why"])
        for cloud, problem in answer["problems"].items()
    }
    if not found:
        raise NoSuchOffer("\n".join(problems.values()) or "No cloud offers that.")
    return Market(found, problems)


def _problem(cloud: str, spec: MachineSpec, kind: str, why: str) -> str:
    title = PROVIDERS[cloud].title
    machine = f"{spec.count} x {spec.gpu}" if spec.gpu else "machine without a GPU"
    room = machine if spec.gpu else f"a {machine}"
    spot = " as spot" if spec.spot else ""
    where = f" in {spec.region}" if spec.region else ""
    if kind == "no-offer" and cloud == "kubernetes":
        return (
            f"Kubernetes: no cluster that SkyPilot sees from here has room for {room}{where}. "
            f"It wants {PROVIDERS[cloud].key}. {why}"
        ).strip()
    if kind == "no-offer":
        return f"{title} has no {machine}{spot}{where} (by SkyPilot's catalogue). {why}".strip()
    if kind == "network":
        return (
            f"{title}: the catalogue with its prices can't be fetched. Is there a network? "
            f"({why[:160]})"
        )
    if kind == "missing":
        return f"{title}: {why}. It comes with: scripts/extra {PROVIDERS[cloud].extra}"
    return f"{title}: {why}"
