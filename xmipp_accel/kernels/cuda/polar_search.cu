// Best in-plane angle and shift of every pair, from sums over even and odd harmonics.
//
// even_cosine, even_sine, odd_cosine, odd_sine: (n_quarter, n_references, n_shifts, n_particles), the sums at
// psi_t = 2 pi t / (4 (n_quarter - 1)), t = 0 .. n_quarter - 1; they give the scores at psi, -psi, pi + psi and
// pi - psi. One thread takes one pair; neighbouring threads take neighbouring particles, so that reads coalesce.
// best, psi_index, shift_index: (n_references, n_particles).

template <typename Real>
__global__ void polar_best(const Real* __restrict__ even_cosine, const Real* __restrict__ even_sine,
                           const Real* __restrict__ odd_cosine, const Real* __restrict__ odd_sine,
                           int n_quarter, int n_references, int n_shifts, int n_particles,
                           Real* __restrict__ best, int* __restrict__ psi_index, int* __restrict__ shift_index)
{
    const long long pairs = static_cast<long long>(n_references) * n_particles;
    const long long columns = pairs * n_shifts;
    for (long long pair = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; pair < pairs;
         pair += static_cast<long long>(gridDim.x) * blockDim.x) {
        const long long reference = pair / n_particles;
        const long long first = reference * n_shifts * n_particles + pair % n_particles;
        Real top = Real(-3e38);
        int top_t = 0, top_s = 0;
        for (int t = 0; t < n_quarter; ++t) {
            for (int s = 0; s < n_shifts; ++s) {
                const long long i = t * columns + first + static_cast<long long>(s) * n_particles;
                const Real even = even_cosine[i], odd = odd_cosine[i], a = even_sine[i], b = odd_sine[i];
                const Real front = even + odd + fabs(a + b), back = even - odd + fabs(a - b);
                const Real value = front > back ? front : back;
                if (value > top) {
                    top = value;
                    top_t = t;
                    top_s = s;
                }
            }
        }
        const long long i = top_t * columns + first + static_cast<long long>(top_s) * n_particles;
        const Real even = even_cosine[i], odd = odd_cosine[i], a = even_sine[i], b = odd_sine[i];
        const int n_psi = 4 * (n_quarter - 1), half = n_psi / 2;
        int psi;
        if (even + odd + fabs(a + b) >= even - odd + fabs(a - b))
            psi = a + b >= 0 ? top_t : (n_psi - top_t) % n_psi;
        else
            psi = a - b >= 0 ? (half + top_t) % n_psi : half - top_t;
        best[pair] = top;
        psi_index[pair] = psi;
        shift_index[pair] = top_s;
    }
}
