"""Settings of the server, checked all at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from headstart.errors import ConfigError, raise_all
from headstart.image_files import DecodeLimits
from headstart.parallel import count_cpus


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What the server listens to, and what a request may cost.

    host, port: the address to listen at; port 0 takes a free one.
    num_workers: threads that decode and predict.
    queue_size: pictures that may wait for a worker; what comes beyond them is answered 503 at once.
    max_body_bytes: of a request's body, unpacked.
    max_pixels: of a picture, by its header.
    max_pictures: in one request, at most queue_size.
    head_timeout_s, body_timeout_s: from the first byte expected to the last one of the head, of the body.
    predict_timeout_s: for one picture, decoding included; and the longest that it waits for a worker.
    keep_alive_s: how long a connection may rest between two requests.
    drain_s: how long requests under way may take once the server has been told to stop.
    max_connections: open at once; those beyond are answered 503 and closed.
    allowed_hosts: names in the header Host, `*` for any; without any, those of this machine's loopback, and on other
        addresses any number address (a foreign page can lead a browser to a name, not to a number).
    api_keys: one of these must come with a request; without any, none is asked for.
    reload_s: how often the classifier files are looked at; 0 never.
    unknown_below: the familiarity under which a picture shows none of the classes, 0 to 1.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    num_workers: int = field(default_factory=count_cpus)
    queue_size: int = 64
    max_body_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000
    max_pictures: int = 32
    head_timeout_s: float = 10
    body_timeout_s: float = 30
    predict_timeout_s: float = 5
    keep_alive_s: float = 30
    drain_s: float = 30
    max_connections: int = 1000
    allowed_hosts: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    reload_s: float = 2
    unknown_below: float = 0.01

    def __post_init__(self) -> None:
        raise_all(ConfigError, _find_problems(asdict(self)))

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def decode_limits(self) -> DecodeLimits:
        return DecodeLimits(max_file_bytes=self.max_body_bytes, max_pixels=self.max_pixels)


def is_loopback(host: str) -> bool:
    """Whether an address or name (without port and brackets) is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_WHOLE: tuple[tuple[str, int, int], ...] = (
    ("port", 0, 65535),
    ("num_workers", 1, 1024),
    ("queue_size", 1, 100_000),
    ("max_body_bytes", 1024, 2**30),
    ("max_pixels", 1024, 10**9),
    ("max_pictures", 1, 10_000),
    ("max_connections", 1, 100_000),
)
_NUMBERS: tuple[tuple[str, float, float], ...] = (
    ("head_timeout_s", 0.1, 3600),
    ("body_timeout_s", 0.1, 3600),
    ("predict_timeout_s", 0.1, 3600),
    ("keep_alive_s", 0.1, 3600),
    ("drain_s", 0, 3600),
    ("reload_s", 0, 3600),
    ("unknown_below", 0, 1),
)


def _find_problems(values: dict[str, Any]) -> Iterator[str]:
    for name, low, high in _WHOLE:
        if not (type(values[name]) is int and low <= values[name] <= high):
            yield f"{name} is {values[name]!r}. Expected a whole number from {low:,} to {high:,}."
    for name, least, most in _NUMBERS:
        value = values[name]
        if type(value) not in (int, float) or not least <= value <= most:
            yield f"{name} is {value!r}. Expected a number from {least:g} to {most:g}."
    if type(values["max_pictures"]) is type(values["queue_size"]) is int and (
        values["max_pictures"] > values["queue_size"]
    ):
        yield (
            f"max_pictures is {values['max_pictures']}, but queue_size is {values['queue_size']}. "
            "A request's pictures must fit into the queue."
        )
    if not values["host"] or any(char.isspace() for char in values["host"]):
        yield f"host is {values['host']!r}. Expected an address or a name, such as 127.0.0.1."
    for name in values["allowed_hosts"]:
        if not name or "/" in name or (":" in name and not is_address(name)):
            yield f"allowed host {name!r} is none. Expected a name without scheme and port, such as pets.example.org."
    for key in values["api_keys"]:
        if len(key) < 8 or not all("!" <= char <= "~" for char in key):
            yield "An API key is shorter than 8 characters, or holds other than printable ASCII without spaces."


def is_address(text: str) -> bool:
    """Whether it is a number address of IPv4 or IPv6, without port and brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
