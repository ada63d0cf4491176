// Coordinates between the nodes of a pixel map, in whole numbers: the nodes are multiples of 2^-24 px and the steps
// powers of two, so that nothing is rounded.
#define NODE_BITS 24
// A node where the map is undefined.
#define NO_NODE (-(1LL << 44))

// One coordinate inside a cell of the lattice, in units of 2^-(NODE_BITS + 2 shift) px.
__device__ __forceinline__ long long coordinate(
    const long long* node, int below, int cell_y, int cell_x, int shift)
{
    long long left = (node[0] << shift) + cell_y * (node[below] - node[0]);
    long long right = (node[1] << shift) + cell_y * (node[below + 1] - node[1]);
    return (left << shift) + cell_x * (right - left);
}

// What is behind the point of a coordinate with so many bits there, rounded once: both halves are exact as float32.
__device__ __forceinline__ float fraction(long long value, int bits)
{
    int high = (int)(value >> (bits - 18)) & 0x3ffff, low = (int)value & ((1 << (bits - 18)) - 1);
    return (float)high * (1.0f / 262144.0f) + (float)low * __int_as_float((127 - bits) << 23);
}
