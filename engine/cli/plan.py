"""What to start: the flags of a command, checked as a whole before any process begins."""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gossamer.engine.errors import ConfigurationError
from gossamer.engine.settings import FIRST_PEER, Settings, check_endpoint, resolve
from gossamer.engine.summary import EVENTS_FILE

RUNS_FOLDER = "runs"
RENDEZVOUS_FILE = "rendezvous"
# Set for each peer by its launcher alone; what the user's environment still holds would mislead it.
_OWN_VARIABLES = ("RUN", "RUN_DIR", "PEER", "PEERS", "RENDEZVOUS", "JOIN", "BIND", "ADVERTISE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The flags that `launch` and `join` share, as given; None: not given."""

    topology: str | None = None
    compress: str | None = None
    local_steps: int | None = None
    peer_timeout_seconds: float | None = None
    bind: str | None = None
    advertise: str | None = None
    insecure: bool = False
    run_dir: Path | None = None
    json: Path | None = None

    def environment(self) -> dict[str, str]:
        """The variables for what every peer of the command shares."""
        given = {
            "TOPOLOGY": self.topology,
            "COMPRESS": self.compress,
            "LOCAL_STEPS": self.local_steps,
            "PEER_TIMEOUT": self.peer_timeout_seconds,
            "INSECURE": "1" if self.insecure else None,
        }
        return {f"GOSSAMER_{key}": str(value) for key, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Peers to start on this machine.

    run_dir:      absolute; it exists and holds no earlier run
    environments: the whole environment of each peer, by peer id
    peer_timeout: seconds, unless the script sets another one
    """

    script: Path
    args: tuple[str, ...]
    run_dir: Path
    environments: Mapping[str, Mapping[str, str]]
    peer_timeout: float
    json: Path | None

    @property
    def rendezvous(self) -> Path:
        return self.run_dir / RENDEZVOUS_FILE

    @property
    def title(self) -> str:
        count = len(self.environments)
        command = " ".join((self.script.name, *self.args))
        return f"{count} {'peer' if count == 1 else 'peers'} of {command}"


def plan_launch(peers: int, script: Path, args: Sequence[str], flags: Flags) -> Plan:
    """Plan a run of its own. Raises ConfigurationError for what cannot be started."""
    if peers < 1:
        raise ConfigurationError(f"-n is {peers}; a run needs at least one peer, as in -n 4")
    _check_script(script)
    run_dir = _run_dir(flags.run_dir, script)
    shared = _inherited() | flags.environment()
    shared["GOSSAMER_RUN"] = run_dir.name
    shared["GOSSAMER_PEERS"] = str(peers)
    if peers > 1:
        shared["GOSSAMER_RENDEZVOUS"] = str(run_dir / RENDEZVOUS_FILE)
        # Peers that each take all cores slow one another down.
        shared.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // peers)))
    first, others = _endpoints(flags)
    names = [FIRST_PEER, *(f"peer-{i}" for i in range(1, peers))]
    own = {name: others if name != FIRST_PEER else first for name in names}
    return _plan(script, args, run_dir, flags, {name: shared | own[name] for name in names})


def plan_join(endpoint: str, script: Path, args: Sequence[str], flags: Flags) -> Plan:
    """Plan one more peer of a running run. Raises ConfigurationError for what cannot be started."""
    endpoint = check_endpoint(endpoint)
    _check_script(script)
    run_dir = _run_dir(flags.run_dir, script)
    first, _ = _endpoints(flags)
    own = _inherited() | flags.environment() | first
    own["GOSSAMER_JOIN"] = endpoint
    own["GOSSAMER_PEERS"] = "1"
    return _plan(script, args, run_dir, flags, {f"peer-{secrets.token_hex(3)}": own})


def _plan(
    script: Path,
    args: Sequence[str],
    run_dir: Path,
    flags: Flags,
    environments: Mapping[str, dict[str, str]],
) -> Plan:
    settings: Settings | None = None
    for name, environment in environments.items():
        environment["GOSSAMER_PEER"] = name
        environment["GOSSAMER_RUN_DIR"] = str(run_dir)
        environment["PYTHONUNBUFFERED"] = "1"
        settings = resolve(environment=environment)
    assert settings is not None, "at least one peer"
    json = None if flags.json is None else _check_json(flags.json)
    _create(run_dir)
    return Plan(
        script=script,
        args=tuple(args),
        run_dir=run_dir,
        environments=environments,
        peer_timeout=settings.peer_timeout,
        json=json,
    )


def _inherited() -> dict[str, str]:
    own = {f"GOSSAMER_{key}" for key in _OWN_VARIABLES}
    return {key: value for key, value in os.environ.items() if key not in own}


def _endpoints(flags: Flags) -> tuple[dict[str, str], dict[str, str]]:
    """The variables for the first peer's endpoint and for those of the others, on the same host."""
    if flags.bind is None and flags.advertise is None:
        return {}, {}
    first = {}
    if flags.bind is not None:
        first["GOSSAMER_BIND"] = _endpoint(flags.bind)
    if flags.advertise is not None:
        first["GOSSAMER_ADVERTISE"] = _endpoint(flags.advertise)
    host = (first.get("GOSSAMER_ADVERTISE") or first["GOSSAMER_BIND"]).rpartition(":")[0]
    return first, {"GOSSAMER_BIND": f"{host}:0"}


def _endpoint(text: str) -> str:
    return check_endpoint(text if "://" in text else f"tcp://{text}")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_script(script: Path) -> None:
    if not script.exists():
        raise ConfigurationError(
            f"there is no script {str(script)!r} in {Path.cwd()}; check the path"
        )
    if not script.is_file():
        raise ConfigurationError(f"{str(script)!r} is not a file; name a Python script")


def _check_json(path: Path) -> Path:
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"cannot write {str(path)!r}; name a file in an existing, writable folder with --json"
        )
    return path.absolute()


def _run_dir(chosen: Path | None, script: Path) -> Path:
    if chosen is not None:
        directory = chosen.absolute()
        if any(directory.glob(f"*/{EVENTS_FILE}")):
            raise ConfigurationError(
                f"{str(chosen)!r} already holds a run; choose another folder with --run-dir"
            )
        return directory
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name, again = f"{stamp}-{script.stem}", 1
    while (Path(RUNS_FOLDER) / name).exists():
        again += 1
        name = f"{stamp}-{script.stem}-{again}"
    return (Path(RUNS_FOLDER) / name).absolute()


def _create(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / RENDEZVOUS_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot create the run directory {str(run_dir)!r} ({error.strerror}); "
            "choose another with --run-dir"
        ) from None
    if not os.access(run_dir, os.W_OK):
        raise ConfigurationError(
            f"cannot write to the run directory {str(run_dir)!r}; choose another with --run-dir"
        )
