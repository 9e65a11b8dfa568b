// The TV norm with its activation, and its gradient, for neighbouring pixels of an image that is in the cache.
#pragma once

#include "vectors.h"

namespace {

using Vector = Floats<LANES>;

// Calls with(B, RELU), both known to the compiler: B vectors are `wide` channels; B is 0 where there is no code for their number.
template <class With>
inline void for_layer(int64_t wide, bool relu, With with) {
    const auto both = [&](auto vectors) { relu ? with(vectors, std::true_type()) : with(vectors, std::false_type()); };
    switch (wide / LANES) {
        case 1: return both(std::integral_constant<int, 1>());
        case 2: return both(std::integral_constant<int, 2>());
        case 4: return both(std::integral_constant<int, 4>());
        default: return both(std::integral_constant<int, 0>());
    }
}

// n = max(0, scale z r + bias) or, without RELU, scale z r + bias, for the first `num` of LANES neighbouring pixels, whose r are
// `inverse`. n_at(k) is where n of pixel k is put.
template <bool RELU, class T, class At>
inline __attribute__((always_inline)) void norm(const T* z, int64_t wide, int num, Vector inverse, const float* scale,
                                                const float* bias, At n_at) {
    for (int64_t c = 0; c < wide; c += LANES) {
        const auto a = load<LANES>(scale + c), b = load<LANES>(bias + c);
#pragma GCC unroll 16
        for (int k = 0; k < num; k++) {
            const auto v = load<LANES>(z + k * wide + c) * inverse[k] * a + b;
            store<LANES>(n_at(k) + c, RELU ? positive(v) : v);
        }
    }
}

// n as `norm` computes it, and dz, the gradient at z where g is that at n; g is overwritten. Adds to two sums over pixels per
// channel, the gradients of scale and bias.
template <bool RELU, class T, class At, class GradientAt>
inline __attribute__((always_inline)) void norm_backward(const T* z, float* g, int64_t wide, int num, Vector inverse,
                                                         const float* scale, const float* bias, Sums<LANES, 0>& totals, At n_at,
                                                         GradientAt dz_at) {
    Vector dots[LANES] = {};
    for (int64_t c = 0; c < wide; c += LANES) {
        const auto a = load<LANES>(scale + c), b = load<LANES>(bias + c);
        Vector first = {}, second = {};
#pragma GCC unroll 16
        for (int k = 0; k < num; k++) {
            const int64_t at = k * wide + c;
            const auto n = load<LANES>(z + at) * inverse[k], v = n * a + b, found = load<LANES>(g + at);
            const auto h = RELU ? where<LANES>(!(v <= 0), found) : found, scaled = a * h;
            first += h * n;
            second += h;
            dots[k] += scaled * n;
            store<LANES>(g + at, scaled);
            store<LANES>(n_at(k) + c, RELU ? positive(v) : v);
        }
        totals.add(c / LANES, first, second);
    }
    const Vector along = sums_of<LANES>(dots) * inverse;
#pragma GCC unroll 16
    for (int k = 0; k < num; k++)
        for (int64_t c = 0; c < wide; c += LANES) {
            const int64_t at = k * wide + c;
            store<LANES>(dz_at(k) + c, (load<LANES>(g + at) - load<LANES>(z + at) * along[k]) * inverse[k]);
        }
}

}  // namespace
