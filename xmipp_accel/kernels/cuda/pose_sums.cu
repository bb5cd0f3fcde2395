// Sums for the score of aligned pairs and its derivatives; see kernels/reference/pose_sums.py. A block takes a pair
// and its sums do not depend on the order in which blocks run.
//
// turned: (pairs, rings, 3, angles); samples, phases: (pairs, rings, angles); factors: (rings,);
// frequencies: (2, rings, angles); out: (pairs, 10).

constexpr int SUMS = 10, THREADS = 128, WARPS = THREADS / 32;

extern "C"
__global__ void __launch_bounds__(THREADS)
pose_sums(const float2* __restrict__ turned, const float2* __restrict__ samples, const float2* __restrict__ phases,
          const float* __restrict__ factors, const float* __restrict__ frequencies, int rings, int angles,
          double* __restrict__ out)
{
    const int size = rings * angles;
    const size_t first = static_cast<size_t>(blockIdx.x) * size;
    float sums[SUMS] = {};
    for (int place = threadIdx.x; place < size; place += THREADS) {
        const int ring = place / angles;
        const float2 sample = samples[first + place], phase = phases[first + place];
        const float factor = factors[ring], ky = frequencies[place], kx = frequencies[size + place];
        const float re = factor * (sample.x * phase.x - sample.y * phase.y);
        const float im = factor * (sample.x * phase.y + sample.y * phase.x);
        const float2* r = turned + 3 * first + 2 * ring * angles + place;
        const float2 plain = r[0], turning = r[angles], twice = r[2 * angles];
        const float real = plain.x * re + plain.y * im, imaginary = plain.x * im - plain.y * re;
        const float slope = turning.y * re - turning.x * im;
        sums[0] += real;
        sums[1] += turning.x * re + turning.y * im;
        sums[2] -= imaginary * ky;
        sums[3] -= imaginary * kx;
        sums[4] += twice.x * re + twice.y * im;
        sums[5] += slope * ky;
        sums[6] += slope * kx;
        sums[7] -= real * ky * ky;
        sums[8] -= real * ky * kx;
        sums[9] -= real * kx * kx;
    }
    __shared__ double of_warps[WARPS][SUMS];
    for (int i = 0; i < SUMS; ++i) {
        double sum = sums[i];
        for (int step = 16; step; step /= 2)
            sum += __shfl_down_sync(~0u, sum, step);
        if (threadIdx.x % 32 == 0)
            of_warps[threadIdx.x / 32][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < SUMS) {
        double sum = 0;
        for (int warp = 0; warp < WARPS; ++warp)
            sum += of_warps[warp][threadIdx.x];
        out[blockIdx.x * SUMS + threadIdx.x] = sum;
    }
}
