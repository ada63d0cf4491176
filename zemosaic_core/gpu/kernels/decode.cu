// From the bytes of a raw frame to colour planes: the CUDA twin of zemosaic_core.cfa and hot_pixels.repair_cfa.
//
// Pixels stay as they lie in the file until they are used. coded: FITS int16 with BZERO 32768, that is the bytes
// swapped and the top bit inverted; otherwise native unsigned 16 bit.

__device__ __forceinline__ unsigned int swapped(unsigned int value) { return ((value & 0xffu) << 8) | (value >> 8); }

__device__ __forceinline__ float sensor_value(const unsigned short* pixel, int coded)
{
    unsigned int value = *pixel;
    return (float)(coded ? swapped(value) ^ 0x8000u : value);
}

__device__ __forceinline__ bool is_listed(const long long* hot, int n_hot, long long index)
{
    int low = 0, high = n_hot;
    while (low < high) {
        int middle = (low + high) >> 1;
        if (hot[middle] < index) low = middle + 1;
        else high = middle;
    }
    return low < n_hot && hot[low] == index;
}

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
                float value = sensor_value(raw + place, coded);
                int at = n++;
                for (; at > 0 && sorted[at - 1] > value; --at) sorted[at] = sorted[at - 1];
                sorted[at] = value;
            }
    if (n == 0) return;
    // A frame of integers stays one: the mean of the two middle neighbours is cut.
    unsigned int mended = (unsigned int)(0.5f * (sorted[(n - 1) / 2] + sorted[n / 2]));
    raw[hot[k] - first] = (unsigned short)(coded ? swapped(mended ^ 0x8000u) : mended);
}

// Bilinear, neighbours beyond the border mirrored about the border pixel. planes: red, green, blue.
// green_first: pixel (0, 0) of the window is green; red_row: parity of the rows that hold red.
extern "C" __global__ void debayer_raw(
    const unsigned short* raw, int coded, int height, int width, int green_first, int red_row, float* planes)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int left = x > 0 ? x - 1 : 1, right = x + 1 < width ? x + 1 : width - 2;
    const unsigned short* here = raw + (long long)y * width;
    const unsigned short* above = raw + (long long)(y > 0 ? y - 1 : 1) * width;
    const unsigned short* below = raw + (long long)(y + 1 < height ? y + 1 : height - 2) * width;
#define AT(row, column) sensor_value(row + column, coded)
    bool is_green = ((x & 1) == 0) == ((green_first != 0) == ((y & 1) == 0));
    float same, green, other;
    if (is_green) {
        green = AT(here, x);
        same = 0.5f * (AT(here, left) + AT(here, right));
        other = 0.5f * (AT(above, x) + AT(below, x));
    } else {
        same = AT(here, x);
        green = 0.25f * ((AT(here, left) + AT(here, right)) + (AT(above, x) + AT(below, x)));
        other = 0.25f * ((AT(above, left) + AT(above, right)) + (AT(below, left) + AT(below, right)));
    }
    long long plane = (long long)height * width, place = (long long)y * width + x;
    bool red_here = (y & 1) == red_row;
    planes[place] = red_here ? same : other;
    planes[plane + place] = green;
    planes[2 * plane + place] = red_here ? other : same;
}
