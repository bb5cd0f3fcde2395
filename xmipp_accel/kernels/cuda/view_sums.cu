// Images times views and sums of images over views; see kernels/reference/view_sums.py. Each result has one thread,
// so that it does not depend on the order in which blocks run.
//
// weighted, sums: (n_views, rings, harmonics); shifted: (images, n_shifts, rings, harmonics); pairs: (n_pairs, 3),
// view, image and shift; out, factors: (n_pairs, harmonics).

__device__ inline float2 add_product(float2 sum, float2 a, float2 b)
{
    sum.x = fmaf(a.x, b.x, fmaf(-a.y, b.y, sum.x));
    sum.y = fmaf(a.x, b.y, fmaf(a.y, b.x, sum.y));
    return sum;
}

extern "C"
__global__ void view_products(const float2* __restrict__ weighted, const float2* __restrict__ shifted,
                              const int* __restrict__ pairs, int n_pairs, int n_shifts, int rings, int harmonics,
                              float2* __restrict__ out)
{
    const size_t place = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    const int pair = place / harmonics, q = place % harmonics;
    if (pair >= n_pairs)
        return;
    const size_t size = static_cast<size_t>(rings) * harmonics;
    const float2* view = weighted + pairs[3 * pair] * size + q;
    const float2* image = shifted + (pairs[3 * pair + 1] * static_cast<size_t>(n_shifts) + pairs[3 * pair + 2]) * size + q;
    float2 sum = make_float2(0, 0);
    for (int k = 0; k < rings; ++k)
        sum = add_product(sum, view[k * harmonics], image[k * harmonics]);
    out[place] = sum;
}

// first: (n_views + 1,), of the pairs of each view, which stand in this order.
extern "C"
__global__ void add_to_views(float2* __restrict__ sums, const float2* __restrict__ shifted,
                             const int* __restrict__ pairs, const int* __restrict__ first,
                             const float2* __restrict__ factors, int n_shifts, int rings, int harmonics)
{
    const int size = rings * harmonics, view = blockIdx.x;
    const int place = blockIdx.y * blockDim.x + threadIdx.x;
    if (place >= size)
        return;
    float2* target = sums + static_cast<size_t>(view) * size + place;
    float2 sum = *target;
    for (int pair = first[view]; pair < first[view + 1]; ++pair) {
        const size_t image = pairs[3 * pair + 1] * static_cast<size_t>(n_shifts) + pairs[3 * pair + 2];
        sum = add_product(sum, factors[static_cast<size_t>(pair) * harmonics + place % harmonics],
                          shifted[image * size + place]);
    }
    *target = sum;
}
