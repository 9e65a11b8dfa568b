// The layers of a network for use alone, forwards, image by image: the functions that Python calls, for features in
// float32 with the channels innermost in memory. An image stays in the processor's cache through a whole layer.

#include "convolution.h"

namespace {

// z = max(0, scale z / sqrt(sum of z*z + eps) + bias) for all pixels; without norm, and without relu, these parts are left out.
void normalise(Padded& z, const float* scale, const float* bias, float eps, bool norm, bool relu) {
    for (int64_t row = 0; row < z.height; row++) {
        for (int64_t column = 0; column < z.width; column++) {
            float* pixel = z.at(row, column);
            float inverse = 1;
            if (norm) {
                Floats<LANES> squares = {};
                for (int64_t c = 0; c < z.channels; c += LANES) {
                    const auto v = load<LANES>(pixel + c);
                    squares += v * v;
                }
                inverse = 1 / std::sqrt(sum<LANES>(squares) + eps);
            }
            for (int64_t c = 0; c < z.channels; c += LANES) {
                auto v = load<LANES>(pixel + c) * inverse * load<LANES>(scale + c) + load<LANES>(bias + c);
                store<LANES>(pixel + c, relu ? where<LANES>(!(v < 0), v) : v);
            }
        }
    }
}

}  // namespace

// out = alpha a + beta b + K2 s(N(K1 x)); out may be x, a or b. Scale and bias are as long as whole panels.
extern "C" void layer(const float* x, const float* a, float alpha, const float* b, float beta, float* out,
                      const float* first, const float* scale, const float* bias, float eps, int64_t norm, int64_t relu,
                      const float* second, int64_t side, int64_t images, int64_t height, int64_t width,
                      int64_t channels, int64_t threads) {
    const int64_t size = height * width * channels, wide = (channels + PANEL - 1) / PANEL * PANEL;
#pragma omp parallel num_threads(threads)
    {
        Padded y(height, width, channels, side), z(height, width, wide, side);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            y.fill(x + i * size);
            convolve(y, channels, channels, side, first,
                     [&](int64_t row, int64_t column, int64_t channel, const float* sums, int64_t n) {
                         std::memcpy(z.at(row, column) + channel, sums, n * sizeof(float));
                     });
            normalise(z, scale, bias, eps, norm, relu);
            convolve(z, channels, channels, side, second,
                     [&](int64_t row, int64_t column, int64_t channel, const float* sums, int64_t n) {
                         const int64_t first_at = i * size + (row * width + column) * channels + channel;
                         const float *from_a = a + first_at, *from_b = b + first_at;
                         const int64_t present = std::min(n, channels - channel), whole = present / LANES * LANES;
                         for (int64_t c = 0; c < whole; c += LANES)
                             store<LANES>(out + first_at + c, load<LANES>(sums + c) + alpha * load<LANES>(from_a + c) +
                                                                  beta * load<LANES>(from_b + c));
                         for (int64_t c = whole; c < present; c++)
                             out[first_at + c] = sums[c] + alpha * from_a[c] + beta * from_b[c];
                     });
        }
    }
}

// out = max(0, K x + bias), of other channels than x.
extern "C" void convolution_relu(const float* x, float* out, const float* taps, const float* bias, int64_t side,
                                 int64_t images, int64_t height, int64_t width, int64_t channels, int64_t out_channels,
                                 int64_t threads) {
    const int64_t size = height * width * channels;
#pragma omp parallel num_threads(threads)
    {
        Padded y(height, width, channels, side);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            y.fill(x + i * size);
            convolve(y, channels, out_channels, side, taps,
                     [&](int64_t row, int64_t column, int64_t channel, const float* sums, int64_t n) {
                         float* to = out + ((i * height + row) * width + column) * out_channels + channel;
                         const int64_t present = std::min(n, out_channels - channel);
                         for (int64_t c = 0; c < present; c++) {
                             const float v = sums[c] + bias[channel + c];
                             to[c] = v < 0 ? 0 : v;
                         }
                     });
        }
    }
}
