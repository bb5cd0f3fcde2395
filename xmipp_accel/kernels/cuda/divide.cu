// Division of a Fourier volume's sums by their weights; see kernels/reference/divide.py.

__device__ int shell_of(int squares) {
  int shell = (int)rintf(sqrtf((float)squares));
  if (squares > shell * shell + shell) ++shell;  // where single precision rounds to the wrong side
  if (shell > 0 && squares <= shell * shell - shell) --shell;
  return shell;
}

// Blocks (any, planes) of whole warps, each warp on rows of its own. Along a row shells only grow, so that lanes of
// one shell follow each other: their sum goes to shared memory in one addition.
extern "C"
__global__ void shell_weights(const float4* __restrict__ sums, double* __restrict__ out, int centre, float limit) {
  extern __shared__ double totals[];
  const unsigned everyone = 0xffffffffu;
  const int shells = 2 * centre + 3, edge = 2 * centre + 1, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int i = threadIdx.x; i < 2 * shells; i += blockDim.x) totals[i] = 0.0;
  __syncthreads();
  const int kz = (int)blockIdx.y - centre;
  for (int row = blockIdx.x * warps + threadIdx.x / 32; row < edge; row += gridDim.x * warps) {
    const int across = kz * kz + (row - centre) * (row - centre);
    const size_t start = ((size_t)blockIdx.y * edge + row) * (centre + 1);
    for (int first = 0; first <= centre; first += 32) {
      const int kx = first + lane, squares = across + kx * kx;
      const bool inside = kx <= centre && (float)squares <= limit;
      const int shell = inside ? shell_of(squares) : -1;
      float weight = inside ? sums[start + kx].z : 0.0f, count = inside ? 1.0f : 0.0f;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(everyone, shell, offset);
        const float w = __shfl_up_sync(everyone, weight, offset), c = __shfl_up_sync(everyone, count, offset);
        if (lane >= offset && other == shell) weight += w, count += c;
      }
      const int next = __shfl_down_sync(everyone, shell, 1);
      if (inside && (lane == 31 || next != shell)) {
        atomicAdd(totals + shell, (double)weight);
        atomicAdd(totals + shells + shell, (double)count);
      }
      if (__all_sync(everyone, !inside)) break;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * shells; i += blockDim.x)
    if (totals[i] != 0.0) atomicAdd(out + i, totals[i]);
}

// Blocks (columns, rows of the spectrum, planes of the volume).
extern "C"
__global__ void divide(float2* __restrict__ spectrum, const float4* __restrict__ sums,
                       const float* __restrict__ added, const float* __restrict__ floor, int centre, int padded,
                       int rows, int first, float least, float limit) {
  const int kx = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, kz = (int)blockIdx.z - centre;
  if (kx > centre || kz < -((padded - 1) / 2) || kz > padded / 2) return;
  const int ky = row + first - centre, squares = kz * kz + ky * ky + kx * kx;
  if ((float)squares > limit) return;
  const float4 record = sums[((size_t)blockIdx.z * (2 * centre + 1) + row + first) * (centre + 1) + kx];
  const int shell = shell_of(squares);
  const float divisor = fmaxf(record.z + added[shell], floor[shell]);
  if (divisor > least)
    spectrum[((size_t)(kz < 0 ? kz + padded : kz) * rows + row) * (centre + 1) + kx] =
        make_float2(record.x / divisor, record.y / divisor);
}
