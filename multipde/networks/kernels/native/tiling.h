// How a convolution covers an image with tiles: neighbouring pixels of one row or two, whose sums are in registers together.
#pragma once

#include <algorithm>
#include <cstdint>

namespace {

// Rows of an image or of taps, from the first to one before the end.
struct Rows {
    int64_t first, end;
};

// The rows of `side` rows of taps that meet an image of `height` rows from some of its rows. From there, the others meet zeros.
inline Rows meeting(Rows some, int64_t side, int64_t height) {
    const int64_t half = side / 2;
    return {std::max<int64_t>(0, half - some.end + 1), std::min(side, height + half - some.first)};
}

// The number of tiles of at most so many pixels that a row takes.
inline int64_t tiles_in(int64_t width, int64_t most) { return (width + most - 1) / most; }

// Calls at(row, column, rows, n) for tiles that cover some rows of so many pixels: n pixels from `column` on in each of `rows` rows
// from `row` on. A tile has at most so many pixels, and two rows `by_two` where there are two.
template <class At>
void cover(Rows some, int64_t width, int64_t most, bool by_two, At at) {
    for (int64_t row = some.first, rows; row < some.end; row += rows) {
        rows = by_two && row + 1 < some.end ? 2 : 1;
        const int64_t count = tiles_in(width, most / rows), length = (width + count - 1) / count;
        for (int64_t column = 0; column < width; column += length) at(row, column, rows, std::min(length, width - column));
    }
}

// Calls at(k, n) for groups of at most `most` of all blocks of channels, which are as alike as possible: n blocks from k on.
template <class At>
void by_blocks(int64_t all, int64_t most, At at) {
    for (int64_t k = 0, n, left = (all + most - 1) / most; k < all; k += n, left--) {
        n = (all - k + left - 1) / left;
        at(k, n);
    }
}

}  // namespace
