// Proof of life: a card that runs this compiles, loads and launches kernels.
extern "C" __global__ void smoke(float* out, int n, float a, float b)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a * (float)i + b;
}
