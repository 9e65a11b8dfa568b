// Vectors of L numbers, and sums of them over pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include <omp.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t RUN = 256;  // pixels whose sums are kept in float32
constexpr int AHEAD = 4096;   // bytes by which memory is prefetched

// Numbers in one register. Wider vectors compile, but element by element.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

struct bfloat16 {
    uint16_t bits;
};

template <int L>
struct Lanes {
    typedef float floats __attribute__((vector_size(4 * L)));
    typedef uint32_t words __attribute__((vector_size(4 * L)));
    typedef uint16_t halves __attribute__((vector_size(2 * L)));
};
template <int L>
using Floats = typename Lanes<L>::floats;

template <int L>
Floats<L> load(const float* p) {
    Floats<L> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <int L>
Floats<L> load(const bfloat16* p) {
    typename Lanes<L>::halves half;
    std::memcpy(&half, p, sizeof half);
    return (Floats<L>)(__builtin_convertvector(half, typename Lanes<L>::words) << 16);
}

template <int L>
void store(float* p, Floats<L> v) {
    std::memcpy(p, &v, sizeof v);
}

template <int L>
void store(bfloat16* p, Floats<L> v) {
#ifdef __AVX512BF16__
    if constexpr (L == 16) {
        const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
        std::memcpy(p, &half, sizeof half);
        return;
    }
#endif
    const auto word = (typename Lanes<L>::words)v;
    const auto even = word + 0x7fff + ((word >> 16) & 1);      // to the nearest, ties to even
    const auto rounded = (v == v) ? even : (word | 0x400000);  // NaN stays NaN
    const auto half = __builtin_convertvector(rounded >> 16, typename Lanes<L>::halves);
    std::memcpy(p, &half, sizeof half);
}

// The first `present` lanes from memory, the others zero, or all where there are so many.
template <class T>
Floats<LANES> load_some(const T* p, int64_t present) {
    if (present >= LANES) return load<LANES>(p);
    T found[LANES] = {};
    std::memcpy(found, p, present * sizeof(T));
    return load<LANES>(found);
}

template <class T>
void store_some(T* p, int64_t present, Floats<LANES> v) {
    if (present >= LANES) return store<LANES>(p, v);
    T found[LANES];
    store<LANES>(found, v);
    std::memcpy(p, found, present * sizeof(T));
}

// Keeps a vector in its register; the compiler may load it anew for every product otherwise.
template <class V>
void keep(V& v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__AVX__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
}

// A vector of one number, in a register, so that it is read once for several products.
inline Floats<LANES> spread(float value) {
    auto v = value - Floats<LANES>{};
    keep(v);
    return v;
}

template <int L>
float sum(Floats<L> v) {
    if constexpr (L == 1) {
        return v[0];
    } else {
        Floats<L / 2> low, high;
        std::memcpy(&low, &v, sizeof low);
        std::memcpy(&high, reinterpret_cast<char*>(&v) + sizeof low, sizeof high);
        return sum<L / 2>(low + high);
    }
}

// Half of every part of H + H lanes, of a and then of b: the first half where FROM is 0, and the second where it is H.
template <int H, int FROM, size_t... K>
Floats<LANES> halves(Floats<LANES> a, Floats<LANES> b, std::index_sequence<K...>) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, int(K / H * 2 * H + K % H + FROM)...);
#else
    return __builtin_shuffle(a, b, typename Lanes<LANES>::words{uint32_t(K / H * 2 * H + K % H + FROM)...});
#endif
}

// The sums of N rows of numbers, PER of which are a vector, in neighbouring lanes; so many for each as all fill a vector.
template <int N, int PER = 1>
Floats<LANES> sums_of(const Floats<LANES>* rows) {
    if constexpr (N == PER) {
        return *rows;
    } else {
        constexpr int H = LANES / N;
        constexpr auto all = std::make_index_sequence<LANES>();
        const auto a = sums_of<N / 2, PER>(rows), b = sums_of<N / 2, PER>(rows + N / 2 / PER);
        return halves<H, 0>(a, b, all) + halves<H, H>(a, b, all);
    }
}

template <int L>
Floats<L> where(decltype(Floats<L>{} > Floats<L>{}) mask, Floats<L> v) {
    return mask ? v : Floats<L>{};
}

// max(0, v), NaN where v is.
inline Floats<LANES> positive(Floats<LANES> v) { return where<LANES>(!(v < 0), v); }

// Memory that begins at a line of the cache.
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

// Two sums per channel over a run, in registers where the number B of blocks is known.
template <int L, int B>
class Sums {
    Floats<L> own[B ? 2 * B : 1] = {};
    std::vector<float> rest;
    const int64_t channels;

    void add(int k, int which, Floats<L> v) {
        if constexpr (B > 0) {
            own[which * B + k] += v;
        } else {
            float* to = &rest[which * channels + k * L];
            store<L>(to, load<L>(to) + v);
        }
    }

  public:
    explicit Sums(int64_t channels) : rest(B ? 0 : 2 * channels), channels(channels) {}

    void add(int k, Floats<L> first, Floats<L> second) {
        add(k, 0, first);
        add(k, 1, second);
    }

    void move_to(double* total) {
        const float* run = B ? reinterpret_cast<const float*>(own) : rest.data();
        for (int64_t c = 0; c < 2 * channels; c++) total[c] += run[c];
        for (auto& v : own) v = Floats<L>{};
        std::fill(rest.begin(), rest.end(), 0.0f);
    }
};

// Calls at(sums, i) for all i < num, by threads side by side; sums are added to the thread's totals after every run.
// Gives back the first sums of all channels, then the second.
template <int L, int B, class At>
std::vector<double> over_runs(int64_t num, int64_t run, int64_t channels, int64_t threads, At at) {
    std::vector<double> totals(threads * 2 * channels);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        const int64_t last = num * (me + 1) / all;
        Sums<L, B> sums(channels);
        for (int64_t start = num * me / all; start < last; start += run) {
            for (int64_t i = start; i < std::min(start + run, last); i++) at(sums, i);
            sums.move_to(&totals[me * 2 * channels]);
        }
    }
    for (int64_t i = 2 * channels; i < threads * 2 * channels; i++) totals[i % (2 * channels)] += totals[i];
    totals.resize(2 * channels);
    return totals;
}

// Prefetches memory before it is needed.
inline void ask_for(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + AHEAD); }

}  // namespace
