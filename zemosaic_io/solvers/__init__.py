"""Plate solvers: one interface, several programs."""
