// What stands between the matrix products of an encoder of the BERT family. Compiled when a model is loaded, for its
// shape and for the device at hand, so every size is a constant:
//
//   DTYPE      0: f32, 1: f16, 2: bf16, the type of weights and of what a kernel leaves for the next (Element)
//   WIDTH      numbers of a token; even
//   HEADS      into which they are divided, HEAD numbers each
//   EPSILON    of the layer norms
//   ACTIVATION 0: GELU, 1: its approximation by tanh, 2: ReLU
//   MODES      the poolings, whose vectors stand side by side: 0: first token, 1: maximum, 2: mean, 3: sum over the
//              root of the length
//   NORMALISE  whether vectors have length one
//
// Everything is computed in f32. A row, a head of a text and a text are each computed by one warp or block, in an order
// that only their own length decides, so that what else is in the micro-batch changes no bit.

#if DTYPE == 0
typedef float Element;
__device__ float widen(Element x) { return x; }
__device__ Element narrow(float x) { return x; }
#else
typedef unsigned short Element;
#if DTYPE == 1
__device__ float widen(Element x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
}
__device__ Element narrow(float x) {
    Element narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
    return narrow;
}
#else
__device__ float widen(Element x) { return __uint_as_float((unsigned)x << 16); }
__device__ Element narrow(float x) {
    Element narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
    return narrow;
}
#endif
__device__ unsigned pack(float low, float high) { return narrow(low) | (unsigned)narrow(high) << 16; }
#endif

// Some rows of one text: queries of the attention.
struct Tile {
    unsigned start;   // the text's first row
    unsigned tokens;  // the text's rows
    unsigned first;   // the tile's first row, counted from the text's
};

// A text's rows.
struct Text {
    unsigned start;
    unsigned tokens;
};

#define HEAD (WIDTH / HEADS)
#define TILE 16
#define WARP 32
#define EVERYONE 0xffffffffu
#define LEAST __int_as_float(0xff800000)  // minus infinity

__device__ float sum_of_warp(float x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(EVERYONE, x, apart);
    return x;
}

__device__ float max_of_warp(float x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(EVERYONE, x, apart));
    return x;
}

// Two neighbours at a time.
__device__ float2 pair_at(const Element* at) {
#if DTYPE == 0
    return *reinterpret_cast<const float2*>(at);
#else
    unsigned both = *reinterpret_cast<const unsigned*>(at);
    return make_float2(widen(both & 0xffff), widen(both >> 16));
#endif
}

__device__ void put_pair(Element* at, float2 pair) {
#if DTYPE == 0
    *reinterpret_cast<float2*>(at) = pair;
#else
    *reinterpret_cast<unsigned*>(at) = pack(pair.x, pair.y);
#endif
}

// Weights come as f32 and are used as Element.
extern "C" __global__ void narrow_weights(const float* wide, Element* out, unsigned count) {
    unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) out[index] = narrow(wide[index]);
}

// ---- rows: embeddings, sums, layer norms; a warp a row -----------------------------------------------------------------

#define PAIRS ((WIDTH + 2 * WARP - 1) / (2 * WARP))

// The row as a warp holds it: each lane has PAIRS pairs, of which those beyond WIDTH are zero.
struct Row {
    float2 pairs[PAIRS];
};

__device__ int column(int pair) { return 2 * (pair * WARP + threadIdx.x % WARP); }

__device__ void add(Row& row, const Element* other) {
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
        if (column(pair) < WIDTH) {
            float2 more = pair_at(other + column(pair));
            row.pairs[pair].x += more.x;
            row.pairs[pair].y += more.y;
        }
    }
}

__device__ void normalise(Row& row, const Element* gain, const Element* bias, Element* out) {
    float sum = 0, squares = 0;
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) sum += row.pairs[pair].x + row.pairs[pair].y;
    float mean = sum_of_warp(sum) / WIDTH;
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
        if (column(pair) < WIDTH) {
            float x = row.pairs[pair].x - mean, y = row.pairs[pair].y - mean;
            squares += x * x + y * y;
        }
    }
    float scale = 1 / sqrtf(sum_of_warp(squares) / WIDTH + float(EPSILON));
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
        if (column(pair) < WIDTH) {
            float2 by = pair_at(gain + column(pair)), plus = pair_at(bias + column(pair));
            float x = (row.pairs[pair].x - mean) * scale * by.x + plus.x;
            float y = (row.pairs[pair].y - mean) * scale * by.y + plus.y;
            put_pair(out + column(pair), make_float2(x, y));
        }
    }
}

__device__ unsigned row_of_warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }

extern "C" __global__ void embed(const unsigned* ids, const unsigned* positions, const Element* words,
                                 const Element* places, const Element* gain, const Element* bias, Element* hidden,
                                 unsigned rows) {
    unsigned index = row_of_warp();
    if (index >= rows) return;
    Row row = {};
    add(row, words + (size_t)ids[index] * WIDTH);
    add(row, places + (size_t)positions[index] * WIDTH);
    normalise(row, gain, bias, hidden + (size_t)index * WIDTH);
}

// hidden = norm(hidden + update)
extern "C" __global__ void add_and_normalise(const Element* update, const Element* gain, const Element* bias,
                                             Element* hidden, unsigned rows) {
    unsigned index = row_of_warp();
    if (index >= rows) return;
    Element* own = hidden + (size_t)index * WIDTH;
    Row row = {};
    add(row, own);
    add(row, update + (size_t)index * WIDTH);
    normalise(row, gain, bias, own);
}

// ---- the activation, in place; 16 bytes a thread -----------------------------------------------------------------------

__device__ float activate(float x) {
#if ACTIVATION == 0
    return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
#elif ACTIVATION == 1
    return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
#else
    return x > 0 ? x : (x != x ? x : 0);
#endif
}

struct alignas(16) Sixteen {
    Element elements[16 / sizeof(Element)];
};

// `count` is of sixteens of bytes; the buffer is a multiple of them.
extern "C" __global__ void activate_all(Sixteen* inner, unsigned count) {
    unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    Sixteen some = inner[index];
#pragma unroll
    for (int i = 0; i < 16 / sizeof(Element); i++) some.elements[i] = narrow(activate(widen(some.elements[i])));
    inner[index] = some;
}

// ---- attention: each row of a text looks at all rows of its text -------------------------------------------------------
//
// `joined` has query, key and value of a token side by side; the scale of the scores is in the query's weights. Scores
// are never stored: a running maximum and sum rescale what was added up so far (Milakov and Gimelshein, 2018; Dao et al.,
// 2022).

#define JOINED (3 * WIDTH)

#if DTYPE != 0 && HEAD % 32 == 0

// A warp a tile and head, on the tensor cores: 16 queries by 16 keys at a time. Operands come straight out of memory,
// 16 and 8 bytes a thread. The hardware says which thread brings which numbers of a row, as pairs 2t and 2t+8; but a sum
// over the numbers of a head has no order, and columns of the result may be named as we like, so thread t brings its 8
// neighbouring ones instead.

#define CHUNKS (HEAD / 32)

__device__ void multiply_add(float sums[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm(
#if DTYPE == 1
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ uint4 sixteen_bytes(const Element* at) { return *reinterpret_cast<const uint4*>(at); }
__device__ uint2 eight_bytes(const Element* at) { return *reinterpret_cast<const uint2*>(at); }

// Over the four threads that share a row of the scores.
__device__ float max_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(EVERYONE, x, 1));
    return fmaxf(x, __shfl_xor_sync(EVERYONE, x, 2));
}

__device__ float sum_of_row(float x) {
    x += __shfl_xor_sync(EVERYONE, x, 1);
    return x + __shfl_xor_sync(EVERYONE, x, 2);
}

extern "C" __global__ void __launch_bounds__(128) attend(const Element* joined, const Tile* tiles, Element* contexts,
                                                         unsigned count) {
    unsigned unit = row_of_warp();
    if (unit >= count * HEADS) return;
    Tile tile = tiles[unit / HEADS];
    unsigned head = unit % HEADS;
    unsigned group = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const Element* queries = joined + (size_t)tile.start * JOINED + head * HEAD;
    const Element *keys = queries + WIDTH, *values = queries + 2 * WIDTH;
    unsigned last = tile.tokens - 1;
    // Rows beyond the text repeat its last one; they are masked, or not written.
    auto at = [last](const Element* base, unsigned row) { return base + (size_t)min(row, last) * JOINED; };

    uint4 upper[CHUNKS], lower[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        upper[c] = sixteen_bytes(at(queries, tile.first + group) + c * 32 + t * 8);
        lower[c] = sixteen_bytes(at(queries, tile.first + group + 8) + c * 32 + t * 8);
    }
    float sums[CHUNKS][4][4] = {};
    float most[2] = {LEAST, LEAST}, total[2] = {0, 0};
    for (unsigned from = 0; from < tile.tokens; from += 16) {
        float scores[2][4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                uint4 key = sixteen_bytes(at(keys, from + half * 8 + group) + c * 32 + t * 8);
                multiply_add(scores[half], upper[c].x, lower[c].x, upper[c].y, lower[c].y, key.x, key.y);
                multiply_add(scores[half], upper[c].z, lower[c].z, upper[c].w, lower[c].w, key.z, key.w);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool beyond = from + half * 8 + 2 * t + i % 2 > last;
                scores[half][i] = beyond ? LEAST : scores[half][i] * 1.4426950408889634f;
            }
        }
        float shrink[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float here = fmaxf(fmaxf(scores[0][2 * r], scores[0][2 * r + 1]), fmaxf(scores[1][2 * r], scores[1][2 * r + 1]));
            float now = fmaxf(most[r], max_of_row(here));
            shrink[r] = exp2f(most[r] - now);
            most[r] = now;
            total[r] *= shrink[r];
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    scores[half][i] = exp2f(scores[half][i] - now);
                    total[r] += scores[half][i];
                }
            }
        }
        unsigned a0 = pack(scores[0][0], scores[0][1]), a1 = pack(scores[0][2], scores[0][3]);
        unsigned a2 = pack(scores[1][0], scores[1][1]), a3 = pack(scores[1][2], scores[1][3]);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            unsigned offset = c * 32 + group * 4;
            uint2 v0 = eight_bytes(at(values, from + 2 * t) + offset);
            uint2 v1 = eight_bytes(at(values, from + 2 * t + 1) + offset);
            uint2 v2 = eight_bytes(at(values, from + 2 * t + 8) + offset);
            uint2 v3 = eight_bytes(at(values, from + 2 * t + 9) + offset);
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[c][j][i] *= shrink[i / 2];
                unsigned which = j % 2 == 0 ? 0x5410 : 0x7632;
                unsigned b0 = j < 2 ? __byte_perm(v0.x, v1.x, which) : __byte_perm(v0.y, v1.y, which);
                unsigned b1 = j < 2 ? __byte_perm(v2.x, v3.x, which) : __byte_perm(v2.y, v3.y, which);
                multiply_add(sums[c][j], a0, a1, a2, a3, b0, b1);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float scale = 1 / sum_of_row(total[r]);
        unsigned row = tile.first + group + 8 * r;
        if (row > last) continue;
        Element* out = contexts + (size_t)(tile.start + row) * WIDTH + head * HEAD;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            uint4 eight;
            eight.x = pack(sums[c][0][2 * r] * scale, sums[c][1][2 * r] * scale);
            eight.y = pack(sums[c][2][2 * r] * scale, sums[c][3][2 * r] * scale);
            eight.z = pack(sums[c][0][2 * r + 1] * scale, sums[c][1][2 * r + 1] * scale);
            eight.w = pack(sums[c][2][2 * r + 1] * scale, sums[c][3][2 * r + 1] * scale);
            *reinterpret_cast<uint4*>(out + c * 32 + t * 8) = eight;
        }
    }
}

#else

// A block of four warps a tile and head, in f32 throughout: 32 keys at a time in shared memory, a key a lane for the
// scores and a column a lane for the sums.

#define QUERIES (TILE / 4)
#define COLUMNS ((HEAD + WARP - 1) / WARP)

extern "C" __global__ void __launch_bounds__(128) attend(const Element* joined, const Tile* tiles, Element* contexts,
                                                         unsigned count) {
    __shared__ float query[TILE][HEAD], key[WARP][HEAD + 1], value[WARP][HEAD];
    Tile tile = tiles[blockIdx.x / HEADS];
    unsigned head = blockIdx.x % HEADS;
    unsigned lane = threadIdx.x % WARP, mine = threadIdx.x / WARP * QUERIES;
    const Element* base = joined + (size_t)tile.start * JOINED + head * HEAD;
    unsigned last = tile.tokens - 1;
    for (unsigned i = threadIdx.x; i < TILE * HEAD; i += blockDim.x) {
        query[i / HEAD][i % HEAD] = widen(base[(size_t)min(tile.first + i / HEAD, last) * JOINED + i % HEAD]);
    }
    float sums[QUERIES][COLUMNS] = {}, most[QUERIES], total[QUERIES];
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        most[q] = LEAST;
        total[q] = 0;
    }
    for (unsigned from = 0; from < tile.tokens; from += WARP) {
        __syncthreads();
        for (unsigned i = threadIdx.x; i < WARP * HEAD; i += blockDim.x) {
            const Element* row = base + (size_t)min(from + i / HEAD, last) * JOINED + i % HEAD;
            key[i / HEAD][i % HEAD] = widen(row[WIDTH]);
            value[i / HEAD][i % HEAD] = widen(row[2 * WIDTH]);
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            float score = 0;
            for (int d = 0; d < HEAD; d++) score += query[mine + q][d] * key[lane][d];
            if (from + lane > last) score = LEAST;
            float now = fmaxf(most[q], max_of_warp(score));
            float shrink = expf(most[q] - now), weight = expf(score - now);
            most[q] = now;
            total[q] = total[q] * shrink + sum_of_warp(weight);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sums[q][c] *= shrink;
            for (int k = 0; k < WARP; k++) {
                float of_key = __shfl_sync(EVERYONE, weight, k);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    if (c * WARP + lane < HEAD) sums[q][c] += of_key * value[k][c * WARP + lane];
                }
            }
        }
    }
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        unsigned row = tile.first + mine + q;
        if (row > last) continue;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            unsigned number = c * WARP + lane;
            if (number >= HEAD) continue;
            contexts[(size_t)(tile.start + row) * WIDTH + head * HEAD + number] = narrow(sums[q][c] / total[q]);
        }
    }
}

#endif

// ---- pooling: a block a text -------------------------------------------------------------------------------------------

__device__ const int modes[] = {MODES};
#define MODES_COUNT (sizeof(modes) / sizeof(int))

__device__ float pooled(int mode, const Element* column, unsigned tokens) {
    if (mode == 0) return widen(column[0]);
    float all = mode == 1 ? LEAST : 0;
    for (unsigned token = 0; token < tokens; token++) {
        float x = widen(column[(size_t)token * WIDTH]);
        // A number that is none stays one, which fmaxf would hide.
        all = mode == 1 ? (x > all || x != x ? x : all) : all + x;
    }
    return mode == 1 ? all : all / (mode == 2 ? float(tokens) : sqrtf(float(tokens)));
}

extern "C" __global__ void __launch_bounds__(128) pool(const Element* hidden, const Text* texts, float* vectors) {
    Text text = texts[blockIdx.x];
    float* vector = vectors + (size_t)blockIdx.x * MODES_COUNT * WIDTH;
    float squares = 0;
    for (unsigned i = threadIdx.x; i < MODES_COUNT * WIDTH; i += blockDim.x) {
        vector[i] = pooled(modes[i / WIDTH], hidden + (size_t)text.start * WIDTH + i % WIDTH, text.tokens);
        squares += vector[i] * vector[i];
    }
#if NORMALISE
    __shared__ float of_warps[4];
    squares = sum_of_warp(squares);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = squares;
    __syncthreads();
    float length = sqrtf(of_warps[0] + of_warps[1] + of_warps[2] + of_warps[3]);
    // As PyTorch does, so that zeros stay zeros; and again, what is no number stays so.
    float by = length < 1e-12f ? 1e-12f : length;
    for (unsigned i = threadIdx.x; i < MODES_COUNT * WIDTH; i += blockDim.x) vector[i] /= by;
#endif
}
