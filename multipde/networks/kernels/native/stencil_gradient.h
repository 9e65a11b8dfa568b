// The gradients of the stencils of convolutions of 3x3 taps in bfloat16, by the processor's tiles for products of matrices.
#pragma once

#include "matrix_tiles.h"

namespace {

// The gradient of the stencils of a convolution K, from the features x and the gradient g at K x, for a few images of one shape.
//
// Places count the pixels and the margin from its first one on. In a product of tiles x stands with one channel after the other
// and g in pairs of neighbouring places, once from the even ones on and once from the odd ones. What an instruction reads is
// contiguous, 16 channels by 32 places.
class StencilGradient {
    static constexpr int64_t AT_A_TIME = 512;  // places of 16 channels that stay in the first cache

    const int64_t channels, line, first, last, length, before, num_pairs, most;
    int64_t images = 0;
    Buffer<bfloat16> across, pairs[2];

  public:
    explicit StencilGradient(const Image& x)
        : channels(x.channels), line(x.line), first((line + 1) / 32 * 32), last(up_to(32, line + 1 + x.height * line)),
          length(last - first), before(up_to(2, line + 2)), num_pairs((before + last + line + 2) / 2),
          most(std::max<int64_t>(1, AT_A_TIME / length)), across(most * length * channels) {
        for (auto& p : pairs) p.resize(most * num_pairs * 2 * channels);
    }

    // Takes an image.
    void take(Image& x, Image& g) {
        for (int64_t c = 0; c < channels; c += 16) {
            bfloat16* to = features(c) + images * length * 16;
            for (int64_t p = 0; p < length; p += 32) transpose(x.at(first + p - line - 1) + c, channels, to + p * 16);
        }
        for (int64_t c = 0; c < channels; c += 16) {
            bfloat16* to[2] = {gradients(0, c, images), gradients(1, c, images)};
            __m512i held = {};
            for (int64_t p = -2; p < g.height * line; p += 2) {
                // the place of position p is p + line + 1; both numbers and `before` decide which pairs begin with it
                const __m512i a = spread_out(g.at(p) + c), b = spread_out(g.at(p + 1) + c);
                const int64_t place = p + line + 1 + before;
                put(to[place % 2] + place / 2 * 32, a, b);
                put(to[1 - place % 2] + (place - 1) / 2 * 32, held, a);
                held = b;
            }
        }
        images++;
    }

    bool is_full() const { return images == most; }

    // Adds the gradient for the images that were taken to `taps`, in the order row, column, input channel, output channel.
    void add_to(float* taps) {
        const int64_t next = channels * channels, bytes = 4 * channels;
        all_written();
        for (int64_t start = 0; start < length; start += AT_A_TIME) {
            const int64_t end = std::min(start + AT_A_TIME, length);
            for (int64_t o = 0; o < channels; o += 16) {
                for (int64_t i = 0; i < channels; i += 16) {
                    for (int64_t down = -1; down < 2; down++) {
                        float* to = taps + 3 * (down + 1) * next + i * channels + o;
                        _tile_loadd(0, to, bytes);
                        _tile_loadd(1, to + next, bytes);
                        _tile_loadd(2, to + 2 * next, bytes);
                        for (int64_t image = 0; image < images; image++) {
                            const int64_t place = first - down * line + before;
                            const bfloat16 *a = features(i) + image * length * 16, *left = gradients(place + 1, o, image),
                                           *middle = gradients(place, o, image), *right = gradients(place - 1, o, image);
                            for (int64_t p = start * 16; p < end * 16; p += 32 * 16) {
                                _tile_loadd(3, a + p, 64);
                                _tile_loadd(4, left + p, 64);
                                _tile_loadd(5, middle + p, 64);
                                _tile_loadd(6, right + p, 64);
                                _tile_dpbf16ps(0, 3, 4);
                                _tile_dpbf16ps(1, 3, 5);
                                _tile_dpbf16ps(2, 3, 6);
                            }
                        }
                        _tile_stored(0, to, bytes);
                        _tile_stored(1, to + next, bytes);
                        _tile_stored(2, to + 2 * next, bytes);
                    }
                }
            }
        }
        images = 0;
    }

  private:
    // The 16 input channels from c on.
    bfloat16* features(int64_t c) { return &across[c * most * length]; }

    // The pairs of an image from a place on, for the 16 output channels from c on.
    bfloat16* gradients(int64_t place, int64_t c, int64_t image) {
        return &pairs[place % 2][((c / 16 * most + image) * num_pairs + place / 2) * 32];
    }

    // 16 channels of 32 neighbouring places, one channel after the other.
    static void transpose(const bfloat16* x, int64_t channels, bfloat16* to) {
        __m512i a[16], b[16];
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) {
            __m256i low, high;
            std::memcpy(&low, x + k * channels, 32);
            std::memcpy(&high, x + (k + 16) * channels, 32);
            a[k] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        // in every quarter of a vector first 2, then 4, then 8 places of a channel stand side by side
#pragma GCC unroll 8
        for (int k = 0; k < 16; k += 2) {
            b[k] = _mm512_unpacklo_epi16(a[k], a[k + 1]);
            b[k + 1] = _mm512_unpackhi_epi16(a[k], a[k + 1]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 16; k += 4)
            for (int h = 0; h < 2; h++) {
                a[k + 2 * h] = _mm512_unpacklo_epi32(b[k + h], b[k + h + 2]);
                a[k + 2 * h + 1] = _mm512_unpackhi_epi32(b[k + h], b[k + h + 2]);
            }
#pragma GCC unroll 2
        for (int k = 0; k < 16; k += 8)
            for (int h = 0; h < 4; h++) {
                b[k + 2 * h] = _mm512_unpacklo_epi64(a[k + h], a[k + h + 4]);
                b[k + 2 * h + 1] = _mm512_unpackhi_epi64(a[k + h], a[k + h + 4]);
            }
        const __m512i even = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), odd = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++) {
            const __m512i low = _mm512_permutex2var_epi64(b[c], even, b[c + 8]);
            const __m512i high = _mm512_permutex2var_epi64(b[c], odd, b[c + 8]);
            std::memcpy(to + c * 32, &low, 64);
            std::memcpy(to + (c + 8) * 32, &high, 64);
        }
    }

    // 16 numbers with zeros between them.
    static __m512i spread_out(const bfloat16* p) {
        __m256i v;
        std::memcpy(&v, p, 32);
        return _mm512_cvtepu16_epi32(v);
    }

    static void put(bfloat16* to, __m512i first, __m512i second) {
        const __m512i both = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
        std::memcpy(to, &both, 64);
    }
};

}  // namespace
