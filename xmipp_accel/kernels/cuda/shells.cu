// Sums of two Fourier transforms over shells; see kernels/reference/shells.py.

// Blocks (any, planes) of whole warps, each warp on rows of its own. Along a row shells only grow, so that lanes of
// one shell follow each other: their sum goes to shared memory in one addition.
extern "C"
__global__ void correlate_shells(const float2* __restrict__ a, const float2* __restrict__ b,
                                 double* __restrict__ out, int n) {
  extern __shared__ double sums[];
  const unsigned everyone = 0xffffffffu;
  const int shells = n / 2 + 1, plane = blockIdx.y, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < 3 * shells; i += blockDim.x) sums[i] = 0.0;
  __syncthreads();
  const int warps = blockDim.x / 32, kz = min(plane, n - plane);
  for (int row = blockIdx.x * warps + threadIdx.x / 32; row < n; row += gridDim.x * warps) {
    const int ky = min(row, n - row);
    const size_t start = ((size_t)plane * n + row) * shells;
    for (int first = 0; first < shells; first += 32) {
      const int kx = first + lane, k2 = kz * kz + ky * ky + kx * kx;
      int shell = (int)rintf(sqrtf((float)k2));
      if (k2 > shell * shell + shell) ++shell;  // where single precision rounds to the wrong side
      if (shell > 0 && k2 <= shell * shell - shell) --shell;
      const bool inside = kx < shells && shell < shells;
      float cross = 0.0f, power_a = 0.0f, power_b = 0.0f;
      if (inside) {
        const float count = kx == 0 || 2 * kx == n ? 1.0f : 2.0f;
        const float2 va = a[start + kx], vb = b[start + kx];
        cross = count * (va.x * vb.x + va.y * vb.y);
        power_a = count * (va.x * va.x + va.y * va.y);
        power_b = count * (vb.x * vb.x + vb.y * vb.y);
      }
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(everyone, shell, offset);
        const float c = __shfl_up_sync(everyone, cross, offset);
        const float pa = __shfl_up_sync(everyone, power_a, offset);
        const float pb = __shfl_up_sync(everyone, power_b, offset);
        if (lane >= offset && other == shell) {
          cross += c;
          power_a += pa;
          power_b += pb;
        }
      }
      const int next = __shfl_down_sync(everyone, shell, 1);
      const bool last = lane == 31 || next != shell || kx + 1 == shells;
      if (inside && last) {
        atomicAdd(sums + shell, (double)cross);
        atomicAdd(sums + shells + shell, (double)power_a);
        atomicAdd(sums + 2 * shells + shell, (double)power_b);
      }
      if (__all_sync(everyone, !inside)) break;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * shells; i += blockDim.x)
    if (sums[i] != 0.0) atomicAdd(out + i, sums[i]);
}
