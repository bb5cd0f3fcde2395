// Best in-plane angle and shift of each particle with each of its candidate references.
//
// A block takes one particle and 16 candidates, and walks over tiles of 12 shifts and 4 harmonics. First each thread
// multiplies 2 references with the particle at 2 shifts, summing one harmonic over the rings; the products go to
// shared memory. Then each thread turns them: it adds, for 7 angles, the cosine and sine parts of the even and of
// the odd harmonics of such a quad, which stay in its registers until all harmonics are in. They give the scores at
// psi, -psi, pi + psi and pi - psi. So no score ever leaves the multiprocessor but the best one.

constexpr int REFERENCES = 16, SHIFTS = 12, HARMONICS = 4, ANGLES = 7, THREADS = 192;
constexpr int REFERENCE_PAIRS = REFERENCES / 2, QUADS = REFERENCE_PAIRS * SHIFTS / 2;
constexpr int ANGLE_GROUPS = THREADS / QUADS, ANGLE_SLOTS = 8;
constexpr int ROW = REFERENCES + 2;  // two more keep the columns of the tile in different banks

struct Found {
    float score;
    int psi, shift;
};

__device__ inline void keep_better(Found& found, float even, float odd, float a, float b, int t, int n_psi, int shift)
{
    const float front = even + odd + fabsf(a + b), back = even - odd + fabsf(a - b);
    const float score = fmaxf(front, back);
    if (!(score > found.score))
        return;
    const int half = n_psi / 2;
    found.score = score;
    found.shift = shift;
    if (front >= back)
        found.psi = a + b >= 0 ? t : (n_psi - t) % n_psi;
    else
        found.psi = a - b >= 0 ? (half + t) % n_psi : half - t;
}

// references: (R, Q, K); particles: (n, Q, K, padded_shifts), Q a multiple of 4 and padded_shifts of 12;
// first_ring: (Q,); trig: (n_quarter, Q), cosine and sine of q psi_t; candidates: (n, T), -1 for none;
// best, best_psi, best_shift: (n, T), left alone where there is no candidate.
__global__ void __launch_bounds__(THREADS, 2)
polar_search(const float2* __restrict__ references, const float2* __restrict__ particles,
             const long long* __restrict__ first_ring, const float2* __restrict__ trig,
             const int* __restrict__ candidates, int n_candidates, int n_rings, int n_harmonics, int n_shifts,
             int padded_shifts, int n_quarter, float* __restrict__ best, int* __restrict__ best_psi,
             int* __restrict__ best_shift)
{
    extern __shared__ float4 shared[];
    float2* reference_tile = reinterpret_cast<float2*>(shared);                    // (4, K, ROW)
    float2* particle_tile = reference_tile + HARMONICS * n_rings * ROW;            // (4, K, SHIFTS)
    float4* products = reinterpret_cast<float4*>(particle_tile + HARMONICS * n_rings * SHIFTS);  // (4, 2, QUADS)
    float2* angles = reinterpret_cast<float2*>(products + HARMONICS * 2 * QUADS);  // (4, ANGLE_GROUPS, ANGLE_SLOTS)
    __shared__ int chosen[REFERENCES];

    const int thread = threadIdx.x;
    const size_t row = static_cast<size_t>(blockIdx.y) * n_candidates;
    const int first_candidate = blockIdx.x * REFERENCES;
    if (thread < REFERENCES)
        chosen[thread] = first_candidate + thread < n_candidates ? candidates[row + first_candidate + thread] : -1;
    const float2* particle = particles + static_cast<size_t>(blockIdx.y) * n_harmonics * n_rings * padded_shifts;

    const int my_harmonic = thread / QUADS, my_quad = thread % QUADS;        // while multiplying
    const int lane = thread % 32, shift_pair = thread / 32;                  // while turning
    const int reference_pair = lane % REFERENCE_PAIRS, angle_group = lane / REFERENCE_PAIRS;
    const int quad = shift_pair * REFERENCE_PAIRS + reference_pair;
    const int n_psi = 4 * (n_quarter - 1);
    Found found[2] = {{-3e38f, 0, 0}, {-3e38f, 0, 0}};

    for (int t0 = 0; t0 < n_quarter; t0 += ANGLE_GROUPS * ANGLES)
        for (int s0 = 0; s0 < padded_shifts; s0 += SHIFTS) {
            float cosines[2][4][ANGLES] = {}, sines[2][4][ANGLES] = {};  // of even and odd harmonics
            for (int q0 = 0; q0 < n_harmonics; q0 += HARMONICS) {
                __syncthreads();
                for (int i = thread / 16; i < HARMONICS * REFERENCES; i += THREADS / 16) {
                    const int r = i % REFERENCES, q = i / REFERENCES, id = chosen[r];
                    const float2* source = references + (static_cast<size_t>(id) * n_harmonics + q0 + q) * n_rings;
                    for (int k = thread % 16; k < n_rings; k += 16)
                        reference_tile[(q * n_rings + k) * ROW + r] = id < 0 ? make_float2(0, 0) : source[k];
                }
                const float2* source = particle + static_cast<size_t>(q0) * n_rings * padded_shifts + s0;
                for (int i = thread; i < HARMONICS * n_rings * (SHIFTS / 2); i += THREADS) {
                    const int place = i / (SHIFTS / 2), pair = i % (SHIFTS / 2);
                    reinterpret_cast<float4*>(particle_tile)[i] =
                        reinterpret_cast<const float4*>(source + static_cast<size_t>(place) * padded_shifts)[pair];
                }
                for (int i = thread; i < HARMONICS * ANGLE_GROUPS * ANGLE_SLOTS; i += THREADS) {
                    const int slot = i % ANGLE_SLOTS, q = i / (ANGLE_SLOTS * ANGLE_GROUPS);
                    const int t = t0 + i / ANGLE_SLOTS % ANGLE_GROUPS * ANGLES + slot;
                    const bool used = slot < ANGLES && t < n_quarter;
                    angles[i] = used ? trig[t * n_harmonics + q0 + q] : make_float2(0, 0);
                }
                __syncthreads();
                {
                    // conj(reference) * particle, for the references a.xy and a.zw at the shifts b.xy and b.zw
                    float4 real = make_float4(0, 0, 0, 0), imaginary = real;
                    const float4* a_row = reinterpret_cast<const float4*>(reference_tile + my_harmonic * n_rings * ROW)
                                          + my_quad % REFERENCE_PAIRS;
                    const float4* b_row =
                        reinterpret_cast<const float4*>(particle_tile + my_harmonic * n_rings * SHIFTS)
                        + my_quad / REFERENCE_PAIRS;
                    for (int k = static_cast<int>(first_ring[q0 + my_harmonic]); k < n_rings; ++k) {
                        const float4 a = a_row[k * (ROW / 2)], b = b_row[k * (SHIFTS / 2)];
                        real.x += a.x * b.x + a.y * b.y;
                        real.y += a.x * b.z + a.y * b.w;
                        real.z += a.z * b.x + a.w * b.y;
                        real.w += a.z * b.z + a.w * b.w;
                        imaginary.x += a.x * b.y - a.y * b.x;
                        imaginary.y += a.x * b.w - a.y * b.z;
                        imaginary.z += a.z * b.y - a.w * b.x;
                        imaginary.w += a.z * b.w - a.w * b.z;
                    }
                    products[2 * my_harmonic * QUADS + my_quad] = real;
                    products[(2 * my_harmonic + 1) * QUADS + my_quad] = imaginary;
                }
                __syncthreads();
#pragma unroll
                for (int q = 0; q < HARMONICS; ++q) {
                    const float4 real = products[2 * q * QUADS + quad], imaginary = products[(2 * q + 1) * QUADS + quad];
                    const float2* turn = angles + (q * ANGLE_GROUPS + angle_group) * ANGLE_SLOTS;
#pragma unroll
                    for (int j = 0; j < ANGLES; ++j) {
                        const float c = turn[j].x, s = turn[j].y;
                        cosines[q % 2][0][j] += real.x * c;
                        cosines[q % 2][1][j] += real.y * c;
                        cosines[q % 2][2][j] += real.z * c;
                        cosines[q % 2][3][j] += real.w * c;
                        sines[q % 2][0][j] += imaginary.x * s;
                        sines[q % 2][1][j] += imaginary.y * s;
                        sines[q % 2][2][j] += imaginary.z * s;
                        sines[q % 2][3][j] += imaginary.w * s;
                    }
                }
            }
#pragma unroll
            for (int column = 0; column < 4; ++column) {
                const int shift = s0 + 2 * shift_pair + column % 2;
#pragma unroll
                for (int j = 0; j < ANGLES; ++j) {
                    const int t = t0 + angle_group * ANGLES + j;
                    if (t < n_quarter && shift < n_shifts)
                        keep_better(found[column / 2], cosines[0][column][j], cosines[1][column][j],
                                    sines[0][column][j], sines[1][column][j], t, n_psi, shift);
                }
            }
        }

    __syncthreads();
    Found* all = reinterpret_cast<Found*>(products);  // (shift pairs * angle groups, REFERENCES)
    for (int i = 0; i < 2; ++i)
        all[(shift_pair * ANGLE_GROUPS + angle_group) * REFERENCES + 2 * reference_pair + i] = found[i];
    __syncthreads();
    if (thread < REFERENCES && chosen[thread] >= 0) {
        Found top = all[thread];
        for (int i = 1; i < THREADS / REFERENCE_PAIRS; ++i) {
            const Found other = all[i * REFERENCES + thread];
            const bool before = other.shift < top.shift || (other.shift == top.shift && other.psi < top.psi);
            if (other.score > top.score || (other.score == top.score && before))
                top = other;
        }
        const size_t place = row + first_candidate + thread;
        best[place] = top.score;
        best_psi[place] = top.psi;
        best_shift[place] = top.shift;
    }
}
