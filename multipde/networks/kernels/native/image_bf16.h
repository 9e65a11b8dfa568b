// An image in bfloat16 with its margin, as the products of `matrix_tiles.h` or `dot_products.h` read it.
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace {

// An image with its channels innermost. It begins at a line of the cache, because a row of a tile that crosses one takes six times
// as long. Channels that only fill up a multiple of 16 are zeros, and so is a margin of one pixel. The positions of its pixels count
// from the first one on through the lines and their margins, so that neighbouring taps are neighbours in memory.
class Image {
    Buffer<bfloat16> memory;

  public:
    static constexpr int64_t BEYOND = 70;  // positions behind the margin that are read with others
    const int64_t height, width, present, channels, line, lead;

    Image(int64_t height, int64_t width, int64_t present)
        : height(height), width(width), present(present), channels(up_to(16, present)), line(width + 2), lead(2 + line % 2) {
        memory.resize(((height + 2) * line + BEYOND) * channels);
    }

    // Positions with all pixels, a multiple of 16.
    int64_t positions() const { return up_to(16, height * line); }

    // Calls at(k) for those of 16 neighbouring positions from p on, which is in a column, that are no pixels.
    template <class At>
    void margin_of(int64_t p, int64_t column, At at) const {
        for (int64_t k = width - column; k < 16; k += line) {
            if (k >= 0) at(k);
            if (k < 15) at(k + 1);
        }
        for (int64_t k = std::max<int64_t>(0, height * line - p); k < 16; k++) at(k);
    }

    // Zeros where there are no pixels.
    void clear_margin() {
        for (int64_t p = width; p < height * line; p += line) std::memset(at(p), 0, 2 * channels * sizeof(bfloat16));
        std::memset(at(height * line), 0, (positions() - height * line) * channels * sizeof(bfloat16));
    }

    // From -line - 2, the first of the margin; an even position begins a line of the cache.
    bfloat16* at(int64_t position) { return memory.data() + (position + line + lead) * channels; }

    // Takes an image of the channels that are present.
    void fill(const bfloat16* image) {
        const int64_t num = present, count = num == channels ? 1 : width, length = num == channels ? width * channels : num;
        for (int64_t row = 0; row < height; row++)
            for (int64_t column = 0; column < count; column++)
                std::memcpy(at(row * line + column), image + (row * width + column) * num, length * sizeof(bfloat16));
    }
};

// Pairs of a row of taps and channels come in chunks of 16.
inline int64_t chunks_of(int64_t channels) { return (3 * channels + 31) / 32; }

// Writes 16 channels of 32 neighbouring places: the places of a channel side by side, those of the next channel `step` numbers
// later.
inline void transpose(const bfloat16* x, int64_t channels, bfloat16* to, int64_t step) {
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
        std::memcpy(to + c * step, &low, 64);
        std::memcpy(to + (c + 8) * step, &high, 64);
    }
}

// 16 numbers with zeros between them.
inline __m512i spread_out(const bfloat16* p) {
    __m256i v;
    std::memcpy(&v, p, 32);
    return _mm512_cvtepu16_epi32(v);
}

// Pairs of the first and the second of 16 numbers, both spread out.
inline void put_pairs(bfloat16* to, __m512i first, __m512i second) {
    const __m512i both = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
    std::memcpy(to, &both, 64);
}

}  // namespace
