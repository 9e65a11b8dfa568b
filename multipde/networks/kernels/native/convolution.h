// The convolution of one image: stride 1, an odd number of taps per axis, zeros around the image.
//
// Stencils are packed in panels of 16 output channels, in the order panel, tap, input channel, output channel of the
// panel; channels that do not exist are zeros. A tile is what fits into the registers: neighbouring pixels of one row or
// two, and V vectors of output channels of each. For every tap and input channel a tile loads V vectors of taps once, and
// multiplies them by the value of each pixel.
#pragma once

#include "vectors.h"

namespace {

constexpr int PANEL = 16;
#if defined(__AVX512F__)
constexpr int LARGEST[] = {0, 16, 12};  // pixels of a tile of one vector, of two, ...
#elif defined(__AVX__)
constexpr int LARGEST[] = {0, 12, 6};
#else
constexpr int LARGEST[] = {0, 12, 8, 6, 5};
#endif
constexpr int MOST = sizeof LARGEST / sizeof *LARGEST - 1;  // vectors of a tile

// One image, channels innermost, with the margin of zeros that a convolution of `side` taps per axis needs.
class Padded {
    std::vector<float> memory;

  public:
    const int64_t height, width, channels, half, row_length;

    Padded(int64_t height, int64_t width, int64_t channels, int64_t side)
        : memory((height + side - 1) * (width + side - 1) * channels), height(height), width(width), channels(channels),
          half(side / 2), row_length((width + side - 1) * channels) {}

    // The pixel of the image; rows and columns from -half on belong to the margin.
    float* at(int64_t row, int64_t column) { return &memory[(row + half) * row_length + (column + half) * channels]; }

    void fill(const float* image) {
        for (int64_t row = 0; row < height; row++)
            std::memcpy(at(row, 0), image + row * width * channels, width * channels * sizeof(float));
    }
};

// The sums of V vectors of output channels, for all pixels of a tile of ROWS rows of N pixels.
template <int V, int ROWS, int N>
__attribute__((noinline)) void tile(const float* from, int64_t row_length, int64_t channels, int64_t num, int side,
                                    const float* taps, float* found) {
    const int64_t panel = side * side * num * PANEL;
    Floats<LANES> sums[ROWS * N][V] = {};
    for (int down = 0; down < side; down++) {
        const float* at = from + down * row_length;
        for (int right = 0; right < side; right++, at += channels) {
            for (int64_t c = 0; c < num; c++, taps += PANEL) {
                Floats<LANES> w[V];
                for (int v = 0; v < V; v++) w[v] = load<LANES>(taps + v * LANES / PANEL * panel + v * LANES % PANEL);
#pragma GCC unroll 16
                for (int p = 0; p < ROWS * N; p++) {
                    const float value = at[p / N * row_length + p % N * channels + c];
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) sums[p][v] += w[v] * value;
                }
            }
        }
    }
    for (int p = 0; p < ROWS * N; p++)
        for (int v = 0; v < V; v++) store<LANES>(found + (p * V + v) * LANES, sums[p][v]);
}

using Tile = void (*)(const float*, int64_t, int64_t, int64_t, int, const float*, float*);

// `tile` for a number of pixels that is known when it runs, from 1 to N.
template <int V, int ROWS, int N>
Tile tile_of(int64_t pixels) {
    if constexpr (N == 1) return tile<V, ROWS, 1>;
    else return pixels == N ? tile<V, ROWS, N> : tile_of<V, ROWS, N - 1>(pixels);
}

// Calls at(row, column, sums) for all pixels, with the sums of V vectors of output channels. Tiles have two rows where
// fewer of them cover the image.
template <int V, class At>
void tiles(Padded& x, int64_t num, int side, const float* taps, At at) {
    constexpr int most = LARGEST[V];
    const int64_t single = (x.width + most - 1) / most, pair = (x.width + most / 2 - 1) / (most / 2);
    float found[most * V * LANES];
    for (int64_t row = 0, rows; row < x.height; row += rows) {
        rows = pair < 2 * single && row + 1 < x.height ? 2 : 1;
        const int64_t count = rows == 2 ? pair : single, length = (x.width + count - 1) / count;
        for (int64_t column = 0; column < x.width; column += length) {
            const int64_t n = std::min(length, x.width - column);
            const Tile sums = rows == 2 ? tile_of<V, 2, most / 2>(n) : tile_of<V, 1, most>(n);
            sums(x.at(row - x.half, column - x.half), x.row_length, x.channels, num, side, taps, found);
            for (int64_t p = 0; p < rows * n; p++) at(row + p / n, column + p % n, found + p * V * LANES);
        }
    }
}

// `tiles` for a number of vectors that is known when it runs, from 1 to V.
template <int V, class At>
void tiles_of(int64_t vectors, Padded& x, int64_t num, int side, const float* taps, At at) {
    if constexpr (V > 1)
        if (vectors < V) return tiles_of<V - 1>(vectors, x, num, side, taps, at);
    tiles<V>(x, num, side, taps, at);
}

// Calls at(row, column, channel, sums, n) with n sums of neighbouring output channels, for all pixels and channels. There
// are as many sums as channels in whole vectors.
template <class At>
void convolve(Padded& x, int64_t num, int64_t num_out, int side, const float* taps, At at) {
    const int64_t panel = side * side * num * PANEL, all = (num_out + LANES - 1) / LANES;
    for (int64_t k = 0, n; k < all; k += n) {
        n = std::min<int64_t>(MOST, all - k);
        tiles_of<MOST>(n, x, num, side, taps + k * LANES / PANEL * panel + k * LANES % PANEL,
                       [&](int64_t row, int64_t column, const float* sums) { at(row, column, k * LANES, sums, n * LANES); });
    }
}

}  // namespace
