// The gradients of the stencils of convolutions of 3x3 taps in bfloat16, by the instruction of `dot_products.h`.
#pragma once

#include "dot_products.h"

namespace {

// The gradient of the stencils of a convolution K, from the features x and the gradient g at K x, for a few images of one shape.
//
// x stands with one channel after the other, and g in pairs of neighbouring pixels of a row, the last of which may be in the
// margin.
class StencilGradient {
    static constexpr int64_t AT_A_TIME = 512;  // pixels of 16 channels that stay in the first cache
    static constexpr int H = 8;                // input channels whose sums are in registers together

    const int64_t present, channels, height, line, num_pairs, length, most;
    int64_t images = 0;
    Buffer<bfloat16> across, pairs;

  public:
    // For images of one shape.
    explicit StencilGradient(const Image& x, const Image&, int64_t)
        : present(x.present), channels(x.channels), height(x.height), line(x.line), num_pairs((x.width + 1) / 2),
          length(up_to(32, (height + 2) * line + 1)), most(std::max<int64_t>(1, AT_A_TIME / length)),
          across(most * length * channels), pairs(most * height * num_pairs * 2 * channels) {}

    // Takes an image.
    void take(Image& x, Image& g) {
        for (int64_t c = 0; c < channels; c += 16) {
            bfloat16* to = features(c, images);
            for (int64_t p = 0; p < length; p += 32) transpose(x.at(p - line - 1) + c, channels, to + p, most * length);
        }
        for (int64_t c = 0; c < channels; c += 16)
            for (int64_t row = 0; row < height; row++) {
                bfloat16* to = gradients(c, images, row);
                for (int64_t k = 0; k < num_pairs; k++) {
                    const int64_t p = row * line + 2 * k;
                    put_pairs(to + k * 32, spread_out(g.at(p) + c), spread_out(g.at(p + 1) + c));
                }
            }
        images++;
    }

    bool is_full() const { return images == most; }

    // Adds the gradient for the images that were taken to `taps`, in the order row, column, input channel, output channel. The
    // gradients of input channels that are not present may be left as they are.
    void add_to(float* taps) {
        for (int64_t o = 0; o < channels; o += 16)
            for (int64_t i = 0; i < present; i += H)
                for (int64_t down = -1; down < 2; down++)
                    add_row(down, i, o, taps + (3 * (down + 1) * channels + i) * channels + o);
        images = 0;
    }

  private:
    // An input channel of an image, from the first place of the margin on.
    bfloat16* features(int64_t c, int64_t image) { return &across[(c * most + image) * length]; }

    // The pairs of a row of an image, for the 16 output channels from c on.
    bfloat16* gradients(int64_t c, int64_t image, int64_t row) {
        return &pairs[((c / 16 * most + image) * height + row) * num_pairs * 32];
    }

    // Adds the gradient of a row of taps, for the H input channels from i on and the 16 output channels from o on.
    void add_row(int64_t down, int64_t i, int64_t o, float* to) {
        const int64_t next = channels * channels, step = most * length, last = 2 * num_pairs;
        __m512 own[3][H];
#pragma GCC unroll 3
        for (int t = 0; t < 3; t++)
#pragma GCC unroll 8
            for (int h = 0; h < H; h++) own[t][h] = _mm512_loadu_ps(to + t * next + h * channels);
        for (int64_t image = 0; image < images; image++)
            for (int64_t row = std::max<int64_t>(0, -down); row < std::min(height, height - down); row++) {
                const bfloat16 *a = features(i, image) + (row + 1 + down) * line, *b = gradients(o, image, row);
                // the features of the right tap of a pair are those of the left tap of the next one
                const auto add = [&](int t, int h, int64_t from, Pairs g) {
                    own[t][h] = _mm512_dpbf16_ps(own[t][h], spread_pair(a + h * step + from), g);
                };
                Pairs g = load_pairs(b);
                int64_t k = 0;
#pragma GCC unroll 8
                for (int h = 0; h < H; h++) add(0, h, 0, g);
                for (; k + 2 < last; k += 2) {
                    const Pairs following = load_pairs(b += 32);
#pragma GCC unroll 8
                    for (int h = 0; h < H; h++) {
                        add(1, h, k + 1, g);
                        add(2, h, k + 2, g);
                        add(0, h, k + 2, following);
                    }
                    g = following;
                }
#pragma GCC unroll 8
                for (int h = 0; h < H; h++) {
                    add(1, h, k + 1, g);
                    add(2, h, k + 2, g);
                }
            }
#pragma GCC unroll 3
        for (int t = 0; t < 3; t++)
#pragma GCC unroll 8
            for (int h = 0; h < H; h++) _mm512_storeu_ps(to + t * next + h * channels, own[t][h]);
    }
};

}  // namespace
