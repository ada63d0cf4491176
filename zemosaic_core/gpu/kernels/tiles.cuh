// Where the samples of a block lie: the CUDA side of zemosaic_core.gpu.tiles.
#include "bounds.cuh"
#define TILE_W 32
#define TILE_H 8

// Place of the sample in `slot` of a tile's n samples, for row and column within the tile.
__device__ __forceinline__ long long sample_place(long long base, int n, int slot, int row, int col)
{
    return base + ((long long)row * n + slot) * TILE_W + col;
}
