// Sample one source at every pixel of an output box: the CUDA twin of zemosaic_core.resample.
//
// One thread per output pixel, all channels. Coordinates in float64 from the lattice nodes, the fraction inside
// a pixel and everything after it in float32. LANCZOS selects the 6 x 6 taps.
#ifndef LANCZOS
#define LANCZOS 0
#endif
#define MISSING __int_as_float(0x7fc00000)

__device__ __forceinline__ bool finite_value(float v) { return v - v == 0.0f; }

// Four taps; dx, dy are zero where the fraction is, so that a tap without weight is never used.
__device__ __forceinline__ float four_taps(const float* p, long long dx, long long dy, float fx, float fy)
{
    float top = p[0] + fx * (p[dx] - p[0]);
    float low = p[dy] + fx * (p[dx + dy] - p[dy]);
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
#endif

// planes: (n_channels, win_h, win_w), its first pixel is (origin_y, origin_x) of an image of image_h x image_w.
// nodes: (ny, nx) source coordinates from node_offset; node (j, i) stands at output pixel (map_y0 + j step, map_x0 + i step).
// box: output pixels from (y0, x0), n_rows x n_cols.
// out: channel c of pixel (row, col) goes to out[out_offset + c * out_plane + row * out_width + col];
// its weight, if write_weight, to out_weight[weight_offset + row * out_width + col].
extern "C" __global__ void sample_source(
    const float* planes, int n_channels, int win_h, int win_w, int origin_y, int origin_x, int image_h, int image_w,
    const double* node_x, const double* node_y, long long node_offset, int ny, int nx, int map_y0, int map_x0, int step,
    int y0, int x0, int n_rows, int n_cols, const float* table, const float* terms, int term_offset,
    float feather, const float* weight_map, int use_map,
    float* out, long long out_offset, long long out_plane, int out_width,
    float* out_weight, long long weight_offset, int write_weight)
{
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (col >= n_cols || row >= n_rows) return;

    // Where the lattice says this pixel comes from; outside the lattice its outermost cell goes on.
    double inverse = 1.0 / (double)step;
    int rel_y = y0 + row - map_y0, rel_x = x0 + col - map_x0;
    int j = min(max(rel_y >= 0 ? rel_y / step : -1, 0), ny - 2);
    int i = min(max(rel_x >= 0 ? rel_x / step : -1, 0), nx - 2);
    double cell_y = (double)(rel_y - j * step) * inverse, cell_x = (double)(rel_x - i * step) * inverse;
    long long node = node_offset + (long long)j * nx + i;
    double left_x = node_x[node] + cell_y * (node_x[node + nx] - node_x[node]);
    double left_y = node_y[node] + cell_y * (node_y[node + nx] - node_y[node]);
    double span_x = node_x[node + 1] + cell_y * (node_x[node + nx + 1] - node_x[node + 1]) - left_x;
    double span_y = node_y[node + 1] + cell_y * (node_y[node + nx + 1] - node_y[node + 1]) - left_y;
    double sx = left_x + cell_x * span_x, sy = left_y + cell_x * span_y;

    long long place = (long long)row * out_width + col;
    bool inside = sx >= (double)origin_x && sx <= (double)(origin_x + win_w - 1)
               && sy >= (double)origin_y && sy <= (double)(origin_y + win_h - 1);
    if (!inside) {
        for (int c = 0; c < n_channels; ++c) out[out_offset + c * out_plane + place] = MISSING;
        if (write_weight) out_weight[weight_offset + place] = 0.0f;
        return;
    }
    int ix = (int)sx, iy = (int)sy;
    float fx = (float)(sx - (double)ix), fy = (float)(sy - (double)iy);
    long long dx = fx > 0.0f ? 1 : 0, dy = fy > 0.0f ? win_w : 0;
    long long base = (long long)(iy - origin_y) * win_w + (ix - origin_x);

    if (write_weight) {
        float weight = 1.0f;
        if (feather > 0.0f) {
            double right = (double)(image_w - 1) - sx, bottom = (double)(image_h - 1) - sy;
            double ex = sx < right ? sx : right, ey = sy < bottom ? sy : bottom;
            float ramp = ((float)(ex < ey ? ex : ey) + 1.0f) / feather;
            ramp = ramp > 1.0f ? 1.0f : ramp;
            weight = ramp * ramp * (3.0f - 2.0f * ramp);
        }
        if (use_map) weight *= four_taps(weight_map + base, dx, dy, fx, fy);
        bool good = weight > 0.0f && finite_value(weight);
        out_weight[weight_offset + place] = good ? weight : 0.0f;
        if (!good) {
            for (int c = 0; c < n_channels; ++c) out[out_offset + c * out_plane + place] = MISSING;
            return;
        }
    }

    // Source position as -1 .. 1 across the image, for the sky plane of the photometric terms.
    float u = image_w > 1 ? (float)sx * (float)(2.0 / (double)(image_w - 1)) - 1.0f : 0.0f;
    float t = image_h > 1 ? (float)sy * (float)(2.0 / (double)(image_h - 1)) - 1.0f : 0.0f;
    long long plane = (long long)win_h * win_w;
#if LANCZOS
    const float* wx = table + 6 * (int)(fx * 4096.0f + 0.5f);
    const float* wy = table + 6 * (int)(fy * 4096.0f + 0.5f);
    bool taps = sx >= (double)(origin_x + 2) && sx < (double)(origin_x + win_w - 3)
             && sy >= (double)(origin_y + 2) && sy < (double)(origin_y + win_h - 3) && (fx > 0.0f || fy > 0.0f);
#endif
    for (int c = 0; c < n_channels; ++c) {
        const float* here = planes + c * plane + base;
#if LANCZOS
        // Any missing tap makes the sum NaN (0 * NaN too); then the four nearest decide.
        float value = taps ? taps_36(here - 2LL * win_w - 2, win_w, wx, wy) : MISSING;
        if (!finite_value(value)) value = four_taps(here, dx, dy, fx, fy);
#else
        float value = four_taps(here, dx, dy, fx, fy);
#endif
        const float* term = terms + term_offset + 4 * c;
        float sky = term[1];
        if (term[2] != 0.0f || term[3] != 0.0f) sky = term[1] + term[2] * u + term[3] * t;
        out[out_offset + c * out_plane + place] = finite_value(value) ? term[0] * value + sky : MISSING;
    }
}
