// Solutions of positive definite systems whose matrices are factored into L L^T. One block for each system.
// cuSOLVER's solver for a single right-hand side waits for each unknown; this one waits for 32 of them at a time.

#define PANEL 32
#define WARPS 8
#define ALL 0xffffffffu

// Rows first .. of L up to the diagonal, which is inverted; zeros beyond n.
__device__ void load_panel(const double *factor, int first, int n, double (*panel)[PANEL + 1]) {
    for (int k = threadIdx.x; k < PANEL * PANEL; k += blockDim.x) {
        const int i = k / PANEL, j = k % PANEL;
        double value = first + i < n && j <= i ? factor[(long long)(first + i) * n + first + j] : 0.0;
        panel[i][j] = i == j && value != 0.0 ? 1.0 / value : value;
    }
}

extern "C"
__global__ void solve_factored(const double *factors, const double *right, double *out, int n) {
    extern __shared__ double x[];
    __shared__ double panel[PANEL][PANEL + 1];
    const double *factor = factors + (long long)blockIdx.x * n * n;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = right[(long long)blockIdx.x * n + i];
    for (int first = 0; first < n; first += PANEL) {  // L y = b
        load_panel(factor, first, n, panel);
        __syncthreads();
        for (int i = first + warp; i < min(first + PANEL, n); i += WARPS) {
            double sum = 0.0;
#pragma unroll 4
            for (int k = lane; k < first; k += 32) sum += factor[(long long)i * n + k] * x[k];
            for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(ALL, sum, half);
            if (lane == 0) x[i] -= sum;
        }
        __syncthreads();
        if (warp == 0) {
            double value = first + lane < n ? x[first + lane] : 0.0;
            for (int j = 0; j < PANEL; ++j) {
                const double solved = __shfl_sync(ALL, value, j) * panel[j][j];
                if (lane == j) value = solved;
                if (lane > j) value -= panel[lane][j] * solved;
            }
            if (first + lane < n) x[first + lane] = value;
        }
        __syncthreads();
    }
    for (int first = (n - 1) / PANEL * PANEL; first >= 0; first -= PANEL) {  // L^T x = y
        load_panel(factor, first, n, panel);
        __syncthreads();
        if (warp == 0) {
            double value = first + lane < n ? x[first + lane] : 0.0;
            for (int j = PANEL - 1; j >= 0; --j) {
                const double solved = __shfl_sync(ALL, value, j) * panel[j][j];
                if (lane == j) value = solved;
                if (lane < j) value -= panel[j][lane] * solved;
            }
            if (first + lane < n) x[first + lane] = value;
        }
        __syncthreads();
        const int last = min(first + PANEL, n);
        for (int k = threadIdx.x; k < first; k += blockDim.x) {
            double sum = 0.0;
#pragma unroll 8
            for (int i = first; i < last; ++i) sum += factor[(long long)i * n + k] * x[i];
            x[k] -= sum;
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[(long long)blockIdx.x * n + i] = x[i];
}
