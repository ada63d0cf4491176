// Raw pixels as they lie in the file until they are used. coded 1: FITS int16 with BZERO 32768, that is the bytes swapped
// and the top bit inverted; 0: native unsigned 16 bit; 2: float32, calibrated on the host.

__device__ __forceinline__ unsigned int swapped(unsigned int value) { return ((value & 0xffu) << 8) | (value >> 8); }

__device__ __forceinline__ float sensor_value(const unsigned short* raw, long long place, int coded)
{
    if (coded == 2) return ((const float*)raw)[place];
    unsigned int value = raw[place];
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
