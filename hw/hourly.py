"""What devices cost per hour: bought and written off with electricity, or rented."""

from __future__ import annotations

from ..errors import InputError
from .die import price_of, takes_hosts_place
from .spec import Device

HOURS_OF_LIFE = 4 * 365 * 24
"""Depreciation of a bought device: four years, as hyperscalers book servers (assumed)."""
USD_PER_KWH = 0.10
"""Price of electricity (assumed: US industrial average, rounded)."""


def hourly_usd(device: Device, devices: int, watts: float) -> tuple[float, str] | None:
    """US dollars per hour of ``devices`` that draw ``watts`` together, and what they are made of; None without a price.

    A price to buy is written off over four years, and electricity is added; a price to rent is used where no price to
    buy is known, so that devices with both compare alike; a device without either costs what :func:`.die.price_of`
    makes of its parts. A host is bought too, unless the device takes its place.
    """
    price = device.price
    machines = [device]
    if device.host is not None and not takes_hosts_place(device):
        machines.append(device.host)
    electricity = watts / 1000 * USD_PER_KWH
    listed = [m.price.purchase.value for m in machines if m.price.purchase is not None]
    if len(listed) == len(machines):
        bought = sum(listed) / HOURS_OF_LIFE * devices
        return bought + electricity, "bought, written off in 4 years, electricity"
    if price.hourly is not None:
        return price.hourly.value * devices, "rented"
    try:
        made = sum(price_of(m).total for m in machines) / HOURS_OF_LIFE * devices
    except InputError:
        return None
    return made + electricity, "price from cost of parts and assumed margin, written off in 4 years, electricity"
