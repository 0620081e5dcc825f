"""Where a peer's settings come from: the launcher's environment over the script's arguments over
defaults.

GOSSAMER_RUN, GOSSAMER_RUN_DIR      name and directory of the run
GOSSAMER_PEER, GOSSAMER_PEERS       this peer's id; how many peers start together
GOSSAMER_TOPOLOGY, GOSSAMER_COMPRESS, GOSSAMER_LOCAL_STEPS, GOSSAMER_PEER_TIMEOUT
GOSSAMER_BIND, GOSSAMER_ADVERTISE   what this peer listens on; what others connect to
GOSSAMER_JOIN                       endpoint of any peer of a running run
GOSSAMER_RENDEZVOUS                 file through which the peers of one launch find the first
GOSSAMER_INSECURE                   1: listen beyond loopback without keys
"""

import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gossamer.engine import compression, topology
from gossamer.engine.errors import ConfigurationError
from gossamer.kernels import Format

DEFAULT_PEER_TIMEOUT_SECONDS = 20.0
DEFAULT_LOCAL_STEPS = 1
FIRST_PEER = "peer-0"  # of a launch
DEFAULT_BIND = "tcp://127.0.0.1:0"
_ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):(\d{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The resolved settings of one peer.

    `run` and `topology` are None where the run that is joined decides.
    """

    run: str | None
    run_dir: Path | None
    peer: str
    peers: int
    topology: str | None
    level: Format
    local_steps: int
    peer_timeout: float
    bind: str
    advertise: str | None
    join: str | None
    rendezvous: Path | None

    @property
    def first(self) -> bool:
        """Whether this peer begins the run."""
        return self.join is None and (self.rendezvous is None or self.peer == FIRST_PEER)

    @property
    def start_timeout(self) -> float:
        """Seconds to wait for other processes to start: they must load torch first."""
        return 30.0 + 3 * self.peer_timeout


def resolve(
    *,
    topology_name: str | None = None,
    compress: str | None = None,
    local_steps: int | None = None,
    peer_timeout: float | None = None,
    bind: str | None = None,
    advertise: str | None = None,
    join: str | None = None,
    insecure: bool = False,
    peer: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Merge arguments and environment.

    Raises ConfigurationError naming the value and the remedy.
    """

    def text(key: str, argument: str | None) -> str | None:
        return environment.get(f"GOSSAMER_{key}") or argument

    chosen = text("TOPOLOGY", topology_name)
    if chosen is not None:
        topology.builder(chosen)
    endpoint = text("JOIN", join)
    address = check_endpoint(text("BIND", bind) or DEFAULT_BIND)
    if not _loopback(address) and not (insecure or environment.get("GOSSAMER_INSECURE") == "1"):
        raise ConfigurationError(
            f"{address} can be reached from other machines and the connection is not encrypted; "
            "bind to 127.0.0.1, or accept that with --insecure (Engine(insecure=True))"
        )
    advertised = text("ADVERTISE", advertise)
    if advertised is None and _wildcard(address):
        raise ConfigurationError(
            f"others cannot connect to {address}; say which address they can use with --advertise"
        )
    run_dir, rendezvous = text("RUN_DIR", None), text("RENDEZVOUS", None)
    return Settings(
        run=None if endpoint else text("RUN", None) or f"run-{secrets.token_hex(4)}",
        run_dir=Path(run_dir) if run_dir else None,
        peer=text("PEER", peer) or f"peer-{secrets.token_hex(4)}",
        peers=int(_positive("peers", text("PEERS", None) or "1", whole=True)),
        topology=chosen or (None if endpoint else topology.DEFAULT_TOPOLOGY),
        level=compression.parse(text("COMPRESS", compress) or compression.DEFAULT_LEVEL),
        local_steps=int(
            _positive(
                "local_steps",
                text("LOCAL_STEPS", _string(local_steps)) or str(DEFAULT_LOCAL_STEPS),
                whole=True,
            )
        ),
        peer_timeout=_positive(
            "peer_timeout",
            text("PEER_TIMEOUT", _string(peer_timeout)) or str(DEFAULT_PEER_TIMEOUT_SECONDS),
        ),
        bind=address,
        advertise=check_endpoint(advertised) if advertised else None,
        join=check_endpoint(endpoint) if endpoint else None,
        rendezvous=Path(rendezvous) if rendezvous else None,
    )


def check_endpoint(endpoint: str) -> str:
    """Return the endpoint, or raise ConfigurationError when it is not tcp://HOST:PORT."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or int(match[2]) > 65535:
        raise ConfigurationError(
            f"{endpoint!r} is not an endpoint; write tcp://HOST:PORT, as in tcp://127.0.0.1:7000"
        )
    return endpoint


def _host(endpoint: str) -> str:
    match = _ENDPOINT.fullmatch(endpoint)
    assert match is not None, "checked before"
    return match[1].strip("[]")


def _loopback(endpoint: str) -> bool:
    host = _host(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def _wildcard(endpoint: str) -> bool:
    return _host(endpoint) in ("*", "0.0.0.0", "::")


def _string(value: float | None) -> str | None:
    return None if value is None else str(value)


def _positive(name: str, text: str, *, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{name} is {text!r}; it must be {kind} greater than 0")
    return value
