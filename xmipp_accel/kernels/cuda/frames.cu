// Passes over the pixels of frames; twin of kernels/cpu/frames.py, which says what the arrays are.

template <typename T>
__device__ inline float clean(const T *frame, const float *dark, const float *gain, long long i) {
    float value = frame[i];
    if (dark) value -= dark[i];
    if (gain) value *= gain[i];
    return value;
}

// One thread for each pixel of the window (y0, x0, height, width) in each of the listed frames.
template <typename T>
__global__ void clean_frames(const T *raw, const int *frames, const float *dark, const float *gain, float *out, int ny,
                             int nx, int y0, int x0, int width, float level) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, height = gridDim.y;
    if (x >= width) return;
    const T *frame = raw + (long long)frames[blockIdx.z] * ny * nx;
    const long long target = ((long long)blockIdx.z * height + y) * width + x;
    out[target] = clean(frame, dark, gain, (long long)(y0 + y) * nx + x0 + x) - level;
}

// One thread for each bad pixel of each of the listed frames.
template <typename T>
__global__ void fill_pixels(const T *raw, const int *frames, const float *dark, const float *gain, float *out, int ny,
                            int nx, int y0, int x0, int height, int width, float level, const long long *index,
                            const long long *sources, int n_bad, int n_sources) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_bad) return;
    const int frame = frames[blockIdx.y];
    const int y = (int)(index[i] / nx) - y0, x = (int)(index[i] % nx) - x0;
    if (y < 0 || x < 0 || y >= height || x >= width) return;
    const long long source = sources[(long long)(frame % n_sources) * n_bad + i];
    const float value = clean(raw + (long long)frame * ny * nx, dark, gain, source);
    out[((long long)blockIdx.y * height + y) * width + x] = value - level;
}

// One thread for each pixel, whose values in the listed frames are summed.
template <typename T>
__global__ void sum_frames(const T *raw, const int *frames, const float *dark, const float *gain, float *out,
                           int n_frames, long long size) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= size) return;
    float total = 0.0f;
#pragma unroll 8
    for (int k = 0; k < n_frames; ++k) total += (float)raw[frames[k] * size + i];
    if (dark) total -= n_frames * dark[i];
    out[i] = gain ? total * gain[i] : total;
}

// One thread for each bad pixel of that sum.
template <typename T>
__global__ void fill_sum(const T *raw, const int *frames, const float *dark, const float *gain, float *out,
                         int n_frames, long long size, const long long *index, const long long *sources, int n_bad,
                         int n_sources) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_bad) return;
    float total = 0.0f;
    for (int k = 0; k < n_frames; ++k) {
        const long long source = sources[(long long)(frames[k] % n_sources) * n_bad + i];
        total += clean(raw + frames[k] * size, dark, gain, source);
    }
    out[index[i]] = total;
}

// Which of `length` pixels stands at place i of a grid of `period` whose content is to be moved by `shift`.
__device__ inline int source(int i, int length, int period, double shift) {
    const int width = max(0, (int)min(ceil(fabs(shift)), length / 2 - 1.0));
    if (shift > 0 && i >= period - width) return period - i;
    const int beyond = i < length ? i + period : i;
    if (shift < 0 && beyond < length + width) return 2 * (length - 1) - beyond;
    return i < length ? i : max(0, 2 * (length - 1) - i);
}

// One thread for each pixel of the grids (b, gridDim.y, width) to which images (b, ny, nx) are continued.
extern "C"
__global__ void continued(const float *images, const double *shifts, float *out, int ny, int nx, int width) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, height = gridDim.y, b = blockIdx.z;
    if (x >= width) return;
    const int row = source(y, ny, height, shifts[2 * b]), column = source(x, nx, width, shifts[2 * b + 1]);
    out[((long long)b * height + y) * width + x] = images[((long long)b * ny + row) * nx + column];
}

extern "C"
__global__ void turn_phases(float2 *spectra, const float2 *ey, const float2 *ex, int kx) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, ky = gridDim.y, b = blockIdx.z;
    if (x >= kx) return;
    const float2 row = ey[b * ky + y], column = ex[b * kx + x];
    const float2 turn = make_float2(row.x * column.x - row.y * column.y, row.x * column.y + row.y * column.x);
    float2 *place = spectra + ((long long)b * ky + y) * kx + x;
    const float2 value = *place;
    *place = make_float2(value.x * turn.x - value.y * turn.y, value.x * turn.y + value.y * turn.x);
}

__device__ inline void add(float &total, float w, float value) { total += w * value; }

__device__ inline void add(float2 &total, float w, float2 value) {
    total.x += w * value.x;
    total.y += w * value.y;
}

// One thread for each value of the listed frames; without weights they count 1 and power is left alone.
template <typename T>
__global__ void add_frames(T *total, float *power, const T *frames, const int *which, const float *weights,
                           const float *noise, int n_which, long long size) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= size) return;
    T sum = total[i];
    float square = 0.0f;
    for (int k = 0; k < n_which; ++k) {
        const long long place = which[k] * size + i;
        const float w = weights ? weights[place] : 1.0f;
        add(sum, w, frames[place]);
        square += w * w * noise[k];
    }
    total[i] = sum;
    if (weights) power[i] += square;
}
