// Interpolation in an oversampled spectrum: the sum of the width^3 nearest grid values of each point, weighted by a
// tabulated separable window.
//
// spectrum: (size, size, size), axes z, y, x, frequency 0 at size / 2; points: (n_points, 3), x, y, z in grid steps;
// weights: (table + 2,), the window at distances i * (width / 2) / table; result: (n_points,).

template <int WIDTH>
__global__ void fourier_sample(const float2* __restrict__ spectrum, int size, const float* __restrict__ points,
                               int n_points, const float* __restrict__ weights, int table,
                               float2* __restrict__ result)
{
    const int point = blockIdx.x * blockDim.x + threadIdx.x;
    if (point >= n_points)
        return;
    float window[3][WIDTH];
    int first[3];
    const float scale = table / (WIDTH / 2.0f);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const float position = points[3 * static_cast<size_t>(point) + axis];
        const int start = static_cast<int>(floorf(position)) - WIDTH / 2 + 1;
        first[axis] = size / 2 + start;
#pragma unroll
        for (int tap = 0; tap < WIDTH; ++tap) {
            const float distance = fabsf(position - (start + tap)) * scale;
            const int index = static_cast<int>(distance);
            const float part = distance - index;
            window[axis][tap] = weights[index] * (1 - part) + weights[index + 1] * part;
        }
    }
    float2 total = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            const float2* row =
                spectrum + (static_cast<size_t>(first[2] + i) * size + first[1] + j) * size + first[0];
            const float factor = window[2][i] * window[1][j];
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                total.x += row[k].x * (factor * window[0][k]);
                total.y += row[k].y * (factor * window[0][k]);
            }
        }
    result[point] = total;
}
