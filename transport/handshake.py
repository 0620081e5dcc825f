"""How two peers find out that they fit: the run and the model, in Hello and Welcome."""

from xxhash import xxh3_64_intdigest

from gossamer.transport.config import NodeConfig
from gossamer.transport.errors import ProtocolError, TransportError
from gossamer.transport.membership import Membership
from gossamer.transport.message import Hello, Welcome, decode
from gossamer.transport.sessions import Session

MAX_DESCRIPTION = 1024


class Handshake:
    """What one peer says of itself, whom it lets in, and the run that it belongs to.

    endpoint:   where others reach this peer's ROUTER
    membership: holds the own row, and who is in the run
    """

    def __init__(self, config: NodeConfig, endpoint: str, membership: Membership) -> None:
        self.run = _run_hash(config.run)
        self.settings = dict(config.settings)
        self._run_name = config.run
        self._config, self._endpoint, self._membership = config, endpoint, membership
        self._description = config.description[:MAX_DESCRIPTION]

    def check_texts(self) -> None:
        """Raises TransportError when the config holds text that no message can hold."""
        config, own = self._config, self._membership.own
        welcome = Welcome(own.origin, 0, 0, [own], config.run or "", self.settings)
        hello = Hello(own, 0, 0, config.signature, "")
        try:
            for message in (hello, welcome):
                decode([message.encode(0)], max_total_bytes=0)
        except ProtocolError as error:
            raise TransportError(f"peer {config.peer!r} cannot introduce itself: {error}") from None

    def hello(self, session: int, channel: int) -> bytes:
        """The frame that a link greets with."""
        own, signature = self._membership.own, self._config.signature
        return Hello(own, session, channel, signature, self._description).encode(self.run)

    def objection(self, run: int, hello: Hello) -> str | None:
        """Why the sender of a Hello cannot be let in, and what to do about it; None when it can."""
        peer = hello.member.peer
        if run not in (0, self.run):
            return (
                f"{self._endpoint} belongs to the run {self._run_name!r}; "
                "join with the endpoint of a peer of your own run"
            )
        if hello.signature != self._config.signature:
            return (
                f"the models differ: this run trains {self._description}, {peer} brings "
                f"{hello.description}; start every peer with the same model"
            )
        is_new = self._membership.get(hello.member.origin) is None
        if is_new and any(m.peer == peer for m in self._membership.living()):
            return (
                f"a peer named {peer!r} is in the run; give this one another "
                f"name, or wait {self._config.peer_timeout:.0f} s if that one has crashed"
            )
        return None

    def welcome(self, session: Session) -> Welcome:
        """The answer to a Hello without objection."""
        return Welcome(
            self._membership.own.origin,
            session.session,
            session.granted,
            self._membership.rows(),
            self._run_name or "",
            self.settings,
        )

    def welcomed(self, run: int, welcome: Welcome) -> None:
        """Belong to the run of the peer that was joined."""
        self.run, self._run_name = run, welcome.run
        self.settings = welcome.settings


def _run_hash(name: str | None) -> int:
    return 0 if name is None else xxh3_64_intdigest(name.encode())
