// Electron event representation; twin of kernels/cpu/eer.py, which says what the arrays are.

#define WARP 32
#define ALL 0xffffffffu

enum Event { NOTHING, DONE, TOO_SHORT, TOO_LONG };

// At least 32 bits of a stream from bit `start` on.
__device__ inline unsigned int window(const unsigned int *stream, long long start) {
    const unsigned int *word = stream + (start >> 5);
    return __funnelshift_r(word[0], word[1], (unsigned int)(start & 31));
}

// Add one to a count, which shares its word with others that other warps add to.
template <typename Count>
__device__ inline void increment(unsigned int *counts, size_t index) {
    const size_t byte = index * sizeof(Count);
    atomicAdd(counts + byte / 4, 1u << (8 * (byte % 4)));
}

// One warp for each camera frame. It takes 32 codes at a time as if they all had an electron; from the first skip
// without one on, which may be shorter, the others are taken again.
template <typename Count>
__global__ void decode_frames(const unsigned int *words, const long long *starts, const long long *bits,
                              const int *targets, int rows, int columns, int position_bits, int x_bits, int y_bits,
                              int wide, int upsampling, unsigned int *counts, int *electrons) {
    const int lane = threadIdx.x;
    const unsigned int *stream = words + starts[blockIdx.x];
    const long long total = bits[blockIdx.x];
    const int code_bits = position_bits + x_bits + y_bits;
    const unsigned int full = (1u << position_bits) - 1;
    const int pixels = rows * columns;
    const size_t frame = (size_t)targets[blockIdx.x] * pixels * (upsampling * upsampling);
    long long position = 0;
    int place = 0, found = 0;
    while (true) {
        const long long start = position + lane * code_bits;
        const bool whole = start + position_bits <= total;
        const unsigned int code = whole ? window(stream, start) : 0;
        const bool skips = whole && (code & full) == full;
        const bool electron = whole && !skips;
        int end = (code & full) + electron;  // summed up over the lanes, what the codes so far move on by
        for (int distance = 1; distance < WARP; distance *= 2) {
            const int before = __shfl_up_sync(ALL, end, distance);
            if (lane >= distance) end += before;
        }
        const int reached = place + end - electron;
        Event event = NOTHING;
        if (!whole)
            event = TOO_SHORT;
        else if (reached > pixels)
            event = TOO_LONG;
        else if (electron && reached < pixels && start + code_bits > total)
            event = TOO_SHORT;
        else if (place + end >= pixels)
            event = DONE;
        const unsigned int shorter = wide ? 0 : __ballot_sync(ALL, skips);
        const int last = shorter ? __ffs(shorter) - 1 : WARP - 1;
        const unsigned int events = __ballot_sync(ALL, event != NOTHING && lane <= last);
        const int stop = events ? __ffs(events) - 1 : last;
        const bool adds = electron && lane <= stop && reached < pixels;
        if (adds && upsampling == 2) {
            const int x_bit = code >> (position_bits + x_bits - 1) & 1, y_bit = code >> (code_bits - 1) & 1;
            const int y = 2 * (reached / columns) + 1 - y_bit, x = 2 * (reached % columns) + 1 - x_bit;
            increment<Count>(counts, frame + (size_t)y * (2 * columns) + x);
        } else if (adds) {
            increment<Count>(counts, frame + reached);
        }
        found += __popc(__ballot_sync(ALL, adds));
        if (events) {
            const int why = __shfl_sync(ALL, (int)event, stop);
            if (lane == 0) electrons[blockIdx.x] = why == DONE ? found : why == TOO_SHORT ? -1 : -2;
            return;
        }
        place += __shfl_sync(ALL, end, stop);
        position += shorter ? stop * code_bits + position_bits : WARP * code_bits;
    }
}
