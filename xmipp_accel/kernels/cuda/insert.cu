// Insertion of projections into a Fourier volume; layouts as in kernels/reference/insert.py.

#define TRILINEAR 0
#define BLOB 1
#define BRICK 8
#define LISTED (BRICK * BRICK * BRICK)

struct Volume {
  float4* records;
  int centre, first, planes;

  // Adds at a voxel of x >= 0, if its plane is among these.
  __device__ void add(int x, int y, int z, float re, float im, float weight) const {
    const int plane = z + centre - first;
    if (plane < 0 || plane >= planes) return;
    float4* target = records + ((size_t)plane * (2 * centre + 1) + (y + centre)) * (centre + 1) + x;
// One 16-byte reduction is three times faster than three scalar ones where the device has it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    (__CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 1))
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(target)), "f"(re), "f"(im), "f"(weight), "f"(0.0f)
                 : "memory");
#else
    atomicAdd(&target->x, re);
    atomicAdd(&target->y, im);
    atomicAdd(&target->z, weight);
#endif
  }

  // Adds at any voxel; x < 0 is conjugated onto the opposite side.
  __device__ void add_folded(int x, int y, int z, float re, float im, float weight) const {
    if (x < 0)
      add(-x, -y, -z, re, -im, weight);
    else
      add(x, y, z, re, im, weight);
  }
};

__device__ float dot3(float3 a, float3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ float sum3(float3 a) { return fabsf(a.x) + fabsf(a.y) + fabsf(a.z); }

// Where the samples of an image lie, seen from them and seen from the voxels.
struct Plane {
  float3 a, b, n;    // steps along kx and ky, viewing direction
  float3 to_x, to_y; // the voxel's place in samples: dual vectors of a and b
  float curve;

  __device__ Plane(const float* m, float curvature)
      : a{m[0], m[1], m[2]}, b{m[3], m[4], m[5]}, n{m[6], m[7], m[8]}, curve(curvature) {
    const float aa = dot3(a, a), bb = dot3(b, b), ab = dot3(a, b), scale = 1.0f / (aa * bb - ab * ab);
    to_x = make_float3((bb * a.x - ab * b.x) * scale, (bb * a.y - ab * b.y) * scale, (bb * a.z - ab * b.z) * scale);
    to_y = make_float3((aa * b.x - ab * a.x) * scale, (aa * b.y - ab * a.y) * scale, (aa * b.z - ab * a.z) * scale);
  }

  __device__ float3 place(float kx, float ky) const {
    const float bend = curve * (kx * kx + ky * ky);
    return make_float3(a.x * kx + b.x * ky + n.x * bend, a.y * kx + b.y * ky + n.y * bend,
                       a.z * kx + b.z * ky + n.z * bend);
  }
};

// How far a sample reaches, and how much of it.
template <int KERNEL>
struct Spread {
  const float* table;
  int entries;
  float radius;

  __device__ float across(float3 n) const { return KERNEL == BLOB ? radius : sum3(n); }
  __device__ float along(float3 dual) const { return KERNEL == BLOB ? radius * sqrtf(dot3(dual, dual)) : sum3(dual); }
  __device__ float operator()(float dx, float dy, float dz) const {
    if (KERNEL == BLOB) {
      const float d2 = dx * dx + dy * dy + dz * dz, radius2 = radius * radius;
      return d2 > radius2 ? 0.0f : table[(int)(d2 * ((entries - 1) / radius2) + 0.5f)];
    }
    return fmaxf(0.0f, 1.0f - fabsf(dx)) * fmaxf(0.0f, 1.0f - fabsf(dy)) * fmaxf(0.0f, 1.0f - fabsf(dz));
  }
};

// What a voxel q gets from an image: the samples around its foot on the plane.
template <int KERNEL>
__device__ float3 gather(const Plane& plane, const Spread<KERNEL>& spread, const float4* __restrict__ records,
                         int rows, int columns, float3 q) {
  float3 total = make_float3(0.0f, 0.0f, 0.0f);
  const float u = dot3(plane.to_x, q), v = dot3(plane.to_y, q);
  const float wide = spread.along(plane.to_x), high = spread.along(plane.to_y);
  const int x0 = max((int)ceilf(u - wide), 0), x1 = min((int)floorf(u + wide), columns - 1);
  const int y0 = max((int)ceilf(v - high), -(rows / 2)), y1 = min((int)floorf(v + high), rows - 1 - rows / 2);
  for (int y = y0; y <= y1; y++) {
    for (int x = x0; x <= x1; x++) {
      const float3 p = plane.place((float)x, (float)y);
      const float part = spread(p.x - q.x, p.y - q.y, p.z - q.z);
      if (part == 0.0f) continue;
      const float4 record = records[(y + rows / 2) * columns + x];
      total.x += part * record.x, total.y += part * record.y, total.z += part * record.z;
    }
  }
  return total;
}

// How far from an image's plane, without its curvature, voxels may lie that get something.
template <int KERNEL>
__device__ float thickness(const Plane& plane, const Spread<KERNEL>& spread, int rows, int columns) {
  const float farthest = (float)columns * columns + 0.25f * (float)rows * rows;
  return spread.across(plane.n) + fabsf(plane.curve) * farthest + 1e-3f;
}

__global__ void insert_trilinear(float4* volume, int centre, int first, int planes,
                                 const float4* __restrict__ slices, const float* __restrict__ matrices,
                                 const float* __restrict__ curvature, const int* __restrict__ images, int rows,
                                 int columns, int operators) {
  const int image = images[blockIdx.y];
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= rows * columns) return;
  const float4 record = slices[(size_t)image * rows * columns + sample];
  if (record.z == 0.0f) return;
  const Volume target{volume, centre, first, planes};
  const float kx = (float)(sample % columns), ky = (float)(sample / columns - rows / 2);
  const float bend = curvature[image] * (kx * kx + ky * ky);
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    float x = m[0] * kx + m[3] * ky + m[6] * bend, y = m[1] * kx + m[4] * ky + m[7] * bend;
    float z = m[2] * kx + m[5] * ky + m[8] * bend;
    float im = record.y;
    if (x < 0.0f) {
      x = -x, y = -y, z = -z, im = -im;
    }
    const float x0 = floorf(x), y0 = floorf(y), z0 = floorf(z);
    const float fx = x - x0, fy = y - y0, fz = z - z0;
    for (int corner = 0; corner < 8; corner++) {
      const int dx = corner & 1, dy = (corner >> 1) & 1, dz = corner >> 2;
      const float part = (dx ? fx : 1.0f - fx) * (dy ? fy : 1.0f - fy) * (dz ? fz : 1.0f - fz);
      target.add((int)x0 + dx, (int)y0 + dy, (int)z0 + dz, part * record.x, part * im, part * record.z);
    }
  }
}

// A column of voxels along the volume axis nearest to the viewing direction.
struct Column {
  int axis, first, second;  // the volume axes: along the column, fastest and slowest across columns
  int p, q;                 // where the column stands on those two
  float along, rest;        // viewing direction along the column; its product with (p, q)

  __device__ Column(const float* m, int number, int centre) {
    const float* n = m + 6;
    axis = 0;
    if (fabsf(n[1]) > fabsf(n[axis])) axis = 1;
    if (fabsf(n[2]) > fabsf(n[axis])) axis = 2;
    first = axis == 0 ? 1 : 0;
    second = axis == 2 ? 1 : 2;
    p = number % (2 * centre + 1) - centre;
    q = number / (2 * centre + 1) - centre;
    along = n[axis];
    rest = n[first] * p + n[second] * q;
  }

  __device__ void voxel(int t, int* v) const {
    v[axis] = t;
    v[first] = p;
    v[second] = q;
  }
};

// Each column of voxels asks the images, one after the other.
template <int KERNEL>
__global__ void insert_columns(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                               const float* __restrict__ matrices, const float* __restrict__ curvature,
                               const int* __restrict__ images, int rows, int columns, int operators, float reach,
                               const float* __restrict__ table, int entries, float radius) {
  const int image = images[blockIdx.y], number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= (2 * centre + 1) * (2 * centre + 1)) return;
  const float4* records = slices + (size_t)image * rows * columns;
  const Spread<KERNEL> spread{table, entries, radius};
  const Volume target{volume, centre, first, planes};
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    const Column column(m, number, centre);
    const float across2 = (float)(column.p * column.p + column.q * column.q);
    if (across2 > reach * reach) continue;
    const Plane plane(m, curvature[image]);
    const float middle = -column.rest / column.along;
    const float spanned = thickness(plane, spread, rows, columns) / fabsf(column.along);
    const int t0 = max((int)ceilf(middle - spanned), -centre);
    const int t1 = min((int)floorf(middle + spanned), centre);
    for (int t = t0; t <= t1; t++) {
      if (across2 + (float)(t * t) > reach * reach) continue;
      int v[3];
      column.voxel(t, v);
      const float3 q = make_float3((float)v[0], (float)v[1], (float)v[2]);
      const float3 got = gather(plane, spread, records, rows, columns, q);
      if (got.z != 0.0f) target.add_folded(v[0], v[1], v[2], got.x, got.y, got.z);
    }
  }
}

// Each brick of voxels asks all images and then adds once: no atomics, and the same order of additions every time.
template <int KERNEL>
__global__ void __launch_bounds__(LISTED)
    insert_bricks(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                  const float* __restrict__ matrices, const float* __restrict__ curvature,
                  const int* __restrict__ images, int count, int rows, int columns, int operators, float reach,
                  const float* __restrict__ table, int entries, float radius) {
  __shared__ int near[LISTED], counts[LISTED / 32];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int x = blockIdx.x * BRICK + thread % BRICK, row = blockIdx.y * BRICK + thread / BRICK % BRICK;
  const int plane_number = blockIdx.z * BRICK + thread / (BRICK * BRICK);
  const bool exists = x <= centre && row <= 2 * centre && plane_number < planes;
  const float3 q = make_float3((float)x, (float)(row - centre), (float)(plane_number + first - centre));
  const bool wanted = exists && dot3(q, q) <= reach * reach;
  const float half = 0.5f * (BRICK - 1);
  const float3 middle = make_float3(blockIdx.x * BRICK + half, blockIdx.y * BRICK + half - centre,
                                    blockIdx.z * BRICK + half + first - centre);
  const Spread<KERNEL> spread{table, entries, radius};
  float3 total = make_float3(0.0f, 0.0f, 0.0f);
  for (int start = 0; start < count * operators; start += LISTED) {
    // Which of the next images pass through this brick, in their order.
    const int item = start + thread;
    bool passes = false;
    if (item < count * operators) {
      const int image = images[item / operators];
      const Plane plane(matrices + 9 * ((size_t)image * operators + item % operators), curvature[image]);
      const float margin = thickness(plane, spread, rows, columns) + half * sum3(plane.n);
      passes = fabsf(dot3(plane.n, middle)) <= margin;
    }
    const unsigned votes = __ballot_sync(0xffffffffu, passes);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, listed = 0;
    for (int w = 0; w < LISTED / 32; w++) {
      if (w < warp) before += counts[w];
      listed += counts[w];
    }
    if (passes) near[before + __popc(votes & ((1u << lane) - 1u))] = item;
    __syncthreads();
    for (int k = 0; k < listed; k++) {
      const int image = images[near[k] / operators];
      const Plane plane(matrices + 9 * ((size_t)image * operators + near[k] % operators), curvature[image]);
      if (!wanted || fabsf(dot3(plane.n, q)) > thickness(plane, spread, rows, columns)) continue;
      const float4* records = slices + (size_t)image * rows * columns;
      const float3 direct = gather(plane, spread, records, rows, columns, q);
      total.x += direct.x, total.y += direct.y, total.z += direct.z;
      if (x == 0) continue;  // the two halves of this plane are joined later
      const float3 mate = gather(plane, spread, records, rows, columns, make_float3(-q.x, -q.y, -q.z));
      total.x += mate.x, total.y -= mate.y, total.z += mate.z;
    }
    __syncthreads();
  }
  if (!wanted) return;
  float4* record = volume + ((size_t)plane_number * (2 * centre + 1) + row) * (centre + 1) + x;
  float4 value = *record;
  value.x += total.x, value.y += total.y, value.z += total.z;
  *record = value;
}

__global__ void insert_nearest(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                               const float* __restrict__ matrices, const float* __restrict__ curvature,
                               const int* __restrict__ images, int rows, int columns, int operators, float reach) {
  const int image = images[blockIdx.y], number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= (2 * centre + 1) * (2 * centre + 1)) return;
  const float4* records = slices + (size_t)image * rows * columns;
  const Volume target{volume, centre, first, planes};
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    const Column column(m, number, centre);
    const Plane plane(m, 0.0f);
    const float hit = floorf(-column.rest / column.along + 0.5f);
    if (fabsf(hit) > centre) continue;
    int v[3];
    column.voxel((int)hit, v);
    const float3 q = make_float3((float)v[0], (float)v[1], (float)v[2]);
    if (dot3(q, q) > reach * reach) continue;
    const float ux = dot3(plane.to_x, q), uy = dot3(plane.to_y, q);
    if (ux < 0.0f) continue;
    const int x = min(max((int)floorf(ux + 0.5f), 0), columns - 1);
    const int y = min(max((int)floorf(uy + 0.5f) + rows / 2, 0), rows - 1);
    const float4 record = records[y * columns + x];
    target.add_folded(v[0], v[1], v[2], record.x, record.y, record.z);
  }
}
