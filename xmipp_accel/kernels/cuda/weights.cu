// Spreading of the samples' weights alone; layouts as in kernels/reference/weights.py. The order of the sums varies.

extern "C"
__global__ void insert_weights(float* __restrict__ sums, int centre, int first, int planes,
                               const float4* __restrict__ slices, const float* __restrict__ matrices,
                               const float* __restrict__ curvature, const int* __restrict__ images, int rows,
                               int columns, int operators, const float* __restrict__ table, int table_size,
                               float radius) {
  const int image = images[blockIdx.y], sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= rows * columns) return;
  const float weight = slices[(size_t)image * rows * columns + sample].z;
  if (weight == 0.0f) return;
  const float kx = (float)(sample % columns), ky = (float)(sample / columns - rows / 2);
  const float bend = curvature[image] * (kx * kx + ky * ky);
  const float radius2 = radius * radius, scale = (table_size - 1) / radius2;
  const size_t edge = 2 * centre + 1;
  for (int op = 0; op < operators; op++) {
    const float* m = matrices + 9 * ((size_t)image * operators + op);
    const float x = m[0] * kx + m[3] * ky + m[6] * bend, y = m[1] * kx + m[4] * ky + m[7] * bend,
                z = m[2] * kx + m[5] * ky + m[8] * bend;
    const int x0 = max((int)ceilf(x - radius), -centre), x1 = min((int)floorf(x + radius), centre);
    const int y0 = max((int)ceilf(y - radius), -centre), y1 = min((int)floorf(y + radius), centre);
    const int z0 = max((int)ceilf(z - radius), -centre), z1 = min((int)floorf(z + radius), centre);
    for (int iz = z0; iz <= z1; iz++) {
      for (int iy = y0; iy <= y1; iy++) {
        const float dyz = (iz - z) * (iz - z) + (iy - y) * (iy - y);
        for (int ix = x0; ix <= x1; ix++) {
          const float squares = dyz + (ix - x) * (ix - x);
          if (squares > radius2) continue;
          const int side = ix < 0 ? -1 : 1;
          const int plane = side * iz + centre - first;
          if (plane < 0 || plane >= planes) continue;
          const size_t row = plane * edge + (side * iy + centre);
          atomicAdd(sums + row * (centre + 1) + side * ix, weight * table[(int)(squares * scale + 0.5f)]);
        }
      }
    }
  }
}
