// A layer of a network in training, image by image, in bfloat16, and its gradients. An image stays in the processor's cache
// through all of it. Sums are in float32.
#pragma once

#include "norm.h"
#if defined(__AMX_BF16__) && !defined(WITHOUT_TILES)
#include "tile_gradient.h"
#else
#include "dot_gradient.h"
#endif

namespace {

using Number = bfloat16;
constexpr int64_t FULL = 16;  // channels are computed in multiples of so many

// What a thread needs for an image.
struct Memory {
    const int64_t wide;
    Image x, g, n, dz;
    Buffer<float> sums;

    Memory(int64_t height, int64_t width, int64_t channels)
        : wide(up_to(16, channels)), x(height, width, channels), g(x), n(x), dz(x), sums(at_once(x) * wide) {}
};

inline void fill(Image& to, const bfloat16* image) { to.fill(image); }

inline int64_t numbers_kept(int64_t height, int64_t width, int64_t channels) {
    return up_to(16, height * (width + 2)) * up_to(16, channels);
}

// 1 / sqrt(v), to the last bit or two.
inline Vector inverse_root(Vector v) {
    const Vector first = (Vector)_mm512_rsqrt14_ps((__m512)v);
    return first * (1.5f - 0.5f * v * first * first);
}

// 1 / sqrt(sum of z*z + eps) over the channels, for LANES neighbouring positions; B as in `for_layer`.
template <int B>
inline Vector inverse_norms(const bfloat16* z, int64_t wide, float eps) {
    constexpr int PER = B == 1 ? 2 : 1, NUM = LANES / PER;  // positions in a vector
    const int64_t step = PER * wide;
    __m512 squares[NUM];
#pragma GCC unroll 16
    for (int k = 0; k < NUM; k++) {
        squares[k] = __m512{};
        for (int64_t c = 0; c < step; c += 2 * LANES) {
            const auto pairs = (__m512bh)_mm512_maskz_loadu_epi16(step - c < 2 * LANES ? 0xffff : ~0u, z + k * step + c);
            squares[k] = _mm512_dpbf16_ps(squares[k], pairs, pairs);
        }
    }
    return inverse_root(sums_of<LANES, PER>(reinterpret_cast<const Vector*>(squares)) + eps);
}

// Calls at(sums, position, column) for LANES neighbouring positions after another until all of an image are done; sums are those of
// K x.
template <class At>
inline void by_positions(Memory& m, Image& x, const bfloat16* taps, At at) {
    const int64_t num = at_once(x);
    for (int64_t p = 0, column = 0; p < x.positions(); p += num) {
        convolve(x, p, taps, m.sums.data(), m.wide);
        for (int64_t q = p; q < std::min(p + num, x.positions()); q += LANES) {
            at(m.sums.data() + (q - p) * m.wide, q, column);
            for (column += LANES; column >= x.line; column -= x.line) {}
        }
    }
}

// n = max(0, scale z / sqrt(sum of z*z + eps) + bias), where z = K1 x in lower precision, which is kept at all positions.
template <int B, bool RELU>
void normalise(Memory& m, const bfloat16* taps, const float* scale, const float* bias, float eps, bfloat16* kept) {
    const int64_t wide = B ? B * LANES : m.wide;
    by_positions(m, m.x, taps, [&](const float* sums, int64_t position, int64_t) {
        bfloat16 *z = kept + position * wide, *to = m.n.at(position);
        for (int64_t c = 0; c < LANES * wide; c += LANES) store<LANES>(z + c, load<LANES>(sums + c));
        const Vector inverse = inverse_norms<B>(z, wide, eps);
        norm<RELU>(z, wide, LANES, inverse, scale, bias, [&](int k) { return to + k * wide; });
    });
    m.n.clear_margin();
}

inline void normalise(Memory& m, const bfloat16* taps, const float* scale, const float* bias, float eps, bool is_relu,
                      bfloat16* kept) {
    for_layer(m.wide, is_relu, [&](auto b, auto relu) { normalise<b(), relu()>(m, taps, scale, bias, eps, kept); });
}

// n as `normalise` computes it from the z that it has kept, and dz, the gradient at z, where K2' g is that at n. Adds to two
// sums over pixels per channel, the gradients of scale and bias.
template <int B, bool RELU>
void normalise_backward(Memory& m, const bfloat16* taps, const bfloat16* kept, const float* scale, const float* bias, float eps,
                        Sums<LANES, 0>& totals) {
    const int64_t wide = B ? B * LANES : m.wide;
    by_positions(m, m.g, taps, [&](float* g, int64_t position, int64_t column) {
        const bfloat16* z = kept + position * wide;
        bfloat16 *n_to = m.n.at(position), *dz_to = m.dz.at(position);
        m.n.margin_of(position, column, [&](int64_t k) {
            for (int64_t c = 0; c < wide; c += LANES) store<LANES>(g + k * wide + c, Vector{});
        });
        const Vector inverse = inverse_norms<B>(z, wide, eps);
        const auto n_at = [&](int k) { return n_to + k * wide; };
        norm_backward<RELU>(z, g, wide, LANES, inverse, scale, bias, totals, n_at, [&](int k) { return dz_to + k * wide; });
    });
    m.n.clear_margin();
}

inline void normalise_backward(Memory& m, const bfloat16* taps, const bfloat16* kept, const float* scale, const float* bias,
                               float eps, bool is_relu, Sums<LANES, 0>& totals, const bfloat16*) {
    for_layer(m.wide, is_relu, [&](auto b, auto relu) {
        normalise_backward<b(), relu()>(m, taps, kept, scale, bias, eps, totals);
    });
}

// out = sums + alpha a + beta b
template <bool A, bool B>
inline void add_terms(const float* sums, float alpha, const bfloat16* a, float beta, const bfloat16* b, bfloat16* out,
                      int64_t num) {
    for (int64_t c = 0; c < num; c += LANES) {
        auto v = load<LANES>(sums + c);
        if (A) v += alpha * load_some(a + c, num - c);
        if (B) v += beta * load_some(b + c, num - c);
        store_some(out + c, num - c, v);
    }
}

// out = alpha a + beta b + K x
void add(Memory& m, Image& x, const bfloat16* taps, float alpha, const bfloat16* a, float beta, const bfloat16* b,
         bfloat16* out, int64_t channels) {
    const auto terms = alpha && beta ? add_terms<true, true> : alpha ? add_terms<true, false>
                     : beta ? add_terms<false, true> : add_terms<false, false>;
    const int64_t all = at_once(x);
    for (int64_t p = 0; p < x.height * x.line; p += all) {
        convolve(x, p, taps, m.sums.data(), m.wide);
        for (int64_t from = p; from < std::min(p + all, x.height * x.line);) {
            const int64_t row = from / x.line, column = from % x.line, end = std::min((row + 1) * x.line, p + all);
            const int64_t num = std::max<int64_t>(0, std::min(x.width - column, end - from));
            const int64_t at = (row * x.width + column) * channels;
            const float* sums = m.sums.data() + (from - p) * m.wide;
            if (channels == m.wide) {
                terms(sums, alpha, a + at, beta, b + at, out + at, num * channels);
            } else {
                for (int64_t k = 0; k < num * channels; k += channels, sums += m.wide)
                    terms(sums, alpha, a + at + k, beta, b + at + k, out + at + k, channels);
            }
            from = end;
        }
    }
}

}  // namespace
