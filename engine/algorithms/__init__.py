"""The algorithms: what is sent after a step, what an arrival does to the model.

No sockets, threads or clocks inside: times, memberships and updates are passed in.
"""

from gossamer.engine.algorithms.sparse_averaging import Outgoing, SparseAveraging

__all__ = ["Outgoing", "SparseAveraging"]
