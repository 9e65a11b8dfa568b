// BatchNorm, ReLU and the mean over cells of 2x2 pixels, and their gradient: see batchnorm.py.
#pragma once

#include "vectors.h"

namespace {

// Sums of d and d*d, where d is the difference from the first pixel.
template <int L, int B, class T>
void moments(const T* x, double* totals, int64_t pixels, int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), num = omp_get_num_threads();
        const int64_t last = pixels * (me + 1) / num;
        Sums<L, B> sums(channels);
        for (int64_t start = pixels * me / num; start < last; start += RUN) {
            for (int64_t i = start; i < std::min(start + RUN, last); i++) {
                ask_for(x + i * channels);
                for (int k = 0; k < blocks; k++) {
                    const auto d = load<L>(x + i * channels + k * L) - load<L>(x + k * L);
                    sums.add(k, d, d * d);
                }
            }
            sums.move_to(totals + me * 2 * channels);
        }
    }
}

// The four pixels of cell j in a row of `width` cells.
struct Cell {
    int64_t pixels[4];

    Cell(int64_t row, int64_t j, int64_t width) {
        const int64_t above = 2 * (2 * row * width + j), below = above + 2 * width;
        pixels[0] = above, pixels[1] = above + 1, pixels[2] = below, pixels[3] = below + 1;
    }
};

// The mean of max(0, s (x - mean) + b) over every cell.
template <int L, int B, class T>
void pooled_forward(const T* x, const float* mean, const float* s, const float* b, T* out, int64_t rows, int64_t width,
                    int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < width; j++) {
            const Cell cell(row, j, width);
            for (int k = 0; k < blocks; k++) {
                Floats<L> total = {};
                for (const int64_t i : cell.pixels) {
                    const auto d = load<L>(x + i * channels + k * L) - load<L>(mean + k * L);
                    const auto v = d * load<L>(s + k * L) + load<L>(b + k * L);
                    total += where<L>(!(v < 0), v);
                }
                store<L>(out + (row * width + j) * channels + k * L, total * 0.25f);
            }
        }
    }
}

// The sums of h and h (x - mean), with h the gradient behind the ReLU.
template <int L, int B, class T>
void pooled_sums(const T* g, const T* x, const float* mean, const float* s, const float* b, double* totals, int64_t rows,
                 int64_t width, int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), num = omp_get_num_threads();
        Sums<L, B> sums(channels);
        for (int64_t row = rows * me / num; row < rows * (me + 1) / num; row++) {
            for (int64_t j = 0; j < width; j++) {
                const Cell cell(row, j, width);
                for (int k = 0; k < blocks; k++) {
                    const auto quarter = load<L>(g + (row * width + j) * channels + k * L) * 0.25f;
                    for (const int64_t i : cell.pixels) {
                        const auto d = load<L>(x + i * channels + k * L) - load<L>(mean + k * L);
                        const auto h = where<L>(d * load<L>(s + k * L) + load<L>(b + k * L) > 0, quarter);
                        sums.add(k, h, h * d);
                    }
                }
            }
            sums.move_to(totals + me * 2 * channels);
        }
    }
}

// dx = s (h - mean of h - slope (x - mean)).
template <int L, int B, class T>
void pooled_backward(const T* g, const T* x, const float* mean, const float* s, const float* b, const float* mean_h,
                     const float* slope, T* dx, int64_t rows, int64_t width, int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t j = 0; j < width; j++) {
            const Cell cell(row, j, width);
            for (int k = 0; k < blocks; k++) {
                const auto quarter = load<L>(g + (row * width + j) * channels + k * L) * 0.25f;
                for (const int64_t i : cell.pixels) {
                    const auto d = load<L>(x + i * channels + k * L) - load<L>(mean + k * L);
                    const auto h = where<L>(d * load<L>(s + k * L) + load<L>(b + k * L) > 0, quarter);
                    const auto centred = h - load<L>(mean_h + k * L) - d * load<L>(slope + k * L);
                    store<L>(dx + i * channels + k * L, centred * load<L>(s + k * L));
                }
            }
        }
    }
}

}  // namespace
