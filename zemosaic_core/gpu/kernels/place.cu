// Put registered images among the samples of a block; one thread block per tile.
#include "tiles.cuh"

// planes: (n_channels, height, width) of one image on the rows of the block. weights: one per channel from
// weight_offset; where one is not positive, or the map is not, or the value is not finite, the sample is missing.
// bases, counts: of all tiles; slots: of the tiles of this image from slot_start, row by row.
extern "C" __global__ void place_samples(
    const float* planes, int n_channels, int height, int width, const float* weights, int weight_offset,
    const float* weight_map, int use_map, const long long* bases, const int* counts, const int* slots,
    long long slot_start, int tiles_x, float* values, long long plane, float* maps)
{
    int tile = blockIdx.y * tiles_x + blockIdx.x;
    int x = blockIdx.x * TILE_W + threadIdx.x, y = blockIdx.y * TILE_H + threadIdx.y;
    long long to = sample_place(bases[tile], counts[tile], slots[slot_start + tile], threadIdx.y, threadIdx.x);
    long long from = (long long)y * width + x;
    bool inside = x < width && y < height;
    if (use_map) {
        float share = inside ? weight_map[from] : 0.0f;
        inside = inside && share > 0.0f;
        maps[to] = inside ? share : 0.0f;
    }
    for (int c = 0; c < n_channels; ++c) {
        float value = inside && weights[weight_offset + c] > 0.0f ? planes[(long long)c * height * width + from] : MISSING;
        values[to + c * plane] = finite_value(value) ? value : MISSING;
    }
}
