// Best in-plane angle and shift of each particle with each of its candidate references.
//
// A block takes one particle and 16 candidates, and walks over tiles of 12 shifts and 4 harmonics. First each thread
// multiplies 2 references with the particle at 2 shifts, summing one harmonic over the rings; the products go to
// shared memory. Then, while the next tile is on its way, each thread turns them: it adds, for 7 angles, the cosine
// and sine parts of the even and of the odd harmonics of such a quad, which stay in its registers until all
// harmonics are in. They give the scores at psi, -psi, pi + psi and pi - psi. So no score ever leaves the
// multiprocessor but the best one.

constexpr int REFERENCES = 16, SHIFTS = 12, HARMONICS = 4, ANGLES = 7, THREADS = 192;
constexpr int REFERENCE_PAIRS = REFERENCES / 2, QUADS = REFERENCE_PAIRS * SHIFTS / 2;
constexpr int ANGLE_GROUPS = THREADS / QUADS, SLOTS = 8, COPIERS = THREADS / REFERENCES;
constexpr int WALKERS = THREADS / REFERENCE_PAIRS;
constexpr int ROW = REFERENCES + 2;  // two more keep the columns of the tile in different banks

// Copies from global to shared memory that do not pass through registers, where the device can.
template <int BYTES>
__device__ inline void copy_async(void* target, const void* source)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(target));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(source), "n"(BYTES) : "memory");
#else
    for (int i = 0; i < BYTES / 8; ++i)
        static_cast<float2*>(target)[i] = static_cast<const float2*>(source)[i];
#endif
}

__device__ inline void wait_for_copies()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

struct Found {
    float score;
    int psi, shift;
};

__device__ inline void keep_better(Found& found, float even, float odd, float a, float b, int t, int n_psi, int shift)
{
    const float front = even + odd + fabsf(a + b), back = even - odd + fabsf(a - b);
    const float score = fmaxf(front, back);
    if (score <= found.score)
        return;
    const int half = n_psi / 2;
    found.score = score;
    found.shift = shift;
    if (front >= back)
        found.psi = a + b >= 0 ? t : (n_psi - t) % n_psi;
    else
        found.psi = a - b >= 0 ? (half + t) % n_psi : half - t;
}

// Adds the cosine parts of 4 products to those of angle j, and the sine parts likewise.
__device__ inline void add_turned(float (&cosines)[4][ANGLES], float (&sines)[4][ANGLES], const float4& real,
                                  const float4& imaginary, float c, float s, int j)
{
    cosines[0][j] += real.x * c;
    cosines[1][j] += real.y * c;
    cosines[2][j] += real.z * c;
    cosines[3][j] += real.w * c;
    sines[0][j] += imaginary.x * s;
    sines[1][j] += imaginary.y * s;
    sines[2][j] += imaginary.z * s;
    sines[3][j] += imaginary.w * s;
}

// references: (R, Q, K); particles: (n, Q, K, padded_shifts), Q a multiple of 4 and padded_shifts of 12;
// first_ring: (Q,); trig: (n_quarter, Q), cosine and sine of q psi_t; candidates: (n, T), -1 for none;
// best, best_psi, best_shift: (n, T), left alone where there is no candidate.
extern "C"
__global__ void __launch_bounds__(THREADS, 2)
polar_search(const float2* __restrict__ references, const float2* __restrict__ particles,
             const int* __restrict__ first_ring, const float2* __restrict__ trig,
             const int* __restrict__ candidates, int n_candidates, int n_rings, int n_harmonics, int n_shifts,
             int padded_shifts, int n_quarter, float* __restrict__ best, int* __restrict__ best_psi,
             int* __restrict__ best_shift)
{
    extern __shared__ float4 shared[];
    const int rows = HARMONICS * n_rings;
    float2* reference_tile = reinterpret_cast<float2*>(shared);                    // (4, K, ROW)
    float2* particle_tile = reference_tile + rows * ROW;                           // (4, K, SHIFTS)
    float4* products = reinterpret_cast<float4*>(particle_tile + rows * SHIFTS);   // (4, 2, QUADS)
    float2* angles = reinterpret_cast<float2*>(products + HARMONICS * 2 * QUADS);  // (2, 4, ANGLE_GROUPS, SLOTS)
    Found* all = reinterpret_cast<Found*>(angles + 2 * HARMONICS * ANGLE_GROUPS * SLOTS);  // (WALKERS, REFERENCES)

    const int thread = threadIdx.x;
    const size_t first_pair = static_cast<size_t>(blockIdx.y) * n_candidates + blockIdx.x * REFERENCES;
    const int in_block = min(REFERENCES, n_candidates - static_cast<int>(blockIdx.x) * REFERENCES);

    // While copying: a column of the reference tile, of the particle tile, and one angle. What stands in for a
    // missing candidate does not matter, as its result is not kept.
    const int my_reference = thread / COPIERS, my_place = thread % COPIERS;
    const int id = my_reference < in_block ? max(candidates[first_pair + my_reference], 0) : 0;
    const float2* reference_source = references + static_cast<size_t>(id) * n_harmonics * n_rings;
    const float2* particle_source = particles + static_cast<size_t>(blockIdx.y) * n_harmonics * n_rings * padded_shifts
                                    + (thread / (SHIFTS / 2)) * padded_shifts + 2 * (thread % (SHIFTS / 2));
    const int slot = thread % SLOTS, my_angle = thread / SLOTS % ANGLE_GROUPS * ANGLES + slot;
    // While multiplying: one harmonic and a quad of 2 references and 2 shifts.
    const int my_harmonic = thread / QUADS, my_quad = thread % QUADS;
    const float4* a_row = reinterpret_cast<const float4*>(reference_tile + my_harmonic * n_rings * ROW)
                          + my_quad % REFERENCE_PAIRS;
    const float4* b_row = reinterpret_cast<const float4*>(particle_tile + my_harmonic * n_rings * SHIFTS)
                          + my_quad / REFERENCE_PAIRS;
    // While turning: a quad and a group of angles.
    const int lane = thread % 32, shift_pair = thread / 32;
    const int reference_pair = lane % REFERENCE_PAIRS, angle_group = lane / REFERENCE_PAIRS;
    const int quad = shift_pair * REFERENCE_PAIRS + reference_pair;
    const int n_psi = 4 * (n_quarter - 1);
    // In shared memory, as the registers are full; the two references lie one after the other.
    Found* found = all + (shift_pair * ANGLE_GROUPS + angle_group) * REFERENCES + 2 * reference_pair;
    found[0] = found[1] = {-3e38f, 0, 0};

    const auto copy_tile = [&](int t0, int s0, int q0) {
        const float2* source = reference_source + q0 * n_rings;
#pragma unroll 1
        for (int i = my_place; i < rows; i += COPIERS)
            copy_async<8>(reference_tile + i * ROW + my_reference, source + i);
        source = particle_source + static_cast<size_t>(q0) * n_rings * padded_shifts + s0;
#pragma unroll 1
        for (int i = thread; i < rows * (SHIFTS / 2); i += THREADS) {
            copy_async<16>(particle_tile + 2 * i, source);
            source += THREADS / (SHIFTS / 2) * padded_shifts;
        }
        if (thread < HARMONICS * ANGLE_GROUPS * SLOTS) {
            const bool used = slot < ANGLES && t0 + my_angle < n_quarter;
            const int q = q0 + thread / (SLOTS * ANGLE_GROUPS);
            angles[q0 / HARMONICS % 2 * (HARMONICS * ANGLE_GROUPS * SLOTS) + thread] =
                used ? trig[(t0 + my_angle) * n_harmonics + q] : make_float2(0, 0);
        }
    };

    for (int t0 = 0; t0 < n_quarter; t0 += ANGLE_GROUPS * ANGLES)
        for (int s0 = 0; s0 < padded_shifts; s0 += SHIFTS) {
            float cosines[2][4][ANGLES] = {}, sines[2][4][ANGLES] = {};  // of even and odd harmonics
            __syncthreads();
            copy_tile(t0, s0, 0);
            for (int q0 = 0; q0 < n_harmonics; q0 += HARMONICS) {
                wait_for_copies();
                __syncthreads();
                // conj(reference) * particle, for the references a.xy and a.zw at the shifts b.xy and b.zw
                float4 real = make_float4(0, 0, 0, 0), imaginary = real;
#pragma unroll 4
                for (int k = first_ring[q0 + my_harmonic]; k < n_rings; ++k) {
                    const float4 a = a_row[k * (ROW / 2)], b = b_row[k * (SHIFTS / 2)];
                    real.x = fmaf(a.x, b.x, fmaf(a.y, b.y, real.x));
                    real.y = fmaf(a.x, b.z, fmaf(a.y, b.w, real.y));
                    real.z = fmaf(a.z, b.x, fmaf(a.w, b.y, real.z));
                    real.w = fmaf(a.z, b.z, fmaf(a.w, b.w, real.w));
                    imaginary.x = fmaf(a.x, b.y, fmaf(-a.y, b.x, imaginary.x));
                    imaginary.y = fmaf(a.x, b.w, fmaf(-a.y, b.z, imaginary.y));
                    imaginary.z = fmaf(a.z, b.y, fmaf(-a.w, b.x, imaginary.z));
                    imaginary.w = fmaf(a.z, b.w, fmaf(-a.w, b.z, imaginary.w));
                }
                products[2 * my_harmonic * QUADS + my_quad] = real;
                products[(2 * my_harmonic + 1) * QUADS + my_quad] = imaginary;
                __syncthreads();
                if (q0 + HARMONICS < n_harmonics)
                    copy_tile(t0, s0, q0 + HARMONICS);
                const float4* turns = reinterpret_cast<const float4*>(angles)
                                      + (q0 / HARMONICS % 2 * HARMONICS * ANGLE_GROUPS + angle_group) * (SLOTS / 2);
#pragma unroll
                for (int q = 0; q < HARMONICS; ++q) {
                    real = products[2 * q * QUADS + quad];
                    imaginary = products[(2 * q + 1) * QUADS + quad];
#pragma unroll
                    for (int pair = 0; pair < SLOTS / 2; ++pair) {
                        const float4 turn = turns[q * ANGLE_GROUPS * (SLOTS / 2) + pair];
                        add_turned(cosines[q % 2], sines[q % 2], real, imaginary, turn.x, turn.y, 2 * pair);
                        if (2 * pair + 1 < ANGLES)
                            add_turned(cosines[q % 2], sines[q % 2], real, imaginary, turn.z, turn.w, 2 * pair + 1);
                    }
                }
            }
#pragma unroll
            for (int column = 0; column < 4; ++column) {
                const int shift = s0 + 2 * shift_pair + column % 2;
                Found best_here = found[column / 2];
#pragma unroll
                for (int j = 0; j < ANGLES; ++j) {
                    const int t = t0 + angle_group * ANGLES + j;
                    if (t < n_quarter && shift < n_shifts)
                        keep_better(best_here, cosines[0][column][j], cosines[1][column][j], sines[0][column][j],
                                    sines[1][column][j], t, n_psi, shift);
                }
                found[column / 2] = best_here;
            }
        }

    __syncthreads();
    if (thread < in_block && candidates[first_pair + thread] >= 0) {
        Found top = all[thread];
        for (int i = 1; i < WALKERS; ++i) {
            const Found other = all[i * REFERENCES + thread];
            const bool before = other.shift < top.shift || (other.shift == top.shift && other.psi < top.psi);
            if (other.score > top.score || (other.score == top.score && before))
                top = other;
        }
        best[first_pair + thread] = top.score;
        best_psi[first_pair + thread] = top.psi;
        best_shift[first_pair + thread] = top.shift;
    }
}
