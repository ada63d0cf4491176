// Mean without rejection: float64 sums, one source after the other. The CUDA twin of zemosaic_core.coadd.
#define MISSING __int_as_float(0x7fc00000)

// Add the samples (n_channels, n_rows, n_cols) of one source, whose first pixel is (top, left) of the block.
// sums: (5, n_channels, height, width) of w, w v, w^2, w^2 v, w^2 v^2. weights: one per channel, from offset.
extern "C" __global__ void add_to_sums(
    const float* samples, const float* maps, int use_map, const float* weights, int weight_offset, int n_channels,
    int n_rows, int n_cols, int top, int left, int height, int width, double* sums, unsigned short* counts)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= n_cols || y >= n_rows) return;
    long long from = (long long)y * n_cols + x, plane = (long long)height * width;
    double map_weight = use_map ? (double)maps[from] : 1.0;
    for (int c = 0; c < n_channels; ++c) {
        float weight = weights[weight_offset + c];
        float sample = samples[(long long)c * n_rows * n_cols + from];
        if (!(weight > 0.0f) || !(sample == sample)) continue;
        double w = (double)weight, v = (double)sample;
        if (use_map) w *= map_weight;
        double q = w * w;
        long long to = (long long)c * plane + (long long)(top + y) * width + left + x, step = n_channels * plane;
        sums[to] += w;
        sums[to + step] += w * v;
        sums[to + 2 * step] += q;
        sums[to + 3 * step] += q * v;
        sums[to + 4 * step] += q * v * v;
        counts[to] += 1;
    }
}

extern "C" __global__ void finish_sums(
    const double* sums, const unsigned short* counts, int n_channels, long long plane,
    float* image, float* weight, float* variance, unsigned short* coverage)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= plane) return;
    unsigned short seen = 0;
    long long step = n_channels * plane;
    for (int c = 0; c < n_channels; ++c) {
        long long at = (long long)c * plane + i;
        int n = counts[at];
        double total = sums[at];
        seen = counts[at] > seen ? counts[at] : seen;
        weight[at] = (float)total;
        image[at] = MISSING;
        variance[at] = MISSING;
        if (n > 0 && total > 0.0) {
            double mean = sums[at + step] / total;
            image[at] = (float)mean;
            if (n > 1) {
                double q1 = sums[at + 3 * step];
                double spread = sums[at + 4 * step] - mean * (2.0 * q1 - mean * sums[at + 2 * step]);
                spread = spread > 0.0 ? spread : 0.0;
                variance[at] = (float)(spread / (total * total) * (double)n / (double)(n - 1));
            }
        }
    }
    coverage[i] = seen;
}
