// Reject outliers among the samples of a pixel and combine the rest: the CUDA twin of zemosaic_core.rejection.
//
// One thread per output pixel, channel after channel. The samples are sorted once; every rejection keeps a
// contiguous run of the sorted values, so its outcome is two bounds, and the weighted sums read the samples a
// second time. Where the sorted values live depends on their number:
//   STORAGE 0  registers, up to NMAX samples; every index is a constant after unrolling
//   STORAGE 1  shared memory, one column per thread
//   STORAGE 2  a scratch array, one column per thread of the launch, threads go from pixel to pixel
#ifndef STORAGE
#define STORAGE 2
#endif
#ifndef NMAX
#define NMAX 16
#endif
#define TILE_W 128
#define TILE_H 16
#define MAX_ROUNDS 10
#define MAX_SCALE_STEPS 10
#define INF __int_as_float(0x7f800000)
#define MISSING __int_as_float(0x7fc00000)

__device__ __forceinline__ bool finite_value(float v) { return v - v == 0.0f; }

#if STORAGE == 0
#define COLUMN float (&v)[NMAX]
#define EACH(k, a, b) _Pragma("unroll") for (int k = 0; k < NMAX; ++k) if (k >= (a) && k < (b))
#define AT(k) v[k]
__device__ __forceinline__ float pick(COLUMN, int at)
{
    float found = v[0];
#pragma unroll
    for (int k = 1; k < NMAX; ++k) found = k == at ? v[k] : found;
    return found;
}
#define PICK(k) pick(v, k)
#define PASS v
#else
#define COLUMN float* column, int stride
#define EACH(k, a, b) for (int k = (a); k < (b); ++k)
#define AT(k) column[(long long)(k) * stride]
#define PICK(k) AT(k)
#define PASS column, stride
#endif

#if STORAGE == 0

template <int P, int K> __device__ __forceinline__ void sort_steps(float (&v)[NMAX])
{
#pragma unroll
    for (int low = 0; low < NMAX - K; ++low) {
        // low = j + i with j = K % P + m * 2 K and 0 <= i < K
        const bool first = low >= K % P && (low - K % P) % (2 * K) < K;
        if (first && low / (2 * P) == (low + K) / (2 * P)) {
            float a = v[low], b = v[low + K];
            v[low] = fminf(a, b);
            v[low + K] = fmaxf(a, b);
        }
    }
    if constexpr (K > 1) sort_steps<P, K / 2>(v);
    else if constexpr (2 * P < NMAX) sort_steps<2 * P, 2 * P>(v);
}
#endif
// Batcher's merge exchange; missing samples are +inf and end up last.
__device__ __forceinline__ void sort_column(COLUMN, int n)
{
#if STORAGE == 0

    sort_steps<1, 1>(v);
#else
    for (int p = 1; p < n; p <<= 1)
        for (int k = p; k >= 1; k >>= 1)
            for (int j = k % p; j + k < n; j += 2 * k)
                for (int i = 0; i < k && i + j + k < n; ++i)
                    if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) {
                        float a = AT(i + j), b = AT(i + j + k);
                        if (b < a) {
                            AT(i + j) = b;
                            AT(i + j + k) = a;
                        }
                    }
#endif
}

__device__ __forceinline__ float run_median(COLUMN, int first, int last)
{
    int count = last - first;
    return 0.5f * (PICK(first + (count - 1) / 2) + PICK(first + count / 2));
}

__device__ __forceinline__ float run_quantile(COLUMN, int first, int last, double position)
{
    int k = (int)position;
    float fraction = (float)(position - (double)k);
    float lower = PICK(first + k), upper = PICK(min(first + k + 1, last - 1));
    return lower + fraction * (upper - lower);
}

// factor * sd of the run with its values pulled in to low .. high.
__device__ __forceinline__ float clipped_deviation(COLUMN, int first, int last, float low, float high, float factor)
{
    float s1 = 0.0f, s2 = 0.0f;
    EACH(k, first, last) {
        float x = AT(k);
        x = x < low ? low : x;
        x = x > high ? high : x;
        s1 += x;
        s2 += x * x;
    }
    float n = (float)(last - first);
    float spread = s2 - s1 * (s1 / n);
    spread = spread > 0.0f ? spread : 0.0f;
    return factor * sqrtf(spread / (n - 1.0f));
}

__device__ __forceinline__ float winsorized_scale(COLUMN, int first, int last, float centre, double q_low, double q_high)
{
    double top = (double)(last - first - 1);
    float low = run_quantile(PASS, first, last, q_low * top);
    float high = run_quantile(PASS, first, last, (1.0 - q_high) * top);
    float scale = clipped_deviation(PASS, first, last, low, high, 1.0f);
#pragma unroll 1
    for (int step = 0; step < MAX_SCALE_STEPS; ++step) {
        float reach = 1.5f * scale;
        float next = clipped_deviation(PASS, first, last, centre - reach, centre + reach, 1.134f);
        bool settled = fabsf(next - scale) <= 0.0005f * scale;
        scale = next;
        if (settled) break;
    }
    return scale;
}

// Narrow the run to centre - kl s <= v <= centre + kh s; false when nothing changed.
__device__ __forceinline__ bool cut_by_scale(COLUMN, int& first, int& last, float centre, float s, float kl, float kh)
{
    if (!(s > 0.0f)) return false;
    float low = centre - kl * s, high = centre + kh * s;
    int a = first, b = last;
#if STORAGE == 0
    EACH(k, first, last) {
        a += v[k] < low;
        b -= v[k] > high;
    }
#else
    while (a < b && AT(a) < low) ++a;
    while (b > a && AT(b - 1) > high) --b;
#endif
    bool changed = b > a && (a != first || b != last);
    if (changed) {
        first = a;
        last = b;
    }
    return changed;
}

__device__ __forceinline__ bool cut_by_line(COLUMN, int& first, int& last, float kl, float kh)
{
    float centre = (float)first + 0.5f * (float)(last - first - 1);
    float mean = 0.0f, slope = 0.0f, total = 0.0f;
    EACH(k, first, last) {
        mean += AT(k);
        slope += ((float)k - centre) * AT(k);
    }
    float n = (float)(last - first);
    mean /= n;
    slope /= n * (n * n - 1.0f) / 12.0f;
    EACH(k, first, last) total += fabsf(AT(k) - (mean + slope * ((float)k - centre)));
    float s = total / n;
    if (!(s > 0.0f)) return false;
    float low = -kl * s, high = kh * s;
    int a = first, b = last;
#if STORAGE == 0
    bool going = true;
    EACH(k, first, last) {
        going = going && v[k] - (mean + slope * ((float)k - centre)) < low;
        a += going;
    }
    going = true;
#pragma unroll
    for (int k = NMAX - 1; k >= 0; --k) {
        if (k >= a && k < last) {
            going = going && v[k] - (mean + slope * ((float)k - centre)) > high;
            b -= going;
        }
    }
#else
    while (a < b && AT(a) - (mean + slope * ((float)a - centre)) < low) ++a;
    while (b > a && AT(b - 1) - (mean + slope * ((float)(b - 1) - centre)) > high) --b;
#endif
    bool changed = b > a && (a != first || b != last);
    if (changed) {
        first = a;
        last = b;
    }
    return changed;
}

// The kept run of sorted values, widened to values equal to its ends.
__device__ __forceinline__ void reject(
    COLUMN, int count, int code, float kl, float kh, double q_low, double q_high, int& first, int& last)
{
    first = 0;
    last = count;
#pragma unroll 1
    for (int round = 0; round < MAX_ROUNDS && last - first > 3 && code != 0; ++round) {
        bool changed;
        if (code == 3) {
            changed = cut_by_line(PASS, first, last, kl, kh);
        } else {
            float centre = run_median(PASS, first, last);
            float s = code == 2 ? winsorized_scale(PASS, first, last, centre, q_low, q_high)
                                : clipped_deviation(PASS, first, last, -INF, INF, 1.0f);
            changed = cut_by_scale(PASS, first, last, centre, s, kl, kh);
        }
        if (!changed) break;
    }
    if (count == 0) return;
#if STORAGE == 0
    float low = PICK(first), high = PICK(last - 1);
    int a = 0, b = 0;
    EACH(k, 0, count) {
        a += v[k] < low;
        b += v[k] <= high;
    }
    first = a;
    last = b;
#else
    while (first > 0 && AT(first - 1) == AT(first)) --first;
    while (last < count && AT(last) == AT(last - 1)) ++last;
#endif
}

struct Pool {
    const float* values;
    const long long* starts;
    const int* boxes;
    const float* weights;
    const float* maps;
    const long long* map_starts;
};

// Sample of a source at (y, x), or +inf; at_map becomes its place among the sample weights, -1 without one.
__device__ __forceinline__ float sample_at(
    const Pool& pool, int source, int channel, int n_channels, int y, int x, long long& at_map)
{
    const int* box = pool.boxes + 4 * source;
    at_map = -1;
    if (y < box[0] || y >= box[1] || x < box[2] || x >= box[3]) return INF;
    if (!(pool.weights[source * n_channels + channel] > 0.0f)) return INF;
    int width = box[3] - box[2];
    long long offset = (long long)(y - box[0]) * width + (x - box[2]);
    float value = pool.values[pool.starts[source] + (long long)channel * (box[1] - box[0]) * width + offset];
    if (!finite_value(value)) return INF;
    if (pool.map_starts[source] >= 0) {
        at_map = pool.map_starts[source] + offset;
        if (!(pool.maps[at_map] > 0.0f)) return INF;
    }
    return value;
}

// values, starts, boxes, weights, maps, map_starts: a SamplePool, boxes as int (y0, y1, x0, x1) within the block.
// lists: the sources near output tile (ty, tx) of TILE_H x TILE_W pixels, the first row of the block being row
// row_phase of the first tile, are
// items[lists[ty * n_tiles_x + tx]] .. items[lists[ty * n_tiles_x + tx + 1] - 1].
// Results: (n_channels, height, width), coverage (height, width). A launch does the n_rows rows from first_row.
extern "C" __global__ void __launch_bounds__(128, 1) combine_pool(
    const float* values, const long long* starts, const int* boxes, const float* weights,
    const float* maps, const long long* map_starts, const int* lists, const int* items, int n_tiles_x, int row_phase,
    int n_channels, int height, int width, int first_row, int n_rows, int code, float kl, float kh, double q_low, double q_high, int median,
    float* image, float* weight, unsigned short* coverage, float* variance,
    unsigned short* rejected_low, unsigned short* rejected_high, float* scratch)
{
    Pool pool = {values, starts, boxes, weights, maps, map_starts};
#if STORAGE == 2
    int stride = gridDim.x * blockDim.x;
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    float* column = scratch + thread;
    for (long long pixel = thread; pixel < (long long)n_rows * width; pixel += stride) {
        int y = first_row + (int)(pixel / width), x = (int)(pixel % width);
#else
#if STORAGE == 1
    extern __shared__ float shared_column[];
    float* column = shared_column + threadIdx.x;
    int stride = blockDim.x;
#else
    float v[NMAX];
#endif
    {
        int y = first_row + blockIdx.x, x = blockIdx.y * blockDim.x + threadIdx.x;
        if (x >= width) return;
#endif
        int tile = ((y + row_phase) / TILE_H) * n_tiles_x + x / TILE_W;
        const int* near = items + lists[tile];
        int n_near = lists[tile + 1] - lists[tile];
        int seen = 0;
#pragma unroll 1
        for (int channel = 0; channel < n_channels; ++channel) {
            int count = 0;
            long long at_map;
#if STORAGE == 0
#pragma unroll
            for (int k = 0; k < NMAX; ++k) {
                v[k] = k < n_near ? sample_at(pool, near[k], channel, n_channels, y, x, at_map) : INF;
                count += v[k] < INF;
            }
#else
            for (int k = 0; k < n_near; ++k) {
                float value = sample_at(pool, near[k], channel, n_channels, y, x, at_map);
                if (value < INF) AT(count++) = value;
            }
#endif
            seen = max(seen, count);
            sort_column(PASS, count);
            float pivot = 0.0f;
            if (count > 0) pivot = PICK((count - 1) / 2);
            EACH(k, 0, count) AT(k) -= pivot;
            int first, last;
            reject(PASS, count, code, kl, kh, q_low, q_high, first, last);

            long long place = ((long long)channel * height + y) * width + x;
            int kept = last - first;
            rejected_low[place] = (unsigned short)first;
            rejected_high[place] = (unsigned short)(count - last);
            float total = 0.0f, s0 = 0.0f, s1 = 0.0f, q0 = 0.0f, q1 = 0.0f, q2 = 0.0f, middle = 0.0f;
            if (kept > 0) {
                float low = PICK(first), high = PICK(last - 1);
                middle = run_median(PASS, first, last);
#pragma unroll 1
                for (int k = 0; k < n_near; ++k) {
                    float value = sample_at(pool, near[k], channel, n_channels, y, x, at_map);
                    float d = value - pivot;
                    if (!(value < INF) || d < low || d > high) continue;
                    float share = weights[near[k] * n_channels + channel];
                    if (at_map >= 0) share *= maps[at_map];
                    total += share;
                    if (median) share = share > 0.0f ? 1.0f : 0.0f;
                    s0 += share;
                    s1 += share * d;
                    float square = share * share;
                    q0 += square;
                    q1 += square * d;
                    q2 += square * d * d;
                }
            }
            if (!(s0 > 0.0f)) {
                image[place] = MISSING;
                weight[place] = 0.0f;
                variance[place] = MISSING;
                continue;
            }
            float shift = s1 / s0;
            image[place] = pivot + (median ? middle : shift);
            weight[place] = total;
            if (kept < 2) {
                variance[place] = MISSING;
                continue;
            }
            float spread = q2 - shift * (2.0f * q1 - shift * q0);
            spread = (spread > 0.0f ? spread : 0.0f) / (s0 * s0);
            spread *= (float)kept / (float)(kept - 1);
            variance[place] = median ? 1.5707963f * spread : spread;
        }
        coverage[(long long)y * width + x] = (unsigned short)seen;
    }
}
