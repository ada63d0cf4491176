// From the bytes of a raw frame to colour planes: the CUDA twin of zemosaic_core.cfa and hot_pixels.repair_cfa.
#include "bounds.cuh"
#include "raw.cuh"

// Replace each bad pixel by the median of the good neighbours of the same colour; the next ring only when the nearest
// is all bad, nothing when that is bad too. Good pixels are read, bad ones written: the order does not matter.
// hot: sorted flat indices of the whole frame, each once, all within the window that starts at pixel first.
extern "C" __global__ void mend_hot(
    unsigned short* raw, int coded, const long long* hot, int n_hot, long long first, int height, int width)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_hot) return;
    int y = (int)((hot[k] - first) / width), x = (int)((hot[k] - first) % width);
    float sorted[8];
    int n = 0;
    for (int reach = 2; reach <= 4 && n == 0; reach += 2)
        for (int dy = -reach; dy <= reach; dy += reach)
            for (int dx = -reach; dx <= reach; dx += reach) {
                int j = y + dy, i = x + dx;
                if ((dy == 0 && dx == 0) || j < 0 || j >= height || i < 0 || i >= width) continue;
                long long place = (long long)j * width + i;
                if (is_listed(hot, n_hot, first + place)) continue;
                float value = sensor_value(raw, place, coded);
                int at = n++;
                for (; at > 0 && sorted[at - 1] > value; --at) sorted[at] = sorted[at - 1];
                sorted[at] = value;
            }
    if (n == 0) return;
    float mean = 0.5f * (sorted[(n - 1) / 2] + sorted[n / 2]);
    if (coded == 2) {
        ((float*)raw)[hot[k] - first] = mean;
        return;
    }
    // A frame of integers stays one: the mean of the two middle neighbours is cut.
    unsigned int mended = (unsigned int)mean;
    raw[hot[k] - first] = (unsigned short)(coded ? swapped(mended ^ 0x8000u) : mended);
}

// Index of a pixel; beyond the border mirrored about the border pixel, which keeps the colour.
__device__ __forceinline__ int mirrored(int i, int n)
{
    while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
    return i;
}

__device__ __forceinline__ float light_of(float total, float gain, float zero)
{
    float above = gain * total - zero;
    return (above < 0.0f ? 0.0f : above) + 1.0f;
}

// Share of a difference in the colour measured that goes to the one wanted; see zemosaic_core.cfa.debayer.
__device__ __forceinline__ float share_of(float wanted, float here, float pull)
{
    float most = here * 0.25f;
    most = most < 1.0f ? 1.0f : most;
    float ratio = wanted / here;
    return (ratio > most ? most : ratio) * pull;
}

#define SHARE_ROWS 4

// What every pixel says of the ratio of the colours around it. shares, two planes: of a coloured pixel for green and for
// the other colour, of a green one for the colour of its row and for the other.
// green_first: pixel (0, 0) of the window is green; red_row: parity of the rows that hold red. pull_gr: for green from
// red, and so on. A thread goes down SHARE_ROWS rows of a column.
extern "C" __global__ void colour_shares(
    const unsigned short* raw, int coded, int height, int width, int green_first, int red_row,
    float gain_r, float gain_g, float gain_b, float zero_r, float zero_g, float zero_b,
    float pull_gr, float pull_br, float pull_rg, float pull_bg, float pull_rb, float pull_gb, float* shares)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, top = (blockIdx.y * blockDim.y + threadIdx.y) * SHARE_ROWS;
    if (x >= width || top >= height) return;
    int column[7];
#pragma unroll
    for (int k = 0; k < 7; ++k) column[k] = mirrored(x + k - 3, width);
    float seen[SHARE_ROWS + 6][7];
#pragma unroll
    for (int j = 0; j < SHARE_ROWS + 6; ++j) {
        long long row = (long long)mirrored(min(top + j - 3, height + 2), height) * width;
#pragma unroll
        for (int k = 0; k < 7; ++k) seen[j][k] = sensor_value(raw, row + column[k], coded);
    }
    long long plane = (long long)height * width;
#pragma unroll
    for (int j = 0; j < SHARE_ROWS; ++j) {
        int y = top + j;
        if (y >= height) return;
        // Columns low-passed downwards, over the rows of this row's kind and over the others.
        float own[7], other[7];
#pragma unroll
        for (int k = 0; k < 7; ++k) {
            own[k] = 20.0f * seen[j + 3][k] + 6.0f * (seen[j + 1][k] + seen[j + 5][k]);
            other[k] = 15.0f * (seen[j + 2][k] + seen[j + 4][k]) + (seen[j][k] + seen[j + 6][k]);
        }
        float here = 20.0f * own[3] + 6.0f * (own[1] + own[5]);
        float beside = 15.0f * (own[2] + own[4]) + (own[0] + own[6]);
        float above = 20.0f * other[3] + 6.0f * (other[1] + other[5]);
        float corner = 15.0f * (other[2] + other[4]) + (other[0] + other[6]);
        bool is_green = ((x & 1) == 0) == ((green_first != 0) == ((y & 1) == 0));
        bool red_here = (y & 1) == red_row;
        float gain_same = red_here ? gain_r : gain_b, zero_same = red_here ? zero_r : zero_b;
        float gain_far = red_here ? gain_b : gain_r, zero_far = red_here ? zero_b : zero_r;
        float first, second;
        if (is_green) {
            float green = light_of(here + corner, gain_g, zero_g);
            first = share_of(light_of(beside, gain_same, zero_same), green, red_here ? pull_rg : pull_bg);
            second = share_of(light_of(above, gain_far, zero_far), green, red_here ? pull_bg : pull_rg);
        } else {
            float same = light_of(here, gain_same, zero_same);
            first = share_of(light_of(beside + above, gain_g, zero_g), same, red_here ? pull_gr : pull_gb);
            second = share_of(light_of(corner, gain_far, zero_far), same, red_here ? pull_br : pull_rb);
        }
        long long place = (long long)y * width + x;
        shares[place] = first;
        shares[plane + place] = second;
    }
}

__device__ __forceinline__ float bounded(float mean, float change, float sky, float depth)
{
    float value = mean + change, bound = (mean > sky ? sky : mean) - depth;
    return value < bound ? bound : value;
}

// Missing colours: the mean of the neighbours plus differences of the colour measured, each with the shares of both its
// pixels. planes: red, green, blue.
extern "C" __global__ void debayer_raw(
    const unsigned short* raw, int coded, int height, int width, int green_first, int red_row, const float* shares,
    float sky_r, float sky_g, float sky_b, float depth_r, float depth_g, float depth_b, float* planes)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int x_1 = mirrored(x - 1, width), x1 = mirrored(x + 1, width);
    int x_2 = mirrored(x - 2, width), x2 = mirrored(x + 2, width);
    long long here = (long long)y * width;
    long long up = (long long)mirrored(y - 1, height) * width, below = (long long)mirrored(y + 1, height) * width;
    long long up2 = (long long)mirrored(y - 2, height) * width, below2 = (long long)mirrored(y + 2, height) * width;
    long long plane = (long long)height * width, place = here + x;
    const float* second = shares + plane;
#define AT(place) sensor_value(raw, place, coded)
#define DIFFERENCE(shares, place) ((shares[place] + share) * (value - AT(place)))
    bool is_green = ((x & 1) == 0) == ((green_first != 0) == ((y & 1) == 0));
    bool red_here = (y & 1) == red_row;
    float sky_same = red_here ? sky_r : sky_b, depth_same = red_here ? depth_r : depth_b;
    float sky_far = red_here ? sky_b : sky_r, depth_far = red_here ? depth_b : depth_r;
    float value = AT(place), same, green, other;
    // Pixels of this row's kind, along the row and down the column, with the shares of `which`.
#define ALONG(which) (DIFFERENCE(which, here + x_2) + DIFFERENCE(which, here + x2))
#define DOWN(which) (DIFFERENCE(which, up2 + x) + DIFFERENCE(which, below2 + x))
#define CORNERS(which)                                                         \
    ((DIFFERENCE(which, up + x_1) + DIFFERENCE(which, up + x1))                \
     + (DIFFERENCE(which, below + x_1) + DIFFERENCE(which, below + x1)))
    if (is_green) {
        green = value;
        // In the rows above and below the colours have changed places.
        float share = shares[place];
        float mean = 0.5f * (AT(here + x_1) + AT(here + x1));
        same = bounded(mean, (CORNERS(second) + ALONG(shares)) - 0.5f * DOWN(shares), sky_same, depth_same);
        share = second[place];
        mean = 0.5f * (AT(up + x) + AT(below + x));
        other = bounded(mean, (CORNERS(shares) + DOWN(second)) - 0.5f * ALONG(second), sky_far, depth_far);
    } else {
        same = value;
        float share = shares[place];
        float mean = 0.25f * ((AT(here + x_1) + AT(here + x1)) + (AT(up + x) + AT(below + x)));
        green = bounded(mean, ALONG(shares) + DOWN(shares), sky_g, depth_g);
        share = second[place];
        mean = 0.25f * ((AT(up + x_1) + AT(up + x1)) + (AT(below + x_1) + AT(below + x1)));
        other = bounded(mean, ALONG(second) + DOWN(second), sky_far, depth_far);
    }
    planes[place] = red_here ? same : other;
    planes[plane + place] = green;
    planes[2 * plane + place] = red_here ? other : same;
}

// Turn what clipped pixels decide into NaN that hold a lower bound: the CUDA twin of
// zemosaic_core.clipped_light.mark_clipped_cfa. raw: repaired, as it was debayered.
extern "C" __global__ void mark_clipped(
    const unsigned short* raw, int coded, int height, int width, int green_first, int red_row,
    float level_r, float level_g, float level_b, float* planes)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const float levels[3] = {level_r, level_g, level_b};
    bool near[3] = {false, false, false};
    int own = 0;
    bool cut = false;
    for (int j = max(0, y - 1); j < min(height, y + 2); ++j)
        for (int i = max(0, x - 1); i < min(width, x + 2); ++i) {
            bool is_green = ((i & 1) == 0) == ((green_first != 0) == ((j & 1) == 0));
            int colour = is_green ? 1 : (j & 1) == red_row ? 0 : 2;
            bool over = sensor_value(raw, (long long)j * width + i, coded) >= levels[colour];
            near[colour] = near[colour] || over;
            if (j == y && i == x) {
                own = colour;
                cut = over;
            }
        }
    for (int c = 0; c < 3; ++c) {
        float* value = planes + (long long)c * height * width + (long long)y * width + x;
        if (c == own ? cut : near[c]) *value = with_bound(levels[c]);
        else if (cut && finite_value(*value)) *value = with_bound(*value);
    }
}

// Make all channels missing on spans of pixels: row of the whole image, first column, end. The window begins at row y0.
extern "C" __global__ void mask_spans(
    const int* spans, int n_spans, int y0, int height, int width, int n_channels, float* planes)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_spans) return;
    int y = spans[3 * k] - y0, first = max(0, spans[3 * k + 1]), end = min(width, spans[3 * k + 2]);
    if (y < 0 || y >= height) return;
    for (int c = 0; c < n_channels; ++c)
        for (int x = first; x < end; ++x)
            planes[((long long)c * height + y) * width + x] = MISSING;
}
