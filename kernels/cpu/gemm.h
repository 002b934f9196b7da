// Products of a few or many activation rows with packed weights.
//
// A weight matrix [N, K] is cut into panels of 32 outputs. Within a panel the inputs follow one another, so that every
// product streams through memory once: float32 as [K][32]; bfloat16 as [K/2][32][2], the pairs of VDPBF16PS; int8 as
// [K/2] groups of 64 bytes, sign and magnitude, in the order in which unpacking gives those same pairs.
//
// The sum over K runs in the same order for any number of rows, so that a row's result never depends on its batch.
#pragma once
#include <algorithm>
#include <cstring>

#include "vector.h"

namespace stride {

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };
constexpr int64_t PANEL = 32;
constexpr int MOST_ROWS = 12;
constexpr int64_t NEAR = 1024;

// `scale` (a factor an output, for int8) and `bias` may be null. `outputs` is N, `inputs` K.
struct Linear {
    const void* weight;
    const float* scale;
    const float* bias;
    int64_t outputs;
    int64_t inputs;
    Kind kind;
    int32_t reserved;
};

inline int64_t panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }
inline int64_t element_bytes(Kind kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }
inline const void* panel_of(const Linear& linear, int64_t panel) {
    return static_cast<const char*>(linear.weight) + panel * PANEL * linear.inputs * element_bytes(linear.kind);
}

// int8 magnitudes 0..127 as the high and the low byte of a bfloat16.
struct MagnitudeTables {
    __m512i high[2], low[2];
    MagnitudeTables() {
        alignas(64) uint8_t bytes[2][128];
        for (int i = 0; i < 128; ++i) {
            const float value = static_cast<float>(i);
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            bytes[0][i] = static_cast<uint8_t>(bits >> 24);
            bytes[1][i] = static_cast<uint8_t>(bits >> 16);
        }
        for (int half = 0; half < 2; ++half) {
            high[half] = _mm512_load_si512(bytes[0] + 64 * half);
            low[half] = _mm512_load_si512(bytes[1] + 64 * half);
        }
    }
};

// Where element (k, column) of a panel lies, in elements.
inline int64_t packed_index(Kind kind, int64_t k, int64_t column) {
    if (kind == FLOAT32) return k * PANEL + column;
    const int64_t pair = (k / 2) * 2 * PANEL;
    if (kind == BFLOAT16) return pair + column * 2 + k % 2;
    const int64_t within = column % 16;
    return pair + (within / 4) * 16 + (column / 16) * 8 + (within % 4) * 2 + k % 2;
}

// Fetches the weights that will be read `ahead` bytes later; 0: none.
inline void fetch(const void* from, int64_t ahead) { _mm_prefetch(static_cast<const char*>(from) + ahead, _MM_HINT_T1); }

// ROWS rows of A (stride lda) times P panels that lie one after another -> out [ROWS][P * 32].
template <Kind KIND, int ROWS, int P>
inline void tile(const void* a, int64_t lda, const void* first, int64_t inputs, int64_t ahead, float* out) {
    __m512 sum[ROWS][2 * P];
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int j = 0; j < 2 * P; ++j) sum[row][j] = _mm512_setzero_ps();
    if constexpr (KIND == FLOAT32) {
        const float* rows = static_cast<const float*>(a);
        const float* panel = static_cast<const float*>(first);
        for (int64_t k = 0; k < inputs; ++k) {
            __m512 b[2 * P];
#pragma GCC unroll 8
            for (int j = 0; j < 2 * P; ++j) {
                const float* from = panel + (j / 2) * PANEL * inputs + k * PANEL + (j % 2) * 16;
                fetch(from, ahead);
                b[j] = _mm512_loadu_ps(from);
            }
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; ++row) {
                const __m512 value = _mm512_set1_ps(rows[row * lda + k]);
#pragma GCC unroll 8
                for (int j = 0; j < 2 * P; ++j) sum[row][j] = _mm512_fmadd_ps(value, b[j], sum[row][j]);
            }
        }
    } else {
        const bf16* rows = static_cast<const bf16*>(a);
        [[maybe_unused]] static const MagnitudeTables tables;
        [[maybe_unused]] const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
        [[maybe_unused]] const __m512i high0 = tables.high[0], high1 = tables.high[1], low0 = tables.low[0], low1 = tables.low[1];
        for (int64_t k = 0; k < inputs; k += 2) {
            __m512i b[2 * P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                if constexpr (KIND == BFLOAT16) {
                    const bf16* panel = static_cast<const bf16*>(first) + p * PANEL * inputs + k * PANEL;
                    fetch(panel, ahead);
                    fetch(panel + 32, ahead);
                    b[2 * p] = _mm512_loadu_si512(panel);
                    b[2 * p + 1] = _mm512_loadu_si512(panel + 32);
                } else {
                    const uint8_t* panel = static_cast<const uint8_t*>(first) + p * PANEL * inputs + k * PANEL;
                    fetch(panel, ahead);
                    const __m512i codes = _mm512_loadu_si512(panel);
                    __m512i high = _mm512_permutex2var_epi8(high0, codes, high1);
                    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
                    high = _mm512_ternarylogic_epi64(high, codes, sign, 0xf8);  // high | (codes & sign)
                    b[2 * p] = _mm512_unpacklo_epi8(low, high);
                    b[2 * p + 1] = _mm512_unpackhi_epi8(low, high);
                }
            }
#pragma GCC unroll 12
            for (int row = 0; row < ROWS; ++row) {
                int32_t pair;
                std::memcpy(&pair, rows + row * lda + k, 4);
                const __m512i value = _mm512_set1_epi32(pair);
#pragma GCC unroll 8
                for (int j = 0; j < 2 * P; ++j) sum[row][j] = _mm512_dpbf16_ps(sum[row][j], (__m512bh)value, (__m512bh)b[j]);
            }
        }
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int j = 0; j < 2 * P; ++j) _mm512_storeu_ps(out + (row * P * 2 + j) * 16, sum[row][j]);
}

// What one piece of work computes: `wide` panels at once while there are few rows, to have enough sums in flight.
constexpr int panels_at_once(int rows) { return rows <= 2 ? 4 : rows <= 4 ? 2 : 1; }

struct Cut {
    int64_t tiles, rows, wide;
    explicit Cut(int64_t count) {
        tiles = (count + MOST_ROWS - 1) / MOST_ROWS;
        rows = tiles == 0 ? 1 : (count + tiles - 1) / tiles;
        wide = panels_at_once(static_cast<int>(rows));
    }
    int64_t pieces(const Linear& linear) const { return (panels(linear.outputs) + wide - 1) / wide; }
};

template <Kind KIND, int ROWS>
inline void tile_of(const void* a, int64_t lda, const Linear& linear, int64_t panel, int64_t count, int64_t ahead, float* out) {
    constexpr int P = panels_at_once(ROWS);
    if (count == P) return tile<KIND, ROWS, P>(a, lda, panel_of(linear, panel), linear.inputs, ahead, out);
    for (int64_t i = 0; i < count; ++i) {
        alignas(64) float one[ROWS * PANEL];
        tile<KIND, ROWS, 1>(a, lda, panel_of(linear, panel + i), linear.inputs, ahead, one);
        for (int row = 0; row < ROWS; ++row) std::memcpy(out + (row * P + i) * PANEL, one + row * PANEL, PANEL * 4);
    }
}

template <Kind KIND>
inline int tile_rows(int rows, const void* a, int64_t lda, const Linear& linear, int64_t panel, int64_t count, int64_t ahead,
                     float* out) {
    switch (rows) {
#define STRIDE_ROWS(R) \
    case R: tile_of<KIND, R>(a, lda, linear, panel, count, ahead, out); return panels_at_once(R);
        STRIDE_ROWS(1) STRIDE_ROWS(2) STRIDE_ROWS(3) STRIDE_ROWS(4) STRIDE_ROWS(5) STRIDE_ROWS(6)
        STRIDE_ROWS(7) STRIDE_ROWS(8) STRIDE_ROWS(9) STRIDE_ROWS(10) STRIDE_ROWS(11) STRIDE_ROWS(12)
#undef STRIDE_ROWS
    }
    return 1;
}

// Piece `piece` of A [count, K] times the weights: `done(row, output, values of 32 outputs)` for every row and panel,
// scaled and with the bias. A is float32 for float32 weights, else bfloat16.
template <class Done>
inline void multiply(const Linear& linear, const void* a, int64_t count, const Cut& cut, int64_t piece, int threads, Done done) {
    const int64_t first = piece * cut.wide, width = std::min(cut.wide, panels(linear.outputs) - first);
    const int64_t bytes = linear.kind == FLOAT32 ? 4 : 2, panel_bytes = PANEL * linear.inputs * element_bytes(linear.kind);
    alignas(64) float out[MOST_ROWS * 4 * PANEL];
    for (int64_t at = 0; at < count; at += cut.rows) {
        const int rows = static_cast<int>(std::min(cut.rows, count - at));
        const void* some = static_cast<const char*>(a) + at * linear.inputs * bytes;
        // The last tile may be lower, and then prefers another number of panels: what counts is `stride`, not `wide`.
        int64_t left = width, panel = first;
        while (left > 0) {
            const int64_t now = std::min<int64_t>(left, panels_at_once(rows));
            // Few rows: a little further along the panels. Many: the panel that this thread will probably take next,
            // while the first rows pass.
            const int64_t ahead = rows <= 4 ? NEAR : at == 0 ? threads * panel_bytes : 0;
            int stride = 1;
            switch (linear.kind) {
                case FLOAT32: stride = tile_rows<FLOAT32>(rows, some, linear.inputs, linear, panel, now, ahead, out); break;
                case BFLOAT16: stride = tile_rows<BFLOAT16>(rows, some, linear.inputs, linear, panel, now, ahead, out); break;
                case INT8: stride = tile_rows<INT8>(rows, some, linear.inputs, linear, panel, now, ahead, out); break;
            }
            for (int row = 0; row < rows; ++row)
                for (int64_t i = 0; i < now; ++i) {
                    float* values = out + (row * stride + i) * PANEL;
                    const int64_t output = (panel + i) * PANEL;
                    for (int half = 0; half < 2; ++half) {
                        const int64_t from = output + half * 16;
                        if (from >= linear.outputs) break;
                        const __mmask16 mask = tail(linear.outputs - from);
                        __m512 sum = _mm512_load_ps(values + half * 16);
                        if (linear.scale) sum = _mm512_mul_ps(sum, load(linear.scale + from, mask));
                        if (linear.bias) sum = _mm512_add_ps(sum, load(linear.bias + from, mask));
                        _mm512_store_ps(values + half * 16, sum);
                    }
                    done(at + row, output, values);
                }
            left -= now;
            panel += now;
        }
    }
}

}  // namespace stride
