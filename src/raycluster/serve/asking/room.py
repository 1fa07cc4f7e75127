"""What all answers under way may hold in memory together; the standard library alone."""

from __future__ import annotations

MOST_TOGETHER = 1024 * 1024 * 1024


class RoomError(Exception):
    """An answer would take more memory than is left to all of them."""


class Room:
    """Bytes that answers hold until they are done; lives in one thread."""

    def __init__(self, most: int = MOST_TOGETHER) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """Hold more. Raises RoomError, and holds it all the same: `give` it back."""
        self._taken += size
        if self._taken > self._most:
            raise RoomError(
                f"the answers under way are larger than {self._most >> 20} MiB together"
            )

    def give(self, size: int) -> None:
        """Hold less."""
        self._taken -= size


SHARED = Room()
"""Of this process."""
