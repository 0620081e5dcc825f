"""This peer's place in the overlay: who its neighbours are, and the links to them.

All peers derive the same graph from the same members. A link is kept to every neighbour, to the
sponsor (the peer from whom a joiner gets in, until it has its state), and to every living member
that keeps a link to this peer. The seed is the link to the endpoint that is being joined; it
becomes the sponsor's when it is known who listens there.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import zmq

from gossamer.transport.complaints import Complaints
from gossamer.transport.link import Link
from gossamer.transport.membership import Membership
from gossamer.transport.message import Member

# overlay(ids, settings of the run) -> neighbours of each id
OverlayFunction = Callable[[Sequence[str], Mapping[str, str]], Mapping[str, set[str]]]


class Overlay:
    """The neighbours of one peer, and its links.

    origin:     this peer
    function:   gives the graph of the run
    membership: who is alive, and at which endpoint
    new_link:   new_link(endpoint, origin): a link that is not connected yet
    complaints: where endpoints go that cannot be connected to
    """

    def __init__(
        self,
        origin: int,
        function: OverlayFunction,
        membership: Membership,
        *,
        new_link: Callable[[str, int], Link],
        complaints: Complaints,
    ) -> None:
        self.graph: dict[int, set[int]] = {}
        self.order: list[int] = []  # the living members, in the order that all peers agree on
        self.links: dict[int, Link] = {}
        self.seed: Link | None = None
        self.sponsor: int | None = None
        self._origin, self._function, self._membership = origin, function, membership
        self._new_link, self._complaints = new_link, complaints

    @property
    def edges(self) -> set[int]:
        """The peers that this one wants links with."""
        return self.graph.get(self._origin, set()) | ({self.sponsor} if self.sponsor else set())

    def derive(self, living: Sequence[Member], settings: Mapping[str, str]) -> bool:
        """Derive graph and order again; returns False where they stay the same."""
        # Two peers with one name, who joined at the same moment by different peers, are told apart.
        by_name: dict[str, int] = {}
        for m in living:
            by_name[m.peer if m.peer not in by_name else f"{m.peer}/{m.origin:x}"] = m.origin
        graph = {
            by_name[peer]: {by_name[other] for other in others}
            for peer, others in self._function(list(by_name), settings).items()
        }
        order = list(by_name.values())
        if (order, graph) == (self.order, self.graph):
            return False
        self.order, self.graph = order, graph
        return True

    def all_links(self) -> list[Link]:
        """The links to members, and the seed."""
        return [*self.links.values(), *([self.seed] if self.seed is not None else [])]

    def join(self, endpoint: str) -> bool:
        """Make the seed, in place of an older one; returns False when it cannot be connected."""
        if self.seed is not None:
            self.seed.close()
        self.seed = self._new_link(endpoint, 0)
        return self._open(self.seed)

    def seed_answered(self, origin: int) -> None:
        """The seed leads to this peer, which becomes the sponsor."""
        link = self.seed
        assert link is not None, "only a seed answers as one"
        self.seed = None
        link.origin = self.sponsor = origin
        if origin in self.links:
            self.links[origin].close()
        self.links[origin] = link

    def take_unwanted(self, wanting: Collection[int]) -> list[Link]:
        """Take out the links that lead to the dead, or that neither side wants; to be closed.

        wanting: the peers that want a link with this one
        """
        kept = self.edges.union(wanting)
        unwanted = [o for o in self.links if not self._membership.alive(o) or o not in kept]
        return [self.links.pop(origin) for origin in unwanted]

    def connect(self, wanting: Collection[int]) -> None:
        """Make the links that are missing to living members, and note which are edges here."""
        edges = self.edges
        for origin in edges.union(wanting):
            member = self._membership.get(origin)
            if member is None or not member.alive or origin == self._origin:
                continue
            if origin not in self.links:
                self.links[origin] = self._new_link(member.endpoint, origin)
                self._open(self.links[origin])
            self.links[origin].wanted = origin in edges

    def _open(self, link: Link) -> bool:
        try:
            link.connect()
        except zmq.ZMQError as error:
            self._complaints.add(link.endpoint, f"cannot connect: {error}")
            return False
        return True
