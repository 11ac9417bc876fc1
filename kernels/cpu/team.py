"""Threads that help with a job and that nobody waits for, unless they hold a piece of it.

A barrier would wait for the slowest to be scheduled, milliseconds where other programs run; here the thread that
asks does all that its helpers do not come to do.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

from .compiled import runners


class Helper(threading.Thread):
    """Sleeps until called; then takes part in the latest job it was called to."""

    def __init__(self) -> None:
        super().__init__(name="tokenfab-kernel", daemon=True)
        self._woken = threading.Lock()
        self._woken.acquire()
        self._work: tuple[int, Any] | None = None
        self.start()

    def call(self, kernel: int, job: Any) -> None:
        """``job``, an array, stays alive at least until the helper has looked at it."""
        self._work = kernel, job
        with suppress(RuntimeError):  # it has been woken and has not looked yet
            self._woken.release()

    def run(self) -> None:
        """The thread: runs until the process ends."""
        assist = runners()[2]
        while True:
            self._woken.acquire()
            if self._work is not None:
                kernel, job = self._work
                assist(kernel, job.ctypes.data)


_HELPERS: dict[int, list[Helper]] = {}
_GUARD = threading.Lock()


def team(size: int) -> list[Helper]:
    """``size`` helpers of this process, which all jobs share. A forked process has helpers of its own."""
    with _GUARD:
        helpers = _HELPERS.setdefault(os.getpid(), [])
        while len(helpers) < size:
            helpers.append(Helper())
        return helpers[:size]
