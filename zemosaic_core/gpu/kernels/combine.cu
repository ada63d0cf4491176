// Reject outliers among the samples of a pixel and combine the rest: the CUDA twin of zemosaic_core.rejection.
//
// One thread per output pixel, channel after channel. The samples lie as zemosaic_core.gpu.tiles says: the k-th
// samples of TILE_W neighbours are one line of memory, missing ones are NaN. They are sorted RUN at a time in
// registers, where every index must be a constant, and then put where any index goes: a column of sorted values.
// A rejection keeps a contiguous run of it and looks at few of its values; the weighted sums read the samples again.
//   STORAGE 0  one run, the columns of a block in shared memory
//   STORAGE 1  several runs, merged to and fro between two halves of a scratch array; threads go from pixel to pixel
//   STORAGE 2  no column: a mean without rejection
//   STORAGE 3  several runs, merged by all threads of a block in its shared memory, for PIXELS neighbours at a time
#include "tiles.cuh"
#include "block.cuh"
#ifndef STORAGE
#define STORAGE 0
#endif
#ifndef RUN
#define RUN 16
#endif
#ifndef THREADS
#define THREADS 128
#endif
#ifndef MAPPED
#define MAPPED 0
#endif
#ifndef NOISE
#define NOISE 0
#endif
#define MAX_ROUNDS 10
#define MAX_SCALE_STEPS 10
#define INF __int_as_float(0x7f800000)

#ifndef PIXELS
#define PIXELS 1
#endif

#if STORAGE == 1
#define STRIDE ((long long)gridDim.x * THREADS)
// Many threads wait for memory at a time, so none may take too many registers.
#define BLOCKS (RUN > 64 ? 3 : 4)
#elif STORAGE == 3
#define STRIDE 1
#define BLOCKS 1
#else
#define STRIDE THREADS
#define BLOCKS 1
#endif

#if STORAGE != 2

// Batcher's merge exchange, unrolled: pass K of phase P.
template <int P, int K> __device__ __forceinline__ void sort_steps(float (&v)[RUN])
{
#pragma unroll
    for (int low = 0; low < RUN - K; ++low) {
        // low = j + i with j = K % P + m * 2 K and 0 <= i < K
        const bool first = low >= K % P && (low - K % P) % (2 * K) < K;
        if (first && low / (2 * P) == (low + K) / (2 * P)) {
            float a = v[low], b = v[low + K];
            v[low] = fminf(a, b);
            v[low + K] = fmaxf(a, b);
        }
    }
    if constexpr (K > 1) sort_steps<P, K / 2>(v);
    else if constexpr (2 * P < RUN) sort_steps<2 * P, 2 * P>(v);
}

// Sort n <= RUN samples into the first RUN rows of a column; missing samples become +inf and end up last. If
// NOISE, the variances of the others are added to total.
__device__ __forceinline__ void sort_run(
    const float* samples, const float* variances, int n, float* column, float& total)
{
    float v[RUN];
#pragma unroll
    for (int group = 0; group < RUN; group += 8) {
        // Eight loads behind one test, and nothing that waits for them.
        if (group + 8 <= n) {
#pragma unroll
            for (int k = group; k < group + 8; ++k) v[k] = samples[k * TILE_W];
        } else {
#pragma unroll
            for (int k = group; k < group + 8; ++k) v[k] = k < n ? samples[k * TILE_W] : INF;
        }
    }
#pragma unroll
    for (int k = 0; k < RUN; ++k) v[k] = fminf(v[k], INF);  // of NaN and a number the number
#if NOISE
#pragma unroll
    for (int k = 0; k < RUN; ++k) if (v[k] < INF) total += variances[k];
#endif
    sort_steps<1, 1>(v);
#pragma unroll
    for (int k = 0; k < RUN; ++k, column += STRIDE) *column = v[k];
}

#if STORAGE == 1
// Merge each two neighbouring sorted runs of `length` rows.
__device__ __forceinline__ void merge_runs(const float* from, float* to, int rows, int length)
{
    for (int start = 0; start < rows; start += 2 * length) {
        int i = start, middle = min(start + length, rows), j = middle, end = min(start + 2 * length, rows);
        float a = from[i * STRIDE], b = j < end ? from[j * STRIDE] : INF;
        for (int k = start; k < end; ++k) {
            bool left = j >= end || (i < middle && a <= b);
            to[k * STRIDE] = left ? a : b;
            int next = left ? ++i : ++j;
            float value = next < (left ? middle : end) ? from[next * STRIDE] : INF;
            a = left ? value : a;
            b = left ? b : value;
        }
    }
}
#endif

#if STORAGE == 3
// Rows that one thread merges at a time; divides every RUN.
#define SEGMENT 16

// Merge the rows from k0 on that are one segment of each two neighbouring sorted runs of `length` rows.
__device__ __forceinline__ void merge_segment(const float* from, float* to, int rows, int length, int k0)
{
    int start = k0 / (2 * length) * 2 * length;
    int middle = min(start + length, rows), end = min(start + 2 * length, rows), d = k0 - start;
    int low = max(0, d - (end - middle)), high = min(d, middle - start);
    // How many of the rows before come from the first run.
    while (low < high) {
        int taken = (low + high) >> 1;
        if (from[start + taken] <= from[middle + d - taken - 1]) low = taken + 1;
        else high = taken;
    }
    int i = start + low, j = middle + d - low;
    for (int k = k0; k < k0 + SEGMENT; ++k) to[k] = j >= end || (i < middle && from[i] <= from[j]) ? from[i++] : from[j++];
}
#else
// Sort all samples of a pixel; returns the column that holds them. If NOISE, the variances of those that are
// there are added to total.
__device__ __forceinline__ const float* sort_samples(
    const float* samples, const float* variances, int n, float* column, float& total)
{
#if STORAGE == 0
    sort_run(samples, variances, n, column, total);
    return column;
#else
    int rows = (n + RUN - 1) / RUN * RUN;
    float* other = column + rows * STRIDE;
#pragma unroll 1
    for (int k = 0; k < rows; k += RUN)
        sort_run(samples + (long long)k * TILE_W, variances + k, n - k, column + k * STRIDE, total);
    for (int length = RUN; length < rows; length *= 2) {
        merge_runs(column, other, rows, length);
        float* merged = other;
        other = column;
        column = merged;
    }
    return column;
#endif
}
#endif

// Sorted values relative to a pivot.
struct Column {
    const float* rows;
    float pivot;
    __device__ __forceinline__ float operator[](int k) const { return rows[k * STRIDE] - pivot; }
};

__device__ __forceinline__ int count_valid(const float* rows, int n)
{
    if (rows[(n - 1) * STRIDE] < INF) return n;
    int low = 0;
    while (low < n) {
        int middle = (low + n) >> 1;
        if (rows[middle * STRIDE] < INF) low = middle + 1;
        else n = middle;
    }
    return low;
}

__device__ __forceinline__ float run_median(const Column& v, int first, int last)
{
    int count = last - first;
    return 0.5f * (v[first + (count - 1) / 2] + v[first + count / 2]);
}

// Number of values and what their sums are multiplied with: a division takes ten times as long as a product.
struct Share {
    float of_n, of_rest;
    __device__ __forceinline__ Share(int n) : of_n(1.0f / (float)n), of_rest(1.0f / (float)(n - 1)) {}
};

__device__ __forceinline__ float deviation(float sum, float squares, const Share& share)
{
    float variance = (squares - sum * (sum * share.of_n)) * share.of_rest;
    return variance > 0.0f ? variance * rsqrtf(variance) : 0.0f;
}

__device__ __forceinline__ float run_deviation(const Column& v, int first, int last)
{
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 4
    for (int k = first; k < last; ++k) {
        float x = v[k];
        sum += x;
        squares += x * x;
    }
    return deviation(sum, squares, Share(last - first));
}

// The ranks low <= k < high whose values lie between two limits, with their sums. When the limits move, only the
// values they pass are looked at: winsorizing costs little more than one look at every value.
struct Window {
    int low, high;
    float sum, squares, spent;
    float below, lowest, highest, above;  // the values next to either end, outside and inside

    __device__ __forceinline__ void add_all(const Column& v)
    {
        sum = squares = spent = 0.0f;
#pragma unroll 4
        for (int k = low; k < high; ++k) add(v[k]);
    }

    __device__ __forceinline__ void add(float x)
    {
        sum += x;
        squares += x * x;
    }

    __device__ __forceinline__ void remove(float x)
    {
        sum -= x;
        squares -= x * x;
        spent += x * x;
    }

    // Within the ranks first .. last.
    __device__ __forceinline__ void fit(const Column& v, int first, int last, float bottom, float top)
    {
        while (low > first && v[low - 1] >= bottom) add(v[--low]);
        while (high < last && v[high] <= top) add(v[high++]);
        while (low < high && (low < first || v[low] < bottom)) remove(v[low++]);
        while (high > low && (high > last || v[high - 1] > top)) remove(v[--high]);
        // What was taken out leaves its rounding behind; more than that of what is left is too much.
        if (spent > squares) add_all(v);
        below = low > first ? v[low - 1] : -INF;
        above = high < last ? v[high] : INF;
        lowest = low < high ? v[low] : INF;
        highest = low < high ? v[high - 1] : -INF;
    }

    __device__ __forceinline__ bool fits(float bottom, float top) const
    {
        return below < bottom && lowest >= bottom && highest <= top && above > top;
    }

    // Standard deviation of the run first .. last with its values pulled in to the limits that fit.
    __device__ __forceinline__ float clipped_deviation(
        int first, int last, float bottom, float top, const Share& share) const
    {
        float under = (float)(low - first) * bottom, over = (float)(last - high) * top;
        return deviation(sum + (under + over), squares + (under * bottom + over * top), share);
    }
};

// ranks, fractions: where the two quantiles of n values lie, at [2 n] and [2 n + 1].
__device__ __forceinline__ float winsorized_scale(
    const Column& v, int first, int last, float centre, const int* ranks, const float* fractions, Window& window)
{
    int n = last - first;
    const Share share(n);
    float limits[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        int k = first + ranks[2 * n + side];
        float lower = v[k], upper = v[min(k + 1, last - 1)];
        limits[side] = lower + fractions[2 * n + side] * (upper - lower);
    }
    if (window.low < 0) {
        window.low = first + ranks[2 * n] + 1;
        window.high = max(window.low, first + ranks[2 * n + 1] + 1);
        window.add_all(v);
    }
    window.fit(v, first, last, limits[0], limits[1]);
    float scale = window.clipped_deviation(first, last, limits[0], limits[1], share);
#pragma unroll 1
    for (int step = 0; step < MAX_SCALE_STEPS; ++step) {
        float bottom = centre - 1.5f * scale, top = centre + 1.5f * scale;
        if (!window.fits(bottom, top)) window.fit(v, first, last, bottom, top);
        float next = 1.134f * window.clipped_deviation(first, last, bottom, top, share);
        bool settled = fabsf(next - scale) <= 0.0005f * scale;
        scale = next;
        if (settled) break;
    }
    return scale;
}

__device__ __forceinline__ bool take_cut(int a, int b, int& first, int& last)
{
    bool changed = b > a && (a != first || b != last);
    if (changed) {
        first = a;
        last = b;
    }
    return changed;
}

// Narrow the run to centre - kl s <= v <= centre + kh s; false when nothing changed.
__device__ __forceinline__ bool cut_by_scale(
    const Column& v, int& first, int& last, float centre, float s, float kl, float kh)
{
    if (!(s > 0.0f)) return false;
    float low = centre - kl * s, high = centre + kh * s;
    int a = first, b = last;
    while (a < b && v[a] < low) ++a;
    while (b > a && v[b - 1] > high) --b;
    return take_cut(a, b, first, last);
}

__device__ __forceinline__ bool cut_by_line(const Column& v, int& first, int& last, float kl, float kh)
{
    float centre = (float)first + 0.5f * (float)(last - first - 1);
    float mean = 0.0f, slope = 0.0f, total = 0.0f;
#pragma unroll 4
    for (int k = first; k < last; ++k) {
        float x = v[k];
        mean += x;
        slope += ((float)k - centre) * x;
    }
    float n = (float)(last - first);
    mean /= n;
    slope /= n * (n * n - 1.0f) / 12.0f;
#pragma unroll 4
    for (int k = first; k < last; ++k) total += fabsf(v[k] - (mean + slope * ((float)k - centre)));
    float s = total / n;
    if (!(s > 0.0f)) return false;
    float low = -kl * s, high = kh * s;
    int a = first, b = last;
    while (a < b && v[a] - (mean + slope * ((float)a - centre)) < low) ++a;
    while (b > a && v[b - 1] - (mean + slope * ((float)(b - 1) - centre)) > high) --b;
    return take_cut(a, b, first, last);
}

// What is expected of samples, which alone decides for up to so many: their mean variance, and how much more they differ
// where there is light; that of the pivot above the background.
struct Noise {
    int few;
    float expected, light, mismatch;

    __device__ __forceinline__ float scale(float centre) const
    {
        float above = light + centre, extra = above > 0.0f ? mismatch * above : 0.0f;
        return sqrtf(expected + extra * extra);
    }
};

// Narrow a run of few samples to what their expected noise allows, until nothing changes.
__device__ __forceinline__ void cut_by_noise(
    const Column& v, int& first, int& last, float kl, float kh, const Noise& noise)
{
#pragma unroll 1
    for (int round = 0; round < MAX_ROUNDS; ++round) {
        int n = last - first;
        if (n < 2) return;
        // A sample against the others, whose mean has noise as well.
        float spare = sqrtf((float)n / (float)(n - 1));
        float centre = v[first + (n - 1) / 2], above = v[first + n / 2];
        float reach = spare * noise.scale(centre);
        if (above - centre <= kh * reach) {
            centre = 0.5f * (centre + above);
            reach = spare * noise.scale(centre);
        }
        float low = centre - kl * reach, high = centre + kh * reach;
        while (first < last && v[first] < low) ++first;
        while (last > first && v[last - 1] > high) --last;
        if (last - first == n) return;
    }
}

// The kept run of sorted values, widened to values equal to its ends.
__device__ __forceinline__ void reject(
    const Column& v, int count, int code, float kl, float kh, const int* ranks, const float* fractions,
    const Noise& noise, int& first, int& last)
{
    first = 0;
    last = count;
    if (count <= noise.few) cut_by_noise(v, first, last, kl, kh, noise);
    Window window;
    window.low = -1;
#pragma unroll 1
    for (int round = 0; round < MAX_ROUNDS && count > noise.few && last - first > 3 && code != 0; ++round) {
        bool changed;
        if (code == 3) {
            changed = cut_by_line(v, first, last, kl, kh);
        } else {
            float centre = run_median(v, first, last);
            float s = code == 2 ? winsorized_scale(v, first, last, centre, ranks, fractions, window)
                                : run_deviation(v, first, last);
            if (noise.few > 0) s = fmaxf(s, noise.scale(centre));
            changed = cut_by_scale(v, first, last, centre, s, kl, kh);
        }
        if (!changed) break;
    }
    while (first > 0 && v[first - 1] == v[first]) --first;
    while (last < count && v[last] == v[last - 1]) ++last;
}
#endif

// Sums over the samples whose distance from the pivot lies between low and high: of weights, and, with weights of 1
// if UNIT, of w, w d, w^2, w^2 d and w^2 d^2.
struct Sums {
    float total, s0, s1, q0, q1, q2;
};

template <bool UNIT> __device__ __forceinline__ Sums weighted_sums(
    const float* samples, const float* marks, const float* weights, int n, float pivot, float low, float high,
    int first = 0, int step = 1)
{
    Sums sum = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int k = first; k < n; k += step) {
        float d = samples[(long long)k * TILE_W] - pivot, w = weights[k];
#if MAPPED
        w *= marks[(long long)k * TILE_W];
#endif
        if (d >= low && d <= high) {
            if (UNIT) {
                sum.total += w;
                w = w > 0.0f ? 1.0f : 0.0f;
            }
            sum.s0 += w;
            sum.s1 += w * d;
            float square = w * w;
            sum.q0 += square;
            sum.q1 += square * d;
            sum.q2 += square * d * d;
        }
    }
    if (!UNIT) sum.total = sum.s0;
    return sum;
}

// What the rejection of one pixel and channel has left: ranks first .. last of `count` sorted samples, which lie between
// low and high around the pivot.
struct Kept {
    int count, first, last, seen;
    float pivot, low, high, middle;
};

#if STORAGE != 2
// sorted_rows: n sorted samples, those that are missing last; all: sum of the variances of the others, if NOISE.
__device__ __forceinline__ void keep(
    const float* sorted_rows, int n, float all, float background, int code, float kl, float kh, const int* ranks,
    const float* fractions, int few, float mismatch, Kept& kept)
{
    if (n == 0) return;
    Column sorted = {sorted_rows, 0.0f};
    kept.count = count_valid(sorted.rows, n);
    if (kept.count == 0) return;
    sorted.pivot = kept.pivot = sorted.rows[(kept.count - 1) / 2 * STRIDE];
#if NOISE
    const Noise expected = {few, all / (float)kept.count, kept.pivot - background, mismatch};
#else
    const Noise expected = {0, 0.0f, 0.0f, 0.0f};
#endif
    reject(sorted, kept.count, code, kl, kh, ranks, fractions, expected, kept.first, kept.last);
    kept.low = sorted[kept.first];
    kept.high = sorted[kept.last - 1];
    kept.middle = run_median(sorted, kept.first, kept.last);
}
#endif

// The highest lower bound of light that was cut off, -INF where there is none; their number is added to what was seen.
__device__ __forceinline__ float highest_bound(const float* samples, int n, int& seen)
{
    float highest = -INF;
    int clipped = 0;
#pragma unroll 1
    for (int k = 0; k < n; ++k) {
        float bound = bound_of(samples[(long long)k * TILE_W]);
        if (!(bound == bound)) continue;
        highest = fmaxf(highest, bound);
        ++clipped;
    }
    seen = max(seen, clipped);
    return highest;
}

__device__ __forceinline__ void write_pixel(
    const Kept& kept, const Sums& sums, float highest, int median, long long place, float* image, float* weight,
    float* variance, unsigned short* rejected_low, unsigned short* rejected_high)
{
    int n = kept.last - kept.first;
    float combined = highest > -INF ? highest : MISSING, total = 0.0f, spread = MISSING;
    if (sums.s0 > 0.0f) {
        float shift = sums.s1 / sums.s0;
        combined = kept.pivot + (median ? kept.middle : shift);
        total = sums.total;
        if (n > 1) {
            spread = sums.q2 - shift * (2.0f * sums.q1 - shift * sums.q0);
            spread = (spread > 0.0f ? spread : 0.0f) / (sums.s0 * sums.s0);
            spread *= (float)n / (float)(n - 1);
            if (median) spread *= 1.5707963f;
        }
    }
    image[place] = combined;
    weight[place] = total;
    variance[place] = spread;
    rejected_low[place] = (unsigned short)min(kept.first, 65535);
    rejected_high[place] = (unsigned short)min(kept.count - kept.last, 65535);
}

// values, maps: samples and, if MAPPED, their weights; bases, firsts, counts: per tile of TILE_H x TILE_W pixels of
// the block the place of its samples, of its first weight and their number. weights: (n_channels, n_items).
// plane: distance between the channels of values. ranks, fractions: see winsorized_scale. If NOISE, variances:
// of the samples, as weights; background: (n_channels,); few, mismatch: see Noise.
// Results: (n_channels, height, width), coverage (height, width). A launch does the n_rows rows from first_row.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) combine_pool(
    const float* values, const float* maps, const long long* bases, const int* firsts, const int* counts,
    const float* weights, const int* ranks, const float* fractions, long long plane, int n_items, int tiles_x,
    int n_channels, int height, int width, int first_row, int n_rows, int code, float kl, float kh, int median,
    const float* variances, const float* background, int few, float mismatch, float* image, float* weight, unsigned short* coverage, float* variance,
    unsigned short* rejected_low, unsigned short* rejected_high, float* scratch)
{
#if STORAGE == 3
    ONE_CALL_PER_BLOCK
    extern __shared__ float shared_column[];
    int y = first_row + blockIdx.y, x0 = blockIdx.x * PIXELS, n_pixels = min(PIXELS, width - x0);
    int tile = y / TILE_H * tiles_x + x0 / TILE_W, n = counts[tile];
    int runs = (n + RUN - 1) / RUN, rows = runs * RUN;
    long long start = sample_place(bases[tile], n, 0, y % TILE_H, x0 % TILE_W);
    float *column = shared_column, *other = column + PIXELS * rows, *partial = other + PIXELS * rows;
    Kept* kept = (Kept*)(partial + 6 * THREADS);
#pragma unroll 1
    for (int channel = 0; channel < n_channels; ++channel) {
        const float* samples = values + start + channel * plane;
        const float* own = weights + (long long)channel * n_items + firsts[tile];
        const float* noises = variances + (own - weights);
        EACH_THREAD(t) {
#pragma unroll 1
            for (int item = t; item < n_pixels * runs; item += THREADS) {
                int q = item % n_pixels, k = item / n_pixels * RUN;
                float all = 0.0f;
                sort_run(samples + q + (long long)k * TILE_W, noises + k, n - k, column + q * rows + k, all);
                partial[item] = all;
            }
        }
        BARRIER
        for (int length = RUN; length < rows; length *= 2) {
            EACH_THREAD(t) {
                for (int item = t; item < n_pixels * (rows / SEGMENT); item += THREADS) {
                    int from = item % n_pixels * rows;
                    merge_segment(column + from, other + from, rows, length, item / n_pixels * SEGMENT);
                }
            }
            BARRIER
            float* merged = other;
            other = column;
            column = merged;
        }
        EACH_THREAD(t) {
            if (t < n_pixels) {
                float all = 0.0f;
                for (int run = 0; run < runs; ++run) all += partial[run * n_pixels + t];
                Kept left = {0, 0, 0, channel ? kept[t].seen : 0, 0.0f, -INF, INF, 0.0f};
                keep(column + t * rows, n, all, background[channel], code, kl, kh, ranks, fractions, few, mismatch, left);
                kept[t] = left;
            }
        }
        BARRIER
        EACH_THREAD(t) {
            int q = t % PIXELS;
            if (q < n_pixels) {
                const Kept left = kept[q];
                int n_read = left.last > left.first ? n : 0;
                Sums sums = median
                    ? weighted_sums<true>(samples + q, maps + start + q, own, n_read, left.pivot, left.low, left.high,
                          t / PIXELS, THREADS / PIXELS)
                    : weighted_sums<false>(samples + q, maps + start + q, own, n_read, left.pivot, left.low, left.high,
                          t / PIXELS, THREADS / PIXELS);
                ((Sums*)partial)[t] = sums;
            }
        }
        BARRIER
        EACH_THREAD(t) {
            if (t < n_pixels) {
                Sums sums = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
                for (int k = t; k < THREADS; k += PIXELS) {
                    const Sums part = ((Sums*)partial)[k];
                    sums.total += part.total;
                    sums.s0 += part.s0;
                    sums.s1 += part.s1;
                    sums.q0 += part.q0;
                    sums.q1 += part.q1;
                    sums.q2 += part.q2;
                }
                float highest = kept[t].count ? -INF : highest_bound(samples + t, n, kept[t].seen);
                kept[t].seen = max(kept[t].seen, kept[t].count);
                write_pixel(kept[t], sums, highest, median, ((long long)channel * height + y) * width + x0 + t, image,
                            weight, variance, rejected_low, rejected_high);
            }
        }
        BARRIER
    }
    EACH_THREAD(t) {
        if (t < n_pixels) coverage[(long long)y * width + x0 + t] = (unsigned short)min(kept[t].seen, 65535);
    }
#else
#if STORAGE == 1
    long long thread = (long long)blockIdx.x * THREADS + threadIdx.x;
    int across = tiles_x * TILE_W;
    float* column = scratch + thread;
    for (long long pixel = thread; pixel < (long long)n_rows * across; pixel += STRIDE) {
        int y = first_row + (int)(pixel / across), x = (int)(pixel % across);
        if (x >= width) continue;
#else
#if STORAGE == 0
    extern __shared__ float shared_column[];
    float* column = shared_column + threadIdx.x;
#endif
    {
        int y = first_row + blockIdx.x, x = blockIdx.y * THREADS + threadIdx.x;
        if (x >= width) return;
#endif
        int tile = y / TILE_H * tiles_x + x / TILE_W, n = counts[tile];
        long long start = sample_place(bases[tile], n, 0, y % TILE_H, x % TILE_W);
        const float* marks = maps + start;
        int seen = 0;
#pragma unroll 1
        for (int channel = 0; channel < n_channels; ++channel) {
            const float* samples = values + start + channel * plane;
            const float* own = weights + (long long)channel * n_items + firsts[tile];
            Kept kept = {0, 0, 0, 0, 0.0f, -INF, INF, 0.0f};
#if STORAGE == 2
            // A first mean, rounded as it may be, is the best pivot: what is summed next is all small.
            float sum = 0.0f, total_weight = 0.0f;
#pragma unroll 8
            for (int k = 0; k < n; ++k) {
                float value = samples[(long long)k * TILE_W], w = own[k];
#if MAPPED
                w *= marks[(long long)k * TILE_W];
#endif
                if (value == value) {
                    sum += w * value;
                    total_weight += w;
                    ++kept.count;
                }
            }
            kept.last = kept.count;
            if (total_weight > 0.0f) kept.pivot = sum / total_weight;
#else
            float all = 0.0f;
            const float* sorted = sort_samples(samples, variances + (own - weights), n, column, all);
            keep(sorted, n, all, background[channel], code, kl, kh, ranks, fractions, few, mismatch, kept);
#endif
            // Nothing but light that was cut off, if anything: the highest of its lower bounds.
            float highest = kept.count ? -INF : highest_bound(samples, n, seen);
            seen = max(seen, kept.count);
            int n_read = kept.last > kept.first ? n : 0;
            Sums sums = median ? weighted_sums<true>(samples, marks, own, n_read, kept.pivot, kept.low, kept.high)
                               : weighted_sums<false>(samples, marks, own, n_read, kept.pivot, kept.low, kept.high);
            write_pixel(kept, sums, highest, median, ((long long)channel * height + y) * width + x, image, weight,
                        variance, rejected_low, rejected_high);
        }
        coverage[(long long)y * width + x] = (unsigned short)min(seen, 65535);
    }
#endif
}
