// The layers of a block in training: the functions that Python calls. An image stays in the processor's cache through a whole layer
// and through all of its gradients, and the states of a group of images through all layers.
//
// The layer of an image is that of the header before this one, which defines Number, FULL, Memory, StencilGradient and Multiplier.
#pragma once

#include <memory>

namespace {

constexpr int64_t GROUP = 1 << 15;  // numbers of a state of the images that go through all layers together

// States s_0, s_1, ... of images of one shape: s_(k+2) = alpha s_k + beta s_(k+1) + K2 s(N(K1 s_(k+1))), k < layers. Every layer
// has stencils, scale and bias of its own; on the way back both stencils are the transposed ones.
struct Block {
    int64_t layers, images, height, width, channels, threads, relu;
    float alpha, beta, eps;
    const Number *const *first, *const *second;
    const float *const *scale, *const *bias;

    int64_t wide() const { return up_to(FULL, channels); }
    int64_t size() const { return height * width * channels; }
    int64_t kept_size() const { return numbers_kept(height, width, channels); }
    int64_t taps() const { return 9 * wide() * wide(); }
    // Images that go through all layers together, so that their states stay in the cache; the stencils of a layer stay meanwhile.
    int64_t group() const { return std::clamp<int64_t>(GROUP / size(), 1, images); }
};

// What a thread needs for a block.
struct States : Memory {
    explicit States(const Block& b) : Memory(b.height, b.width, b.channels) {}
};

// And for its gradients.
struct Gradients : States {
    StencilGradient first, second;
    Sums<LANES, 0> own;
    std::vector<double> totals;
    Buffer<float> taps;
    std::vector<Number> states[3];

    explicit Gradients(const Block& b)
        : States(b), first(x, dz, b.channels), second(n, g, b.channels), own(wide), totals(b.layers * 2 * wide),
          taps(b.layers * 2 * b.taps()) {
        for (auto& s : states) s.resize(b.group() * b.size());
    }
};

// Calls at(memory, first, last) for the images of a group after another, by threads side by side; gives back their memories.
template <class M, class At>
std::vector<std::unique_ptr<M>> by_groups(const Block& b, At at) {
    std::vector<std::unique_ptr<M>> memories(b.threads);
#pragma omp parallel num_threads(b.threads)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), end = b.images * (me + 1) / all;
        memories[me] = std::make_unique<M>(b);
        const Multiplier multiplier;
        for (int64_t i = b.images * me / all; i < end; i += b.group()) at(*memories[me], i, std::min(i + b.group(), end));
    }
    memories.erase(std::remove(memories.begin(), memories.end(), nullptr), memories.end());
    return memories;
}

}  // namespace

extern "C" int64_t available() { return may_multiply(); }

extern "C" int64_t multiple() { return FULL; }

// The numbers that are kept of an image for every layer.
extern "C" int64_t kept_size(const Block* block) { return block->kept_size(); }

// The states from s_2 on. K1 x of every layer is kept; scale and bias are as long as channels are computed.
extern "C" void layers(const Block* block, Number* const* states, Number* const* kept) {
    const Block& b = *block;
    by_groups<States>(b, [&](States& m, int64_t first, int64_t last) {
        for (int64_t k = 0; k < b.layers; k++)
            for (int64_t i = first; i < last; i++) {
                const int64_t at = i * b.size();
                fill(m.x, states[k + 1] + at);
                normalise(m, b.first[k], b.scale[k], b.bias[k], b.eps, b.relu, kept[k] + i * b.kept_size());
                add(m, m.n, b.second[k], b.alpha, states[k] + at, b.beta, states[k + 1] + at, states[k + 2] + at, b.channels);
            }
    });
}

// The gradients of `layers`: with G_k that at s_k, of which those at the last two states are given, the last one first, and dz
// that at K1 s_(k+1),
//
//     G_(k+1) = alpha G_(k+3) + beta G_(k+2) + K1' dz
//
// `grads` gets G_1 and, with more than one layer, G_2 unless it is null. `totals` gets for every layer the gradients of scale and
// bias, then those of both stencils in the order of `StencilGradient`.
extern "C" void layers_backward(const Block* block, const Number* const* states, const Number* const* kept,
                                const Number* const* given, Number* const* grads, float* totals) {
    const Block& b = *block;
    const int64_t wide = b.wide(), size = b.size();
    const auto threads = by_groups<Gradients>(b, [&](Gradients& m, int64_t first, int64_t last) {
        const Number *g = given[0] + first * size, *later = given[1] ? given[1] + first * size : nullptr;
        for (int64_t k = b.layers - 1; k >= 0; k--) {
            const float alpha = k < b.layers - 1 ? b.alpha : later ? 1 : 0;
            Number* found = k < 2 && grads[k] ? grads[k] + first * size : m.states[k % 3].data();
            float* taps = &m.taps[k * 2 * b.taps()];
            for (int64_t i = first; i < last; i++) {
                const int64_t at = (i - first) * size;
                fill(m.g, g + at);
                const Number* x = states[k + 1] + i * size;
                normalise_backward(m, b.second[k], kept[k] + i * b.kept_size(), b.scale[k], b.bias[k], b.eps, b.relu, m.own, x);
                m.own.move_to(&m.totals[k * 2 * wide]);
                m.second.take(m.n, m.g);
                fill(m.x, x);
                add(m, m.dz, b.first[k], alpha, later + at, b.beta, g + at, found + at, b.channels);
                m.first.take(m.x, m.dz);
                if (m.first.is_full() || i == last - 1) {
                    m.first.add_to(taps);
                    m.second.add_to(taps + b.taps());
                }
            }
            later = g;
            g = found;
        }
    });
    for (int64_t k = 0; k < b.layers; k++) {
        std::fill(totals, totals + 2 * (wide + b.taps()), 0.0f);
        for (const auto& m : threads) {
            for (int64_t c = 0; c < 2 * wide; c++) totals[c] += m->totals[k * 2 * wide + c];
            for (int64_t c = 0; c < 2 * b.taps(); c++) totals[2 * wide + c] += m->taps[k * 2 * b.taps() + c];
        }
        totals += 2 * (wide + b.taps());
    }
}
