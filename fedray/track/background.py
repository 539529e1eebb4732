"""A thread for work that may wait and may fail: the newest item per key, one after the other, failures kept.

Items name what is to be brought up to date, not what is to be added, so that doing one twice, or only its last, is
enough. It rests twenty times as long as it worked, so that it takes a twentieth of the caller's time at most, whatever
one item costs; a run that is over before its first turn is done in one go at the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Generic, TypeVar

from fedray.track import files

T = TypeVar("T")
FIRST_S, MOST_S, REST = 3.0, 30.0, 20.0
"""Seconds before the first item, and at most before the next; rest over work."""

log = logging.getLogger("fedray")


class Background(Generic[T]):
    """Opens its resource in the thread with the first item and closes it after the last."""

    def __init__(self, open_: Callable[[], AbstractContextManager[Callable[[T], None]]], *, name: str) -> None:
        """`open_` gives the function that does one item; what that raises is kept and tried again at the end."""
        self._open, self._name = open_, name
        self._queue: SimpleQueue[tuple[str, T] | None] = SimpleQueue()
        self._waiting: dict[str, T] = {}
        self._reasons: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def put(self, key: str, item: T) -> None:
        """Returns at once; an older item of this key that is still waiting is dropped."""
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._queue.put((key, item))

    def close(self, timeout: float) -> dict[str, str]:
        """Waits at most `timeout` seconds for the rest; key -> reason of all that was not done."""
        if self._thread is None:
            return {}
        self._queue.put(None)
        self._closing.set()
        self._thread.join(timeout)
        slow = dict.fromkeys(list(self._waiting), f"no answer in {timeout:g} s") if self._thread.is_alive() else {}
        self._thread = None
        return slow | self._reasons

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                do: Callable[[T], None] | None = None
                last, rest = False, FIRST_S
                while not last:
                    self._closing.wait(rest)
                    last, start = self._take(), perf_counter()
                    for key, item in list(self._waiting.items()):
                        if key in self._reasons and not last:
                            continue  # it failed before: once more when a new item comes, or at the end
                        try:
                            do = do or stack.enter_context(self._open())
                            do(item)
                            del self._waiting[key]
                            self._reasons.pop(key, None)
                        except Exception as error:  # whatever can go wrong out there must not touch the caller
                            self._reasons[key] = files.one_line(error)
                            log.debug("%s: %s", self._name, key, exc_info=True)
                    rest = min(MOST_S, REST * (perf_counter() - start))
        except Exception as error:
            self._reasons[self._name] = files.one_line(error)

    def _take(self) -> bool:
        """Waits for one item and takes all that have come meanwhile; True when the last is among them."""
        last = False
        for item in self._arrived():
            if item is None:
                last = True
            else:
                self._waiting[item[0]] = item[1]
                self._reasons.pop(item[0], None)
        return last

    def _arrived(self) -> Iterator[tuple[str, T] | None]:
        yield self._queue.get()
        with suppress(Empty):
            while True:
                yield self._queue.get_nowait()
