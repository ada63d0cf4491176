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

// Where an output pixel comes from, in units of 2^-bits px; outside the lattice its outermost cell goes on. Not defined
// where a node around it is not: then the coordinates say nothing.
struct SourcePlace {
    long long x, y;
    int bits;
    bool defined;
};

// Node (j, i) of the lattice stands (j 2^shift, i 2^shift) from its first, from which rel_y and rel_x count.
__device__ __forceinline__ SourcePlace source_place(
    const long long* node_x, const long long* node_y, long long node_offset, int ny, int nx, int rel_y, int rel_x, int shift)
{
    int j = min(max(rel_y >> shift, 0), ny - 2), i = min(max(rel_x >> shift, 0), nx - 2);
    int cell_y = rel_y - (j << shift), cell_x = rel_x - (i << shift);
    const long long* at_x = node_x + node_offset + (long long)j * nx + i;
    const long long* at_y = node_y + node_offset + (long long)j * nx + i;
    SourcePlace place;
    place.x = coordinate(at_x, nx, cell_y, cell_x, shift);
    place.y = coordinate(at_y, nx, cell_y, cell_x, shift);
    place.bits = NODE_BITS + 2 * shift;
    // A map is undefined in both coordinates or in none.
    place.defined = at_x[0] != NO_NODE && at_x[1] != NO_NODE && at_x[nx] != NO_NODE && at_x[nx + 1] != NO_NODE;
    return place;
}

// Weight of a place for its distance from the nearest edge of its image: rises over `feather` px from `start`.
__device__ __forceinline__ float feathered(SourcePlace place, int image_h, int image_w, float feather,
                                           float start)
{
    long long right = ((long long)(image_w - 1) << place.bits) - place.x;
    long long bottom = ((long long)(image_h - 1) << place.bits) - place.y;
    long long edge = min(min(place.x, right), min(place.y, bottom));
    float way = ((float)(int)(edge >> place.bits) + fraction(edge, place.bits) + 1.0f) / feather;
    float ramp = min(start + (1.0f - start) * way, 1.0f);
    return ramp * ramp * (3.0f - 2.0f * ramp);
}
