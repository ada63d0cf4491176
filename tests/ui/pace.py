"""How fast this machine is right now, for tests of how long a window may be busy."""

from __future__ import annotations

import time


def work_of_this_machine() -> float:
    """Return the seconds of this thread for a fixed piece of work, about 70 ms on a quiet machine.

    What a busy machine makes slow, it makes slow here too.
    """
    begin = time.thread_time()
    sum(k * k % 7 for k in range(1_000_000))
    return time.thread_time() - begin
