// Best in-plane angle and shift of each particle with each of its candidate references, on tensor cores.
//
// A block takes one particle and 8 candidates, and walks over tiles of 16 shifts. First it multiplies shifted
// particles and references, summing every harmonic over the rings, and leaves the products in shared memory. Then each
// warp turns those of one reference: 32 angles at a time it sums, over the harmonics, the cosine and sine parts of even
// and of odd ones. These give the scores at psi, -psi, pi + psi and pi - psi, of which the best is kept.
//
// Both sums are products of matrices by mma.m16n8k16. Each number is split into two of half precision, its rounded
// value and the rest; three of the four products of such pairs are added in single precision, which keeps 22 bits.
// All operands lie in memory as the lanes of a warp take them: of the 16 terms that a step adds, a lane holds four that
// follow each other, as the order of terms is free; of the 16 rows of the first matrix it holds two, 8 apart.

constexpr int LANES = 32, SHIFTS = 16, REFERENCES = 8, WARPS = REFERENCES;
constexpr int CHUNK = 32;  // harmonics: 16 even and 16 odd ones
constexpr int UNIT = 4;    // of them, of one parity, are multiplied by one warp
constexpr int UNITS = CHUNK / UNIT, TABLES = 4, TILES = 4, ANGLES = 8 * TILES, TERMS = 3;

__device__ inline int harmonic_of(int unit, int i)
{
    return CHUNK * (unit / UNITS) + 8 * (unit / 2 % 4) + 2 * i + unit % 2;
}

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

struct Halves {
    unsigned high, low;
};

__device__ inline Halves split(float first, float second)
{
    const unsigned high = packed(first, second);
    const float2 rounded = unpacked(high);
    return {high, packed(first - rounded.x, second - rounded.y)};
}

// Adds the product of a, 16 rows, and b, 8 columns.
__device__ inline void add_halves(float (&sum)[4], const uint4& a, unsigned b0, unsigned b1)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}

// One of the three parts of a product of split numbers; b has its high halves before the low ones. Whoever adds several
// products takes them in turn, as each part waits for the one before of the same sum.
__device__ inline void add_term(int term, float (&sum)[4], const uint4& high, const uint4& low, const uint4& b)
{
    if (term == 0)
        add_halves(sum, low, b.x, b.y);
    else if (term == 1)
        add_halves(sum, high, b.z, b.w);
    else
        add_halves(sum, high, b.x, b.y);
}

// Pairs (re, im) to (-im, re): with them, the sum of a.re b.re + a.im b.im is that of a.im b.re - a.re b.im.
__device__ inline uint4 quarter_turned(const uint4& b)
{
    constexpr unsigned SWAP = 0x1032, SIGN = 0x8000;
    return make_uint4(__byte_perm(b.x, 0, SWAP) ^ SIGN, __byte_perm(b.y, 0, SWAP) ^ SIGN,
                      __byte_perm(b.z, 0, SWAP) ^ SIGN, __byte_perm(b.w, 0, SWAP) ^ SIGN);
}

struct Found {
    float score;
    int code;  // shift * n_psi + psi
};

// Scores at psi or -psi and at pi - psi or pi + psi, of the cosine and sine parts of even and odd harmonics.
__device__ inline float2 both_scores(float even, float odd, float a, float b)
{
    return make_float2(even + odd + fabsf(a + b), even - odd + fabsf(a - b));
}

__device__ inline int angle_of(const float2& scores, float a, float b, int t, int n_psi)
{
    const int half = n_psi / 2;
    if (scores.x >= scores.y)
        return a + b >= 0 ? t : (n_psi - t) % n_psi;
    return a - b >= 0 ? (half + t) % n_psi : half - t;
}

__device__ inline Halves scaled_halves(const float2* harmonics, const float* factors, float scale, int ring, int q,
                                       int n_rings, int n_harmonics)
{
    if (ring >= n_rings || q >= n_harmonics)
        return {0, 0};
    const int place = ring * n_harmonics + q;
    const float factor = factors[place] * scale;
    return split(harmonics[place].x * factor, harmonics[place].y * factor);
}

// harmonics: (R, n_rings, n_harmonics); factors: (n_rings, n_harmonics); scales: (R,);
// table: (R, n_units, n_steps, UNIT, 4), the halves of two rings' real and imaginary parts.
extern "C"
__global__ void split_references(const float2* __restrict__ harmonics, const float* __restrict__ factors,
                                 const float* __restrict__ scales, int n_rings, int n_harmonics, int n_units,
                                 int n_steps, long long size, uint4* __restrict__ table)
{
    const long long place = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (place >= size)
        return;
    const int column = place % 4, i = place / 4 % UNIT, step = place / (4 * UNIT) % n_steps;
    const int unit = place / (4 * UNIT * n_steps) % n_units;
    const long long n = place / (4 * UNIT * n_steps) / n_units;
    const int q = harmonic_of(unit, i), ring = 8 * step + 2 * column;
    const float2* source = harmonics + n * n_rings * n_harmonics;
    const Halves first = scaled_halves(source, factors, scales[n], ring, q, n_rings, n_harmonics);
    const Halves second = scaled_halves(source, factors, scales[n], ring + 1, q, n_rings, n_harmonics);
    table[place] = make_uint4(first.high, second.high, first.low, second.low);
}

// harmonics: (n, n_shifts, n_rings, n_harmonics); factors: (n_rings, n_harmonics); scales: (n,);
// table: (n, n_tiles, n_units, n_steps, UNIT, 2, LANES), high and low halves of two rings of shifts 8 apart; what is
// missing to a whole tile is the last shift again.
extern "C"
__global__ void split_particles(const float2* __restrict__ harmonics, const float* __restrict__ factors,
                                const float* __restrict__ scales, int n_shifts, int n_rings, int n_harmonics,
                                int n_units, int n_steps, long long size, uint4* __restrict__ table)
{
    const long long place = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (place >= size)
        return;
    const int lane = place % LANES, i = place / LANES % UNIT, step = place / (LANES * UNIT) % n_steps;
    const long long rest = place / (LANES * UNIT) / n_steps;
    const int unit = rest % n_units, n_tiles = (n_shifts + SHIFTS - 1) / SHIFTS, tile = rest / n_units % n_tiles;
    const long long n = rest / n_units / n_tiles;
    const int q = harmonic_of(unit, i), ring = 8 * step + 2 * (lane % 4);
    Halves halves[4];
    for (int j = 0; j < 4; ++j) {
        const int shift = min(tile * SHIFTS + lane / 4 + j % 2 * 8, n_shifts - 1);
        const float2* source = harmonics + (n * n_shifts + shift) * n_rings * n_harmonics;
        halves[j] = scaled_halves(source, factors, scales[n], ring + j / 2, q, n_rings, n_harmonics);
    }
    uint4* target = table + (place - lane) * 2 + lane;
    target[0] = make_uint4(halves[0].high, halves[1].high, halves[2].high, halves[3].high);
    target[LANES] = make_uint4(halves[0].low, halves[1].low, halves[2].low, halves[3].low);
}

// Multiplies the shifts of a tile with the references and writes (TABLES, n_chunks, REFERENCES, 2, LANES) products:
// high and low halves of the real and imaginary parts of even, then of odd harmonics.
__device__ inline void multiply(const uint4* __restrict__ particle, const uint4* __restrict__ reference,
                                const int* __restrict__ first_step, int n_units, int n_chunks, int n_steps,
                                uint4* products)
{
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, row = lane / 4, column = lane % 4;
    for (int unit = warp; unit < n_units; unit += WARPS) {
        float sums[2][UNIT][4] = {};  // real and imaginary parts
        for (int step = first_step[unit]; step < n_steps; ++step) {
            const int place = (unit * n_steps + step) * UNIT;
            const uint4 *a = particle + place * (2 * LANES) + lane, *b = reference + place * 4;
#pragma unroll
            for (int i = 0; i < UNIT; ++i) {
                const uint4 high = a[2 * i * LANES], low = a[(2 * i + 1) * LANES], plain = b[4 * i];
                const uint4 turned = quarter_turned(plain);
#pragma unroll
                for (int term = 0; term < TERMS; ++term) {
                    add_term(term, sums[0][i], high, low, plain);
                    add_term(term, sums[1][i], high, low, turned);
                }
            }
        }
        const int quad = unit / 2 % 4, chunk = unit / UNITS;
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float(&values)[UNIT][4] = sums[part];
                const Halves k0 = split(values[0][j], values[1][j]), k1 = split(values[0][j + 2], values[1][j + 2]);
                const Halves k2 = split(values[2][j], values[3][j]), k3 = split(values[2][j + 2], values[3][j + 2]);
                const int table = 2 * (unit % 2) + part, mine = 2 * column + j;
                // The quads of a row are turned so that what is stored or read at once lies in all banks.
                uint4* target = products + ((table * n_chunks + chunk) * REFERENCES + mine) * (2 * LANES) + 4 * row
                                + (quad ^ column);
                target[0] = make_uint4(k0.high, k1.high, k2.high, k3.high);
                target[LANES] = make_uint4(k0.low, k1.low, k2.low, k3.low);
            }
    }
}

// Turns the products of a warp's reference and keeps each lane's best score; no lane cares for what is not above
// `limit`, the best of them all.
__device__ inline void turn(const uint4* products, const uint4* __restrict__ turns, int n_chunks, int n_quarter, int s0,
                            Found& found, float& limit)
{
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, row = lane / 4, column = lane % 4;
    const int n_psi = 4 * (n_quarter - 1);
    products += warp * (2 * LANES) + 4 * row + (column ^ (warp / 2));
    for (int t0 = 0; t0 < n_quarter; t0 += ANGLES) {
        float sums[TABLES][TILES][4] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < n_chunks; ++chunk)
#pragma unroll
            for (int table = 0; table < TABLES; ++table) {
                const uint4* a = products + (table * n_chunks + chunk) * (REFERENCES * 2 * LANES);
                const uint4* b = turns + ((t0 / ANGLES * n_chunks + chunk) * TABLES + table) * (TILES * LANES) + lane;
                const uint4 high = a[0], low = a[LANES];
#pragma unroll
                for (int term = 0; term < TERMS; ++term)
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile)
                        add_term(term, sums[table][tile], high, low, b[tile * LANES]);
            }
        const auto scores_of = [&](int tile, int j) {
            return both_scores(sums[0][tile][j], sums[2][tile][j], sums[1][tile][j], sums[3][tile][j]);
        };
        float highest = -3e38f;
#pragma unroll
        for (int i = 0; i < 4 * TILES; ++i) {
            const float2 scores = scores_of(i / 4, i % 4);
            highest = fmaxf(highest, fmaxf(scores.x, scores.y));
        }
        if (!__any_sync(~0u, highest > limit))
            continue;
#pragma unroll
        for (int i = 0; i < 4 * TILES; ++i) {  // the upper row of all tiles, then the lower one
            const int tile = i / 2 % TILES, j = i / (2 * TILES) * 2 + i % 2;
            const int t = t0 + 8 * tile + 2 * column + j % 2, shift = s0 + row + j / 2 * 8;
            const float2 scores = scores_of(tile, j);
            const float score = fmaxf(scores.x, scores.y);
            if (t < n_quarter && score > limit && score > found.score)
                found = {score, shift * n_psi + angle_of(scores, sums[1][tile][j], sums[3][tile][j], t, n_psi)};
        }
        limit = found.score;
        for (int step = 1; step < LANES; step *= 2)
            limit = fmaxf(limit, __shfl_xor_sync(~0u, limit, step));
    }
}

// references: (R, n_units, n_steps, UNIT, 4) and particles: (n, n_tiles, n_units, n_steps, UNIT, 2, LANES), split;
// first_step: (n_units,), of rings that hold any of its harmonics; turns: (n_quarter / ANGLES, n_chunks, TABLES, TILES,
// LANES), split cosines and sines, 0 beyond the last harmonic and those of the last angle beyond that; candidates:
// (n, T), -1 for none; reference_scale: (R,) and particle_scale: (n,), factors of the scores; best, best_psi,
// best_shift: (n, T), left alone where there is no candidate.
extern "C"
__global__ void __launch_bounds__(WARPS * LANES, 2)
polar_search_tensor(const uint4* __restrict__ references, const uint4* __restrict__ particles,
                    const int* __restrict__ first_step, const uint4* __restrict__ turns,
                    const int* __restrict__ candidates, const float* __restrict__ reference_scale,
                    const float* __restrict__ particle_scale, int n_candidates, int n_harmonics, int n_steps,
                    int n_shifts, int n_quarter, float* __restrict__ best, int* __restrict__ best_psi,
                    int* __restrict__ best_shift)
{
    extern __shared__ uint4 products[];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int n_units = (n_harmonics + 2 * UNIT - 1) / (2 * UNIT) * 2, n_chunks = (n_units + UNITS - 1) / UNITS;
    const size_t first_pair = static_cast<size_t>(blockIdx.y) * n_candidates + blockIdx.x * REFERENCES;
    const int in_block = min(REFERENCES, n_candidates - static_cast<int>(blockIdx.x) * REFERENCES);

    // What stands in for a missing candidate does not matter, as its result is not kept.
    const int id = lane / 4 < in_block ? max(candidates[first_pair + lane / 4], 0) : 0;
    const uint4* reference = references + static_cast<size_t>(id) * n_units * n_steps * UNIT * 4 + lane % 4;
    const int n_tiles = (n_shifts + SHIFTS - 1) / SHIFTS, tile_size = n_units * n_steps * UNIT * 2 * LANES;
    const uint4* particle = particles + static_cast<size_t>(blockIdx.y) * n_tiles * tile_size;
    for (int i = threadIdx.x; i < TABLES * n_chunks * REFERENCES * 2 * LANES; i += blockDim.x)
        products[i] = make_uint4(0, 0, 0, 0);  // those of units beyond the last stay so
    Found found = {-3e38f, 0};
    float limit = -3e38f;  // the best score of all lanes
    for (int tile = 0; tile < n_tiles; ++tile) {
        __syncthreads();
        multiply(particle + static_cast<size_t>(tile) * tile_size, reference, first_step, n_units, n_chunks, n_steps,
                 products);
        __syncthreads();
        turn(products, turns, n_chunks, n_quarter, tile * SHIFTS, found, limit);
    }

    for (int step = 1; step < LANES; step *= 2) {
        const Found other = {__shfl_xor_sync(~0u, found.score, step), __shfl_xor_sync(~0u, found.code, step)};
        if (other.score > found.score || (other.score == found.score && other.code < found.code))
            found = other;
    }
    const int candidate = warp < in_block ? candidates[first_pair + warp] : -1;
    if (lane == 0 && candidate >= 0) {
        const int n_psi = 4 * (n_quarter - 1);
        best[first_pair + warp] = found.score * particle_scale[blockIdx.y] * reference_scale[candidate];
        best_psi[first_pair + warp] = found.code % n_psi;
        best_shift[first_pair + warp] = found.code / n_psi;
    }
}
