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
                             int nx, int y0, int x0, int width) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, height = gridDim.y;
    if (x >= width) return;
    const T *frame = raw + (long long)frames[blockIdx.z] * ny * nx;
    const long long target = ((long long)blockIdx.z * height + y) * width + x;
    out[target] = clean(frame, dark, gain, (long long)(y0 + y) * nx + x0 + x);
}

// One thread for each bad pixel of each of the listed frames.
template <typename T>
__global__ void fill_pixels(const T *raw, const int *frames, const float *dark, const float *gain, float *out, int ny,
                            int nx, int y0, int x0, int height, int width, const long long *index,
                            const long long *sources, int n_bad, int n_sources) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_bad) return;
    const int frame = frames[blockIdx.y];
    const int y = (int)(index[i] / nx) - y0, x = (int)(index[i] % nx) - x0;
    if (y < 0 || x < 0 || y >= height || x >= width) return;
    const long long source = sources[(long long)(frame % n_sources) * n_bad + i];
    out[((long long)blockIdx.y * height + y) * width + x] = clean(raw + (long long)frame * ny * nx, dark, gain, source);
}

__global__ void turn_phases(float2 *spectrum, const float2 *ey, const float2 *ex, int kx) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= kx) return;
    const float2 a = ey[y], b = ex[x];
    const float2 turn = make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
    float2 *place = spectrum + (long long)y * kx + x;
    const float2 value = *place;
    *place = make_float2(value.x * turn.x - value.y * turn.y, value.x * turn.y + value.y * turn.x);
}

__global__ void add_weighted(float2 *total, float *power, const float2 *spectrum, const float *weight, float noise,
                             long long size) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= size) return;
    const float w = weight[i];
    const float2 value = spectrum[i];
    total[i].x += w * value.x;
    total[i].y += w * value.y;
    power[i] += w * w * noise;
}
