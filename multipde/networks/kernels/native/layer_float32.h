// A layer of a network in float32, image by image, for use and for training. An image stays in the processor's cache through all
// of it.
#pragma once

#include "convolution.h"
#include "norm.h"

namespace {

// What a thread needs for an image: its features x, K1 x at all pixels, and n between the convolutions.
struct Forwards {
    const int64_t wide;  // channels, up to whole vectors
    Padded x, n;
    std::vector<int64_t> places;  // of the pixels of n, counted from its first one

    Forwards(int64_t height, int64_t width, int64_t channels, int64_t side)
        : wide(up_to(LANES, channels)), x(height, width, channels, side), n(height, width, wide, side) {
        places.reserve(height * width);
        for (int64_t row = 0; row < height; row++)
            for (int64_t column = 0; column < width; column++) places.push_back(n.at(row, column) - n.at(0, 0));
    }

    int64_t pixels() const { return places.size(); }
    // Numbers of K1 x.
    int64_t size() const { return up_to(LANES, pixels()) * wide; }
};

// Calls at(first, num) for LANES neighbouring pixels after another, with a num that the compiler knows, and for the rest.
template <class At>
void by_pixels(int64_t pixels, At at) {
    int64_t first = 0;
    for (; first + LANES <= pixels; first += LANES) at(first, std::integral_constant<int, LANES>());
    if (first < pixels) at(first, int(pixels - first));
}

// 1 / sqrt(sum of z*z + eps) over the channels, for the first `num` of LANES neighbouring pixels.
inline __attribute__((always_inline)) Vector inverse_norms(const float* z, int64_t wide, int num, float eps) {
    Vector squares[LANES] = {};
#pragma GCC unroll 16
    for (int k = 0; k < num; k++)
        for (int64_t c = 0; c < wide; c += LANES) {
            const auto v = load<LANES>(z + k * wide + c);
            squares[k] += v * v;
        }
    float inverse[LANES];
    store<LANES>(inverse, sums_of<LANES>(squares) + eps);
    for (int k = 0; k < LANES; k++) inverse[k] = 1 / std::sqrt(inverse[k]);
    return load<LANES>(inverse);
}

// n = max(0, scale z / sqrt(sum of z*z + eps) + bias); without norm, and without relu, these parts are left out.
inline void normalise(Forwards& m, const float* z, const float* scale, const float* bias, float eps, bool has_norm, bool is_relu) {
    for_layer(m.wide, is_relu, [&](auto vectors, auto relu) {
        const int64_t wide = vectors() ? vectors() * LANES : m.wide;
        by_pixels(m.pixels(), [&](int64_t first, auto known) {
            const int num = known;
            const float* from = z + first * wide;
            const Vector inverse = has_norm ? inverse_norms(from, wide, num, eps) : 1 - Vector{};
            norm<relu()>(from, wide, num, inverse, scale, bias, [&](int k) { return m.n.at(0, 0) + m.places[first + k]; });
        });
    });
}

// Where alpha a + beta b stands, for some channels of `distance`: in `out`, unless it is a or b; null where it is zero.
inline const float* sum_of(float alpha, const float* a, float beta, const float* b, float* out, int64_t pixels, int64_t channels,
                           int64_t distance) {
    if (alpha == 0 && beta == 0) return nullptr;
    if (alpha == 1 && beta == 0) return a;
    if (alpha == 0 && beta == 1) return b;
    for (int64_t at = 0; at < pixels * distance; at += distance)
        for (int64_t c = 0; c < channels; c++)
            out[at + c] = (alpha ? alpha * a[at + c] : 0) + (beta ? beta * b[at + c] : 0);
    return out;
}

}  // namespace
