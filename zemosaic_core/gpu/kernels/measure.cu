// Two sweeps over the pixels of raw frames: the CUDA twin of zemosaic_core.raw_sky, raw_defects and raw_maxima, bit by
// bit. Frames of one size lie one after the other; the last index of a grid is the frame.
//
// First sweep: one histogram per cell and phase of the 2 x 2 raster, made in the memory of the card, then a few numbers
// of each. A cell whose sky leaves its histogram is counted again with wider bins: `open` is 1 while a cell is counted,
// 2 in the round in which it ends, 0 after it. Second sweep: single pixels that lie, where light was cut off, smoothed
// light and its local maxima. Lists come in any order; the host sorts them.
//
// float64 stands where numbers of a cell or of a frame are made, never where there is one per pixel.
#define BINS 512
#define COARSEST_BITS 12
#define CLIP_SIGMA 2.5
#define CUT_CORRECTION 1.0476
#define USABLE_FRACTION 0.3
#define CUT_OFF_FRACTION 0.15
#define STEP_TO_SIGMA 1.0483
#define MIDMEAN_ERROR 1.092
#define ISOLATED_SHARE 0.4f
#define CEILING_PART 128
#define OWN_SIGMA 3.5f
#define MORE_ON_LIGHT 2.5f
#define LIGHT_SIGMA 6.0f
#define RING_PX 6
#define WIDE_RING_PX 13
#define STRIP_ROWS 32

// What the histograms of a frame are made with, see raw_sky.histogram_bits.
struct Bits {
    int shift, unit;
    double dropped;
};

__device__ __forceinline__ Bits bits_of(const int* bits, const double* dropped, int frame)
{
    return {bits[2 * frame], bits[2 * frame + 1], dropped[frame]};
}

// The pixels of a cell that are counted: whole 2 x 2 windows; none in cells less than 8 px high or wide.
struct Cell {
    int y0, x0, high, wide;
    __device__ __forceinline__ bool usable() const { return high >= 8 && wide >= 8; }
};

__device__ __forceinline__ Cell cell_of(int index, int columns, int cell, int height, int width)
{
    int y0 = index / columns * cell, x0 = index % columns * cell;
    return {y0, x0, (min(height, y0 + cell) - y0) / 2 * 2, (min(width, x0 + cell) - x0) / 2 * 2};
}

template <class T> __device__ __forceinline__ void insert_sorted(T* values, int n, T value)
{
    int k = n;
    while (k > 0 && values[k - 1] > value) {
        values[k] = values[k - 1];
        --k;
    }
    values[k] = value;
}

__device__ __forceinline__ int mirrored(int k, int size) { return k < 0 ? -k : k < size ? k : 2 * size - 2 - k; }

// ------------------------------------------------------------------------------------------ first sweep: the sky

// One thread per cell and phase. Where the histogram begins: a rough median, a third of the bins below it.
extern "C" __global__ void cell_bases(
    const unsigned short* raw, int height, int width, int cell, int columns, int n_cells, const int* bits, int round,
    const int* open, int* bases)
{
    int item = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (item >= 4 * n_cells) return;
    int index = item % n_cells, p = item / n_cells;
    if (open[frame * n_cells + index] != 1) return;
    const unsigned short* plane = raw + (long long)frame * height * width;
    Cell c = cell_of(index, columns, cell, height, width);
    int values[9];
    for (int j = 0; j < 3; ++j) {
        int y = c.y0 + (2 * j + 1) * c.high / 6 / 2 * 2 + p / 2;
        for (int i = 0; i < 3; ++i) {
            int x = c.x0 + (2 * i + 1) * c.wide / 6 / 2 * 2 + p % 2;
            insert_sorted(values, 3 * j + i, (int)plane[(long long)y * width + x]);
        }
    }
    int coarse = bits[2 * frame] + 2 * round;
    bases[4 * (frame * n_cells + index) + p] = (values[4] >> coarse) - BINS / 3;
}

// One thread per 2 x 2 window. steps: count how far pixels lie from the next one of their phase, in every second pair
// of rows, in the cells that end in this round; else the values themselves, in the cells that are open.
extern "C" __global__ void count_values(
    const unsigned short* raw, int height, int width, int cell, int columns, int n_cells, const int* bits, int round,
    int steps, const int* open, const int* bases, int* counts)
{
    int x = 2 * (blockIdx.x * blockDim.x + threadIdx.x), y = 2 * (blockIdx.y * blockDim.y + threadIdx.y);
    int frame = blockIdx.z;
    if (y + 1 >= height || x + 1 >= width) return;
    int index = y / cell * columns + x / cell, place = frame * n_cells + index;
    Cell c = cell_of(index, columns, cell, height, width);
    if (open[place] != (steps ? 2 : 1) || !c.usable()) return;
    if (steps && (((y - c.y0) & 2) || x + 3 >= c.x0 + c.wide)) return;
    const unsigned short* plane = raw + (long long)frame * height * width + (long long)y * width + x;
    int coarse = bits[2 * frame] + 2 * round;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
        const unsigned short* pixel = plane + p / 2 * width + p % 2;
        int value = pixel[0], bin;
        if (steps) {
            int step = value - (int)pixel[2];
            bin = min((step < 0 ? -step : step) >> coarse, BINS - 1);
        } else {
            bin = min(max((value >> coarse) - bases[4 * place + p], 0), BINS - 1);
        }
        atomicAdd(&counts[(4 * (long long)place + p) * BINS + bin], 1);
    }
}

__device__ __forceinline__ double quantile(const int* counts, int first, int last, double rank)
{
    int below = 0;
    for (int b = first; b <= last; ++b) {
        int n = counts[b];
        if ((double)(below + n) > rank) return (double)b + (rank - (double)below + 0.5) / (double)n - 0.5;
        below += n;
    }
    return (double)last;
}

struct Centre {
    double centre, sigma, left;
    int kept;
    bool inside;
};

// raw_sky._clipped_centre
__device__ __forceinline__ Centre clipped_centre(const int* counts, int total)
{
    int first = 0, last = BINS - 1;
    while (first < BINS - 1 && counts[first] == 0) ++first;
    while (last > 0 && counts[last] == 0) --last;
    double middle = quantile(counts, first, last, 0.5 * (double)(total - 1));
    double sigma = middle - quantile(counts, first, last, 0.1587 * (double)(total - 1));
    if (!(sigma > 0.5)) sigma = 0.5;
    int low = first, high = last, n = total;
    for (int round = 0; round < 10; ++round) {
        int a = max((int)ceil(middle - CLIP_SIGMA * sigma), first);
        int b = min((int)floor(middle + CLIP_SIGMA * sigma), last);
        int centre = (int)floor(middle + 0.5);
        long long s0 = 0, s1 = 0, s2 = 0;
        for (int k = a; k <= b; ++k) {
            long long c = counts[k], d = k - centre;
            s0 += c;
            s1 += c * d;
            s2 += c * d * d;
        }
        if (s0 < 4 || (a == low && b == high)) break;
        low = a;
        high = b;
        n = (int)s0;
        middle = quantile(counts, low, high, 0.5 * (double)(n - 1));
        double delta = middle - (double)centre;
        double squares = (double)s2 - 2.0 * delta * (double)s1 + delta * delta * (double)s0;
        if (!(squares > 0.0)) squares = 0.0;
        sigma = sqrt(squares / (double)(n - 1)) * CUT_CORRECTION;
        if (!(sigma > 0.25)) sigma = 0.25;
    }
    double quarter = 0.25 * (double)n, seen = 0.0, light = 0.0;
    for (int k = low; k <= high; ++k) {
        double end = seen + (double)counts[k];
        double upper = (double)n - quarter < end ? (double)n - quarter : end;
        double part = upper - (quarter > seen ? quarter : seen);
        if (part > 0.0) light += part * (double)k;
        seen = end;
    }
    return {light / ((double)n - 2.0 * quarter), sigma, 0.0, n, low > 0 && high < BINS - 1};
}

// raw_sky._centre_above_floor; table: raw_sky.floor_quantiles of this number of pixels.
__device__ __forceinline__ Centre centre_above_floor(const int* counts, int bottom, int total, const double* table)
{
    int last = BINS - 1;
    while (last > bottom && counts[last] == 0) --last;
    int zeros = counts[bottom];
    if (last == bottom || (double)zeros / (double)total > 0.99) return {(double)bottom, 0.25, 0.25, zeros, true};
    double above = quantile(counts, bottom, last, (double)zeros + 0.5 * (double)(total - zeros)) - (double)bottom;
    double of_floor = table[2 * zeros];
    double sigma = above / (table[2 * zeros + 1] - of_floor);
    if (!(sigma > 0.5)) sigma = 0.5;
    double top = (double)bottom + (CLIP_SIGMA - of_floor) * sigma;
    long long s0 = 0, s1 = 0, s2 = 0;
    int end = top < (double)last ? (int)top : last;
    for (int k = bottom; k <= end; ++k) {
        long long c = counts[k], d = k - bottom;
        s0 += c;
        s1 += c * d;
        s2 += c * d * d;
    }
    double mean = (double)s1 / (double)s0;
    double variance = (double)s2 / (double)s0 - mean * mean;
    double left = sqrt(variance > 0.0 ? variance : 0.0);
    return {(double)bottom + mean, sigma, left > 0.25 ? left : 0.25, (int)s0, top < (double)(BINS - 1)};
}

// One thread per cell and phase. tables: raw_sky.floor_quantiles of inner cells, those at the right, at the bottom, in
// the corner, table_size doubles each. Results (4, n_cells) per frame.
extern "C" __global__ void cell_centres(
    int height, int width, int cell, int columns, int n_cells, const int* bits, const double* dropped, int round,
    const double* tables, int table_size, const int* open, const int* bases, const int* counts, float* level,
    float* error, float* spread, double* left, unsigned char* cut_off, int* fits)
{
    int item = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (item >= 4 * n_cells) return;
    int index = item % n_cells, p = item / n_cells;
    if (open[frame * n_cells + index] != 1) return;
    Cell c = cell_of(index, columns, cell, height, width);
    int place = 4 * (frame * n_cells + index) + p, out = frame * 4 * n_cells + item;
    int total = c.high * c.wide / 4, base = bases[place], bottom = -base;
    const int* own = counts + (long long)place * BINS;
    Bits numbers = bits_of(bits, dropped, frame);
    bool cut = bottom >= 0 && bottom < BINS && (double)own[bottom] > CUT_OFF_FRACTION * (double)total;
    int kind = (c.x0 + cell >= width) + 2 * (c.y0 + cell >= height);
    Centre found = cut ? centre_above_floor(own, bottom, total, tables + (long long)kind * table_size)
                       : clipped_centre(own, total);
    if (cut) left[out] = found.left;
    cut_off[out] = cut;
    fits[place] = found.inside;
    if (found.inside && (double)found.kept >= USABLE_FRACTION * (double)total) {
        double scale = (double)(1 << (numbers.shift + 2 * round));
        double offset = numbers.dropped + 0.5 * (scale - (double)(1 << numbers.shift));
        level[out] = (float)((found.centre + (double)base) * scale + offset);
        spread[out] = (float)(found.sigma * scale);
        error[out] = (float)(MIDMEAN_ERROR * found.sigma * scale / sqrt((double)found.kept));
    } else {
        level[out] = __int_as_float(0x7fc00000);
    }
}

// One thread per cell: what ended in the round before is closed, what fits now ends. still_open: how many go on.
extern "C" __global__ void close_cells(
    int n_cells, const int* bits, int round, const int* fits, int* open, int* still_open)
{
    int index = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (index >= n_cells) return;
    int place = frame * n_cells + index, state = open[place];
    if (state == 2) open[place] = 0;
    if (state != 1) return;
    const int* own = fits + 4 * place;
    bool ends = (own[0] && own[1] && own[2] && own[3]) || bits[2 * frame] + 2 * round >= COARSEST_BITS;
    if (ends) open[place] = 2;
    else atomicAdd(still_open, 1);
}

// One thread per cell and phase that ends in this round: the noise that its steps tell; no sky, no numbers.
extern "C" __global__ void cell_steps(
    int height, int width, int cell, int columns, int n_cells, const int* bits, int round, const int* open,
    const int* counts, const double* left, const unsigned char* cut_off, const float* level, float* error,
    float* spread, float* steps)
{
    int item = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (item >= 4 * n_cells) return;
    int index = item % n_cells, p = item / n_cells;
    if (open[frame * n_cells + index] != 2) return;
    int place = 4 * (frame * n_cells + index) + p, out = frame * 4 * n_cells + item;
    if (!(level[out] == level[out])) {
        error[out] = spread[out] = level[out];
        return;
    }
    double scale = (double)(1 << (bits[2 * frame] + 2 * round));
    if (cut_off[out]) {
        steps[out] = (float)(left[out] * scale);
        return;
    }
    Cell c = cell_of(index, columns, cell, height, width);
    int pairs = (c.high + 3) / 4 * (c.wide / 2 - 1);
    double middle = quantile(counts + (long long)place * BINS, 0, BINS - 1, 0.5 * (double)(pairs - 1));
    double half = 0.5 * (double)(1 << bits[2 * frame + 1]) / scale;
    middle = middle < 0.5 ? (middle + 0.5) * (1.0 - half) : middle + 0.5 - half;
    double sigma = STEP_TO_SIGMA * middle;
    steps[out] = (float)((sigma > 0.25 ? sigma : 0.25) * scale);
}

// ------------------------------------------------------------------------------------------ second sweep: defects

struct Isolation {
    float own, around, kin, scatter;
};

__device__ __forceinline__ float middle_of(const float* values, int n)
{
    return 0.5f * (values[(n - 1) / 2] + values[n / 2]);
}

// raw_defects.isolation
__device__ __forceinline__ Isolation isolation(const unsigned short* plane, int height, int width, int y, int x)
{
    float patch[7][7], values[12];
#pragma unroll
    for (int j = 0; j < 7; ++j) {
        const unsigned short* line = plane + (long long)mirrored(y + j - 3, height) * width;
#pragma unroll
        for (int i = 0; i < 7; ++i) patch[j][i] = (float)line[mirrored(x + i - 3, width)];
    }
    int n = 0;
    for (int j = 1; j < 6; j += 2)
        for (int i = 1; i < 6; i += 2)
            if (j != 3 || i != 3) insert_sorted(values, n++, patch[j][i]);
    Isolation found;
    found.kin = middle_of(values, 8);
    found.scatter = (values[6] - values[1]) * (float)(1.0 / 1.70);
    found.own = patch[3][3] - found.kin;
    n = 0;
    for (int j = 1; j < 6; j += 2) {
        insert_sorted(values, n++, patch[j][0]);
        insert_sorted(values, n++, patch[j][6]);
    }
    float sides = patch[3][2] + patch[3][4] - 2.0f * middle_of(values, 6);
    n = 0;
    for (int i = 1; i < 6; i += 2) {
        insert_sorted(values, n++, patch[0][i]);
        insert_sorted(values, n++, patch[6][i]);
    }
    float ends = patch[2][3] + patch[4][3] - 2.0f * middle_of(values, 6);
    n = 0;
    float corners = 0.0f;
    for (int j = 0; j < 7; j += 2)
        for (int i = 0; i < 7; i += 2) {
            if ((j == 2 || j == 4) && (i == 2 || i == 4)) corners += patch[j][i];
            else insert_sorted(values, n++, patch[j][i]);
        }
    corners -= 4.0f * middle_of(values, 12);
    found.around = sides + ends + corners;
    return found;
}

// One thread per pixel. sky, noise: (4, n_cells) per frame; usable: per frame, whether its noise is known everywhere.
// Up to `capacity` are listed per frame, each by its place and the bits of its significance; n_found counts all of them.
extern "C" __global__ void find_defects(
    const unsigned short* raw, int height, int width, int cell, int columns, int n_cells, const float* sky,
    const float* noise, const int* usable, float limit, int capacity, int* defects, int* n_found)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, frame = blockIdx.z;
    if (y >= height || x >= width || !usable[frame]) return;
    const unsigned short* plane = raw + (long long)frame * height * width;
    const unsigned short* line = plane + (long long)y * width;
    int at = (4 * frame + 2 * (y & 1) + (x & 1)) * n_cells + y / cell * columns + x / cell;
    int v = line[x];
    float margin = limit * noise[at];
    int high = (int)(sky[at] + margin), low = (int)(sky[at] - margin);
    if (low <= v && v <= high) return;
    int left = line[mirrored(x - 2, width)], right = line[mirrored(x + 2, width)];
    int above = plane[(long long)mirrored(y - 2, height) * width + x];
    int below = plane[(long long)mirrored(y + 2, height) * width + x];
    float sign = v > high ? 1.0f : -1.0f;
    // Only the highest, or lowest, of its kin along both axes is worth a closer look.
    if (v > high ? v < left || v < right || v < above || v < below : v > left || v > right || v > above || v > below)
        return;
    Isolation found = isolation(plane, height, width, y, x);
    float own = found.own * sign, around = found.around * sign;
    float half = 0.5f * found.scatter, unit = noise[at] > half ? noise[at] : half;
    if (!(own > limit * unit && around < ISOLATED_SHARE * own)) return;
    int k = atomicAdd(&n_found[frame], 1);
    if (k >= capacity) return;
    int* listed = defects + 2 * ((long long)frame * capacity + k);
    listed[0] = y * width + x;
    listed[1] = __float_as_int(sign * own / unit);
}

// What strong defects are replaced by, from pixels as they were; then the pixels: one thread per entry of the lists.
extern "C" __global__ void fresh_values(
    const unsigned short* raw, int height, int width, float least, int capacity, const int* defects,
    const int* n_found, unsigned short* fresh)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (k >= min(n_found[frame], capacity)) return;
    long long at = (long long)frame * capacity + k;
    if (fabsf(__int_as_float(defects[2 * at + 1])) < least) return;
    const unsigned short* plane = raw + (long long)frame * height * width;
    int place = defects[2 * at];
    fresh[at] = (unsigned short)isolation(plane, height, width, place / width, place % width).kin;
}

extern "C" __global__ void mend_defects(
    unsigned short* raw, int height, int width, float least, int capacity, const int* defects, const int* n_found,
    const unsigned short* fresh)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (k >= min(n_found[frame], capacity)) return;
    long long at = (long long)frame * capacity + k;
    if (fabsf(__int_as_float(defects[2 * at + 1])) < least) return;
    raw[(long long)frame * height * width + defects[2 * at]] = fresh[at];
}

// ------------------------------------------------------------------------------------------ second sweep: ceilings

// The pixel or the highest of its four nearest kin, whichever is lower.
__device__ __forceinline__ int shared_value(const unsigned short* plane, int height, int width, int y, int x)
{
    const unsigned short* line = plane + (long long)y * width;
    int best = max((int)line[mirrored(x - 2, width)], (int)line[mirrored(x + 2, width)]);
    best = max(best, (int)plane[(long long)mirrored(y - 2, height) * width + x]);
    best = max(best, (int)plane[(long long)mirrored(y + 2, height) * width + x]);
    return min((int)line[x], best);
}

// One thread per column of STRIP_ROWS rows. evidence: per frame and phase as raw_defects.ceilings; here its first
// number.
extern "C" __global__ void ceiling_tops(const unsigned short* raw, int height, int width, int* evidence)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y0 = blockIdx.y * STRIP_ROWS, frame = blockIdx.z;
    if (x >= width) return;
    const unsigned short* plane = raw + (long long)frame * height * width;
    int tops[2] = {0, 0};
    for (int y = y0; y < min(height, y0 + STRIP_ROWS); ++y) {
        if ((int)plane[(long long)y * width + x] <= tops[y & 1]) continue;
        tops[y & 1] = max(tops[y & 1], shared_value(plane, height, width, y, x));
    }
    for (int py = 0; py < 2; ++py) {
        int* top = evidence + 4 * (4 * frame + 2 * py + (x & 1));
        if (tops[py] > *(volatile int*)top) atomicMax(top, tops[py]);
    }
}

extern "C" __global__ void ceiling_counts(const unsigned short* raw, int height, int width, int* evidence)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y0 = blockIdx.y * STRIP_ROWS, frame = blockIdx.z;
    if (x >= width) return;
    const unsigned short* plane = raw + (long long)frame * height * width;
    int* own[2];
    int bound[2], step[2], sums[2][3] = {{0, 0, 0}, {0, 0, 0}};
    for (int py = 0; py < 2; ++py) {
        own[py] = evidence + 4 * (4 * frame + 2 * py + (x & 1));
        step[py] = own[py][0] / CEILING_PART;
        bound[py] = own[py][0] - step[py];
    }
    for (int y = y0; y < min(height, y0 + STRIP_ROWS); ++y) {
        int v = plane[(long long)y * width + x], py = y & 1;
        if (v >= bound[py]) {
            sums[py][0] += 1;
            sums[py][1] += shared_value(plane, height, width, y, x) >= bound[py];
        } else if (v >= bound[py] - step[py]) {
            sums[py][2] += 1;
        }
    }
    for (int py = 0; py < 2; ++py)
        for (int k = 0; k < 3; ++k)
            if (sums[py][k]) atomicAdd(&own[py][1 + k], sums[py][k]);
}

// ------------------------------------------------------------------------------------------ second sweep: maxima

// (1 3 4 3 1) along the rows, of 2 x 2 windows behind a colour filter array; 0 where it does not reach.
extern "C" __global__ void smooth_along(const unsigned short* raw, int height, int width, int is_cfa, int* along)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, frame = blockIdx.z;
    if (y >= height || x >= width) return;
    const unsigned short* line = raw + (long long)frame * height * width + (long long)y * width;
    int sum = 0;
    if (x >= 2 && x < width - 2 - is_cfa) {
        const unsigned short* below = y + 1 < height ? line + width : line;
        int v[6];
#pragma unroll
        for (int i = 0; i < 6; ++i)
            v[i] = i < 5 + is_cfa ? (int)line[x + i - 2] + (is_cfa ? (int)below[x + i - 2] : 0) : 0;
        sum = is_cfa ? (v[0] + v[5]) + 4 * (v[1] + v[4]) + 7 * (v[2] + v[3])
                     : (v[0] + v[4]) + 3 * (v[1] + v[3]) + 4 * v[2];
    }
    along[(long long)frame * height * width + (long long)y * width + x] = sum;
}

extern "C" __global__ void smooth_across(const int* along, int height, int width, int* smooth)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, frame = blockIdx.z;
    if (y < 2 || y >= height - 2 || x >= width) return;
    long long place = (long long)frame * height * width + (long long)y * width + x;
    const int* v = along + place;
    smooth[place] = (v[-2 * width] + v[2 * width]) + 3 * (v[-width] + v[width]) + 4 * v[0];
}

// raw_maxima._surroundings
__device__ __forceinline__ int surroundings(
    const int* smooth, int width, int y, int x, int ring_px, int low, int high_y, int high_x)
{
    int diagonal = 2 * ring_px / 3;
    int left = max(x - diagonal, low), right = min(x + diagonal, high_x);
    const int* here = smooth + (long long)y * width;
    const int* upper = smooth + (long long)max(y - diagonal, low) * width;
    const int* lower = smooth + (long long)min(y + diagonal, high_y) * width;
    int ring[8];
    insert_sorted(ring, 0, here[max(x - ring_px, low)]);
    insert_sorted(ring, 1, here[min(x + ring_px, high_x)]);
    insert_sorted(ring, 2, smooth[(long long)max(y - ring_px, low) * width + x]);
    insert_sorted(ring, 3, smooth[(long long)min(y + ring_px, high_y) * width + x]);
    insert_sorted(ring, 4, upper[left]);
    insert_sorted(ring, 5, upper[right]);
    insert_sorted(ring, 6, lower[left]);
    insert_sorted(ring, 7, lower[right]);
    return (int)(((long long)ring[1] + ring[2] + ring[3]) / 3);
}

// One thread per pixel. limit, sky, noise: (n_cells,) per frame, of the smoothed light; row_share: how far each pixel
// row lies from the middle of the cell above it to that of the next. maxima: 4 numbers each, up to one per 2 x 2
// pixels, for two maxima never touch: 4 (y width + x) + which of the two rings lets it pass, light, that of either ring.
extern "C" __global__ void list_maxima(
    const int* smoothed, int height, int width, int is_cfa, int cell, int n_rows, int columns, const float* limit,
    const float* sky, const float* noise, const float* row_share, const int* usable, int capacity, int* maxima,
    int* n_found)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, frame = blockIdx.z;
    const int low = 2, high_y = height - 3 - is_cfa, high_x = width - 3 - is_cfa;
    if (y < low + 2 || y > high_y - 2 || x < low + 2 || x > high_x - 2 || !usable[frame]) return;
    const int* smooth = smoothed + (long long)frame * height * width;
    const int* here = smooth + (long long)y * width + x;
    int v = here[0];
    // Of equal neighbours the first one is the maximum.
    if (v <= here[-1] || v < here[1]) return;
    if (v <= here[-width - 1] || v <= here[-width] || v <= here[-width + 1]) return;
    if (v < here[width - 1] || v < here[width] || v < here[width + 1]) return;
    int n_cells = n_rows * columns;
    const float* mesh = limit + frame * n_cells;
    // raw_maxima._mesh_row
    float shift = is_cfa ? 0.5f : 0.0f, fy = row_share[y];
    int j = 2 * y + 1 + is_cfa < cell ? 0 : min((2 * y + 1 + is_cfa - cell) / (2 * cell), max(n_rows - 2, 0));
    int i = x < cell / 2 ? 0 : min((x - cell / 2) / cell, max(columns - 2, 0));
    int under = min(j + 1, n_rows - 1), right = min(i + 1, columns - 1);
    float a = mesh[j * columns + i] + fy * (mesh[under * columns + i] - mesh[j * columns + i]);
    float b = mesh[j * columns + right] + fy * (mesh[under * columns + right] - mesh[j * columns + right]);
    float slope = (b - a) / (float)cell;
    // Multiples of a half below 2^23: exact.
    float start = a + slope * (shift + 0.5f - 0.5f * (float)cell - (float)(i * cell));
    if (v <= (int)(start + slope * (float)x)) return;
    int at = frame * n_cells + min(y / cell, n_rows - 1) * columns + min(x / cell, columns - 1);
    float unit = noise[at];
    int around[2], passed = 0;
#pragma unroll 1
    for (int ring = 0; ring < 2; ++ring) {
        around[ring] = surroundings(smooth, width, y, x, ring ? WIDE_RING_PX : RING_PX, low, high_y, high_x);
        float light = ((float)around[ring] - sky[at]) / (LIGHT_SIGMA * unit);
        light = fminf(fmaxf(light, 0.0f), 1.0f);
        float needed = OWN_SIGMA + MORE_ON_LIGHT * light;
        if (!((float)(v - around[ring]) < needed * unit)) passed |= 1 << ring;
    }
    if (!passed) return;
    int k = atomicAdd(&n_found[frame], 1);
    if (k >= capacity) return;
    int* own = maxima + 4 * ((long long)frame * capacity + k);
    own[0] = 4 * (y * width + x) + passed;
    own[1] = v;
    own[2] = around[0];
    own[3] = around[1];
}

// Put the lists of all frames one behind the other: one thread per entry of `words` numbers.
extern "C" __global__ void pack_lists(
    const int* lists, int words, int capacity, const int* counts, const int* starts, int* packed)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x, frame = blockIdx.z;
    if (k >= min(counts[frame], capacity)) return;
    const int* from = lists + ((long long)frame * capacity + k) * words;
    int* to = packed + ((long long)starts[frame] + k) * words;
    for (int i = 0; i < words; ++i) to[i] = from[i];
}
