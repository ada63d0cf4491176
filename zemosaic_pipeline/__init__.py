"""The run, in reading order."""
