// Frames against the sum of the others; twin of kernels/cpu/others.py, which says what the arrays are.

#define THREADS 128
#define ROWS 32
#define N_MOMENTS 10

__device__ inline float2 product(float2 a, float2 b) {
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// Phases exp(-2 pi i shift f), float64 up to the fraction of a turn; one thread for each row and each column.
// The numbers are the shifts (n, 2), then the frequencies of the rows (ky,) and of the columns (kx,).
extern "C"
__global__ void moving_phases(const double *numbers, float2 *ey, float2 *ex, int n, int ky, int kx) {
    const long long k = blockIdx.x;
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= ky + kx) return;
    const double turns = numbers[2 * k + (i >= ky)] * numbers[2LL * n + i];
    float sine, cosine;
    sincospif((float)(2.0 * (turns - rint(turns))), &sine, &cosine);
    float2 *place = i < ky ? ey + k * ky + i : ex + k * kx + i - ky;
    *place = make_float2(cosine, -sine);
}

// Where row y of ky begins in frame t, whose transform has more rows and columns when it reaches higher frequencies.
__device__ inline const float2 *row_of(const float2 *spectra, long long t, int y, int ky, int rows, int columns) {
    return spectra + (t * rows + (y < ky / 2 ? y : y + rows - ky)) * columns;
}

// One thread for each frequency of each place.
extern "C"
__global__ void aligned_sum(const float2 *spectra, const float2 *ey, const float2 *ex, float2 *out, float *power,
                            int n, int ky, int kx, int rows, int columns) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y;
    const long long b = blockIdx.z;
    if (x >= kx) return;
    float2 total = make_float2(0.0f, 0.0f);
    float square = 0.0f;
    for (long long t = b * n; t < (b + 1) * n; ++t) {
        const float2 frame = row_of(spectra, t, y, ky, rows, columns)[x];
        const float2 moved = product(frame, product(ey[t * ky + y], ex[t * kx + x]));
        total.x += moved.x;
        total.y += moved.y;
        square += frame.x * frame.x + frame.y * frame.y;
    }
    out[(b * ky + y) * kx + x] = total;
    power[(b * ky + y) * kx + x] = square;
}

// One block for ROWS rows of one frame of one place; a warp takes a row at a time.
extern "C"
__global__ void correlation_moments(const float2 *spectra, const float2 *total, const float *weights, const int *columns,
                                    const float2 *ey, const float2 *ex, const float *fy, const float *fx, double *out,
                                    int n, int ky, int kx, int rows, int columns_of_frame) {
    const long long frame = blockIdx.x;
    const long long place = frame / n;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = blockIdx.y * ROWS, last = min(ky, first + ROWS);
    float sums[N_MOMENTS] = {};
    for (int y = first + warp; y < last; y += THREADS / 32) {
        const float2 row = ey[frame * ky + y];
        const float gy = fy[y];
        const float2 *values = row_of(spectra, frame, y, ky, rows, columns_of_frame);
        const int used = columns[y];
        for (int x = lane; x < used; x += 32) {
            const float2 moved = product(values[x], product(row, ex[frame * kx + x]));
            const float2 whole = total[(place * ky + y) * kx + x];
            const float2 others = make_float2(whole.x - moved.x, whole.y - moved.y);
            const float w = weights[(long long)y * kx + x], gx = fx[x];
            const float real = w * (moved.x * others.x + moved.y * others.y);
            const float imag = w * (moved.y * others.x - moved.x * others.y);
            const float power = real * real + imag * imag;
            sums[0] += gy * imag;
            sums[1] += gx * imag;
            sums[2] += gy * gy * real;
            sums[3] += gx * gx * real;
            sums[4] += gx * gy * real;
            sums[5] += gy * gy * power;
            sums[6] += gx * gx * power;
            sums[7] += gx * gy * power;
            sums[8] += real;
            sums[9] += power;
        }
    }
    __shared__ float shared[THREADS / 32][N_MOMENTS];
    for (int i = 0; i < N_MOMENTS; ++i) {
        for (int half = 16; half > 0; half /= 2) sums[i] += __shfl_down_sync(0xffffffffu, sums[i], half);
        if (lane == 0) shared[warp][i] = sums[i];
    }
    __syncthreads();
    if (threadIdx.x < N_MOMENTS) {
        double result = 0.0;
        for (int w = 0; w < THREADS / 32; ++w) result += shared[w][threadIdx.x];
        out[(frame * gridDim.y + blockIdx.y) * N_MOMENTS + threadIdx.x] = result;
    }
}

// Sums of values over rings; each block keeps a histogram of its own.
extern "C"
__global__ void ring_sums(const float *values, const int *rings, double *out, long long size, int n_rings) {
    extern __shared__ float histogram[];
    for (int i = threadIdx.x; i < n_rings; i += blockDim.x) histogram[i] = 0.0f;
    __syncthreads();
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size; i += (long long)gridDim.x * blockDim.x)
        atomicAdd(histogram + rings[i], values[i]);
    __syncthreads();
    for (int i = threadIdx.x; i < n_rings; i += blockDim.x)
        if (histogram[i] != 0.0f) atomicAdd(out + i, (double)histogram[i]);
}
