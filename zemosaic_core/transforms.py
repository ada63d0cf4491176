"""Plane-to-plane maps fitted on matched stars: similarity, affine, quadratic, cubic. Arrays only.

A map is a polynomial in normalised source coordinates, so that coefficients are of comparable size and the
fits are well conditioned whatever the pixel range. Fits clip outliers; the choice of the order is made by
leave-one-out prediction errors, not by how small the residuals of the fit itself become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import SkipItem
from .polynomial_fits import clipped_fit, least_squares, nested_errors

__all__ = [
    "KINDS",
    "FitResult",
    "Kind",
    "Transform",
    "choose_transform",
    "compose",
    "fit_callable",
    "fit_transform",
    "lattice_points",
    "min_points",
]

Kind = Literal["similarity", "affine", "poly2", "poly3"]
KINDS: tuple[Kind, ...] = ("similarity", "affine", "poly2", "poly3")
_ORDER = {"similarity": 1, "affine": 1, "poly2": 2, "poly3": 3}
# Unknowns per axis; a similarity shares its four between both axes.
_N_COEFF = {"similarity": 2, "affine": 3, "poly2": 6, "poly3": 10}
# A richer kind must have this many stars per coefficient of one axis before it is even tried.
_STARS_PER_COEFF = 3
# A richer kind must lower the mean squared leave-one-out error by this fraction ...
_MIN_GAIN = 0.10
# ... and by this many standard errors of the mean of the per-star differences.
_MIN_SIGNIFICANCE = 2.0
# Median of the squared radius of a 2-D Gaussian is 2 ln 2 sigma^2 (sigma per axis).
_MEDIAN_R2 = 2.0 * np.log(2.0)


@dataclass(frozen=True, slots=True)
class Transform:
    """A polynomial map of the plane.

    With ``u = (x - cx) / scale`` and ``v = (y - cy) / scale``::

        X = sum_k coeff_x[k] * term_k(u, v),    Y = sum_k coeff_y[k] * term_k(u, v)

    and terms in the order ``1, u, v, u^2, uv, v^2, u^3, u^2 v, u v^2, v^3``.

    Attributes
    ----------
    kind : {'similarity', 'affine', 'poly2', 'poly3'}
        A similarity (with or without mirror) is stored as an affine map.
    center : tuple of float
        ``(cx, cy)`` in source units.
    scale : float
        Source length that becomes 1.
    coeff_x, coeff_y : ndarray, shape (3 | 6 | 10,), float64
        In units of the target.
    """

    kind: Kind
    center: tuple[float, float]
    scale: float
    coeff_x: np.ndarray
    coeff_y: np.ndarray

    def apply(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Map positions; arrays of any (broadcastable) shape, float64 results; NaN stays NaN."""
        u = (np.asarray(x, dtype=np.float64) - self.center[0]) / self.scale
        v = (np.asarray(y, dtype=np.float64) - self.center[1]) / self.scale
        return _evaluate(self.coeff_x, u, v), _evaluate(self.coeff_y, u, v)

    __call__ = apply

    def matrix(self) -> np.ndarray:
        """First-order part as a (2, 3) matrix acting on ``(x, y, 1)``; exact for similarity and affine."""
        out = np.empty((2, 3))
        for row, c in enumerate((self.coeff_x, self.coeff_y)):
            a, b = c[1] / self.scale, c[2] / self.scale
            out[row] = a, b, c[0] - a * self.center[0] - b * self.center[1]
        return out

    def invert(self, x0: float, y0: float, x1: float, y1: float, kind: Kind | None = None) -> Transform:
        """Inverse map, valid for the image of the source box ``[x0, x1] x [y0, y1]``.

        Exact for similarity and affine; otherwise a polynomial of `kind` (default: the same order) fitted on
        a lattice over the box.
        """
        if _ORDER[self.kind] == 1 and kind is None:
            m = self.matrix()
            inv = np.linalg.inv(m[:, :2])
            return _from_matrix(np.column_stack([inv, -inv @ m[:, 2]]), self.kind)
        xs, ys = lattice_points((x0, y0, x1, y1))
        px, py = self.apply(xs, ys)
        return _fit_polynomial(np.column_stack([px, py]), np.column_stack([xs, ys]), kind or self.kind)

    def onto_finer_grid(self, factor: float) -> Transform:
        """Return the map whose target has `factor` pixels for each of this one's; the edge of the first stays."""
        shift = (factor - 1) / 2
        coeff_x, coeff_y = factor * self.coeff_x, factor * self.coeff_y
        coeff_x[0] += shift
        coeff_y[0] += shift
        return Transform(self.kind, self.center, self.scale, coeff_x, coeff_y)

    def from_finer_grid(self, factor: float) -> Transform:
        """Return the map whose source has `factor` pixels for each of this one's; the edge of the first stays."""
        shift = (factor - 1) / 2
        center = (factor * self.center[0] + shift, factor * self.center[1] + shift)
        return Transform(self.kind, center, factor * self.scale, self.coeff_x, self.coeff_y)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; `from_dict` gives back exactly the same numbers."""
        return {
            "kind": self.kind,
            "center": [float(c) for c in self.center],
            "scale": float(self.scale),
            "coeff_x": [float(c) for c in self.coeff_x],
            "coeff_y": [float(c) for c in self.coeff_y],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Transform:
        """Rebuild a transform from `to_dict`."""
        return cls(
            kind=data["kind"],
            center=(float(data["center"][0]), float(data["center"][1])),
            scale=float(data["scale"]),
            coeff_x=np.asarray(data["coeff_x"], dtype=np.float64),
            coeff_y=np.asarray(data["coeff_y"], dtype=np.float64),
        )

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, kind: Kind = "affine") -> Transform:
        """Make a transform from a (2, 3) matrix acting on ``(x, y, 1)``."""
        return _from_matrix(np.asarray(matrix, dtype=np.float64), kind)

    @classmethod
    def identity(cls) -> Transform:
        """Return the map that changes nothing."""
        return _from_matrix(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), "similarity")


@dataclass(frozen=True)
class FitResult:
    """A fitted transform and how well it fits.

    Attributes
    ----------
    transform : Transform
    kind : str
        Kind of `transform`.
    rms_px : float
        Root mean square of the 2-D residual distance of the kept pairs, target units.
    n_used : int
        Kept pairs.
    keep : ndarray of bool, shape (n,)
        Which input pairs were kept; NaN pairs never are.
    cv_rms_px : float
        Root mean square leave-one-out prediction error of the kept pairs, target units.
    """

    transform: Transform
    kind: Kind
    rms_px: float
    n_used: int
    keep: np.ndarray
    cv_rms_px: float


def min_points(kind: Kind) -> int:
    """Fewest pairs `choose_transform` asks for before it tries `kind`."""
    return _STARS_PER_COEFF * _N_COEFF[kind] if kind != "similarity" else 3


def fit_transform(
    src_xy: np.ndarray,
    dst_xy: np.ndarray,
    kind: Kind,
    *,
    clip_sigma: float = 3.0,
    max_iterations: int = 10,
) -> FitResult:
    """Fit a map from `src_xy` to `dst_xy`, clipping outliers.

    Pairs farther from the fit than ``clip_sigma`` times the robust scatter (from the median squared
    residual) are left out and may come back, until nothing changes. ``clip_sigma=inf`` keeps all.

    Parameters
    ----------
    src_xy, dst_xy : ndarray, shape (n, 2)
        Pairs; rows with NaN are ignored.
    kind : {'similarity', 'affine', 'poly2', 'poly3'}

    Raises
    ------
    SkipItem
        Fewer finite pairs than the map has unknowns.
    """
    src, dst, finite = _check_pairs(src_xy, dst_xy, kind)
    result = _fit_clipped(src[finite], dst[finite], kind, clip_sigma, max_iterations)
    return _spread(result, finite)


def choose_transform(
    src_xy: np.ndarray,
    dst_xy: np.ndarray,
    *,
    max_kind: Kind = "poly3",
    clip_sigma: float = 3.0,
) -> FitResult:
    """Fit the simplest map that the pairs justify.

    Kinds are tried in order of complexity, only with 3 or more stars per coefficient of an axis
    (`min_points`). On the pairs kept by the richest kind tried, each kind's squared leave-one-out prediction
    errors ``|r_i / (1 - h_i)|^2`` are compared (``h`` the leverage). A richer kind replaces the best so far
    when the mean drops by at least 10 % and by more than two standard errors of the per-star differences.

    Parameters
    ----------
    src_xy, dst_xy : ndarray, shape (n, 2)
        Pairs; rows with NaN are ignored.
    max_kind : str
        Richest kind allowed.

    Raises
    ------
    SkipItem
        Fewer than 2 finite pairs.
    """
    src, dst, finite = _check_pairs(src_xy, dst_xy, "similarity")
    s, d = src[finite], dst[finite]
    allowed = KINDS[: KINDS.index(max_kind) + 1]
    tried = [k for k in allowed if len(s) >= min_points(k)] or ["similarity"]
    _, keep = _clip(s, d, tried[-1], clip_sigma, 10)
    tried = [k for k in tried if keep.sum() >= min_points(k)] or ["similarity"]
    best, *richer = tried
    best_error = _loo_squared_errors(s[keep], d[keep], best)
    for kind, error in zip(richer, _errors_of_orders(s[keep], d[keep], richer), strict=True):
        gain = best_error - error
        standard_error = gain.std(ddof=1) / np.sqrt(len(gain))
        if gain.mean() > max(_MIN_GAIN * best_error.mean(), _MIN_SIGNIFICANCE * standard_error):
            best, best_error = kind, error
    return _spread(_fit_clipped(s, d, best, clip_sigma, 10), finite)


def fit_callable(
    function: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    box: tuple[float, float, float, float],
    kind: Kind = "poly3",
    *,
    inverse: bool = False,
) -> tuple[Transform, float]:
    """Approximate any smooth map (for instance a WCS chain) by a polynomial over a box.

    Parameters
    ----------
    function : callable
        ``(x, y) -> (X, Y)`` on float64 arrays.
    box : tuple of float
        ``(x0, y0, x1, y1)`` in source units.
    inverse : bool
        Return the map from the target back to the source instead.

    Returns
    -------
    (Transform, float)
        The map and its largest error on the lattice, target units of the returned map.

    Raises
    ------
    SkipItem
        The map is not finite on the whole box.
    """
    xs, ys = lattice_points(box)
    px, py = function(xs, ys)
    src, dst = np.column_stack([xs, ys]), np.column_stack([px, py]).astype(np.float64)
    if not np.isfinite(dst).all():
        raise SkipItem(
            "transform_not_finite",
            f"the initial map is not finite on the box {tuple(box)}; check the frame's WCS",
            box=[float(b) for b in box],
        )
    if inverse:
        src, dst = dst, src
    fitted = _fit_polynomial(src, dst, kind)
    residual = np.column_stack(fitted.apply(src[:, 0], src[:, 1])) - dst
    return fitted, float(np.hypot(residual[:, 0], residual[:, 1]).max())


def compose(first: Transform, second: Transform, box: tuple[float, float, float, float]) -> Transform:
    """Return the map "`first`, then `second`" for sources in `box`.

    Exact when `second` is of first order (the polynomial keeps the order of `first`); otherwise a cubic
    fitted on a lattice over `box`.
    """
    if _ORDER[second.kind] == 1:
        m = second.matrix()
        cx = m[0, 0] * first.coeff_x + m[0, 1] * first.coeff_y
        cy = m[1, 0] * first.coeff_x + m[1, 1] * first.coeff_y
        cx[0] += m[0, 2]
        cy[0] += m[1, 2]
        same = first.kind == "similarity" and second.kind != "similarity"
        return Transform(second.kind if same else first.kind, first.center, first.scale, cx, cy)
    xs, ys = lattice_points(box)
    px, py = second.apply(*first.apply(xs, ys))
    return _fit_polynomial(np.column_stack([xs, ys]), np.column_stack([px, py]), "poly3")


def _terms(u: np.ndarray, v: np.ndarray, order: int) -> np.ndarray:
    columns = [np.ones_like(u), u, v]
    if order >= 2:
        columns += [u * u, u * v, v * v]
    if order >= 3:
        columns += [u * u * u, u * u * v, u * v * v, v * v * v]
    return np.stack(columns, axis=-1)


def _evaluate(c: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    out = c[0] + c[1] * u + c[2] * v
    if len(c) > 3:
        out = out + c[3] * u * u + c[4] * u * v + c[5] * v * v
    if len(c) > 6:
        out = out + u * u * (c[6] * u + c[7] * v) + v * v * (c[8] * u + c[9] * v)
    return out


def lattice_points(box: tuple[float, float, float, float], n: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y, (n * n,) each, of a lattice over ``(x0, y0, x1, y1)`` to fit smooth maps on."""
    # Chebyshev-Lobatto nodes keep the largest error of the fit near the smallest possible one at the borders.
    t = 0.5 - 0.5 * np.cos(np.pi * np.arange(n) / (n - 1))
    x0, y0, x1, y1 = box
    xx, yy = np.meshgrid(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)
    return xx.ravel(), yy.ravel()


def _normalisation(src: np.ndarray) -> tuple[tuple[float, float], float]:
    low, high = src.min(axis=0), src.max(axis=0)
    half = float(np.max(high - low)) / 2.0
    center = (low + high) / 2.0
    return (float(center[0]), float(center[1])), half if half > 0 else 1.0


def _from_matrix(m: np.ndarray, kind: Kind) -> Transform:
    return Transform(
        kind, (0.0, 0.0), 1.0, np.array([m[0, 2], m[0, 0], m[0, 1]]), np.array([m[1, 2], *m[1, :2]])
    )


def _fit_polynomial(src: np.ndarray, dst: np.ndarray, kind: Kind) -> Transform:
    """Plain least squares; `kind` 'similarity' picks the better of both parities."""
    center, scale = _normalisation(src)
    u, v = (src[:, 0] - center[0]) / scale, (src[:, 1] - center[1]) / scale
    if kind == "similarity":
        return _fit_similarity(u, v, dst, center, scale)[0]
    known, *_, found = least_squares(src, dst, np.ones(len(src), bool), _N_COEFF[kind])
    if known:
        return Transform(kind, center, scale, found[0], found[1])
    coeff = np.linalg.lstsq(_terms(u, v, _ORDER[kind]), dst, rcond=None)[0]
    return Transform(kind, center, scale, coeff[:, 0].copy(), coeff[:, 1].copy())


def _fit_similarity(
    u: np.ndarray, v: np.ndarray, dst: np.ndarray, center: tuple[float, float], scale: float
) -> tuple[Transform, bool]:
    """Complex line ``Z = a z + b`` for both parities (``z`` or its conjugate)."""
    target = dst[:, 0] + 1j * dst[:, 1]
    best: tuple[float, complex, complex, bool] | None = None
    for mirror in (False, True):
        z = u - 1j * v if mirror else u + 1j * v
        z0, t0 = z.mean(), target.mean()
        power = float(np.sum(np.abs(z - z0) ** 2))
        a = np.sum(np.conj(z - z0) * (target - t0)) / power if power > 0 else 1.0 + 0j
        b = t0 - a * z0
        cost = float(np.sum(np.abs(target - a * z - b) ** 2))
        # Two stars fit both parities: the unmirrored one wins the tie.
        if best is None or cost < best[0] * (1 - 1e-9) - 1e-12:
            best = (cost, complex(a), complex(b), mirror)
    _, a, b, mirror = best
    sign = -1.0 if mirror else 1.0
    coeff_x = np.array([b.real, a.real, -sign * a.imag])
    coeff_y = np.array([b.imag, a.imag, sign * a.real])
    return Transform("similarity", center, scale, coeff_x, coeff_y), mirror


def _check_pairs(
    src_xy: np.ndarray, dst_xy: np.ndarray, kind: Kind
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    src = np.asarray(src_xy, dtype=np.float64).reshape(-1, 2)
    dst = np.asarray(dst_xy, dtype=np.float64).reshape(-1, 2)
    if src.shape != dst.shape:
        raise ValueError(f"src_xy and dst_xy must have the same length, got {len(src)} and {len(dst)}")
    finite = np.isfinite(src).all(axis=1) & np.isfinite(dst).all(axis=1)
    needed = _N_COEFF[kind]
    if finite.sum() < needed:
        raise SkipItem(
            "transform_too_few_stars",
            f"{int(finite.sum())} matched stars, a {kind} map needs at least {needed}",
            n=int(finite.sum()),
            needed=needed,
            kind=kind,
        )
    return src, dst, finite


def _fit_clipped(
    src: np.ndarray, dst: np.ndarray, kind: Kind, clip_sigma: float, max_iterations: int
) -> FitResult:
    transform, keep = _clip(src, dst, kind, clip_sigma, max_iterations)
    r2 = _squared_residuals(transform, src[keep], dst[keep])
    loo = _loo_squared_errors(src[keep], dst[keep], kind)
    return FitResult(
        transform, kind, float(np.sqrt(r2.mean())), int(keep.sum()), keep, float(np.sqrt(loo.mean()))
    )


def _clip(
    src: np.ndarray, dst: np.ndarray, kind: Kind, clip_sigma: float, max_iterations: int
) -> tuple[Transform, np.ndarray]:
    needed = _N_COEFF[kind]
    if kind != "similarity":
        known, x, y, scale, found, keep = clipped_fit(
            src, dst, needed, float(clip_sigma), max_iterations, _MEDIAN_R2, needed
        )
        if known:
            return Transform(kind, (x, y), scale, found[0], found[1]), keep
    keep = np.ones(len(src), dtype=bool)
    # A fit through as many points as unknowns has no residuals, so the median is corrected for them.
    freedom = max(1.0 - needed / len(src), 0.1)
    transform = _fit_polynomial(src, dst, kind)
    for _ in range(max_iterations):
        r2 = _squared_residuals(transform, src, dst)
        # The median over all pairs, not the kept ones: a shrinking set would otherwise clip itself away.
        sigma2 = np.median(r2) / _MEDIAN_R2 / freedom
        # The second term lets rounding errors of noiseless pairs pass.
        new_keep = r2 <= clip_sigma**2 * sigma2 + (1e-12 * transform.scale) ** 2
        if new_keep.sum() < needed or np.array_equal(new_keep, keep):
            break
        keep = new_keep
        transform = _fit_polynomial(src[keep], dst[keep], kind)
    return transform, keep


def _squared_residuals(transform: Transform, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    x, y = transform.apply(src[:, 0], src[:, 1])
    return (x - dst[:, 0]) ** 2 + (y - dst[:, 1]) ** 2


def _errors_of_orders(src: np.ndarray, dst: np.ndarray, kinds: Sequence[Kind]) -> Sequence[np.ndarray]:
    """Return `_loo_squared_errors` of kinds of ascending order, from the first on."""
    if kinds:
        known, errors = nested_errors(src, dst, _N_COEFF[kinds[-1]])
        if known:
            return list(errors)
    return [_loo_squared_errors(src, dst, kind) for kind in kinds]


def _loo_squared_errors(src: np.ndarray, dst: np.ndarray, kind: Kind) -> np.ndarray:
    """Squared prediction error of each pair by the fit without it (PRESS), from one fit and its leverages."""
    center, scale = _normalisation(src)
    u, v = (src[:, 0] - center[0]) / scale, (src[:, 1] - center[1]) / scale
    if kind == "similarity":
        transform, mirror = _fit_similarity(u, v, dst, center, scale)
        z = u - 1j * v if mirror else u + 1j * v
        design = np.column_stack([np.ones_like(z), z])
        residual2 = _squared_residuals(transform, src, dst)
    else:
        design = _terms(u, v, _ORDER[kind])
    q = np.linalg.qr(design)[0]
    if kind != "similarity":
        residual = dst - q @ (q.T @ dst)
        residual2 = np.sum(residual**2, axis=1)
    leverage = np.sum(np.abs(q) ** 2, axis=1)
    # A pair that alone determines a coefficient (leverage 1) predicts nothing: its error is unbounded.
    return residual2 / np.maximum(1.0 - leverage, 1e-6) ** 2


def _spread(result: FitResult, finite: np.ndarray) -> FitResult:
    keep = np.zeros(len(finite), dtype=bool)
    keep[finite] = result.keep
    return FitResult(result.transform, result.kind, result.rms_px, result.n_used, keep, result.cv_rms_px)
