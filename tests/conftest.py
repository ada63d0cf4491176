"""What all tests need of the process they run in."""

from __future__ import annotations

import signal

if hasattr(signal, "SIGHUP"):
    # Under nohup this signal is ignored by all descendants, and several tests send it to them.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
