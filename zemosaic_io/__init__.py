"""Everything that touches a disk or another program."""
