"""Everything that touches a disk or another program.

Reading: `folders` lists frames, `headers` tells what one is without its pixels, `fits_read` reads windows,
`frame_store` decodes them for the co-add. Writing: `fits_write` (science files by rows), `preview` (pictures),
`manifest` (what was already done). `solvers` asks plate solvers, `star_catalogue` reads the built-in stars,
`demo_session` writes a night that never was.

Two rules hold everywhere: inputs are never modified, moved or written beside; outputs get a temporary name and
are renamed when they are complete.
"""
