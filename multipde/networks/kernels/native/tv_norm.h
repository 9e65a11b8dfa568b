// The TV norm with its activation, and its gradient: see tv_norm.py.
#pragma once

#include "vectors.h"

namespace {

template <int L, int B, class T>
void tv_forward(const T* y, const float* a, const float* b, float eps, int64_t relu, T* out, float* r, int64_t pixels,
                int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < pixels; i++) {
        const T* from = y + i * channels;
        ask_for(from);
        Floats<L> squares = {};
        for (int k = 0; k < blocks; k++) {
            const auto v = load<L>(from + k * L);
            squares += v * v;
        }
        const float inverse = r[i] = 1 / std::sqrt(sum<L>(squares) + eps);
        for (int k = 0; k < blocks; k++) {
            const auto v = load<L>(from + k * L) * inverse * load<L>(a + k * L) + load<L>(b + k * L);
            store<L>(out + i * channels + k * L, relu ? where<L>(!(v < 0), v) : v);
        }
    }
}

template <int L, int B, class T>
void tv_backward(const T* g, const T* y, const float* r, const float* a, const float* b, int64_t relu, T* dy, float* totals,
                 int64_t pixels, int64_t channels, int64_t threads) {
    const int blocks = B ? B : channels / L;
    const auto found = over_runs<L, B>(pixels, RUN, channels, threads, [&](Sums<L, B>& sums, int64_t i) {
        ask_for(y + i * channels);
        const auto normalised = [&](int k) { return load<L>(y + i * channels + k * L) * r[i]; };
        const auto gradient = [&](int k, Floats<L> n) {
            const auto h = load<L>(g + i * channels + k * L);
            return relu ? where<L>(!(n * load<L>(a + k * L) + load<L>(b + k * L) <= 0), h) : h;
        };
        Floats<L> dot = {};
        for (int k = 0; k < blocks; k++) {
            const auto n = normalised(k), h = gradient(k, n);
            sums.add(k, h * n, h);
            dot += load<L>(a + k * L) * h * n;
        }
        const float along = sum<L>(dot);
        for (int k = 0; k < blocks; k++) {
            const auto n = normalised(k), h = gradient(k, n);
            store<L>(dy + i * channels + k * L, (load<L>(a + k * L) * h - n * along) * r[i]);
        }
    });
    std::copy(found.begin(), found.end(), totals);
}

}  // namespace
