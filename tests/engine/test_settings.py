"""Settings: where they come from, and what each wrong one is answered with."""

from pathlib import Path

import pytest

from gossamer.engine import ConfigurationError
from gossamer.engine.settings import resolve


def test_settings_environment_wins_over_arguments_over_defaults() -> None:
    defaults = resolve(environment={})
    assert (defaults.topology, defaults.local_steps, defaults.peer_timeout) == ("ring", 1, 20.0)
    chosen = resolve(topology_name="torus", local_steps=3, environment={})
    assert (chosen.topology, chosen.local_steps) == ("torus", 3)
    environment = {"GOSSAMER_TOPOLOGY": "complete", "GOSSAMER_LOCAL_STEPS": "5"}
    launched = resolve(topology_name="torus", local_steps=3, environment=environment)
    assert (launched.topology, launched.local_steps) == ("complete", 5)


def test_settings_of_a_joiner_leave_run_and_topology_to_the_run() -> None:
    settings = resolve(join="tcp://127.0.0.1:7000", environment={"GOSSAMER_RUN": "mine"})
    assert settings.run is None and settings.topology is None and not settings.first


def test_settings_first_of_a_launch_is_peer_0() -> None:
    environment = {"GOSSAMER_RENDEZVOUS": "x", "GOSSAMER_PEERS": "2"}
    assert resolve(environment={**environment, "GOSSAMER_PEER": "peer-0"}).first
    other = resolve(environment={**environment, "GOSSAMER_PEER": "peer-10"})
    assert not other.first and other.rendezvous == Path("x")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"topology_name": "moebius"}, r"'moebius'; choose one of ring"),
        ({"compress": "1/3:9bit"}, r"'1/3:9bit'; choose one of 1/64:1bit"),
        ({"local_steps": 0}, r"local_steps is '0'; it must be a whole number"),
        ({"peer_timeout": -1.0}, r"peer_timeout is '-1.0'; it must be a number"),
        ({"peer_timeout": float("inf")}, r"peer_timeout is 'inf'"),
        ({"bind": "localhost"}, r"'localhost' is not an endpoint; write tcp://HOST:PORT"),
        ({"bind": "tcp://127.0.0.1:99999"}, "is not an endpoint"),
        ({"bind": "tcp://10.0.0.5:7000"}, r"10.0.0.5:7000 can be reached.*--insecure"),
        ({"bind": "tcp://*:7000"}, r"can be reached"),
        ({"bind": "tcp://0.0.0.0:7000", "insecure": True}, "--advertise"),
        ({"join": "7000"}, r"'7000' is not an endpoint"),
    ],
)
def test_settings_wrong_value_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        resolve(**arguments, environment={})


def test_settings_loopback_needs_no_permission() -> None:
    for bind in ("tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://localhost:0"):
        assert resolve(bind=bind, environment={}).bind == bind
    resolve(bind="tcp://10.0.0.5:7000", insecure=True, environment={})
