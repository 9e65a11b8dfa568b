// The layers of a network in training, image by image, in bfloat16: the functions that Python calls. An image stays in the
// processor's cache through a whole layer and through all of its gradients. Sums are in float32.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include "matrix_tiles.h"

namespace {

using Vector = Floats<LANES>;

// What a thread needs for an image.
struct Memory {
    const int64_t wide;
    Image x, g, n, dz;
    Buffer<float> sums;

    Memory(int64_t height, int64_t width, int64_t channels)
        : wide(up_to(16, channels)), x(height, width, wide), g(x), n(x), dz(x), sums(AT_ONCE * wide) {}
};

// The channels from c on of a pixel with `channels` of them, as a whole vector, whatever is in the channels that do not exist.
inline Vector load_some(const bfloat16* p, int64_t c, int64_t channels) {
    if (c + LANES <= channels) return load<LANES>(p + c);
    bfloat16 found[LANES] = {};
    std::memcpy(found, p + c, (channels - c) * sizeof(bfloat16));
    return load<LANES>(found);
}

inline void store_some(bfloat16* p, int64_t c, int64_t channels, Vector v) {
    if (c + LANES <= channels) return store<LANES>(p + c, v);
    bfloat16 found[LANES];
    store<LANES>(found, v);
    std::memcpy(p + c, found, (channels - c) * sizeof(bfloat16));
}

// Half of every part of H + H lanes, of a and then of b; `from` is 0 for the first half and H for the second.
template <int H>
inline Vector halves(Vector a, Vector b, int from) {
    alignas(64) int lanes[LANES];
    for (int k = 0; k < LANES; k++) lanes[k] = k / H * 2 * H + k % H + from;
    return (Vector)_mm512_permutex2var_ps((__m512)a, _mm512_load_si512(lanes), (__m512)b);
}

// For N vectors the sums of their lanes, so many neighbouring ones that all fill a vector.
template <int N>
inline Vector sums_of(const Vector* v) {
    if constexpr (N == 1) {
        return *v;
    } else {
        const Vector a = sums_of<N / 2>(v), b = sums_of<N / 2>(v + N / 2);
        return halves<LANES / N>(a, b, 0) + halves<LANES / N>(a, b, LANES / N);
    }
}

// 1 / sqrt(sum of z*z + eps) over the channels, for num neighbouring pixels, at most LANES.
inline Vector inverse_norms(const bfloat16* z, int64_t num, int64_t wide, float eps) {
    Vector squares[LANES] = {};
    for (int64_t k = 0; k < num; k++)
        for (int64_t c = 0; c < wide; c += LANES) {
            const auto v = load<LANES>(z + k * wide + c);
            squares[k] += v * v;
        }
    return 1 / (Vector)_mm512_sqrt_ps((__m512)(sums_of<LANES>(squares) + eps));
}

// Calls at(sums, position, pixel, num) for num neighbouring pixels after another, at most LANES, until all of an image are done;
// sums are those of K x for these pixels.
template <class At>
void by_pixels(Memory& m, Image& x, const bfloat16* taps, At at) {
    for (int64_t p = 0; p < x.height * x.line; p += AT_ONCE) {
        convolve(x, p, taps, m.sums.data(), m.wide);
        for (int64_t from = p; from < std::min(p + AT_ONCE, x.height * x.line);) {
            const int64_t row = from / x.line, column = from % x.line, left = std::min(x.width - column, p + AT_ONCE - from);
            if (left > 0) at(m.sums.data() + (from - p) * m.wide, from, row * x.width + column, std::min<int64_t>(LANES, left));
            from += left > 0 ? std::min<int64_t>(LANES, left) : x.line - column;
        }
    }
}

// n = max(0, scale z / sqrt(sum of z*z + eps) + bias), where z = K1 x in lower precision, which is kept.
void normalise(Memory& m, const bfloat16* taps, const float* scale, const float* bias, float eps, bool relu, bfloat16* kept) {
    const int64_t wide = m.wide;
    by_pixels(m, m.x, taps, [&](const float* sums, int64_t position, int64_t pixel, int64_t num) {
        bfloat16 *z = kept + pixel * wide, *to = m.n.at(position);
        for (int64_t c = 0; c < num * wide; c += LANES) store<LANES>(z + c, load<LANES>(sums + c));
        const Vector inverse = inverse_norms(z, num, wide, eps);
        for (int64_t k = 0; k < num; k++)
            for (int64_t c = 0; c < wide; c += LANES) {
                const auto v = load<LANES>(z + k * wide + c) * inverse[k] * load<LANES>(scale + c) + load<LANES>(bias + c);
                store<LANES>(to + k * wide + c, relu ? where<LANES>(!(v < 0), v) : v);
            }
    });
}

// n as `normalise` computes it from the z that it has kept, and dz, the gradient at z, where K2' g is that at n. Adds to two
// sums over pixels per channel, the gradients of scale and bias.
void normalise_backward(Memory& m, const bfloat16* taps, const bfloat16* kept, const float* scale, const float* bias, float eps,
                        bool relu, Sums<LANES, 0>& totals) {
    const int64_t wide = m.wide;
    by_pixels(m, m.g, taps, [&](float* g, int64_t position, int64_t pixel, int64_t num) {
        const bfloat16* z = kept + pixel * wide;
        bfloat16 *n_to = m.n.at(position), *dz_to = m.dz.at(position);
        const Vector inverse = inverse_norms(z, num, wide, eps);
        Vector dots[LANES] = {};
        for (int64_t c = 0; c < wide; c += LANES) {
            const auto a = load<LANES>(scale + c), b = load<LANES>(bias + c);
            Vector first = {}, second = {};
            for (int64_t k = 0; k < num; k++) {
                const int64_t at = k * wide + c;
                const auto n = load<LANES>(z + at) * inverse[k], v = n * a + b, found = load<LANES>(g + at);
                const auto h = relu ? where<LANES>(!(v <= 0), found) : found;
                first += h * n;
                second += h;
                dots[k] += a * h * n;
                store<LANES>(g + at, a * h);
                store<LANES>(n_to + at, relu ? where<LANES>(!(v < 0), v) : v);
            }
            totals.add(c / LANES, first, second);
        }
        const Vector along = sums_of<LANES>(dots) * inverse;
        for (int64_t k = 0; k < num; k++)
            for (int64_t c = 0; c < wide; c += LANES) {
                const int64_t at = k * wide + c;
                store<LANES>(dz_to + at, (load<LANES>(g + at) - load<LANES>(z + at) * along[k]) * inverse[k]);
            }
    });
}

// out = alpha a + beta b + K x
void add(Memory& m, Image& x, const bfloat16* taps, float alpha, const bfloat16* a, float beta, const bfloat16* b,
         bfloat16* out, int64_t channels) {
    by_pixels(m, x, taps, [&](const float* sums, int64_t, int64_t pixel, int64_t num) {
        for (int64_t at = pixel * channels; at < (pixel + num) * channels; at += channels, sums += m.wide)
            for (int64_t c = 0; c < channels; c += LANES) {
                auto v = load<LANES>(sums + c);
                if (alpha) v += alpha * load_some(a + at, c, channels);
                if (beta) v += beta * load_some(b + at, c, channels);
                store_some(out + at, c, channels, v);
            }
    });
}

}  // namespace

extern "C" int64_t available() { return may_use_tiles(); }

// out = alpha a + beta x + K2 s(N(K1 x)) for images of `channels` channels. K1 x is kept, with channels up to a multiple of 16;
// scale and bias are as long.
extern "C" void layer(const bfloat16* x, const bfloat16* a, float alpha, float beta, bfloat16* out, bfloat16* kept,
                      const bfloat16* first, const float* scale, const float* bias, float eps, int64_t relu,
                      const bfloat16* second, int64_t images, int64_t height, int64_t width, int64_t channels,
                      int64_t threads) {
    const int64_t size = height * width * channels, kept_size = height * width * up_to(16, channels);
#pragma omp parallel num_threads(threads)
    {
        Memory m(height, width, channels);
        const Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            m.x.fill(x + i * size, channels);
            normalise(m, first, scale, bias, eps, relu, kept + i * kept_size);
            add(m, m.n, second, alpha, a + i * size, beta, x + i * size, out + i * size, channels);
        }
    }
}

// The gradients of `layer` where g is that at its result, with the transposes of both stencils: dx = alpha a + beta g + K1' dz,
// where dz is the gradient at K1 x. `totals` gets the gradients of scale and bias, then those of both stencils in the order of
// `StencilGradient`.
extern "C" void layer_backward(const bfloat16* x, const bfloat16* g, const bfloat16* kept, const bfloat16* a, float alpha,
                               float beta, bfloat16* dx, float* totals, const bfloat16* first, const float* scale,
                               const float* bias, float eps, int64_t relu, const bfloat16* second, int64_t images,
                               int64_t height, int64_t width, int64_t channels, int64_t threads) {
    const int64_t wide = up_to(16, channels), size = height * width * channels, kept_size = height * width * wide;
    const int64_t taps = 9 * wide * wide;
    std::vector<double> sums(threads * 2 * wide);
    std::vector<Buffer<float>> stencils(threads);
#pragma omp parallel num_threads(threads)
    {
        Memory m(height, width, channels);
        StencilGradient gradient(m.x);
        Sums<LANES, 0> own(wide);
        Buffer<float> own_stencils(2 * taps);
        const Tiles tiles;
        const int64_t me = omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            m.g.fill(g + i * size, channels);
            normalise_backward(m, second, kept + i * kept_size, scale, bias, eps, relu, own);
            own.move_to(&sums[me * 2 * wide]);
            gradient.take_features(m.n);
            gradient.take_gradient(m.g);
            gradient.add_to(own_stencils.data() + taps);
            m.x.fill(x + i * size, channels);
            gradient.take_features(m.x);
            gradient.take_gradient(m.dz);
            gradient.add_to(own_stencils.data());
            add(m, m.dz, first, alpha, a + i * size, beta, g + i * size, dx + i * size, channels);
        }
        stencils[me] = std::move(own_stencils);
    }
    std::fill(totals, totals + 2 * (wide + taps), 0.0f);
    for (int64_t t = 0; t < threads; t++) {
        for (int64_t c = 0; c < 2 * wide; c++) totals[c] += sums[t * 2 * wide + c];
        for (size_t c = 0; c < stencils[t].size(); c++) totals[2 * wide + c] += stencils[t][c];
    }
}
#else
#include <cstdint>
extern "C" int64_t available() { return 0; }
#endif
