// Windowed patches of frames; twin of kernels/cpu/patches.py. One block of THREADS for each patch of each frame.

#define THREADS 256

__global__ void cut_patches(const float *images, const int *starts, const float *window, float *out, int n, int my,
                            int mx, int size) {
    const long long job = blockIdx.x;
    const float *corner = images + (job % n) * my * mx + (long long)starts[2 * job] * mx + starts[2 * job + 1];
    const int area = size * size;
    __shared__ double sums[THREADS];
    double total = 0.0;
    for (int i = threadIdx.x; i < area; i += THREADS) total += corner[(long long)(i / size) * mx + i % size];
    sums[threadIdx.x] = total;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    const float mean = (float)(sums[0] / area);
    float *patch = out + job * area;
    for (int i = threadIdx.x; i < area; i += THREADS) {
        const int y = i / size, x = i % size;
        patch[i] = (corner[(long long)y * mx + x] - mean) * (window[y] * window[x]);
    }
}
