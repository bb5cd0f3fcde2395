// Insertion of projections into a Fourier volume; layouts as in kernels/reference/insert.py.

#define TRILINEAR 0
#define BLOB 1
#define BRICK 8
#define LISTED (BRICK * BRICK * BRICK)
#define WARP 32
#define THREADS 256
#define EDGE 32
#define TALL 6

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
__device__ float tent(float x) { return fmaxf(0.0f, 1.0f - fabsf(x)); }
__device__ float sum3(float3 a) { return fabsf(a.x) + fabsf(a.y) + fabsf(a.z); }

// Where the samples of an image lie, seen from them and seen from the voxels.
struct Plane {
  float3 a, b, n;    // steps along kx and ky, viewing direction
  float3 to_x, to_y; // the voxel's place in samples: dual vectors of a and b
  float curve;

  template <bool CURVED>
  __device__ float3 place(float kx, float ky) const {
    float3 p = make_float3(a.x * kx + b.x * ky, a.y * kx + b.y * ky, a.z * kx + b.z * ky);
    if (CURVED) {
      const float bend = curve * (kx * kx + ky * ky);
      p.x += n.x * bend, p.y += n.y * bend, p.z += n.z * bend;
    }
    return p;
  }
};

__device__ Plane plane_of(const float* m, float curvature) {
  Plane plane;
  const float3 a = plane.a = make_float3(m[0], m[1], m[2]), b = plane.b = make_float3(m[3], m[4], m[5]);
  plane.n = make_float3(m[6], m[7], m[8]), plane.curve = curvature;
  const float aa = dot3(a, a), bb = dot3(b, b), ab = dot3(a, b), scale = 1.0f / (aa * bb - ab * ab);
  plane.to_x = make_float3((bb * a.x - ab * b.x) * scale, (bb * a.y - ab * b.y) * scale, (bb * a.z - ab * b.z) * scale);
  plane.to_y = make_float3((aa * b.x - ab * a.x) * scale, (aa * b.y - ab * a.y) * scale, (aa * b.z - ab * a.z) * scale);
  return plane;
}

// How far a sample reaches, and how much of it.
template <int KERNEL>
struct Spread {
  const float* table;  // of `entries`, by squared distance up to radius^2
  int entries;
  float radius;

  __device__ float across(float3 n) const { return KERNEL == BLOB ? radius : sum3(n); }
  __device__ float along(float3 dual) const { return KERNEL == BLOB ? radius * sqrtf(dot3(dual, dual)) : sum3(dual); }
  __device__ float operator()(float dx, float dy, float dz) const {
    if (KERNEL == BLOB) {
      const float d2 = dx * dx + dy * dy + dz * dz, radius2 = radius * radius;
      return d2 > radius2 ? 0.0f : table[(int)(d2 * ((entries - 1) / radius2) + 0.5f)];
    }
    return tent(dx) * tent(dy) * tent(dz);
  }
};

// What a voxel q gets from the samples around its foot (u, v) on an image's plane.
template <int KERNEL, bool CURVED>
__device__ float3 gather_around(const Plane& plane, const Spread<KERNEL>& spread, const float4* __restrict__ records,
                                int rows, int columns, float3 q, float u, float v) {
  float3 total = make_float3(0.0f, 0.0f, 0.0f);
  const float wide = spread.along(plane.to_x), high = spread.along(plane.to_y);
  const int x0 = max((int)ceilf(u - wide), 0), x1 = min((int)floorf(u + wide), columns - 1);
  const int y0 = max((int)ceilf(v - high), -(rows / 2)), y1 = min((int)floorf(v + high), rows - 1 - rows / 2);
  for (int y = y0; y <= y1; y++) {
    const float4* row = records + (y + rows / 2) * columns;
#pragma unroll 1  // which needs fewer registers: a fifth faster
    for (int x = x0; x <= x1; x++) {
      const float3 p = plane.place<CURVED>((float)x, (float)y);
      const float part = spread(p.x - q.x, p.y - q.y, p.z - q.z);
      if (part == 0.0f) continue;
      const float4 record = row[x];
      total.x += part * record.x, total.y += part * record.y, total.z += part * record.z;
    }
  }
  return total;
}

template <int KERNEL>
__device__ float3 gather(const Plane& plane, const Spread<KERNEL>& spread, const float4* __restrict__ records,
                         int rows, int columns, float3 q) {
  const float u = dot3(plane.to_x, q), v = dot3(plane.to_y, q);
  if (plane.curve == 0.0f) return gather_around<KERNEL, false>(plane, spread, records, rows, columns, q, u, v);
  return gather_around<KERNEL, true>(plane, spread, records, rows, columns, q, u, v);
}

__device__ float largest_bend(const Plane& plane, int rows, int columns) {
  return fabsf(plane.curve) * ((float)columns * columns + 0.25f * (float)rows * rows);
}

// How far from an image's plane, without its curvature, voxels may lie that get something.
template <int KERNEL>
__device__ float thickness(const Plane& plane, const Spread<KERNEL>& spread, int rows, int columns) {
  return spread.across(plane.n) + largest_bend(plane, rows, columns) + 1e-3f;
}

// Each sample adds to its eight neighbours.
extern "C"
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
  const float* m = matrices + 9 * ((size_t)image * operators + blockIdx.z);
  float x = m[0] * kx + m[3] * ky + m[6] * bend, y = m[1] * kx + m[4] * ky + m[7] * bend;
  float z = m[2] * kx + m[5] * ky + m[8] * bend, im = record.y;
  if (x < 0.0f) x = -x, y = -y, z = -z, im = -im;
  const float x0 = floorf(x), y0 = floorf(y), z0 = floorf(z);
  const float fx = x - x0, fy = y - y0, fz = z - z0;
  for (int corner = 0; corner < 8; corner++) {
    const int dx = corner & 1, dy = (corner >> 1) & 1, dz = corner >> 2;
    const float part = (dx ? fx : 1.0f - fx) * (dy ? fy : 1.0f - fy) * (dz ? fz : 1.0f - fz);
    target.add((int)x0 + dx, (int)y0 + dy, (int)z0 + dz, part * record.x, part * im, part * record.z);
  }
}

// The columns of voxels along the volume axis nearest to an image's viewing direction: where each of them, at (p, q)
// of the other two axes, meets the plane, and what sample is there. All are linear in p and q.
struct Walk {
  int axis;
  float2 height, u, v;

  __device__ int x(int p, int t) const { return axis == 0 ? t : p; }
  __device__ int y(int p, int q, int t) const { return axis == 0 ? p : axis == 1 ? t : q; }
  __device__ int z(int q, int t) const { return axis == 2 ? t : q; }
  __device__ float along(float3 w) const { return axis == 0 ? w.x : axis == 1 ? w.y : w.z; }
  __device__ float2 across(float3 w) const {
    return make_float2(axis == 0 ? w.y : w.x, axis == 2 ? w.y : w.z);
  }
};

// The Ewald sphere near a column that meets the plane at the sample (u, v): its distance from the plane there, and by
// how much that of samples that come near may differ.
struct Bend { float middle, slack; };

__device__ Bend bend_at(const Plane& plane, const Walk& walk, float u, float v, float wide, float high, int rows,
                        int columns) {
  if (plane.curve == 0.0f) return Bend{0.0f, 0.0f};
  const float curve = fabsf(plane.curve), middle = plane.curve * (u * u + v * v);
  const float2 n = walk.across(plane.n);
  const float du = fabsf(middle * (walk.u.x * n.x + walk.u.y * n.y)) + 2.0f * wide;
  const float dv = fabsf(middle * (walk.v.x * n.x + walk.v.y * n.y)) + 2.0f * high;
  const float slack = curve * (du * (2.0f * fabsf(u) + du) + dv * (2.0f * fabsf(v) + dv));
  return slack < 1.0f ? Bend{middle, slack} : Bend{0.0f, largest_bend(plane, rows, columns)};
}

__device__ float no_zero(float x) { return copysignf(fmaxf(fabsf(x), 1e-6f), x); }
__device__ float at(float2 slope, int p, int q) { return slope.x * p + slope.y * q; }

__device__ Walk walk_of(const Plane& plane) {
  Walk walk;
  const float x = fabsf(plane.n.x), y = fabsf(plane.n.y), z = fabsf(plane.n.z);
  walk.axis = z > fmaxf(x, y) ? 2 : y > x ? 1 : 0;
  const float2 n = walk.across(plane.n), to_x = walk.across(plane.to_x), to_y = walk.across(plane.to_y);
  const float scale = -1.0f / walk.along(plane.n), x1 = walk.along(plane.to_x), y1 = walk.along(plane.to_y);
  walk.height = make_float2(n.x * scale, n.y * scale);
  walk.u = make_float2(to_x.x + x1 * walk.height.x, to_x.y + x1 * walk.height.y);
  walk.v = make_float2(to_y.x + y1 * walk.height.x, to_y.y + y1 * walk.height.y);
  return walk;
}

// The block's image, and for all of its threads the plane and the columns.
__device__ int enter(Plane& plane, Walk& walk, const float* matrices, const float* curvature, const int* images,
                     int operators) {
  const int image = images[blockIdx.y];
  if (threadIdx.x == 0) {
    plane = plane_of(matrices + 9 * ((size_t)image * operators + blockIdx.z), curvature[image]);
    walk = walk_of(plane);
  }
  __syncthreads();
  return image;
}

// Each column of voxels asks an image for what its samples give to any voxel of it; a block has EDGE^2 columns.
extern "C"
__global__ void __launch_bounds__(THREADS, 4)
    insert_trilinear_columns(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                             const float* __restrict__ matrices, const float* __restrict__ curvature,
                             const int* __restrict__ images, int rows, int columns, int operators, float reach) {
  __shared__ Plane plane;
  __shared__ Walk walk;
  const int image = enter(plane, walk, matrices, curvature, images, operators);
  const float2 a = walk.across(plane.a), b = walk.across(plane.b), n = walk.across(plane.n);
  const float a_t = walk.along(plane.a), b_t = walk.along(plane.b), n_t = walk.along(plane.n);
  const float2 inverse = make_float2(1.0f / no_zero(a.x), 1.0f / no_zero(a.y));
  const float wide = fabsf(walk.u.x) + fabsf(walk.u.y), high = fabsf(walk.v.x) + fabsf(walk.v.y);
  const float steep = fabsf(walk.height.x) + fabsf(walk.height.y) + 1.0f;
  const float4* records = slices + (size_t)image * rows * columns + (rows / 2) * columns;
  const Volume target{volume, centre, first, planes};
  const int tiles = (2 * centre + EDGE) / EDGE, p = blockIdx.x % tiles * EDGE + threadIdx.x % EDGE - centre;
  const int q0 = blockIdx.x / tiles * EDGE + threadIdx.x / EDGE - centre;
  for (int q = q0; q < q0 + EDGE; q += THREADS / EDGE) {
    if (p > centre || q > centre || (float)(p * p + q * q) > reach * reach) continue;
    float u = at(walk.u, p, q), v = at(walk.v, p, q);
    const Bend bend = bend_at(plane, walk, u, v, wide, high, rows, columns);
    u -= bend.middle * (walk.u.x * n.x + walk.u.y * n.y), v -= bend.middle * (walk.v.x * n.x + walk.v.y * n.y);
    const float half = 1.0f + bend.slack;  // how far samples lie from the column at most, on either axis
    if (u < -wide * half || fabsf(v) > columns + high * half) continue;
    const int y0 = max((int)ceilf(v - high * half), -(rows / 2));
    const int y1 = min((int)floorf(v + high * half), rows - 1 - rows / 2);
    const float middle = at(walk.height, p, q) + bend.middle / n_t;
    const int t0 = max((int)ceilf(middle - steep * half), -centre);
    const int t1 = min((int)floorf(middle + steep * half), centre);
    for (int base = t0; base <= t1; base += TALL) {
      float3 sums[TALL] = {};
      for (int y = y0; y <= y1; y++) {
        // Where this row of samples comes near enough to the column.
        const float r_p = b.x * y + n.x * bend.middle - p, r_q = b.y * y + n.y * bend.middle - q;
        const float x_p = -r_p * inverse.x, x_q = -r_q * inverse.y;
        const float reach_p = fabsf(inverse.x) * half, reach_q = fabsf(inverse.y) * half;
        const int x0 = (int)ceilf(fmaxf(fmaxf(x_p - reach_p, x_q - reach_q), 0.0f));
        const int x1 = (int)floorf(fminf(fminf(x_p + reach_p, x_q + reach_q), (float)(columns - 1)));
        for (int x = x0; x <= x1; x++) {
          const float bent = plane.curve * (float)(x * x + y * y);
          const float part = tent(a.x * x + b.x * y + n.x * bent - p) * tent(a.y * x + b.y * y + n.y * bent - q);
          const float4 record = records[y * columns + x];
          const float3 value = make_float3(part * record.x, part * record.y, part * record.z);
          const float t = a_t * x + b_t * y + n_t * bent - base;
#pragma unroll
          for (int k = 0; k < TALL; k++) {
            const float share = tent(t - k);
            sums[k].x += share * value.x, sums[k].y += share * value.y, sums[k].z += share * value.z;
          }
        }
      }
#pragma unroll
      for (int k = 0; k < TALL; k++) {
        const int t = base + k;
        if (t <= t1 && sums[k].z != 0.0f)
          target.add_folded(walk.x(p, t), walk.y(p, q, t), walk.z(q, t), sums[k].x, sums[k].y, sums[k].z);
      }
    }
  }
}

// The blob reaches several voxels of a column: each of them asks for the samples around.
extern "C"
__global__ void __launch_bounds__(THREADS, 4)
    insert_blob_columns(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                        const float* __restrict__ matrices, const float* __restrict__ curvature,
                        const int* __restrict__ images, int rows, int columns, int operators, float reach,
                        const float* __restrict__ table, int entries, float radius) {
  __shared__ Plane plane;
  __shared__ Walk walk;
  const int image = enter(plane, walk, matrices, curvature, images, operators);
  const Spread<BLOB> spread{table, entries, radius};
  const float spanned = thickness(plane, spread, rows, columns) / fabsf(walk.along(plane.n));
  const float u_margin = spread.along(plane.to_x) + fabsf(walk.along(plane.to_x)) * spanned;
  const float v_margin = spread.along(plane.to_y) + fabsf(walk.along(plane.to_y)) * spanned;
  const float4* records = slices + (size_t)image * rows * columns;
  const Volume target{volume, centre, first, planes};
  const int tiles = (2 * centre + EDGE) / EDGE, p = blockIdx.x % tiles * EDGE + threadIdx.x % EDGE - centre;
  const int q0 = blockIdx.x / tiles * EDGE + threadIdx.x / EDGE - centre;
  for (int q = q0; q < q0 + EDGE; q += THREADS / EDGE) {
    if (p > centre || q > centre || (float)(p * p + q * q) > reach * reach) continue;
    if (at(walk.u, p, q) < -u_margin || fabsf(at(walk.v, p, q)) > columns + v_margin) continue;
    const float height = at(walk.height, p, q);
    const int t1 = min((int)floorf(height + spanned), centre);
    for (int t = max((int)ceilf(height - spanned), -centre); t <= t1; t++) {
      const int x = walk.x(p, t), y = walk.y(p, q, t), z = walk.z(q, t);
      const float3 voxel = make_float3((float)x, (float)y, (float)z);
      if (dot3(voxel, voxel) > reach * reach) continue;
      const float3 got = gather(plane, spread, records, rows, columns, voxel);
      if (got.z != 0.0f) target.add_folded(x, y, z, got.x, got.y, got.z);
    }
  }
}

// Each brick of voxels asks all images and then adds once: no atomics, and the same order of additions every time.
template <int KERNEL>
__global__ void __launch_bounds__(LISTED, 2)
    insert_bricks(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                  const float* __restrict__ matrices, const float* __restrict__ curvature,
                  const int* __restrict__ images, int count, int rows, int columns, int operators, float reach,
                  const float* __restrict__ table, int entries, float radius) {
  __shared__ Plane near[LISTED];
  __shared__ int near_image[LISTED], counts[LISTED / WARP];
  const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  const int x = blockIdx.x * BRICK + thread % BRICK, row = blockIdx.y * BRICK + thread / BRICK % BRICK;
  const int plane_number = blockIdx.z * BRICK + thread / (BRICK * BRICK);
  const bool exists = x <= centre && row <= 2 * centre && plane_number < planes;
  const float3 q = make_float3((float)x, (float)(row - centre), (float)(plane_number + first - centre));
  const bool wanted = exists && dot3(q, q) <= reach * reach;
  const float half = 0.5f * (BRICK - 1);
  const float3 middle = make_float3(blockIdx.x * BRICK + half, blockIdx.y * BRICK + half - centre,
                                    blockIdx.z * BRICK + half + first - centre);
  if (sqrtf(dot3(middle, middle)) - half * sqrtf(3.0f) > reach) return;  // in a corner of the volume
  const Spread<KERNEL> spread{table, entries, radius};
  float3 total = make_float3(0.0f, 0.0f, 0.0f);
  for (int start = 0; start < count * operators; start += LISTED) {
    // Which of the next images pass through this brick, in their order.
    const int item = start + thread;
    bool passes = false;
    Plane plane;
    int image = 0;
    if (item < count * operators) {
      image = images[item / operators];
      plane = plane_of(matrices + 9 * ((size_t)image * operators + item % operators), curvature[image]);
      const float margin = thickness(plane, spread, rows, columns) + half * sum3(plane.n);
      passes = fabsf(dot3(plane.n, middle)) <= margin;
    }
    const unsigned votes = __ballot_sync(0xffffffffu, passes);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, listed = 0;
    for (int w = 0; w < LISTED / WARP; w++) {
      if (w < warp) before += counts[w];
      listed += counts[w];
    }
    if (passes) {
      const int place = before + __popc(votes & ((1u << lane) - 1u));
      near[place] = plane, near_image[place] = image;
    }
    __syncthreads();
    for (int k = 0; wanted && k < listed; k++) {
      const Plane& near_plane = near[k];
      if (fabsf(dot3(near_plane.n, q)) > thickness(near_plane, spread, rows, columns)) continue;
      const float4* records = slices + (size_t)near_image[k] * rows * columns;
      // The voxel and its mate on the other side; where both stand at x = 0 they are joined later.
#pragma unroll 1
      for (float side = 1.0f; side > -2.0f && (x > 0 || side > 0.0f); side -= 2.0f) {
        const float3 there = make_float3(side * q.x, side * q.y, side * q.z);
        const float3 got = gather(near_plane, spread, records, rows, columns, there);
        total.x += got.x, total.y += side * got.y, total.z += got.z;
      }
    }
    __syncthreads();
  }
  if (!wanted) return;
  float4* record = volume + ((size_t)plane_number * (2 * centre + 1) + row) * (centre + 1) + x;
  float4 value = *record;
  value.x += total.x, value.y += total.y, value.z += total.z;
  *record = value;
}

// Each column of voxels takes one sample for the voxel that is nearest to the plane.
extern "C"
__global__ void insert_nearest(float4* volume, int centre, int first, int planes, const float4* __restrict__ slices,
                               const float* __restrict__ matrices, const float* __restrict__ curvature,
                               const int* __restrict__ images, int rows, int columns, int operators, float reach) {
  const int image = images[blockIdx.y], number = blockIdx.x * blockDim.x + threadIdx.x, edge = 2 * centre + 1;
  if (number >= edge * edge) return;
  const int p = number % edge - centre, q = number / edge - centre;
  const Plane plane = plane_of(matrices + 9 * ((size_t)image * operators + blockIdx.z), curvature[image]);
  const Walk walk = walk_of(plane);
  const float hit = floorf(at(walk.height, p, q) + 0.5f);
  if (fabsf(hit) > centre) return;
  const int x = walk.x(p, (int)hit), y = walk.y(p, q, (int)hit), z = walk.z(q, (int)hit);
  const float3 voxel = make_float3((float)x, (float)y, (float)z);
  const float u = dot3(plane.to_x, voxel), v = dot3(plane.to_y, voxel);
  if (u < 0.0f || dot3(voxel, voxel) > reach * reach) return;
  const int kx = min(max((int)floorf(u + 0.5f), 0), columns - 1);
  const int row = min(max((int)floorf(v + 0.5f) + rows / 2, 0), rows - 1);
  const float4 record = slices[((size_t)image * rows + row) * columns + kx];
  const Volume target{volume, centre, first, planes};
  target.add_folded(x, y, z, record.x, record.y, record.z);
}
