// Convolutions of 3x3 taps in bfloat16 by the processor's tiles for products of matrices (AMX): a tile has 16 rows of 64 bytes,
// and an instruction adds the product of two tiles to a third one.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "image_bf16.h"

namespace {

constexpr bool PAIRS_OF_PIXELS = true;  // whether stencils of 16 channels are packed for `convolve_pairs`

// Whether this process may use these instructions: the system wants to be asked once.
inline bool may_multiply() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// What a thread needs for its products, prepared for as long as this object lives.
class Multiplier {
    struct alignas(64) Shape {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };

  public:
    Multiplier() {
        const Shape shape;
        _tile_loadconfig(&shape);
    }
    ~Multiplier() { _tile_release(); }
};

// Tile instructions read memory behind the compiler's back.
inline void all_written() { asm volatile("" ::: "memory"); }

// sums = K x at positions from p to the end, for two blocks of 16 output channels of `wide` or for one. The taps
// are in the order block, row, chunk, pair, output channel, one of the pair.
template <int BLOCKS>
void convolve_blocks(Image& x, int64_t p, int64_t end, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t chunks = chunks_of(x.channels), step = 2 * x.channels, block = 3 * chunks * 512, out = 4 * wide;
    constexpr int64_t NUM = BLOCKS == 2 ? 32 : 64;
    for (; p < end; p += NUM, sums += NUM * wide) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const bfloat16* b = taps;
        for (int64_t down = -1; down < 2; down++) {
            const bfloat16* a = x.at(p + down * x.line - 1);
            for (int64_t k = 0; k < chunks; k++, a += 32, b += 512) {
                _tile_loadd(7, b, 64);
                _tile_loadd(4, a, step);
                if constexpr (BLOCKS == 2) {
                    _tile_loadd(6, b + block, 64);
                    _tile_loadd(5, a + 16 * x.channels, step);
                    _tile_dpbf16ps(0, 4, 7);
                    _tile_dpbf16ps(1, 4, 6);
                    _tile_dpbf16ps(2, 5, 7);
                    _tile_dpbf16ps(3, 5, 6);
                } else {
                    _tile_loadd(5, a + 16 * x.channels, step);
                    _tile_dpbf16ps(0, 4, 7);
                    _tile_loadd(6, a + 32 * x.channels, step);
                    _tile_dpbf16ps(1, 5, 7);
                    _tile_loadd(4, a + 48 * x.channels, step);
                    _tile_dpbf16ps(2, 6, 7);
                    _tile_dpbf16ps(3, 4, 7);
                }
            }
        }
        _tile_stored(0, sums, out);
        if constexpr (BLOCKS == 2) {
            _tile_stored(1, sums + 16, out);
            _tile_stored(2, sums + 16 * wide, out);
            _tile_stored(3, sums + 16 * wide + 16, out);
        } else {
            _tile_stored(1, sums + 16 * wide, out);
            _tile_stored(2, sums + 32 * wide, out);
            _tile_stored(3, sums + 48 * wide, out);
        }
    }
}

// The same for 16 channels, where two pixels fill a line of the cache. For even positions p three neighbouring taps are in the
// pairs of pixels (p - 2, p - 1) and (p, p + 1), for p + 1 in (p, p + 1) and (p + 2, p + 3); the first and the last tap of these
// four pairs are zero. So the rows of a tile are pairs that begin at even positions, and their products even or odd positions.
inline void convolve_pairs(Image& x, int64_t p, const bfloat16* taps, float* sums) {
    constexpr int64_t NEXT = 32 * 16;  // to the next 32 positions
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t down = -1; down < 2; down++, taps += 4 * 512) {
        const bfloat16* a = x.at(p + down * x.line);
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + NEXT, 64);
        _tile_loadd(6, taps + 512, 64);
        _tile_loadd(7, taps + 2 * 512, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, taps, 64);
        _tile_loadd(4, a - 32, 64);
        _tile_loadd(5, a - 32 + NEXT, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, taps + 3 * 512, 64);
        _tile_loadd(4, a + 32, 64);
        _tile_loadd(5, a + 32 + NEXT, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + NEXT, 128);
    _tile_stored(3, sums + NEXT + 16, 128);
}

// Positions whose sums are computed together.
inline int64_t at_once(const Image&) { return 64; }

// sums = K x at positions from p on, `at_once` or those that there are, for `wide` output channels.
inline void convolve(Image& x, int64_t p, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t block = 3 * chunks_of(x.channels) * 512, end = std::min(p + at_once(x), x.positions());
    all_written();
    if (wide == 16) return convolve_pairs(x, p, taps, sums);
    int64_t o = 0;
    for (; o + 32 <= wide; o += 32, taps += 2 * block) convolve_blocks<2>(x, p, end, taps, sums + o, wide);
    if (o < wide) convolve_blocks<1>(x, p, end, taps, sums + o, wide);
}

}  // namespace
