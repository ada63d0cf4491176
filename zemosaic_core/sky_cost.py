"""Memory that solving the sky takes, and how many channels are solved side by side."""

from __future__ import annotations

__all__ = ["MAX_JOINT_FRAMES", "channels_at_once", "lattice_nodes", "solving_bytes"]

# Frames solved jointly. The equations are dense, and this many already know the sky better than one more frame can
# tell; further frames are fitted to the sky that these found.
MAX_JOINT_FRAMES = 256
# Per frame level, plane and three curvatures; patterns of the detector, shared and of a session.
_UNKNOWNS_PER_FRAME, _UNKNOWNS_OF_ALL = 6, 22
# Matrices of float64 that live at once, measured at 30 to 236 frames: nodes by unknowns, unknowns by unknowns; and
# bytes for each cell of the frames' meshes.
_CROSSED, _SQUARE, _CELL_BYTES = 1.25, 2.75, 220
# Bytes for each frame solved jointly where possible nights are weighed one by one, measured at 256 frames.
_NIGHT_BYTES = 460_000
# Solving side by side must not be what decides the peak of a run.
_SIDE_BY_SIDE_BYTES = 400_000_000


def lattice_nodes(n_frames: int, mosaic_px: float, spacing_px: float, cells_of_frame: int) -> float:
    """Return about how many nodes the sky's lattice has.

    As many as cells cover the mosaic; where frames lie far apart, no more than those solved jointly have together.

    Parameters
    ----------
    n_frames : int
    mosaic_px : float
        Pixels of the mosaic.
    spacing_px : float
        Side of a cell of the frames' meshes in it, px.
    cells_of_frame : int
        Cells of the mesh of a frame.
    """
    return min(mosaic_px / spacing_px**2, min(n_frames, MAX_JOINT_FRAMES) * cells_of_frame)


def solving_bytes(n_frames: int, n_nodes: float, cells_of_frame: int) -> int:
    """Return about how many bytes the solution of one channel takes at its peak.

    Parameters
    ----------
    n_frames : int
    n_nodes : float
        Nodes of the sky's lattice (`lattice_nodes`).
    cells_of_frame : int
        Cells of the mesh of a frame.
    """
    joint = min(n_frames, MAX_JOINT_FRAMES)
    unknowns = _UNKNOWNS_PER_FRAME * joint + _UNKNOWNS_OF_ALL
    equations = 8 * unknowns * (_CROSSED * n_nodes + _SQUARE * unknowns)
    return round(equations + joint * (cells_of_frame * _CELL_BYTES + _NIGHT_BYTES))


def channels_at_once(one_bytes: int, budget_bytes: int, threads: int, n_channels: int) -> int:
    """Return how many channels of ``one_bytes`` each are solved at the same time: at least one."""
    room = min(budget_bytes, _SIDE_BY_SIDE_BYTES) // max(1, one_bytes)
    return max(1, min(room, threads, n_channels))
