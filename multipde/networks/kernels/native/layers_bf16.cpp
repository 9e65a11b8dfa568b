// The layers of a block in training in bfloat16. Sums are in float32.

#ifdef __AVX512BF16__
#include "layer_bf16.h"

#include "block.h"

// Whether stencils of 16 channels are packed in pairs of pixels.
extern "C" int64_t packs_pairs() { return PAIRS_OF_PIXELS; }
#else
#include <cstdint>
extern "C" int64_t available() { return 0; }
#endif
