// Convolutions of 3x3 taps in bfloat16 for processors without AMX, by the instruction that adds the products of 16 pairs of
// numbers to 16 sums (AVX-512 BF16). As many sums are computed together as fit into the registers, and none in the margin.
#pragma once

#include <immintrin.h>

#include "image_bf16.h"
#include "tiling.h"

namespace {

constexpr bool PAIRS_OF_PIXELS = false;

// Every process may use these instructions.
inline bool may_multiply() { return true; }

// A thread needs no preparation for them.
struct Multiplier {
    Multiplier() {}
};

// Pixels whose sums are in registers together, for one block of channels, for two, ...
constexpr int LARGEST[] = {0, 16, 12, 8, 6};
constexpr int FEWEST = 12;  // sums without which the instruction waits for its own results
constexpr int MOST = sizeof LARGEST / sizeof *LARGEST - 1;

using Pairs = __m512bh;

inline Pairs load_pairs(const bfloat16* p) { return (Pairs)_mm512_loadu_si512(p); }

// 16 times the same pair.
inline Pairs spread_pair(const bfloat16* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return (Pairs)_mm512_set1_epi32(pair);
}

// sums = K x for V blocks of 16 output channels of `wide`, at N neighbouring positions from p on and, for two rows, at those
// below, with the rows `down` of taps. The taps are in the order block, row, chunk, pair, output channel, one of the pair.
template <int V, int ROWS, int N>
__attribute__((noinline)) void tile(Image& x, int64_t p, Rows down, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t channels = x.channels, row = chunks_of(channels) * 512, right = channels * 16, below = x.line * channels;
    const int64_t num = (x.present + 1) / 2;
    __m512 own[ROWS][N][V] = {};
    for (int64_t d = down.first; d < down.end; d++) {
        const bfloat16 *a = x.at(p + (d - 1) * x.line - 1), *b = taps + d * row;
        if constexpr (V == 1) {  // every pair of features serves its three taps
            for (int64_t k = 0; k < num; k++, a += 2, b += 32) {
                const Pairs w[3] = {load_pairs(b), load_pairs(b + right), load_pairs(b + 2 * right)};
#pragma GCC unroll 2
                for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 18
                    for (int q = 0; q < N + 2; q++) {
                        const Pairs value = spread_pair(a + r * below + q * channels);
#pragma GCC unroll 3
                        for (int t = 0; t < 3; t++)
                            if (q >= t && q - t < N) own[r][q - t][0] = _mm512_dpbf16_ps(own[r][q - t][0], value, w[t]);
                    }
            }
        } else {
            for (int t = 0; t < 3; t++, a += channels, b += right)
                for (int64_t k = 0; k < num; k++) {
                    Pairs w[V];
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) w[v] = load_pairs(b + k * 32 + v * 3 * row);
#pragma GCC unroll 2
                    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 12
                        for (int n = 0; n < N; n++) {
                            const Pairs value = spread_pair(a + 2 * k + r * below + n * channels);
#pragma GCC unroll 4
                            for (int v = 0; v < V; v++) own[r][n][v] = _mm512_dpbf16_ps(own[r][n][v], value, w[v]);
                        }
                }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int n = 0; n < N; n++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + (r * x.line + n) * wide + 16 * v, own[r][n][v]);
}

using Tile = void (*)(Image&, int64_t, Rows, const bfloat16*, float*, int64_t);

// `tile` for a number of pixels that is known when it runs, from 1 to N.
template <int V, int ROWS, int N>
Tile tile_of(int64_t pixels) {
    if constexpr (N == 1) return tile<V, ROWS, 1>;
    else return pixels == N ? tile<V, ROWS, N> : tile_of<V, ROWS, N - 1>(pixels);
}

// sums = K x for a number of blocks that is known when it runs, from 1 to V, at the pixels of some rows. A tile has two rows where
// one row would give too few sums.
template <int V>
void tiles(int64_t blocks, Image& x, Rows some, const bfloat16* taps, float* sums, int64_t wide) {
    if constexpr (V > 1)
        if (blocks < V) return tiles<V - 1>(blocks, x, some, taps, sums, wide);
    constexpr int most = LARGEST[V];
    const bool by_two = V * (x.width / tiles_in(x.width, most)) < FEWEST;
    cover(some, x.width, most, by_two, [&](int64_t row, int64_t column, int64_t rows, int64_t n) {
        const Tile own = rows == 2 ? tile_of<V, 2, most / 2>(n) : tile_of<V, 1, most>(n);
        float* to = sums + ((row - some.first) * x.line + column) * wide;
        own(x, row * x.line + column, meeting({row, row + rows}, 3, x.height), taps, to, wide);
    });
}

// Positions whose sums are computed together: those of whole rows, and a multiple of 16.
inline int64_t at_once(const Image& x) { return (x.line % 2 ? 16 : 8) * x.line; }

// sums = K x at positions from p on, a multiple of `at_once`, as many as that or those that there are, for `wide` output channels;
// zeros in the margin.
inline void convolve(Image& x, int64_t p, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t block = 3 * chunks_of(x.channels) * 512;
    const int64_t first = p / x.line, end = std::min((p + at_once(x)) / x.line, x.height), done = (end - first) * x.line;
    by_blocks(wide / 16, MOST, [&](int64_t k, int64_t n) {
        tiles<MOST>(n, x, {first, end}, taps + k * block, sums + 16 * k, wide);
    });
    for (int64_t q = x.width; q < done; q += x.line) std::memset(sums + q * wide, 0, 2 * wide * sizeof(float));
    std::memset(sums + done * wide, 0, (up_to(16, done) - done) * wide * sizeof(float));
}

}  // namespace
