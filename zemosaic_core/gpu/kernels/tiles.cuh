// Where the samples of a block lie: the CUDA side of zemosaic_core.gpu.tiles.
#define TILE_W 32
#define TILE_H 8
#define MISSING __int_as_float(0x7fc00000)

__device__ __forceinline__ bool finite_value(float v) { return v - v == 0.0f; }

// Place of the sample in `slot` of a tile's n samples, for row and column within the tile.
__device__ __forceinline__ long long sample_place(long long base, int n, int slot, int row, int col)
{
    return base + ((long long)row * n + slot) * TILE_W + col;
}
