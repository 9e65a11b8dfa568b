// The convolution of one image: stride 1, an odd number of taps per axis, zeros around the image.
//
// Stencils are packed in panels of LANES output channels, in the order panel, tap, input channel, output channel of the
// panel; channels that do not exist are zeros. A tile is what fits into the registers: neighbouring pixels of one row or
// two, and V vectors of output channels of each. For every tap and input channel a tile loads V vectors of taps once, and
// multiplies them by the value of each pixel.
#pragma once

#include "tiling.h"
#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int LARGEST[] = {0, 16, 12};  // pixels of a tile of one vector, of two, ...
#elif defined(__AVX__)
constexpr int LARGEST[] = {0, 12, 6, 4};
#else
constexpr int LARGEST[] = {0, 12, 8, 6, 5};
#endif
constexpr int MOST = sizeof LARGEST / sizeof *LARGEST - 1;  // vectors of a tile

// One image, channels innermost, with the margin of zeros that a convolution of `side` taps per axis needs.
class Padded {
    Buffer<float> memory;
    float* data;

  public:
    const int64_t height, width, channels, half, row_length;

    // Behind the margin are as many numbers as may be read with its last pixel.
    Padded(int64_t height, int64_t width, int64_t channels, int64_t side)
        : memory((height + side - 1) * (width + side - 1) * channels + LANES), data(memory.data()), height(height),
          width(width), channels(channels), half(side / 2), row_length((width + side - 1) * channels) {}

    Padded(Padded&&) = default;

    void swap(Padded& other) {
        memory.swap(other.memory);
        std::swap(data, other.data);
    }

    // The pixel of the image; rows and columns from -half on belong to the margin.
    float* at(int64_t row, int64_t column) { return data + (row + half) * row_length + (column + half) * channels; }

    // Takes an image whose pixels are `distance` numbers apart. It is not copied where no margin is needed; then it must not
    // be written to.
    void fill(const float* image, int64_t distance) {
        if (half == 0 && distance == channels) {
            data = const_cast<float*>(image);
            return;
        }
        const bool joined = distance == channels;
        const int64_t length = joined ? width * channels : channels;
        for (int64_t row = 0; row < height; row++)
            for (int64_t column = 0; column < (joined ? 1 : width); column++)
                std::memcpy(at(row, column), image + (row * width + column) * distance, length * sizeof(float));
    }
};

// Two images that will be needed soon, or none.
struct Soon {
    const float *one = nullptr, *other = nullptr;
    Soon from(int64_t at) const { return one ? Soon{one + at, other + at} : Soon{}; }
};

// Where the sums of a tile go: those of its neighbouring pixels are `step` numbers apart, and those of its second row begin
// `next_row` numbers after those of the first. Either what stands at `start` in the same order is added to them, at the end, which
// is a single rounding of its size; or with a bias, one number per channel, max(0, sum + bias) is stored; or neither.
struct To {
    float* first;
    int64_t next_row, step;
    const float *start = nullptr, *bias = nullptr;
    Soon soon = {};  // what stands there in the same order is prefetched; otherwise the memory of the tile below
};

// The sums of V vectors of output channels, for all pixels of a tile of ROWS rows of N pixels, over some rows of taps.
template <int V, int ROWS, int N>
__attribute__((noinline)) void tile(const float* from, int64_t row_length, int64_t channels, int64_t num, int side,
                                    Rows used, const float* taps, To to) {
    const int64_t panel = side * side * num * LANES;
    taps += used.first * side * num * LANES;
    Floats<LANES> sums[ROWS * N][V] = {};
    const auto place = [&](int p, int v) { return p / N * to.next_row + p % N * to.step + v * LANES; };
    if (V == 1 && side == 3) {  // then values are loaded more often than taps: each serves its three neighbours
        for (int64_t down = used.first; down < used.end; down++) {
            const float* at = from + down * row_length;
            for (int64_t c = 0; c < num; c++, taps += LANES) {
                Floats<LANES> w[3];
                for (int right = 0; right < 3; right++) {
                    w[right] = load<LANES>(taps + right * num * LANES);
                    keep(w[right]);
                }
#pragma GCC unroll 2
                for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 18
                    for (int q = 0; q < N + 2; q++) {
                        auto value = spread(at[row * row_length + q * channels + c]);
#pragma GCC unroll 3
                        for (int right = 0; right < 3; right++)
                            if (q >= right && q - right < N) sums[row * N + q - right][0] += w[right] * value;
                    }
                }
            }
            taps += 2 * num * LANES;
        }
    } else
    for (int64_t down = used.first; down < used.end; down++) {
        const float* at = from + down * row_length;
        for (int right = 0; right < side; right++, at += channels) {
            for (int64_t c = 0; c < num; c++, taps += LANES) {
                Floats<LANES> w[V];
                for (int v = 0; v < V; v++) {
                    w[v] = load<LANES>(taps + v * panel);
                    keep(w[v]);
                }
#pragma GCC unroll 16
                for (int p = 0; p < ROWS * N; p++) {
                    const float value = at[p / N * row_length + p % N * channels + c];
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) sums[p][v] += w[v] * value;
                }
            }
        }
    }
    const auto store_each = [&](auto value) {
#pragma GCC unroll 16
        for (int p = 0; p < ROWS * N; p++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
                const int64_t at = place(p, v);
                if (to.soon.one) {
                    __builtin_prefetch(to.soon.one + at);
                    __builtin_prefetch(to.soon.other + at);
                } else {
                    __builtin_prefetch(to.first + at + ROWS * to.next_row);
                }
                store<LANES>(to.first + at, value(sums[p][v], at, v * LANES));
            }
    };
    using Sum = Floats<LANES>;
    if (to.bias)
        store_each([&](Sum sum, int64_t, int c) { return positive(sum + load<LANES>(to.bias + c)); });
    else if (to.start)
        store_each([&](Sum sum, int64_t at, int) { return sum + load<LANES>(to.start + at); });
    else
        store_each([](Sum sum, int64_t, int) { return sum; });
}

using Tile = void (*)(const float*, int64_t, int64_t, int64_t, int, Rows, const float*, To);

// `tile` for a number of pixels that is known when it runs, from 1 to N.
template <int V, int ROWS, int N>
Tile tile_of(int64_t pixels) {
    if constexpr (N == 1) return tile<V, ROWS, 1>;
    else return pixels == N ? tile<V, ROWS, N> : tile_of<V, ROWS, N - 1>(pixels);
}

// The pixels of a tile.
struct Place {
    int64_t row, column, rows, columns;
};

// Calls at(place, sums) for tiles of V vectors of output channels that cover some rows, where sums(to) computes those of the tile.
// Tiles have two rows where fewer of them are needed. Rows of taps above and below the image are left out.
template <int V, class At>
void tiles(Padded& x, Rows some, int64_t num, int side, const float* taps, At at) {
    constexpr int most = LARGEST[V];
    const bool by_two = tiles_in(x.width, most / 2) < 2 * tiles_in(x.width, most);
    cover(some, x.width, most, by_two, [&](int64_t row, int64_t column, int64_t rows, int64_t n) {
        const Tile sums = rows == 2 ? tile_of<V, 2, most / 2>(n) : tile_of<V, 1, most>(n);
        const float* from = x.at(row - x.half, column - x.half);
        const Rows used = meeting({row, row + rows}, side, x.height);
        at(Place{row, column, rows, n}, [&](To to) { sums(from, x.row_length, x.channels, num, side, used, taps, to); });
    });
}

// `tiles` for a number of vectors that is known when it runs, from 1 to V.
template <int V, class At>
void tiles_of(int64_t vectors, Padded& x, Rows some, int64_t num, int side, const float* taps, At at) {
    if constexpr (V > 1)
        if (vectors < V) return tiles_of<V - 1>(vectors, x, some, num, side, taps, at);
    tiles<V>(x, some, num, side, taps, at);
}

// Calls at(channel, n, place, sums) for tiles that cover some rows and all channels: n channels from `channel` on, in whole vectors.
template <class At>
void by_tiles(Padded& x, Rows some, int64_t num, int64_t num_out, int side, const float* taps, At at) {
    const int64_t panel = side * side * num * LANES, all = (num_out + LANES - 1) / LANES;
    by_blocks(all, MOST, [&](int64_t k, int64_t n) {
        tiles_of<MOST>(n, x, some, num, side, taps + k * panel, [&](Place tile, auto sums) { at(k * LANES, n * LANES, tile, sums); });
    });
}

// z = K x, for whole vectors of channels of z, in whose order two images may be prefetched.
inline void convolve(Padded& x, int64_t num, int64_t num_out, int side, const float* taps, float* z, Soon soon = {}) {
    by_tiles(x, {0, x.height}, num, num_out, side, taps, [&](int64_t channel, int64_t, Place tile, auto sums) {
        const int64_t at = (tile.row * x.width + tile.column) * num_out + channel;
        sums(To{z + at, x.width * num_out, num_out, nullptr, nullptr, soon.from(at)});
    });
}

// out = K x + start, or with a bias max(0, K x + bias), for some rows of x and the first num_out of the `distance` channels of
// images of these rows.
inline void convolve(Padded& x, Rows some, int64_t num, int64_t num_out, int side, const float* taps, float* out,
                     int64_t distance, const float* start, const float* bias) {
    by_tiles(x, some, num, num_out, side, taps, [&](int64_t channel, int64_t n, Place tile, auto sums) {
        const int64_t at = ((tile.row - some.first) * x.width + tile.column) * distance + channel, next_row = x.width * distance;
        const float *from = start ? start + at : nullptr, *added = bias ? bias + channel : nullptr;
        if (channel + n <= num_out) return sums(To{out + at, next_row, distance, from, added});
        float found[LARGEST[1] * MOST * LANES];  // the last vector has numbers of the next pixel
        sums(To{found, tile.columns * n, n, nullptr, added});
        for (int64_t p = 0; p < tile.rows * tile.columns; p++) {
            const int64_t first = p / tile.columns * next_row + p % tile.columns * distance;
            for (int64_t c = 0; c < n; c += LANES) {
                const int64_t present = num_out - channel - c;
                const auto sum = load<LANES>(found + p * n + c);
                store_some(out + at + first + c, present, from ? sum + load_some(from + first + c, present) : sum);
            }
        }
    });
}

}  // namespace
