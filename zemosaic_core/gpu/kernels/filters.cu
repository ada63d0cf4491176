// Filters of single images: local outliers, Gaussian blur, stretch, and the counts that percentiles are made of.
#ifndef SIDE
#define SIDE 5
#endif
#define MISSING __int_as_float(0x7fc00000)

__device__ __forceinline__ bool finite_value(float v) { return v - v == 0.0f; }

// -1 -> 1, n -> n - 2: mirrored about the border pixel.
__device__ __forceinline__ int mirror(int i, int n)
{
    if (n == 1) return 0;
    while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
    return i;
}

// -1 -> 0, n -> n - 1: reflected about the border.
__device__ __forceinline__ int reflect(int i, int n)
{
    while (i < 0 || i >= n) i = i < 0 ? -i - 1 : 2 * n - 1 - i;
    return i;
}

// Replace pixels that stick out of their SIDE x SIDE neighbourhood by its median. image: rows first_row .. of a plane
// of height x width, n_loaded of them; results for the n_rows rows from y0. fill stands for missing pixels.
extern "C" __global__ void replace_outliers(
    const float* image, int first_row, int n_loaded, int height, int width, int y0, int n_rows, double threshold,
    double floor_deviation, float fill, float* corrected, unsigned char* mask)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || row >= n_rows) return;
    int y = y0 + row;
    float own = image[(long long)(y - first_row) * width + x];
    long long place = (long long)row * width + x;
    corrected[place] = own;
    mask[place] = 0;
    if (!finite_value(own)) return;
    float sorted[SIDE * SIDE];
    double total = 0.0, squares = 0.0;
    for (int dy = -(SIDE / 2); dy <= SIDE / 2; ++dy) {
        const float* line = image + (long long)(mirror(y + dy, height) - first_row) * width;
        for (int dx = -(SIDE / 2); dx <= SIDE / 2; ++dx) {
            float value = line[mirror(x + dx, width)];
            if (!finite_value(value)) value = fill;
            int at = (dy + SIDE / 2) * SIDE + dx + SIDE / 2;
            for (; at > 0 && sorted[at - 1] > value; --at) sorted[at] = sorted[at - 1];
            sorted[at] = value;
            // The pixel itself would raise the limit it is measured against.
            if (dy == 0 && dx == 0) continue;
            double delta = (double)value - (double)fill;
            total += delta;
            squares += delta * delta;
        }
    }
    double n = (double)(SIDE * SIDE - 1);
    double variance = squares / n - (total / n) * (total / n);
    double deviation = sqrt(variance > 0.0 ? variance : 0.0);
    deviation = deviation > floor_deviation ? deviation : floor_deviation;
    double median = (double)sorted[SIDE * SIDE / 2];
    if ((double)own > median + threshold * deviation) {
        corrected[place] = sorted[SIDE * SIDE / 2];
        mask[place] = 1;
    }
}

// One direction of a Gaussian blur of the valid pixels and of their mask. vertical: image holds rows first_row .. of
// the plane and its missing pixels are NaN; results for the n_rows rows from y0. horizontal: light and seen hold just
// those rows, and the result is light / seen, or NaN where nothing was seen.
extern "C" __global__ void blur_vertical(
    const float* image, int first_row, int height, int width, int y0, int n_rows, const double* taps, int radius,
    float* light, float* seen)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || row >= n_rows) return;
    double sum = 0.0, part = 0.0;
    for (int k = -radius; k <= radius; ++k) {
        float value = image[(long long)(reflect(y0 + row + k, height) - first_row) * width + x];
        double tap = taps[k < 0 ? -k : k];
        if (finite_value(value)) {
            sum += tap * (double)value;
            part += tap;
        }
    }
    light[(long long)row * width + x] = (float)sum;
    seen[(long long)row * width + x] = (float)part;
}

extern "C" __global__ void blur_horizontal(
    const float* light, const float* seen, int width, int n_rows, const double* taps, int radius, int all_valid,
    float* out)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || row >= n_rows) return;
    const float* line = light + (long long)row * width;
    const float* mask = seen + (long long)row * width;
    double sum = 0.0, part = 0.0;
    for (int k = -radius; k <= radius; ++k) {
        int i = reflect(x + k, width);
        double tap = taps[k < 0 ? -k : k];
        sum += tap * (double)line[i];
        part += tap * (double)mask[i];
    }
    float value = (float)sum, share = (float)part;
    if (!all_valid) value = share > 1e-6f ? value / share : MISSING;
    out[(long long)row * width + x] = value;
}

// asinh(clip((v - low) / (high - low), 0, 1) / softness) / top; flat channels become 0, missing pixels stay NaN.
extern "C" __global__ void stretch_plane(
    const float* image, long long n, float low, float span, float softness, float top, int flat, float* out)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float value = image[i];
    if (!(value == value) || (flat && !finite_value(value))) {
        out[i] = MISSING;
        return;
    }
    float x = (value - low) / span;
    x = x < 0.0f ? 0.0f : (x > 1.0f ? 1.0f : x);
    out[i] = flat ? 0.0f : asinhf(x / softness) / top;
}

// Bits of a float in the order of its value.
__device__ __forceinline__ unsigned int ordered_bits(float v)
{
    unsigned int bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Count the finite values by the upper (level 0) or, among those whose upper half is prefix, by the lower half of
// their ordered bits. counts: 65536.
extern "C" __global__ void count_halves(const float* values, long long n, int level, int prefix, unsigned int* counts)
{
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float value = values[i];
        if (!finite_value(value)) continue;
        unsigned int bits = ordered_bits(value);
        if (level == 0) atomicAdd(counts + (bits >> 16), 1u);
        else if ((int)(bits >> 16) == prefix) atomicAdd(counts + (bits & 0xffffu), 1u);
    }
}
