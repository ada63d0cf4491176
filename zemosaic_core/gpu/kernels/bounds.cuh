// Samples whose light was cut off: NaN that hold a lower bound, as zemosaic_core.clipped_light says.
#define MISSING __int_as_float(0x7fc00000)
#define BOUND_MARK (-(1 << 22))
#define BOUND_SHIFT 9

__device__ __forceinline__ bool finite_value(float v) { return v - v == 0.0f; }

__device__ __forceinline__ float with_bound(float value)
{
    // 2^-100 stands for what is not positive.
    float least = __int_as_float(27 << 23);
    int bits = __float_as_int(value > least ? value : least);
    return __int_as_float(BOUND_MARK + (bits >> BOUND_SHIFT));
}

// NaN when there is none.
__device__ __forceinline__ float bound_of(float sample)
{
    int held = __float_as_int(sample) - BOUND_MARK;
    if (__float_as_int(sample) >= 0 || held <= 0 || held > (0x7f7fffff >> BOUND_SHIFT)) return MISSING;
    return __int_as_float(held << BOUND_SHIFT);
}
