// Insertion of projections into a Fourier volume; layouts as in kernels/reference/insert.py.

struct Volume {
  float4* records;
  int centre;

  __device__ void add(int x, int y, int z, float re, float im, float weight) const {
    const size_t edge = 2 * centre + 1;
    float4* target = records + ((z + centre) * edge + (y + centre)) * (centre + 1) + x;
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

__global__ void prepare_slices(const float2* __restrict__ transforms, const float2* __restrict__ ramp_y,
                               const float2* __restrict__ ramp_x, const float* __restrict__ optics,
                               const float* __restrict__ weights, float4* __restrict__ slices, int padded,
                               int rows, int columns, float limit, int ctf_mode, int keep_outside) {
  const int image = blockIdx.y;
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= rows * columns) return;
  const int row = sample / columns, kx = sample % columns, ky = row - rows / 2;
  const float k2 = (float)(kx * kx + ky * ky);
  const bool inside = k2 <= limit;
  float factor = 1.0f;
  if (!keep_outside) {
    if (!inside || (kx == 0 && ky < 0))
      factor = 0.0f;
    else if (kx == 0 && ky == 0)
      factor = 0.5f;
  }
  float ctf = 1.0f;
  if (ctf_mode) {
    const float* o = optics + 5 * image;
    const float phase = o[0] * k2 + o[1] * (float)(kx * kx - ky * ky) + o[2] * (float)(2 * kx * ky) -
                        o[3] * k2 * k2 + o[4];
    ctf = sinf(phase);
    if (ctf_mode == 2) ctf = fabsf(ctf);
  }
  const float weight = ctf * weights[image] * factor;
  const float shown = inside ? weight : 0.0f;
  const float2 v = transforms[((size_t)image * padded + (ky < 0 ? ky + padded : ky)) * columns + kx];
  const float2 a = ramp_y[image * rows + row], b = ramp_x[image * columns + kx];
  const float2 r = make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
  slices[(size_t)image * rows * columns + sample] =
      make_float4((v.x * r.x - v.y * r.y) * shown, (v.x * r.y + v.y * r.x) * shown, weight * ctf, 0.0f);
}

__global__ void insert_trilinear(float4* volume, int centre, const float4* __restrict__ slices,
                                 const float* __restrict__ matrices, const int* __restrict__ images, int rows,
                                 int columns, int operators) {
  const int image = images[blockIdx.y];
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= rows * columns) return;
  const float4 record = slices[(size_t)image * rows * columns + sample];
  if (record.z == 0.0f) return;
  const Volume target{volume, centre};
  const float kx = (float)(sample % columns), ky = (float)(sample / columns - rows / 2);
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    float x = m[0] * kx + m[3] * ky, y = m[1] * kx + m[4] * ky, z = m[2] * kx + m[5] * ky;
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

__device__ float dot3(const float* m, const int* v) { return m[0] * v[0] + m[1] * v[1] + m[2] * v[2]; }

__global__ void insert_blob(float4* volume, int centre, const float4* __restrict__ slices,
                            const float* __restrict__ matrices, const int* __restrict__ images, int rows,
                            int columns, int operators, const float* __restrict__ table, int table_size,
                            float radius) {
  const int image = images[blockIdx.y], number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= (2 * centre + 1) * (2 * centre + 1)) return;
  const float4* records = slices + (size_t)image * rows * columns;
  const float radius2 = radius * radius, reach = columns + radius, scale = (table_size - 1) / radius2;
  const Volume target{volume, centre};
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    const Column column(m, number, centre);
    const int across2 = column.p * column.p + column.q * column.q;
    if (across2 > reach * reach) continue;
    const float middle = -column.rest / column.along, spread = radius / fabsf(column.along);
    const int t0 = max((int)ceilf(middle - spread - 1e-3f), -centre);
    const int t1 = min((int)floorf(middle + spread + 1e-3f), centre);
    for (int t = t0; t <= t1; t++) {
      if (across2 + t * t > reach * reach) continue;
      int v[3];
      column.voxel(t, v);
      const float ux = dot3(m, v), uy = dot3(m + 3, v) + rows / 2, uz = dot3(m + 6, v);
      if (ux < -radius || uz * uz > radius2) continue;
      const int x0 = max((int)ceilf(ux - radius), 0), x1 = min((int)floorf(ux + radius), columns - 1);
      const int y0 = max((int)ceilf(uy - radius), 0), y1 = min((int)floorf(uy + radius), rows - 1);
      float re = 0, im = 0, weight = 0;
      for (int y = y0; y <= y1; y++) {
        const float yz2 = uz * uz + (uy - y) * (uy - y);
        for (int x = x0; x <= x1; x++) {
          const float d2 = yz2 + (ux - x) * (ux - x);
          if (d2 > radius2) continue;
          const float kernel = table[(int)(d2 * scale + 0.5f)];
          const float4 record = records[y * columns + x];
          re += kernel * record.x, im += kernel * record.y, weight += kernel * record.z;
        }
      }
      if (weight != 0.0f) target.add_folded(v[0], v[1], v[2], re, im, weight);
    }
  }
}

__global__ void insert_nearest(float4* volume, int centre, const float4* __restrict__ slices,
                               const float* __restrict__ matrices, const int* __restrict__ images, int rows,
                               int columns, int operators) {
  const int image = images[blockIdx.y], number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= (2 * centre + 1) * (2 * centre + 1)) return;
  const float4* records = slices + (size_t)image * rows * columns;
  const Volume target{volume, centre};
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    const Column column(m, number, centre);
    const float hit = floorf(-column.rest / column.along + 0.5f);
    if (fabsf(hit) > centre) continue;
    int v[3];
    column.voxel((int)hit, v);
    if (v[0] * v[0] + v[1] * v[1] + v[2] * v[2] > columns * columns) continue;
    const float ux = dot3(m, v), uy = dot3(m + 3, v);
    if (ux < 0.0f) continue;
    const int x = min(max((int)floorf(ux + 0.5f), 0), columns - 1);
    const int y = min(max((int)floorf(uy + 0.5f) + rows / 2, 0), rows - 1);
    const float4 record = records[y * columns + x];
    target.add_folded(v[0], v[1], v[2], record.x, record.y, record.z);
  }
}
