// The gradients of the stencils of convolutions of 3x3 taps in float32.
#pragma once

#include "convolution.h"

namespace {

// The gradient of the stencils of a convolution K, from the features x and the gradient g at K x, for a few images of one shape.
//
// The sums of one row of taps, of some input channels and one vector of output channels, are in registers together. Every value of
// x is loaded once for its three taps, and so is every vector of g.
class StencilGradient {
    static constexpr int64_t PIXELS = 256;               // of all images, at least, so that sums stay in registers long enough
    static constexpr int H = LANES > 4 ? LANES / 2 : 4;  // input channels whose sums are in registers together

    const int64_t present, wide;
    std::vector<Padded> kept_x, kept_g;
    std::vector<Padded*> x, g;
    size_t images = 0;

  public:
    // For images of the shapes of x and g, of which so many channels are present.
    StencilGradient(const Padded& x, const Padded& g, int64_t channels)
        : present(channels), wide(up_to(LANES, channels)), x(up_to(x.height * x.width, PIXELS) / (x.height * x.width)),
          g(this->x.size()) {
        if (is_one()) return;
        for (size_t k = 0; k < this->x.size(); k++) {
            kept_x.emplace_back(x.height, x.width, x.channels, 3);
            kept_g.emplace_back(g.height, g.width, g.channels, 3);
        }
    }

    // Takes an image. Afterwards there is another one in its place, unless it alone is enough; then it is still needed.
    void take(Padded& x, Padded& g) {
        if (!is_one()) {
            kept_x[images].swap(x);
            kept_g[images].swap(g);
        }
        this->x[images] = is_one() ? &x : &kept_x[images];
        this->g[images] = is_one() ? &g : &kept_g[images];
        images++;
    }

    bool is_full() const { return images == x.size(); }

    // Adds the gradient for the images that were taken to `taps`, in the order row, column, input channel, output channel. The
    // gradients of channels that are not present may be anything.
    void add_to(float* taps) {
        for (int64_t o = 0; o < wide; o += LANES)
            for (int64_t i = 0; i < present; i += H)
                for (int64_t down = 0; down < 3; down++) add_row(down, i, o, taps + (3 * down * wide + i) * wide + o);
        images = 0;
    }

  private:
    bool is_one() const { return x.size() == 1; }

    // Adds the gradient of a row of taps, for the H input channels from i on and the output channels of the vector from o on.
    void add_row(int64_t down, int64_t i, int64_t o, float* to) {
        Floats<LANES> own[3][H] = {};
        const int64_t height = x[0]->height, width = x[0]->width, step = x[0]->channels, step_g = g[0]->channels;
        for (size_t image = 0; image < images; image++)
            for (int64_t row = std::max<int64_t>(0, 1 - down); row < std::min(height, height + 1 - down); row++) {
                const float *from = x[image]->at(row + down - 1, 0) + i, *at = g[image]->at(row, 0) + o;
                auto before = load<LANES>(at - step_g), here = load<LANES>(at);
                for (int64_t column = 0; column < width; column++, from += step) {
                    auto after = load<LANES>(at += step_g);
                    keep(after);
#pragma GCC unroll 8
                    for (int h = 0; h < H; h++) {
                        const auto value = spread(from[h]);
                        own[0][h] += value * after;
                        own[1][h] += value * here;
                        own[2][h] += value * before;
                    }
                    before = here;
                    here = after;
                }
            }
#pragma GCC unroll 3
        for (int t = 0; t < 3; t++)
#pragma GCC unroll 8
            for (int h = 0; h < H; h++) {
                float* tap = to + (t * wide + h) * wide;
                store<LANES>(tap, load<LANES>(tap) + own[t][h]);
            }
    }
};

}  // namespace
