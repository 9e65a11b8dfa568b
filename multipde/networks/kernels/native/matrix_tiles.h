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
    const int64_t height, width, channels, line, lead;

    Image(int64_t height, int64_t width, int64_t channels)
        : memory(((height + 2) * (width + 2) + AT_ONCE + 6) * channels), height(height), width(width), channels(channels),
          line(width + 2), lead(2 + line % 2) {}

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

// sums = K x at positions from p to the end, at most AT_ONCE, for two blocks of 16 output channels of `wide` or for one. The taps
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

// sums = K x at AT_ONCE positions from p on, for `wide` output channels.
inline void convolve(Image& x, int64_t p, const bfloat16* taps, float* sums, int64_t wide) {
    const int64_t block = 3 * chunks_of(x.channels) * 512;
    int64_t o = 0;
    all_written();
    if (wide == 16) return convolve_pairs(x, p, taps, sums);
    const int64_t end = std::min(p + AT_ONCE, x.positions());
    for (; o + 32 <= wide; o += 32, taps += 2 * block) convolve_blocks<2>(x, p, end, taps, sums + o, wide);
    if (o < wide) convolve_blocks<1>(x, p, end, taps, sums + o, wide);
}

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
        // of every row k, in every quarter of a vector: first 2, then 4, then 8 places of a channel stand side by side
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
            const __m512i low = _mm512_permutex2var_epi64(b[c], even, b[c + 8]), high = _mm512_permutex2var_epi64(b[c], odd, b[c + 8]);
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
