"""Plate solvers: one question, one answer, several programs.

`base` says what is asked (`SolveRequest`) and answered (`SolveOutcome`); `chain` decides who is asked and when
an attempt is repeated. `astap`, `astrometry_net` (``solve-field``), `nova` (the web API, also of an ANSVR server)
and `embedded` (built in, no other program) answer. `images` makes the pictures and star tables they get and
brings their WCS back to full-frame pixels; `locate` finds programs and their data, `locks` counts how many run,
`process` runs them and ends them with everything they started.

Solvers never touch the frame itself: they get a copy of what they need in a folder of their own.
"""
