// BatchNorm, ReLU and the mean over cells of side x side pixels, and their gradient: see batch_norm.py.
#pragma once

#include "vectors.h"

namespace {

// Means and variances, by the sums of d and d*d, where d is the difference from the first pixel.
template <int L, int B, class T>
void moments(const T* x, float* mean, float* variance, int64_t pixels, int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
    const auto found = over_runs<L, B>(pixels, RUN, channels, threads, [&](Sums<L, B>& sums, int64_t i) {
        ask_for(x + i * channels);
        for (int k = 0; k < blocks; k++) {
            const auto d = load<L>(x + i * channels + k * L) - load<L>(x + k * L);
            sums.add(k, d, d * d);
        }
    });
    for (int64_t c = 0; c < channels; c++) {
        const double shift = found[c] / pixels, square = found[channels + c] / pixels;
        mean[c] = load<1>(x + c)[0] + shift;
        variance[c] = std::max(square - shift * shift, 0.0);
    }
}

// The mean of max(0, s (x - mean) + b) over every cell; there are `rows` rows of `width` cells.
template <int L, int B, class T>
void pooled_forward(const T* x, const float* mean, const float* s, const float* b, T* out, int64_t rows, int64_t width,
                    int64_t side, int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
    const float share = 1.0f / (side * side);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < width; j++) {
            const T* first = x + side * (side * row * width + j) * channels;
            for (int k = 0; k < blocks; k++) {
                Floats<L> total = {};
                for (int64_t down = 0; down < side; down++) {
                    for (int64_t right = 0; right < side; right++) {
                        const T* from = first + (down * side * width + right) * channels + k * L;
                        const auto v = (load<L>(from) - load<L>(mean + k * L)) * load<L>(s + k * L) + load<L>(b + k * L);
                        total += where<L>(!(v < 0), v);
                    }
                }
                store<L>(out + (row * width + j) * channels + k * L, total * share);
            }
        }
    }
}

// Calls at(pixel, k, x - mean, gradient at the input of the ReLU) for all blocks of all pixels of one row of them.
template <int L, int B, class T, class At>
void behind_relu(const T* g, const T* x, const float* mean, const float* s, const float* b, int64_t row, int64_t width,
                 int64_t side, int64_t channels, At at) {
    const int blocks = B ? B : channels / L;
    const float share = 1.0f / (side * side);
    for (int64_t j = 0; j < width; j++) {
        const T* cell = g + (row / side * width + j) * channels;
        for (int64_t right = 0; right < side; right++) {
            const int64_t i = side * (row * width + j) + right;
            ask_for(x + i * channels);
            for (int k = 0; k < blocks; k++) {
                const auto d = load<L>(x + i * channels + k * L) - load<L>(mean + k * L);
                const auto v = d * load<L>(s + k * L) + load<L>(b + k * L);
                at(i, k, d, where<L>(!(v <= 0), load<L>(cell + k * L) * share));
            }
        }
    }
}

// The sums of h and h (x - mean), with h the gradient at the input of the ReLU.
template <int L, int B, class T>
void pooled_sums(const T* g, const T* x, const float* mean, const float* s, const float* b, float* totals, int64_t rows,
                 int64_t width, int64_t side, int64_t channels, int64_t threads) {
    const auto found = over_runs<L, B>(rows * side, 1, channels, threads, [&](Sums<L, B>& sums, int64_t row) {
        behind_relu<L, B>(g, x, mean, s, b, row, width, side, channels,
                          [&](int64_t, int k, Floats<L> d, Floats<L> h) { sums.add(k, h, h * d); });
    });
    std::copy(found.begin(), found.end(), totals);
}

// dx = s (h - mean of h - slope (x - mean)).
template <int L, int B, class T>
void pooled_backward(const T* g, const T* x, const float* mean, const float* s, const float* b, const float* mean_h,
                     const float* slope, T* dx, int64_t rows, int64_t width, int64_t side, int64_t channels,
                     int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows * side; row++) {
        behind_relu<L, B>(g, x, mean, s, b, row, width, side, channels, [&](int64_t i, int k, auto d, auto h) {
            const auto centred = h - load<L>(mean_h + k * L) - d * load<L>(slope + k * L);
            store<L>(dx + i * channels + k * L, centred * load<L>(s + k * L));
        });
    }
}

}  // namespace
