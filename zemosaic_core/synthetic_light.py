"""Light of stars, sky and trails painted onto the pixels of a made-up frame, in place; compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["add_lattice", "add_line", "add_sky", "add_stars", "add_texture", "multiply_lattice"]


@njit(cache=True, nogil=True)
def add_texture(light, texture, node_x, node_y, step, channels, factor):
    """Add a texture (C, ny, nx) whose columns and rows at every ``step``-th pixel of the frame are in the nodes."""
    height, width = light.shape
    _, ny, nx = texture.shape
    for y in range(height):
        j = y // step
        fy = (y - j * step) / step
        for x in range(width):
            i = x // step
            fx = (x - i * step) / step
            w00 = (1.0 - fy) * (1.0 - fx)
            w01 = (1.0 - fy) * fx
            w10 = fy * (1.0 - fx)
            w11 = fy * fx
            tx = (
                w00 * node_x[j, i]
                + w01 * node_x[j, i + 1]
                + w10 * node_x[j + 1, i]
                + w11 * node_x[j + 1, i + 1]
            )
            ty = (
                w00 * node_y[j, i]
                + w01 * node_y[j, i + 1]
                + w10 * node_y[j + 1, i]
                + w11 * node_y[j + 1, i + 1]
            )
            # Written so that NaN (behind the tangent plane) fails the test too.
            if not (tx >= 0.0 and ty >= 0.0 and tx < nx - 1 and ty < ny - 1):
                continue
            ix = int(tx)
            iy = int(ty)
            gx = tx - ix
            gy = ty - iy
            c = channels[y & 1, x & 1]
            value = (1.0 - gy) * ((1.0 - gx) * texture[c, iy, ix] + gx * texture[c, iy, ix + 1])
            value += gy * ((1.0 - gx) * texture[c, iy + 1, ix] + gx * texture[c, iy + 1, ix + 1])
            light[y, x] += factor[c] * value


@njit(cache=True, nogil=True)
def _profile(r2, core, halo, inv_core2, inv_halo2):
    a = 1.0 + r2 * inv_core2
    b = 1.0 + r2 * inv_halo2
    return core / (a * a * a) + halo / (b * b)


@njit(cache=True, nogil=True)
def add_stars(light, xs, ys, flux, channels, alpha, halo_fraction):
    """Add stars at ``xs, ys`` with their flux (N, C): a core of width ``alpha`` (px) and a wide, faint halo."""
    height, width = light.shape
    halo_alpha = 5.0 * alpha
    core = (1.0 - halo_fraction) * 2.0 / (np.pi * alpha * alpha)
    halo = halo_fraction / (np.pi * halo_alpha * halo_alpha)
    inv_core2 = 1.0 / (alpha * alpha)
    inv_halo2 = 1.0 / (halo_alpha * halo_alpha)
    for k in range(xs.size):
        strongest = max(flux[k, 0], flux[k, 1], flux[k, 2])
        radius = 8
        # The stamp ends where the star is fainter than a third of an ADU, a hundredth of the noise.
        while (
            radius < 160
            and strongest * _profile(float(radius * radius), core, halo, inv_core2, inv_halo2) > 0.3
        ):
            radius += 4
        cx = int(np.floor(xs[k] + 0.5))
        cy = int(np.floor(ys[k] + 0.5))
        for y in range(max(0, cy - radius), min(height, cy + radius + 1)):
            dy = y - ys[k]
            for x in range(max(0, cx - radius), min(width, cx + radius + 1)):
                dx = x - xs[k]
                r2 = dx * dx + dy * dy
                if r2 > radius * radius:
                    continue
                if r2 < 36.0:
                    # A pixel integrates; 4 x 4 samples keep the flux of sharp cores right to 0.1 %.
                    value = 0.0
                    for v in range(4):
                        ey = dy + (v - 1.5) * 0.25
                        for u in range(4):
                            ex = dx + (u - 1.5) * 0.25
                            value += _profile(ex * ex + ey * ey, core, halo, inv_core2, inv_halo2)
                    value *= 0.0625
                else:
                    value = _profile(r2, core, halo, inv_core2, inv_halo2)
                light[y, x] += flux[k, channels[y & 1, x & 1]] * value


@njit(cache=True, nogil=True)
def add_sky(light, glow, level, shape, channels):
    """Add a sky: a level per channel, times a surface of second order, times the ``glow`` (h, w)."""
    height, width = light.shape
    for y in range(height):
        t = 2.0 * y / (height - 1) - 1.0
        for x in range(width):
            u = 2.0 * x / (width - 1) - 1.0
            rise = shape[0] * u + shape[1] * t + shape[2] * u * u + shape[3] * u * t + shape[4] * t * t
            light[y, x] += level[channels[y & 1, x & 1]] * (1.0 + rise) * glow[y, x]


@njit(cache=True, nogil=True)
def _between_nodes(nodes, c, x, y, step):
    j = y // step
    i = x // step
    fy = (y - j * step) / step
    fx = (x - i * step) / step
    value = (1.0 - fy) * ((1.0 - fx) * nodes[c, j, i] + fx * nodes[c, j, i + 1])
    return value + fy * ((1.0 - fx) * nodes[c, j + 1, i] + fx * nodes[c, j + 1, i + 1])


@njit(cache=True, nogil=True)
def add_lattice(light, glow, nodes, step, channels):
    """Add the ``glow`` (h, w) times values (C, ny, nx) known at every ``step``-th pixel."""
    height, width = light.shape
    for y in range(height):
        for x in range(width):
            light[y, x] += _between_nodes(nodes, channels[y & 1, x & 1], x, y, step) * glow[y, x]


@njit(cache=True, nogil=True)
def multiply_lattice(light, nodes, step, channels):
    """Multiply by values (C, ny, nx) known at every ``step``-th pixel."""
    height, width = light.shape
    for y in range(height):
        for x in range(width):
            light[y, x] *= _between_nodes(nodes, channels[y & 1, x & 1], x, y, step)


@njit(cache=True, nogil=True)
def add_line(light, x0, y0, x1, y1, sigma, peak):
    """Add a straight line of Gaussian profile from one point to another; sigma in px."""
    height, width = light.shape
    length = np.hypot(x1 - x0, y1 - y0)
    ux = (x1 - x0) / length
    uy = (y1 - y0) / length
    for y in range(height):
        for x in range(width):
            across = (x - x0) * uy - (y - y0) * ux
            if abs(across) > 5.0 * sigma:
                continue
            along = (x - x0) * ux + (y - y0) * uy
            if along < 0.0 or along > length:
                continue
            light[y, x] += peak * np.exp(-0.5 * (across / sigma) ** 2)
