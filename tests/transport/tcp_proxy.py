"""A TCP proxy in a thread: counts bytes, limits the rate, cuts connections."""

import contextlib
import socket
import threading
import time

PIECE_BYTES = 16 * 1024
POLL_SECONDS = 0.2


class Proxy:
    """Stands before a node: its endpoint is what the node advertises.

    rate:    bytes per second towards the node, shared by all connections; None: unlimited
    refuses: close every new connection at once
    """

    def __init__(self, *, rate: float | None = None) -> None:
        self.rate = rate
        self.refuses = False
        self.towards = self.back = 0
        self._target: tuple[str, int] | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * PIECE_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.settimeout(POLL_SECONDS)
        self.endpoint = "tcp://{}:{}".format(*self._listener.getsockname())
        self._start(self._accept)

    def lead_to(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))

    def cut(self) -> int:
        """Reset all connections; returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def close(self) -> None:
        self._closed.set()
        self.cut()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        self._listener.close()

    def _start(self, target: "threading.Thread | object", *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self.refuses or self._target is None:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            for one in pair:
                one.settimeout(POLL_SECONDS)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append(pair)
            open_ends = [2]
            self._start(self._forward, pair, 0, open_ends)
            self._start(self._forward, pair, 1, open_ends)

    def _forward(
        self, pair: tuple[socket.socket, socket.socket], back: int, open_ends: list[int]
    ) -> None:
        source, sink = pair[back], pair[1 - back]
        try:
            while not self._closed.is_set():
                try:
                    data = source.recv(PIECE_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                if not back:
                    self._pace(len(data))
                self._send(sink, data)
                with self._lock:
                    if back:
                        self.back += len(data)
                    else:
                        self.towards += len(data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
            with self._lock:
                open_ends[0] -= 1
                last = not open_ends[0]
                if last and pair in self._pairs:
                    self._pairs.remove(pair)
            if last:
                source.close()
                sink.close()

    def _send(self, sink: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                view = view[sink.send(view) :]

    def _pace(self, size: int) -> None:
        if self.rate is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.rate
            wait = self._free_at - time.monotonic()
        self._closed.wait(max(0.0, wait))
