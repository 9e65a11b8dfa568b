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
    // For images of one shape.
    explicit StencilGradient(const Image& x, const Image&, int64_t)
        : channels(x.channels), line(x.line), first((line + 1) / 32 * 32), last(up_to(32, line + 1 + x.height * line)),
          length(last - first), before(up_to(2, line + 2)), num_pairs((before + last + line + 2) / 2),
          most(std::max<int64_t>(1, AT_A_TIME / length)), across(most * length * channels) {
        for (auto& p : pairs) p.resize(most * num_pairs * 2 * channels);
    }

    // Takes an image.
    void take(Image& x, Image& g) {
        for (int64_t c = 0; c < channels; c += 16) {
            bfloat16* to = features(c) + images * length * 16;
            for (int64_t p = 0; p < length; p += 32) transpose(x.at(first + p - line - 1) + c, channels, to + p * 16, 32);
        }
        for (int64_t c = 0; c < channels; c += 16) {
            bfloat16* to[2] = {gradients(0, c, images), gradients(1, c, images)};
            __m512i held = {};
            for (int64_t p = -2; p < g.height * line; p += 2) {
                // the place of position p is p + line + 1; both numbers and `before` decide which pairs begin with it
                const __m512i a = spread_out(g.at(p) + c), b = spread_out(g.at(p + 1) + c);
                const int64_t place = p + line + 1 + before;
                put_pairs(to[place % 2] + place / 2 * 32, a, b);
                put_pairs(to[1 - place % 2] + (place - 1) / 2 * 32, held, a);
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
};

}  // namespace
