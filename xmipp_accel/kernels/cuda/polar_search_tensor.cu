// Best in-plane angle and shift of each particle with each of its candidate references, on tensor cores.
//
// A block takes one particle and 16 candidates, and walks over tiles of 8 shifts. First it multiplies references and
// shifted particles, summing every harmonic over the rings, and leaves the products in shared memory. Then each warp
// takes the 16 pairs of one shift and turns them: 32 angles at a time it sums, over the harmonics, the cosine and sine
// parts of even and of odd ones. These give the scores at psi, -psi, pi + psi and pi - psi, of which the best is kept.
//
// Both sums are matrix products. Each number is split into two of half precision, its rounded value and the rest;
// three of the four products of such pairs are added in single precision, which keeps 22 bits. A Split has 4 numbers
// that follow each other in the sum: a lane's share of a step of 16 by mma.m16n8k16, whose order of summands is free.

constexpr int REFERENCES = 16, SHIFTS = 8, WARPS = 8, THREADS = 32 * WARPS;
constexpr int CHUNK = 32;  // harmonics: a step of 16 even and one of 16 odd ones
constexpr int UNITS = CHUNK / 4, TABLES = 4, TILES = 4, ANGLES = 8 * TILES;
constexpr int ROWS = REFERENCES * SHIFTS, LANES = 32;

struct Split {
    unsigned high[2], low[2];
};

__device__ inline unsigned packed(float first, float second)
{
    unsigned result = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
#endif
    return result;
}

__device__ inline float2 unpacked(unsigned pair)
{
    float2 result;
    asm("{ .reg .b16 first, second; mov.b32 {first, second}, %2; cvt.f32.f16 %0, first; cvt.f32.f16 %1, second; }"
        : "=f"(result.x), "=f"(result.y)
        : "r"(pair));
    return result;
}

__device__ inline uint4 split(float a, float b, float c, float d)
{
    const unsigned first = packed(a, b), second = packed(c, d);
    const float2 ab = unpacked(first), cd = unpacked(second);
    return make_uint4(first, second, packed(a - ab.x, b - ab.y), packed(c - cd.x, d - cd.y));
}

__device__ inline void add_halves(float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                  unsigned b1)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// Of splits (high, high, low, low): the upper and lower 8 rows of a times the 8 columns of b.
__device__ inline void add_product(float (&sum)[4], const uint4& upper, const uint4& lower, const uint4& b)
{
    add_halves(sum, upper.z, lower.z, upper.w, lower.w, b.x, b.y);
    add_halves(sum, upper.x, lower.x, upper.y, lower.y, b.z, b.w);
    add_halves(sum, upper.x, lower.x, upper.y, lower.y, b.x, b.y);
}

// Pairs (re, im) to (im, -re): with them, the sum of a.re b.re + a.im b.im is that of a.re b.im - a.im b.re.
__device__ inline uint4 quarter_turned(const uint4& b)
{
    constexpr unsigned SWAP = 0x1032, SIGN = 0x80000000;
    return make_uint4(__byte_perm(b.x, 0, SWAP) ^ SIGN, __byte_perm(b.y, 0, SWAP) ^ SIGN,
                      __byte_perm(b.z, 0, SWAP) ^ SIGN, __byte_perm(b.w, 0, SWAP) ^ SIGN);
}

struct Found {
    float score;
    int code;  // shift * n_psi + psi
};

__device__ inline void keep_better(Found& found, float even, float odd, float a, float b, int t, int n_psi, int shift)
{
    const float front = even + odd + fabsf(a + b), back = even - odd + fabsf(a - b);
    const float score = fmaxf(front, back);
    if (score <= found.score)
        return;
    const int half = n_psi / 2;
    int psi;
    if (front >= back)
        psi = a + b >= 0 ? t : (n_psi - t) % n_psi;
    else
        psi = a - b >= 0 ? (half + t) % n_psi : half - t;
    found = {score, shift * n_psi + psi};
}

__device__ inline void keep_better(Found& found, const Found& other)
{
    if (other.score > found.score || (other.score == found.score && other.code < found.code))
        found = other;
}

// harmonics: (n, n_shifts, n_rings, n_harmonics); factors: (n_rings, n_harmonics); scales: (n,);
// table: (n, n_harmonics, padded_shifts, n_steps, 4) splits of two rings' real and imaginary parts.
extern "C"
__global__ void split_harmonics(const float2* __restrict__ harmonics, const float* __restrict__ factors,
                                const float* __restrict__ scales, int n_shifts, int n_rings, int n_harmonics,
                                int padded_shifts, int n_steps, long long size, uint4* __restrict__ table)
{
    long long place = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (place >= size)
        return;
    const int q = place % n_harmonics;
    place /= n_harmonics;
    const int pair = place % (4 * n_steps);
    place /= 4 * n_steps;
    const int shift = place % n_shifts;
    const long long n = place / n_shifts;
    float2 values[2];
    for (int i = 0; i < 2; ++i) {
        const int ring = 2 * pair + i;
        values[i] = make_float2(0, 0);
        if (ring < n_rings) {
            const float factor = factors[ring * n_harmonics + q] * scales[n];
            const float2 value = harmonics[((n * n_shifts + shift) * n_rings + ring) * n_harmonics + q];
            values[i] = make_float2(value.x * factor, value.y * factor);
        }
    }
    table[((n * n_harmonics + q) * padded_shifts + shift) * 4 * n_steps + pair] =
        split(values[0].x, values[0].y, values[1].x, values[1].y);
}

// references: (R, n_harmonics, n_steps, 4) and particles: (n, n_harmonics, padded_shifts, n_steps, 4) splits;
// first_step: (n_chunks * UNITS,), of the harmonics of each unit; turns: (tiles, n_chunks, TABLES, LANES) splits of
// cosines and sines; candidates: (n, T), -1 for none; reference_scale: (R,) and particle_scale: (n,), factors of the
// scores; best, best_psi, best_shift: (n, T), left alone where there is no candidate.
extern "C"
__global__ void __launch_bounds__(THREADS, 2)
polar_search_tensor(const uint4* __restrict__ references, const uint4* __restrict__ particles,
                    const int* __restrict__ first_step, const uint4* __restrict__ turns,
                    const int* __restrict__ candidates, const float* __restrict__ reference_scale,
                    const float* __restrict__ particle_scale, int n_candidates, int n_harmonics, int n_steps,
                    int n_shifts, int padded_shifts, int n_quarter, float* __restrict__ best,
                    int* __restrict__ best_psi, int* __restrict__ best_shift)
{
    extern __shared__ uint4 products[];  // (TABLES, n_chunks, ROWS, 4); ROWS are those of the references of each shift
    __shared__ Found all[WARPS][REFERENCES];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, row = lane / 4, column = lane % 4;
    const int n_chunks = (n_harmonics + CHUNK - 1) / CHUNK, n_psi = 4 * (n_quarter - 1);
    const size_t first_pair = static_cast<size_t>(blockIdx.y) * n_candidates + blockIdx.x * REFERENCES;
    const int in_block = min(REFERENCES, n_candidates - static_cast<int>(blockIdx.x) * REFERENCES);

    // What stands in for a missing candidate does not matter, as its result is not kept.
    const auto reference = [&](int place) {
        const int id = place < in_block ? max(candidates[first_pair + place], 0) : 0;
        return references + static_cast<size_t>(id) * n_harmonics * n_steps * 4 + column;
    };
    const uint4 *upper = reference(row), *lower = reference(row + 8);
    const uint4* particle = particles + static_cast<size_t>(blockIdx.y) * n_harmonics * padded_shifts * n_steps * 4
                            + row * n_steps * 4 + column;
    Found found[2] = {{-3e38f, 0}, {-3e38f, 0}};

    for (int s0 = 0; s0 < padded_shifts; s0 += SHIFTS) {
        for (int unit = warp; unit < n_chunks * UNITS; unit += WARPS) {
            const int parity = unit % 2, quad = unit / 2 % 4, chunk = unit / UNITS;
            float real[4][4] = {}, imaginary[4][4] = {};
#pragma unroll 1
            for (int step = first_step[unit]; step < n_steps; ++step) {
                uint4 a[4], b[4], c[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // past the last harmonic the turns are 0
                    const int q = min(CHUNK * chunk + 8 * quad + 2 * i + parity, n_harmonics - 1);
                    a[i] = upper[(q * n_steps + step) * 4];
                    b[i] = lower[(q * n_steps + step) * 4];
                    c[i] = particle[((static_cast<size_t>(q) * padded_shifts + s0) * n_steps + step) * 4];
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    add_product(real[i], a[i], b[i], c[i]);
                    add_product(imaginary[i], a[i], b[i], quarter_turned(c[i]));
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int place = ((2 * column + j % 2) * REFERENCES + row + j / 2 * 8) * 4 + (quad ^ column);
                uint4* target = products + (2 * parity * n_chunks + chunk) * ROWS * 4 + place;
                target[0] = split(real[0][j], real[1][j], real[2][j], real[3][j]);
                target[n_chunks * ROWS * 4] =
                    split(imaginary[0][j], imaginary[1][j], imaginary[2][j], imaginary[3][j]);
            }
        }
        __syncthreads();
        const int shift = s0 + warp;
        for (int t0 = 0; t0 < n_quarter && shift < n_shifts; t0 += ANGLES) {
            float sums[TABLES][TILES][4] = {};
#pragma unroll 1
            for (int chunk = 0; chunk < n_chunks; ++chunk)
#pragma unroll
                for (int table = 0; table < TABLES; ++table) {
                    // The place within a row is turned, so that rows stored and read together lie in all banks.
                    const uint4* a = products + (table * n_chunks + chunk) * ROWS * 4
                                     + (warp * REFERENCES + row) * 4 + (column ^ (warp / 2));
                    const uint4* turn = turns + ((t0 / 8 * n_chunks + chunk) * TABLES + table) * LANES + lane;
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile)
                        add_product(sums[table][tile], a[0], a[8 * 4], turn[tile * n_chunks * TABLES * LANES]);
                }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int t = t0 + 8 * tile + 2 * column + j % 2;
                    if (t < n_quarter)
                        keep_better(found[j / 2], sums[0][tile][j], sums[2][tile][j], sums[1][tile][j],
                                    sums[3][tile][j], t, n_psi, shift);
                }
        }
        __syncthreads();
    }

    for (int i = 0; i < 2; ++i) {
        for (int step = 1; step < 4; step *= 2) {
            const float score = __shfl_xor_sync(~0u, found[i].score, step);
            keep_better(found[i], {score, __shfl_xor_sync(~0u, found[i].code, step)});
        }
        if (column == 0)
            all[warp][row + 8 * i] = found[i];
    }
    __syncthreads();
    const int mine = threadIdx.x;
    if (mine < in_block && candidates[first_pair + mine] >= 0) {
        Found top = all[0][mine];
        for (int i = 1; i < WARPS; ++i)
            keep_better(top, all[i][mine]);
        best[first_pair + mine] = top.score * particle_scale[blockIdx.y] * reference_scale[candidates[first_pair + mine]];
        best_psi[first_pair + mine] = top.code % n_psi;
        best_shift[first_pair + mine] = top.code / n_psi;
    }
}
