// Convolutions of 3x3 taps in bfloat16, and the gradients of their stencils, by the processor's tiles for products of matrices
// (AMX): a tile has 16 rows of 64 bytes, and an instruction adds the product of two tiles to a third one.
#pragma once

#include <immintrin.h>
#include <new>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

namespace {

constexpr int64_t AT_ONCE = 64;  // positions whose sums are computed together, and then used while they are in the cache

// Whether this process may use tiles: the system wants to be asked once.
inline bool may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// Prepares the tiles of a thread for as long as this object lives.
class Tiles {
    struct alignas(64) Shape {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };

  public:
    Tiles() {
        const Shape shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

// Tile instructions read memory behind the compiler's back.
inline void all_written() { asm volatile("" ::: "memory"); }

// Memory that begins at a line of the cache: a row of a tile that crosses one takes six times as long.
template <class T>
struct Aligned {
    using value_type = T;
    T* allocate(size_t num) { return static_cast<T*>(::operator new(num * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
template <class T>
using Buffer = std::vector<T, Aligned<T>>;

inline int64_t up_to(int64_t step, int64_t number) { return (number + step - 1) / step * step; }

// An image, channels innermost and a multiple of 16, with a margin of one pixel of zeros. The positions of its pixels count
// from the first one on through the lines and their margins, so that neighbouring taps are neighbours in memory.
class Image {
    Buffer<bfloat16> memory;

  public:
    const int64_t height, width, channels, line;

    Image(int64_t height, int64_t width, int64_t channels)
        : memory(((height + 2) * (width + 2) + AT_ONCE + 3) * channels), height(height), width(width), channels(channels),
          line(width + 2) {}

    // From -line - 1, the first of the margin.
    bfloat16* at(int64_t position) { return memory.data() + (position + line + 1) * channels; }

    // Takes an image of num channels.
    void fill(const bfloat16* image, int64_t num) {
        const int64_t count = num == channels ? 1 : width, length = num == channels ? width * channels : num;
        for (int64_t row = 0; row < height; row++)
            for (int64_t column = 0; column < count; column++)
                std::memcpy(at(row * line + column), image + (row * width + column) * num, length * sizeof(bfloat16));
    }
};

// Pairs of a row of taps and channels come in chunks of one tile.
inline int64_t chunks_of(int64_t channels) { return (3 * channels + 31) / 32; }

// sums = K x at AT_ONCE positions from p on, for two blocks of 16 output channels of `wide` or for one. The taps are in the
// order block, row, chunk, pair, output channel, one of the pair.
template <int BLOCKS>
void convolve_blocks(Image& x, int64_t p, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t chunks = chunks_of(x.channels), step = 2 * x.channels, block = 3 * chunks * 512, out = 4 * wide;
    constexpr int64_t NUM = BLOCKS == 2 ? 32 : 64;
    for (int64_t end = p + AT_ONCE; p < end; p += NUM, sums += NUM * wide) {
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

// sums = K x at AT_ONCE positions from p on, for `wide` output channels.
inline void convolve(Image& x, int64_t p, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t block = 3 * chunks_of(x.channels) * 512;
    int64_t o = 0;
    all_written();
    for (; o + 32 <= wide; o += 32, taps += 2 * block) convolve_blocks<2>(x, p, taps, sums + o, wide);
    if (o < wide) convolve_blocks<1>(x, p, taps, sums + o, wide);
}

// The gradient of the stencils of a convolution K, from the features x and the gradient g at K x, both images of one shape.
//
// Places count the pixels and the margin from its first one on. In a product of tiles x stands with one channel after the other
// and g in pairs of neighbouring places, once from the even ones on and once from the odd ones, so that every tap begins at
// a line of the cache.
class StencilGradient {
    const int64_t channels, line, first, last, length, before;
    Buffer<bfloat16> across, pairs[2];

  public:
    explicit StencilGradient(const Image& x)
        : channels(x.channels), line(x.line), first((line + 1) / 32 * 32), last(up_to(32, line + 1 + x.height * line)),
          length(last - first), before(up_to(2, line + 2)), across(length * channels) {
        for (auto& p : pairs) p.resize((before + last + line + 2) / 2 * 2 * channels);
    }

    void take_features(Image& x) {
        const __m512i index = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(int(channels / 2)));
        for (int64_t p = 0; p < length; p += 16) {
            const bfloat16* from = x.at(first + p - line - 1);
            for (int64_t c = 0; c < channels; c += 2) {
                const __m512i both = _mm512_i32gather_epi32(index, reinterpret_cast<const int*>(from + c), 4);
                const __m256i even = _mm512_cvtepi32_epi16(both), odd = _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16));
                std::memcpy(&across[c * length + p], &even, 32);
                std::memcpy(&across[(c + 1) * length + p], &odd, 32);
            }
        }
    }

    void take_gradient(Image& g) {
        const int64_t step = 2 * channels;
        for (int64_t c = 0; c < channels; c += 16) {
            __m512i held = {};
            for (int64_t p = -2; p < g.height * line; p += 2) {
                // the place of position p is p + line + 1; both numbers and `before` decide which pairs begin with it
                const __m512i a = spread_out(g.at(p) + c), b = spread_out(g.at(p + 1) + c);
                const int64_t place = p + line + 1 + before;
                put(pairs[place % 2], place / 2 * step + 2 * c, a, b);
                put(pairs[1 - place % 2], (place - 1) / 2 * step + 2 * c, held, a);
                held = b;
            }
        }
    }

    // Adds to `taps`, in the order row, column, input channel, output channel.
    void add_to(float* taps) const {
        const int64_t next = channels * channels, bytes = 4 * channels;
        all_written();
        for (int64_t o = 0; o < channels; o += 16) {
            for (int64_t i = 0; i < channels; i += 16) {
                for (int64_t down = -1; down < 2; down++) {
                    float* to = taps + 3 * (down + 1) * next + i * channels + o;
                    const int64_t place = first - down * line + before;
                    const bfloat16 *a = &across[i * length], *left = from(place + 1, o), *middle = from(place, o),
                                   *right = from(place - 1, o);
                    _tile_loadd(0, to, bytes);
                    _tile_loadd(1, to + next, bytes);
                    _tile_loadd(2, to + 2 * next, bytes);
                    for (int64_t p = 0; p < length; p += 32) {
                        _tile_loadd(3, a + p, 2 * length);
                        _tile_loadd(4, left + p * channels, bytes);
                        _tile_loadd(5, middle + p * channels, bytes);
                        _tile_loadd(6, right + p * channels, bytes);
                        _tile_dpbf16ps(0, 3, 4);
                        _tile_dpbf16ps(1, 3, 5);
                        _tile_dpbf16ps(2, 3, 6);
                    }
                    _tile_stored(0, to, bytes);
                    _tile_stored(1, to + next, bytes);
                    _tile_stored(2, to + 2 * next, bytes);
                }
            }
        }
    }

  private:
    // 16 numbers with zeros between them.
    static __m512i spread_out(const bfloat16* p) {
        __m256i v;
        std::memcpy(&v, p, 32);
        return _mm512_cvtepu16_epi32(v);
    }

    static void put(Buffer<bfloat16>& to, int64_t at, __m512i first, __m512i second) {
        const __m512i both = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
        std::memcpy(&to[at], &both, 64);
    }

    // The pairs from a place on, for the output channels from o on.
    const bfloat16* from(int64_t place, int64_t o) const { return &pairs[place % 2][place / 2 * 2 * channels + 2 * o]; }
};

}  // namespace
