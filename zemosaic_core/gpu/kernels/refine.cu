// What untouched samples differ from the co-add, and the sums of it around each output pixel: the CUDA twin of
// zemosaic_core.refine. The same operations in the same order in float32.
#include "tiles.cuh"
#include "lattice.cuh"
#include "raw.cuh"
#include "surface.cuh"

#define RANGE_SHARE 0.7f
#define LIGHT_SHARE 2.0f
#define FLANK_SHARE 0.1f
#define KEYS (-0.6f)

// Weights of the taps -1 .. 2 for a fraction.
__device__ __forceinline__ void cubic(float f, float* w)
{
    w[0] = ((KEYS * f - 2.0f * KEYS) * f + KEYS) * f;
    w[1] = ((KEYS + 2.0f) * f - (KEYS + 3.0f)) * f * f + 1.0f;
    w[2] = (((2.0f * KEYS + 3.0f) - (KEYS + 2.0f) * f) * f - KEYS) * f;
    w[3] = (KEYS - KEYS * f) * f * f;
}

__device__ __forceinline__ float overlap(float distance, float reach, float most, float times)
{
    return times * min(max(reach - distance, 0.0f), most);
}

// Laplacian of 4 x 4 pixels between the four in the middle.
__device__ __forceinline__ float curvature(const float* a, int stride, float fx, float fy)
{
    const float *b = a + stride, *c = b + stride, *d = c + stride;
    float upper_left = ((a[1] + c[1]) + (b[0] + b[2])) - 4.0f * b[1];
    float upper_right = ((a[2] + c[2]) + (b[1] + b[3])) - 4.0f * b[2];
    float lower_left = ((b[1] + d[1]) + (c[0] + c[2])) - 4.0f * c[1];
    float lower_right = ((b[2] + d[2]) + (c[1] + c[3])) - 4.0f * c[2];
    float upper = upper_left + fx * (upper_right - upper_left);
    float lower = lower_left + fx * (lower_right - lower_left);
    return upper + fy * (lower - upper);
}

// One thread per sample of a window, whose first pixel is (origin_y, origin_x) of the image. Raw pixels have no missing
// ones but the listed bad ones (as in decode.cu); others come as float32 in plain. The lattice tells where a sample lies
// on the grid; c00 .. c11 are the channels of the pixels of the colour filter array. model holds rows of the co-add from
// model_y0 on, need says from row need_y0 on where a sample takes part. terms: N_TERMS per channel, then the limit of
// each and its background.
extern "C" __global__ void sample_differences(
    const unsigned short* raw, int coded, int use_raw, const float* plain, const long long* hot, int n_hot,
    long long first, int win_h, int win_w, int origin_y, int origin_x, int image_h, int image_w,
    const long long* node_x, const long long* node_y, long long node_offset, int ny, int nx, int map_y0, int map_x0,
    int shift, int c00, int c01, int c10, int c11, const float* terms, int term_offset, int n_channels, int use_surface,
    float blur, const float* model, int model_h, int width, int model_y0, const unsigned char* need, int need_h, int need_y0,
    float* out)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y * blockDim.y + threadIdx.y;
    if (i >= win_w || j >= win_h) return;
    long long place = (long long)j * win_w + i;
    out[place] = MISSING;
    int x = origin_x + i, y = origin_y + j;
    SourcePlace on_grid = source_place(node_x, node_y, node_offset, ny, nx, y - map_y0, x - map_x0, shift);
    if (!on_grid.defined) return;
    int bits = on_grid.bits;
    long long ox = on_grid.x, oy = on_grid.y;
    long long tx = ox >> bits, ty = oy >> bits;
    if (tx < 1 || ty < model_y0 + 1 || tx > width - 3 || ty > model_y0 + model_h - 3) return;
    int ix = (int)tx, iy = (int)ty, row = iy - need_y0;
    if (row < 0 || row >= need_h || need[(long long)row * width + ix] == 0) return;

    float sample;
    if (use_raw) {
        if (n_hot > 0 && is_listed(hot, n_hot, first + place)) return;
        sample = sensor_value(raw, place, coded);
    } else {
        sample = plain[place];
    }
    int c = y & 1 ? (x & 1 ? c11 : c10) : (x & 1 ? c01 : c00);
    float wx[4], wy[4];
    cubic(fraction(ox, bits), wx);
    cubic(fraction(oy, bits), wy);
    const float* tap = model + ((long long)c * model_h + (iy - 1 - model_y0)) * width + (ix - 1);
    float value = 0.0f, low = tap[0], high = low;
    for (int q = 0; q < 4; ++q) {
        const float* p = tap + (long long)q * width;
        value += wy[q] * ((wx[0] * p[0] + wx[1] * p[1]) + (wx[2] * p[2] + wx[3] * p[3]));
        low = min(low, min(min(p[0], p[1]), min(p[2], p[3])));
        high = max(high, max(max(p[0], p[1]), max(p[2], p[3])));
    }
    if (blur != 0.0f) value += blur * curvature(tap, width, fraction(ox, bits), fraction(oy, bits));
    float u = image_w > 1 ? (float)x * (2.0f / (float)(image_w - 1)) - 1.0f : 0.0f;
    float t = image_h > 1 ? (float)y * (2.0f / (float)(image_h - 1)) - 1.0f : 0.0f;
    float across = (float)(image_w - 1) * (float)(image_w - 1), down = (float)(image_h - 1) * (float)(image_h - 1);
    float diagonal = max(across + down, 1.0f);
    float q2 = across / diagonal * (u * u) + down / diagonal * (t * t);
    const float* term = terms + term_offset + N_TERMS * c;
    float scaled = term[0] * sample * (1.0f + q2 * (term[4] + q2 * term[5]));
    float sky = term[1] + term[2] * u + term[3] * t + q2 * (term[6] + q2 * term[7]);
    if (use_surface) sky += surface_value(term + 8, u, t);
    float difference = scaled + sky - value;
    const float* limit = terms + term_offset + N_TERMS * n_channels;
    float span = high - low, light = max(value - limit[n_channels + c], 0.0f);
    float allowed = min(RANGE_SHARE * span, LIGHT_SHARE * light + FLANK_SHARE * span);
    // A missing tap, sample or channel makes it NaN, which fails.
    if (fabsf(difference) <= limit[c] + allowed)
        out[place] = difference;
}

// One thread per output pixel of the box y0 .. y1, x0 .. x1; the block of output rows starts at block_y. The sums are
// planes of `plane` pixels, one per channel.
extern "C" __global__ void gather_differences(
    const float* differences, int win_h, int win_w, int origin_y, int origin_x, int image_h, int image_w,
    const long long* node_x, const long long* node_y, long long node_offset, int ny, int nx, int map_y0, int map_x0,
    int shift, int c00, int c01, int c10, int c11, const float* weights, int weight_offset, float feather,
    float feather_start, const float* weight_map, int use_map, float reach, float most, float times, const float* mask, int block_y,
    int width, int y0, int y1, int x0, int x1, float xx, float xy, float yx, float yy, long long plane, float* total,
    float* sums, float* square, float* sums_square, float* weight_x, float* weight_y, float* total_x, float* total_y)
{
    int x = x0 + blockIdx.x * blockDim.x + threadIdx.x, y = y0 + blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= x1 || y >= y1) return;
    long long place = (long long)(y - block_y) * width + x;
    if (mask[place] == 0.0f) return;
    SourcePlace from = source_place(node_x, node_y, node_offset, ny, nx, y - map_y0, x - map_x0, shift);
    if (!from.defined) return;
    int bits = from.bits;
    long long sx = from.x, sy = from.y;
    long long right = ((long long)(image_w - 1) << bits) - sx, bottom = ((long long)(image_h - 1) << bits) - sy;
    if (sx < 0 || sy < 0 || right < 0 || bottom < 0) return;
    float share = feather > 0.0f ? feathered(from, image_h, image_w, feather, feather_start) : 1.0f;
    int ix = (int)(sx >> bits), iy = (int)(sy >> bits);
    float fx = fraction(sx, bits), fy = fraction(sy, bits);
    for (int q = 0; q < 2; ++q) {
        int j = iy + q - origin_y;
        float dy = q ? 1.0f - fy : -fy;
        float ky = overlap(fabsf(dy), reach, most, times);
        if (j < 0 || j >= win_h || !(ky > 0.0f)) continue;
        for (int p = 0; p < 2; ++p) {
            int i = ix + p - origin_x;
            float dx = p ? 1.0f - fx : -fx;
            float kx = overlap(fabsf(dx), reach, most, times);
            if (i < 0 || i >= win_w || !(kx > 0.0f)) continue;
            float difference = differences[(long long)j * win_w + i];
            if (difference != difference) continue;
            int c = (iy + q) & 1 ? ((ix + p) & 1 ? c11 : c10) : ((ix + p) & 1 ? c01 : c00);
            float w = weights[weight_offset + c] * share * (ky * kx);
            if (use_map) w *= weight_map[(long long)j * win_w + i];
            if (!(w > 0.0f)) continue;
            float part = w * difference;
            long long at = c * plane + place;
            total[at] += part;
            sums[at] += w;
            square[at] += part * part;
            sums_square[at] += w * w;
            float right_of = xx * dx + xy * dy, below = yx * dx + yy * dy;
            weight_x[at] += w * right_of;
            weight_y[at] += w * below;
            total_x[at] += part * right_of;
            total_y[at] += part * below;
        }
    }
}
