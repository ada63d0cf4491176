// From the bytes of a raw frame to colour planes: the CUDA twin of zemosaic_core.cfa and hot_pixels.repair_cfa.
#define MISSING __int_as_float(0x7fc00000)

// One thread per pixel. big_endian_signed: FITS int16 with BZERO 32768 exactly as in the file, that is the bytes
// swapped and the top bit inverted; otherwise native unsigned 16 bit.
extern "C" __global__ void decode_cfa(const unsigned short* raw, float* cfa, long long n, int big_endian_signed)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned int value = raw[i];
    if (big_endian_signed) value = (((value & 0xffu) << 8) | (value >> 8)) ^ 0x8000u;
    cfa[i] = (float)value;
}

// Remember each bad pixel in values and mark it. hot: sorted flat indices of the whole frame, each once, all within
// the window that starts at pixel first.
extern "C" __global__ void mark_hot(float* cfa, const long long* hot, int n_hot, long long first, float* values)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= n_hot) return;
    values[k] = cfa[hot[k] - first];
    cfa[hot[k] - first] = MISSING;
}

// Median of the good neighbours of the same colour; the next ring only when the nearest is all bad.
extern "C" __global__ void mend_hot(
    const float* cfa, const long long* hot, int n_hot, long long first, int height, int width, float* values)
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
                float value = cfa[(long long)j * width + i];
                if (!(value == value)) continue;
                int at = n++;
                for (; at > 0 && sorted[at - 1] > value; --at) sorted[at] = sorted[at - 1];
                sorted[at] = value;
            }
    // A frame of integers stays one: the mean of the two middle neighbours is cut.
    if (n > 0) values[k] = floorf(0.5f * (sorted[(n - 1) / 2] + sorted[n / 2]));
}

extern "C" __global__ void write_hot(float* cfa, const long long* hot, int n_hot, long long first, const float* values)
{
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < n_hot) cfa[hot[k] - first] = values[k];
}

// Bilinear, neighbours beyond the border mirrored about the border pixel. planes: red, green, blue.
// green_first: pixel (0, 0) of the window is green; red_row: parity of the rows that hold red.
extern "C" __global__ void debayer_cfa(
    const float* cfa, int height, int width, int green_first, int red_row, float* planes)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int left = x > 0 ? x - 1 : 1, right = x + 1 < width ? x + 1 : width - 2;
    const float* here = cfa + (long long)y * width;
    const float* above = cfa + (long long)(y > 0 ? y - 1 : 1) * width;
    const float* below = cfa + (long long)(y + 1 < height ? y + 1 : height - 2) * width;
    bool is_green = ((x & 1) == 0) == ((green_first != 0) == ((y & 1) == 0));
    float same, green, other;
    if (is_green) {
        green = here[x];
        same = 0.5f * (here[left] + here[right]);
        other = 0.5f * (above[x] + below[x]);
    } else {
        same = here[x];
        green = 0.25f * ((here[left] + here[right]) + (above[x] + below[x]));
        other = 0.25f * ((above[left] + above[right]) + (below[left] + below[right]));
    }
    long long plane = (long long)height * width, place = (long long)y * width + x;
    bool red_here = (y & 1) == red_row;
    planes[place] = red_here ? same : other;
    planes[plane + place] = green;
    planes[2 * plane + place] = red_here ? other : same;
}
