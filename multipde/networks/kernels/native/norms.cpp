// Norm and activation for features with the channels innermost in memory, in one pass over them for each
// reduction: the functions that Python calls, for features in float32 and bfloat16.
//
// A pixel is a number of blocks of L channels. Sums over pixels are kept in float32 over a run of them and in float64
// beyond; every thread has its own, which are added in order, so that results repeat bit for bit.

#include "pooled_batchnorm.h"
#include "tv_norm.h"

constexpr int EIGHT = LANES < 8 ? LANES : 8;

// The widths of the paper's networks have loops of their own.
#define BY_CHANNELS(FUNCTION, ...)                                       \
    if (channels == 16) FUNCTION<LANES, 16 / LANES>(__VA_ARGS__);        \
    else if (channels == 32) FUNCTION<LANES, 32 / LANES>(__VA_ARGS__);   \
    else if (channels == 56) FUNCTION<EIGHT, 56 / EIGHT>(__VA_ARGS__);   \
    else if (channels == 64) FUNCTION<LANES, 64 / LANES>(__VA_ARGS__);   \
    else if (channels == 112) FUNCTION<LANES, 112 / LANES>(__VA_ARGS__); \
    else if (channels == 128) FUNCTION<LANES, 128 / LANES>(__VA_ARGS__); \
    else if (channels % LANES == 0) FUNCTION<LANES, 0>(__VA_ARGS__);     \
    else if (channels % 4 == 0) FUNCTION<4, 0>(__VA_ARGS__);             \
    else FUNCTION<1, 0>(__VA_ARGS__);

#define FOR_TYPE(T, NAME)                                                                                              \
    extern "C" void tv_forward_##NAME(const T* y, const float* a, const float* b, float eps, int64_t relu, T* out,     \
                                      float* r, int64_t pixels, int64_t channels, int64_t threads) {                   \
        BY_CHANNELS(tv_forward, y, a, b, eps, relu, out, r, pixels, channels, threads)                                 \
    }                                                                                                                  \
    extern "C" void tv_backward_##NAME(const T* g, const T* y, const float* r, const float* a, const float* b,         \
                                       int64_t relu, T* dy, float* totals, int64_t pixels, int64_t channels,          \
                                       int64_t threads) {                                                              \
        BY_CHANNELS(tv_backward, g, y, r, a, b, relu, dy, totals, pixels, channels, threads)                           \
    }                                                                                                                  \
    extern "C" void moments_##NAME(const T* x, float* mean, float* variance, int64_t pixels, int64_t channels, int64_t threads) {    \
        BY_CHANNELS(moments, x, mean, variance, pixels, channels, threads)                                                     \
    }                                                                                                                  \
    extern "C" void pooled_forward_##NAME(const T* x, const float* mean, const float* s, const float* b, T* out,       \
                                          int64_t rows, int64_t width, int64_t side, int64_t channels,                 \
                                          int64_t threads) {                                                           \
        BY_CHANNELS(pooled_forward, x, mean, s, b, out, rows, width, side, channels, threads)                          \
    }                                                                                                                  \
    extern "C" void pooled_sums_##NAME(const T* g, const T* x, const float* mean, const float* s, const float* b,      \
                                       float* totals, int64_t rows, int64_t width, int64_t side, int64_t channels,    \
                                       int64_t threads) {                                                              \
        BY_CHANNELS(pooled_sums, g, x, mean, s, b, totals, rows, width, side, channels, threads)                       \
    }                                                                                                                  \
    extern "C" void pooled_backward_##NAME(const T* g, const T* x, const float* mean, const float* s, const float* b,  \
                                           const float* mean_h, const float* slope, T* dx, int64_t rows,               \
                                           int64_t width, int64_t side, int64_t channels, int64_t threads) {           \
        BY_CHANNELS(pooled_backward, g, x, mean, s, b, mean_h, slope, dx, rows, width, side, channels, threads)        \
    }

FOR_TYPE(float, float32)
FOR_TYPE(bfloat16, bfloat16)
