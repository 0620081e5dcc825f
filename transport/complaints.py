"""What was refused, and from whom: logged, but never so often that a sender can fill the log."""

import logging
import time

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
MAX_COMPLAINERS = 256


class Complaints:
    """The senders that were complained of lately."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}

    def add(self, who: str, text: str) -> None:
        """Log a refusal, at most once a second per sender and for so many senders at once."""
        now = time.monotonic()
        if len(self._logged_at) >= MAX_COMPLAINERS:
            self._logged_at = {
                w: at for w, at in self._logged_at.items() if now - at < INTERVAL_SECONDS
            }
        known = who in self._logged_at
        if not known and len(self._logged_at) >= MAX_COMPLAINERS:
            return
        if not known or now - self._logged_at[who] >= INTERVAL_SECONDS:
            self._logged_at[who] = now
            log.warning("event=refused from=%r reason=%r", who, text)
