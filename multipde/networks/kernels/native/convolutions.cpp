// The layers of a network for use alone, forwards, image by image: the functions that Python calls, for features in
// float32 with the channels innermost in memory. An image stays in the processor's cache through a whole layer.

#include "layer_float32.h"

namespace {

// The means over cells of cell x cell pixels, of as many rows.
void means(const float* from, float* to, int64_t cell, int64_t width, int64_t channels) {
    const float share = 1.0f / (cell * cell);
    for (int64_t column = 0; column < width / cell; column++, to += channels) {
        std::fill(to, to + channels, 0.0f);
        for (int64_t p = 0; p < cell * cell; p++) {
            const float* pixel = from + (p / cell * width + cell * column + p % cell) * channels;
            for (int64_t c = 0; c < channels; c++) to[c] += share * pixel[c];
        }
    }
}

}  // namespace

// The number of output channels in a panel.
extern "C" int64_t panel() { return LANES; }

// out = alpha a + beta b + K2 s(N(K1 x)); out may be x, a or b. In all four, neighbouring pixels are `distance` numbers
// apart, so that they may be a part of the channels. Scale and bias are as long as whole panels.
extern "C" void layer(const float* x, const float* a, float alpha, const float* b, float beta, float* out,
                      const float* first, const float* scale, const float* bias, float eps, int64_t norm, int64_t relu,
                      const float* second, int64_t side, int64_t images, int64_t height, int64_t width,
                      int64_t channels, int64_t distance, int64_t threads) {
    const int64_t size = height * width * distance;
#pragma omp parallel num_threads(threads)
    {
        Forwards m(height, width, channels, side);
        Buffer<float> z(m.size());
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            const int64_t at = i * size;
            m.x.fill(x + at, distance);
            convolve(m.x, channels, m.wide, side, first, z.data());
            normalise(m, z.data(), scale, bias, eps, norm, relu);
            const float* start = sum_of(alpha, a + at, beta, b + at, out + at, height * width, channels, distance);
            convolve(m.n, {0, height}, channels, channels, side, second, out + at, distance, start, nullptr);
        }
    }
}

// The mean of max(0, K x + bias) over cells of cell x cell pixels, of other channels than x.
extern "C" void convolution_relu(const float* x, float* out, const float* taps, const float* bias, int64_t side,
                                 int64_t cell, int64_t images, int64_t height, int64_t width, int64_t channels,
                                 int64_t out_channels, int64_t threads) {
    const int64_t size = height * width * channels, out_size = (height / cell) * (width / cell) * out_channels;
#pragma omp parallel num_threads(threads)
    {
        Padded y(height, width, channels, side);
        std::vector<float> rows(cell > 1 ? cell * width * out_channels : 0);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; i++) {
            y.fill(x + i * size, channels);
            float* to = out + i * out_size;
            if (cell == 1) convolve(y, {0, height}, channels, out_channels, side, taps, to, out_channels, nullptr, bias);
            for (int64_t row = 0; cell > 1 && row + cell <= height; row += cell, to += width / cell * out_channels) {
                convolve(y, {row, row + cell}, channels, out_channels, side, taps, rows.data(), out_channels, nullptr, bias);
                means(rows.data(), to, cell, width, out_channels);
            }
        }
    }
}
