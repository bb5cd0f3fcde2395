// Windowed patches of frames; twin of kernels/cpu/patches.py. One block for each patch of each frame, a warp a row.

#define WARPS 8

extern "C"
__global__ void cut_patches(const float *images, const int *starts, const float *window, float *out, int n, int my,
                            int mx, int size) {
    const long long job = blockIdx.x;
    const float *corner = images + (job % n) * my * mx + (long long)starts[2 * job] * mx + starts[2 * job + 1];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double total = 0.0;
    for (int y = warp; y < size; y += WARPS) {
        const float *row = corner + (long long)y * mx;
        float part = 0.0f;
        for (int x = lane; x < size; x += 32) part += row[x];
        total += part;
    }
    for (int half = 16; half > 0; half /= 2) total += __shfl_xor_sync(0xffffffffu, total, half);
    __shared__ double sums[WARPS];
    if (lane == 0) sums[warp] = total;
    __syncthreads();
    total = 0.0;
    for (int w = 0; w < WARPS; ++w) total += sums[w];
    const float mean = (float)(total / ((double)size * size));
    float *patch = out + job * size * size;
    for (int y = warp; y < size; y += WARPS) {
        const float *row = corner + (long long)y * mx;
        for (int x = lane; x < size; x += 32) patch[y * size + x] = (row[x] - mean) * (window[y] * window[x]);
    }
}
