// Sample one source at every pixel of an output box: the CUDA twin of zemosaic_core.resample.
//
// One thread per output pixel, all channels; one thread block per tile. Coordinates come from the lattice nodes in
// whole numbers: the nodes are multiples of 2^-24 px and the steps powers of two, so that nothing is rounded, neither
// here nor in the float64 of the CPU, and cards whose float64 is slow do not need it. The fraction inside a pixel and
// everything after it is float32. LANCZOS selects the 6 x 6 taps.
#include "tiles.cuh"
#include "lattice.cuh"
#include "surface.cuh"
#ifndef LANCZOS
#define LANCZOS 0
#endif
#define UNDERSHOOT_FROM 0.005f
#define UNDERSHOOT_TO 0.01f
#define CONTRAST 4.0f

// A coordinate as float32, rounded once from two on: 23 bits behind the point, and a last one that says whether
// there is more.
__device__ __forceinline__ float position(long long value, int bits)
{
    int high = (int)(value >> (bits - 23)) & 0x7fffff, more = ((int)value & ((1 << (bits - 23)) - 1)) != 0;
    return (float)(int)(value >> bits) + (float)(2 * high + more) * (1.0f / 16777216.0f);
}

// Four taps; dx, dy are zero where the fraction is, so that a tap without weight is never used.
__device__ __forceinline__ float four_taps(const float* p, long long dx, long long dy, float fx, float fy)
{
    float top = p[0] + fx * (p[dx] - p[0]);
    float low = p[dy] + fx * (p[dx + dy] - p[dy]);
    return top + fy * (low - top);
}

__device__ __forceinline__ float at_least(float tap) { return finite_value(tap) ? tap : bound_of(tap); }

// The lower bound that four taps hold, some of which were cut off; NaN when one is missing.
__device__ __forceinline__ float bounded_taps(const float* p, long long dx, long long dy, float fx, float fy)
{
    float first = at_least(p[0]), third = at_least(p[dy]);
    float top = first + fx * (at_least(p[dx]) - first);
    float low = third + fx * (at_least(p[dx + dy]) - third);
    return top + fy * (low - top);
}

#if LANCZOS
__device__ __forceinline__ float taps_36(const float* corner, int stride, const float* wx, const float* wy)
{
    float total[6];
#pragma unroll
    for (int k = 0; k < 6; ++k) total[k] = wy[0] * corner[k];
#pragma unroll
    for (int q = 1; q < 6; ++q) {
        const float* row = corner + (long long)q * stride;
#pragma unroll
        for (int k = 0; k < 6; ++k) total[k] = fmaf(wy[q], row[k], total[k]);
    }
#pragma unroll
    for (int k = 0; k < 6; ++k) total[k] *= wx[k];
    return ((total[0] + total[1]) + (total[2] + total[3])) + (total[4] + total[5]);
}

// Put a sample that lies far below all of its taps back to the lowest of them; see zemosaic_core.resample.UNDERSHOOT.
__device__ __forceinline__ float lifted(const float* corner, int stride, float value)
{
    float lowest = corner[0], highest = lowest;
    // It happens so rarely that it must not cost registers.
#pragma unroll 1
    for (int q = 0; q < 6; ++q)
#pragma unroll 1
        for (int k = 0; k < 6; ++k) {
            float tap = corner[(long long)q * stride + k];
            lowest = min(lowest, tap);
            highest = max(highest, tap);
        }
    float span = highest - lowest, below = lowest - value;
    if (!(span > CONTRAST * fabsf(lowest))) return value;
    float share = (below - UNDERSHOOT_FROM * span) / ((UNDERSHOOT_TO - UNDERSHOOT_FROM) * span);
    return value + min(max(share, 0.0f), 1.0f) * below;
}
#endif

// planes: (n_channels, win_h, win_w), its first pixel is (origin_y, origin_x) of an image of image_h x image_w.
// nodes: (ny, nx) source coordinates from node_offset; node (j, i) stands at output pixel
// (map_y0 + j 2^shift, map_x0 + i 2^shift).
// The block of output rows starts at block_y; this source has samples in the box y0 .. y1, x0 .. x1 and slots in the
// tiles from (tile_y, tile_x) of the block, listed row by row from slot_start.
// Samples go to values, channels plane apart; their weights, if write_weight, to maps.
extern "C" __global__ void sample_source(
    const float* planes, int n_channels, int win_h, int win_w, int origin_y, int origin_x, int image_h, int image_w,
    const long long* node_x, const long long* node_y, long long node_offset, int ny, int nx, int map_y0, int map_x0,
    int shift, int block_y, int y0, int y1, int x0, int x1, const float* table, const float* terms, int term_offset,
    int use_radial, int use_surface, float feather, float feather_start, const float* weight_map, int use_map,
    const long long* bases, const int* counts, const int* slots, long long slot_start, int tile_y, int tile_x,
    int tiles_x, float* values, long long plane, float* maps, int write_weight)
{
    int tile = (tile_y + blockIdx.y) * tiles_x + tile_x + blockIdx.x;
    int slot = slots[slot_start + blockIdx.y * gridDim.x + blockIdx.x];
    long long place = sample_place(bases[tile], counts[tile], slot, threadIdx.y, threadIdx.x);
    int y = block_y + (tile_y + blockIdx.y) * TILE_H + threadIdx.y, x = (tile_x + blockIdx.x) * TILE_W + threadIdx.x;

    SourcePlace from = source_place(node_x, node_y, node_offset, ny, nx, y - map_y0, x - map_x0, shift);
    bool inside = y >= y0 && y < y1 && x >= x0 && x < x1 && from.defined;
    int bits = from.bits;
    long long sx = from.x, sy = from.y;
    int ix = (int)(sx >> bits), iy = (int)(sy >> bits);
    int last_x = origin_x + win_w - 1, last_y = origin_y + win_h - 1;
    float fx = fraction(sx, bits), fy = fraction(sy, bits);
    inside = inside && ix >= origin_x && (ix < last_x || (ix == last_x && fx == 0.0f))
                    && iy >= origin_y && (iy < last_y || (iy == last_y && fy == 0.0f));
    long long dx = fx > 0.0f ? 1 : 0, dy = fy > 0.0f ? win_w : 0;
    long long base = (long long)(iy - origin_y) * win_w + (ix - origin_x);

    if (write_weight) {
        float weight = inside ? 1.0f : 0.0f;
        if (inside && feather > 0.0f) weight = feathered(from, image_h, image_w, feather, feather_start);
        if (inside && use_map) weight *= four_taps(weight_map + base, dx, dy, fx, fy);
        inside = weight > 0.0f && finite_value(weight);
        maps[place] = inside ? weight : 0.0f;
    }
    if (!inside) {
        for (int c = 0; c < n_channels; ++c) values[place + c * plane] = MISSING;
        return;
    }

    // Source position as -1 .. 1 across the image, for the photometric terms.
    float u = image_w > 1 ? position(sx, bits) * (2.0f / (float)(image_w - 1)) - 1.0f : 0.0f;
    float t = image_h > 1 ? position(sy, bits) * (2.0f / (float)(image_h - 1)) - 1.0f : 0.0f;
    float q = 0.0f;
    if (use_radial) {
        // Squared distance from the image centre, 1 in the corners.
        float across = (float)(image_w - 1) * (float)(image_w - 1), down = (float)(image_h - 1) * (float)(image_h - 1);
        float diagonal = fmaxf(across + down, 1.0f);
        q = across / diagonal * (u * u) + down / diagonal * (t * t);
    }
    long long window = (long long)win_h * win_w;
#if LANCZOS
    const float* wx = table + 6 * (int)(fx * 4096.0f + 0.5f);
    const float* wy = table + 6 * (int)(fy * 4096.0f + 0.5f);
    bool taps = ix >= origin_x + 2 && ix < last_x - 2 && iy >= origin_y + 2 && iy < last_y - 2
             && (fx > 0.0f || fy > 0.0f);
#endif
    for (int c = 0; c < n_channels; ++c) {
        const float* here = planes + c * window + base;
#if LANCZOS
        // Any missing tap makes the sum NaN (0 * NaN too); then the four nearest decide.
        float value = taps ? taps_36(here - 2LL * win_w - 2, win_w, wx, wy) : MISSING;
        if (!finite_value(value)) {
            value = four_taps(here, dx, dy, fx, fy);
        } else {
            // What is not well below the four nearest taps is not below all of them.
            float near = min(min(here[0], here[1]), min(here[win_w], here[win_w + 1]));
            if (value < near - CONTRAST * UNDERSHOOT_FROM * fabsf(near))
                value = lifted(here - 2LL * win_w - 2, win_w, value);
        }
#else
        float value = four_taps(here, dx, dy, fx, fy);
#endif
        bool whole = finite_value(value);
        if (!whole) value = bounded_taps(here, dx, dy, fx, fy);
        const float* term = terms + term_offset + N_TERMS * c;
        float sky = term[1];
        if (term[2] != 0.0f || term[3] != 0.0f) sky = term[1] + term[2] * u + term[3] * t;
        float scaled = term[0] * value;
        if (use_radial) {
            scaled *= 1.0f + q * (term[4] + q * term[5]);
            sky = term[1] + term[2] * u + term[3] * t + q * (term[6] + q * term[7]);
        }
        value = finite_value(value) ? scaled + sky : MISSING;
        if (use_surface) value += surface_value(term + 8, u, t);
        values[place + c * plane] = !finite_value(value) ? MISSING : whole ? value : with_bound(value);
    }
}
