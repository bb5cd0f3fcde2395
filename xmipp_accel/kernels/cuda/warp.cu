// Cubic B-spline interpolation of images along a smooth displacement field; twin of kernels/cpu/warp.py.

#define RADIUS 13

__device__ inline int mirror(int i, int n) {
    if (n == 1) return 0;
    const int period = 2 * n - 2;
    i %= period;
    if (i < 0) i += period;
    return i < n ? i : period - i;
}

// The spline's recursive prefilter as the symmetric filter it amounts to; its tail beyond RADIUS is below float precision.
template <int axis>
__global__ void prefilter(const float *images, float *out, int ny, int nx) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    const size_t frame = (size_t)blockIdx.z * ny * nx;
    const float *image = images + frame;
    const int n = axis ? nx : ny;
    const int centre = axis ? x : y;
    const size_t stride = axis ? 1 : nx;
    const float *line = axis ? image + (size_t)y * nx : image + x;
    const float pole = -0.26794919243112270f;
    float factor = n > 1 ? 1.7320508075688773f : 1.0f;
    float total = factor * line[centre * stride];
    if (n > 1)
        for (int k = 1; k <= RADIUS; ++k) {
            factor *= pole;
            total += factor * (line[mirror(centre - k, n) * stride] + line[mirror(centre + k, n) * stride]);
        }
    out[frame + (size_t)y * nx + x] = total;
}

__device__ inline void weights(float t, float *w) {
    const float s = 1.0f - t;
    w[0] = s * s * s * (1.0f / 6.0f);
    w[1] = 2.0f / 3.0f - t * t + 0.5f * t * t * t;
    w[3] = t * t * t * (1.0f / 6.0f);
    w[2] = 1.0f - w[0] - w[1] - w[3];
}

// grids: for each image (gy, gx, 2) translations at the nodes (i * step, j * step).
extern "C"
__global__ void warp(const float *images, const float *grids, float *out, int ny, int nx, int gy, int gx, int step) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    const size_t frame = (size_t)blockIdx.z * ny * nx;
    const float *coefficients = images + frame;
    const float *grid = grids + (size_t)blockIdx.z * gy * gx * 2;
    const int row = min(y / step, gy - 2), column = min(x / step, gx - 2);
    const float v = (float)(y - row * step) / step, u = (float)(x - column * step) / step;
    float moved[2];
    for (int c = 0; c < 2; ++c) {
        const float *node = grid + ((size_t)row * gx + column) * 2 + c;
        const float left = node[0] + v * (node[2 * gx] - node[0]);
        const float right = node[2] + v * (node[2 * gx + 2] - node[2]);
        moved[c] = -(left + u * (right - left));
    }
    const float by = floorf(moved[0]), bx = floorf(moved[1]);
    float wy[4], wx[4];
    weights(moved[0] - by, wy);
    weights(moved[1] - bx, wx);
    const int iy = y + (int)by - 1, ix = x + (int)bx - 1;
    const bool inside = iy >= 0 && ix >= 0 && iy + 3 < ny && ix + 3 < nx;
    float total = 0.0f;
    for (int a = 0; a < 4; ++a) {
        const float *line = coefficients + (size_t)(inside ? iy + a : mirror(iy + a, ny)) * nx;
        float part = 0.0f;
        for (int b = 0; b < 4; ++b) part += wx[b] * line[inside ? ix + b : mirror(ix + b, nx)];
        total += wy[a] * part;
    }
    out[frame + (size_t)y * nx + x] = total;
}
