// A layer of a network in training in float32, and its gradients: the parts that `block.h` is made of.
#pragma once

#include "gradient_float32.h"
#include "layer_float32.h"

namespace {

using Number = float;
constexpr int64_t FULL = LANES;  // channels are computed in multiples of so many

inline bool may_multiply() { return true; }
struct Multiplier {
    Multiplier() {}
};

// What a thread needs for an image and its gradients: g is that at the result, and dz that at K1 x.
struct Memory : Forwards {
    Padded g, dz;
    Buffer<float> sums;

    Memory(int64_t height, int64_t width, int64_t channels)
        : Forwards(height, width, channels, 3), g(height, width, channels, 3), dz(height, width, wide, 3), sums(size()) {}
};

inline void fill(Padded& to, const float* image) { to.fill(image, to.channels); }

inline int64_t numbers_kept(int64_t height, int64_t width, int64_t channels) {
    return up_to(LANES, height * width) * up_to(LANES, channels);
}

// n = max(0, scale z / sqrt(sum of z*z + eps) + bias), where z = K1 x is kept.
inline void normalise(Memory& m, const float* taps, const float* scale, const float* bias, float eps, bool relu, float* kept) {
    convolve(m.x, m.x.channels, m.wide, 3, taps, kept);
    normalise(m, kept, scale, bias, eps, true, relu);
}

// n as `normalise` computes it from the z that it has kept, and dz, where K2' g is the gradient at n. Adds to two sums over pixels
// per channel, the gradients of scale and bias. z, and x, which is needed afterwards, are prefetched.
inline void normalise_backward(Memory& m, const float* taps, const float* kept, const float* scale, const float* bias, float eps,
                               bool is_relu, Sums<LANES, 0>& totals, const float* x) {
    convolve(m.g, m.g.channels, m.wide, 3, taps, m.sums.data(), {kept, x});
    for_layer(m.wide, is_relu, [&](auto vectors, auto relu) {
        const int64_t wide = vectors() ? vectors() * LANES : m.wide;
        by_pixels(m.pixels(), [&](int64_t first, auto known) {
            const int num = known;
            const float* z = kept + first * wide;
            const auto n_at = [&](int k) { return m.n.at(0, 0) + m.places[first + k]; };
            const auto dz_at = [&](int k) { return m.dz.at(0, 0) + m.places[first + k]; };
            const Vector inverse = inverse_norms(z, wide, num, eps);
            norm_backward<relu()>(z, m.sums.data() + first * wide, wide, num, inverse, scale, bias, totals, n_at, dz_at);
        });
    });
}

// out = alpha a + beta b + K x
inline void add(Memory&, Padded& x, const float* taps, float alpha, const float* a, float beta, const float* b, float* out,
                int64_t channels) {
    const float* start = sum_of(alpha, a, beta, b, out, x.height * x.width, channels, channels);
    convolve(x, {0, x.height}, channels, channels, 3, taps, out, channels, start, nullptr);
}

}  // namespace
