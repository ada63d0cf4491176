// Proof of life: a card that runs this compiles, loads and launches kernels.
extern "C" __global__ void smoke(float* out, int n, float a, float b)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a * (float)i + b;
}

// What other kernels are measured against: every byte is read once and written once.
extern "C" __global__ void copy_floats(const float* source, float* target, long long n)
{
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) target[i] = source[i];
}
