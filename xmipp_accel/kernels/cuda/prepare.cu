// Records of images for the insertion into a Fourier volume; layouts as in kernels/reference/insert.py.

#define FACTORS 12

__device__ float2 multiply(float2 a, float2 b) { return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x); }

// What the transform is multiplied with, and in z the weight that belongs to it.
__device__ float3 transfer(float phase, float separation, int mode, int sideband) {
  float sine, cosine;
  sincosf(phase, &sine, &cosine);
  const float square = sine * sine;
  if (sideband) {
    const float half = mode == 2 && sine < 0.0f ? -0.5f : 0.5f;
    const float angle = 3.14159265f * separation;
    const float overlap = angle < 1e-4f ? 1.0f : fmaxf(0.0f, sinf(angle) / angle);
    return make_float3(half * sine, half * sideband * cosine, 0.25f * (1.0f - overlap) + 0.5f * overlap * square);
  }
  if (mode == 2) sine = fabsf(sine);
  return make_float3(mode == 3 ? 1.0f : sine, 0.0f, square);
}

// What moves the pixel `origin`, less the shift, to pixel 0; whole turns are taken away before anything is rounded.
__device__ float2 ramp(int kx, int ky, float shift_x, float shift_y, int origin, int padded) {
  const float size = (float)padded, inverse = 1.0f / size, steps = (float)(origin * (kx + ky));
  const float rest = fmaf(-rintf(steps * inverse), size, steps) - (shift_x * kx + shift_y * ky);
  float sine, cosine;
  sincospif(2.0f * inverse * rest, &sine, &cosine);
  return make_float2(cosine, sine);
}

// Images in the first corner of larger ones of zeros.
extern "C"
__global__ void pad_images(const float* __restrict__ images, float* __restrict__ padded_images, int box, int padded) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, image = blockIdx.z;
  if (x >= padded) return;
  const bool inside = x < box && y < box;
  padded_images[((size_t)image * padded + y) * padded + x] =
      inside ? images[((size_t)image * box + y) * box + x] : 0.0f;
}

extern "C"
__global__ void prepare_slices(const float2* __restrict__ transforms, const float* __restrict__ factors,
                               const float* __restrict__ table, float4* __restrict__ slices, int padded, int width,
                               int rows, int columns, int origin, float gain, float limit, int mode, int sideband,
                               int inside_only, int once) {
  const int image = blockIdx.y;
  const int sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample >= rows * columns) return;
  const int row = sample / columns, kx = sample % columns, ky = row - rows / 2;
  float4* target = slices + (size_t)image * rows * columns + sample;
  const float k2 = (float)(kx * kx + ky * ky);
  const bool inside = k2 <= limit;
  const float* f = factors + FACTORS * image;
  float weight = f[7];
  if (weight == 0.0f || (inside_only && !inside) || (once && kx == 0 && ky < 0)) {
    *target = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return;
  }
  if (f[8] != 0.0f) weight *= expf(-f[8] * k2);
  if (once && k2 == 0.0f) weight *= 0.5f;
  float2 value = transforms[((size_t)image * padded + (ky < 0 ? ky + padded : ky)) * width + kx];
  value = multiply(value, ramp(kx, ky, f[11], f[10], origin, padded));
  float extra = 0.0f;
  if (table) {
    const float* entry = table + 3 * (size_t)sample;
    extra = entry[0];
    float sine, cosine;
    sincosf(entry[1], &sine, &cosine);
    value = multiply(value, make_float2(cosine, -sine));
    weight *= entry[2];
  }
  float3 ctf = make_float3(1.0f, 0.0f, 1.0f);
  if (mode) {
    const float astigmatic = (float)(kx * kx - ky * ky), oblique = (float)(2 * kx * ky);
    const float stretched = f[3] * k2 + f[4] * astigmatic + f[5] * oblique;
    const float phase =
        f[0] * k2 + f[1] * astigmatic + f[2] * oblique - stretched * stretched + f[6] + extra;
    ctf = transfer(phase, f[9] * k2, mode, sideband);
  }
  value = multiply(value, make_float2(ctf.x, ctf.y));
  const float shown = inside ? gain * weight : 0.0f;
  *target = make_float4(value.x * shown, value.y * shown, weight * ctf.z, 0.0f);
}
