// Which images can be used; twin of `_screen` in reconstruction/source.py.

// A block for each image: one that holds a value that is not finite, or the same one everywhere, becomes zero.
extern "C"
__global__ void screen_images(float* images, bool* usable, long long pixels) {
  float* image = images + blockIdx.x * pixels;
  const float first = image[0];
  bool finite = true, differs = false;
  for (long long i = threadIdx.x; i < pixels; i += blockDim.x) {
    const float value = image[i];
    finite = finite && isfinite(value);
    differs = differs || value != first;
  }
  const bool all_finite = __syncthreads_and(finite), any_differs = __syncthreads_or(differs);
  const bool good = all_finite && any_differs;
  if (threadIdx.x == 0) usable[blockIdx.x] = good;
  if (good) return;
  for (long long i = threadIdx.x; i < pixels; i += blockDim.x) image[i] = 0.0f;
}
