// Terms per channel: gain, offset, plane, four of the radial pattern, then the coefficients of the surface.
#define SURFACE_ORDER 5
#define N_SURFACE ((SURFACE_ORDER + 1) * (SURFACE_ORDER + 2) / 2)
#define N_TERMS (8 + N_SURFACE)

// A polynomial in u and t, powers of t running fastest, by Horner's scheme in both directions.
__device__ float surface_value(const float* surface, float u, float t)
{
    float total = 0.0f;
    const float* place = surface + N_SURFACE;
    for (int i = SURFACE_ORDER; i >= 0; --i) {
        float inner = 0.0f;
        for (int j = 0; j <= SURFACE_ORDER - i; ++j) inner = inner * t + *--place;
        total = total * u + inner;
    }
    return total;
}
