// Weight matrices into panels and back.
#include "gemm.h"
#include "team.h"

using namespace stride;

extern "C" {

int64_t stride_packed_bytes(int64_t outputs, int64_t inputs, int kind) {
    return panels(outputs) * PANEL * inputs * element_bytes(static_cast<Kind>(kind));
}

// `order` [outputs]: the row of `weight` [*, inputs] (of the packed kind) that each output takes, or -1 for zeros.
int stride_pack(const void* weight, const int64_t* order, int64_t outputs, int64_t inputs, int kind, void* packed, int threads) {
    const Kind what = static_cast<Kind>(kind);
    const int64_t bytes = element_bytes(what);
    const auto one = [&](int64_t panel) {
        char* to = static_cast<char*>(packed) + panel * PANEL * inputs * bytes;
        std::memset(to, 0, PANEL * inputs * bytes);
        for (int64_t column = 0; column < PANEL && panel * PANEL + column < outputs; ++column) {
            const int64_t source = order[panel * PANEL + column];
            if (source < 0) continue;
            const char* row = static_cast<const char*>(weight) + source * inputs * bytes;
            for (int64_t k = 0; k < inputs; ++k) {
                char* at = to + packed_index(what, k, column) * bytes;
                if (what == INT8) {
                    const int value = static_cast<int8_t>(row[k]);
                    *at = static_cast<char>(value < 0 ? 0x80 | -value : value);
                } else {
                    std::memcpy(at, row + k * bytes, bytes);
                }
            }
        }
    };
    return guarded([&] {
        Team team(1);
        Pool::shared().run(threads, [&](int) {
            int phase = 0;
            team.share(phase, panels(outputs), 1, one);
        });
    });
}

// Rows of packed weights as float32, as an embedding reads them: out [count, inputs].
void stride_unpack_rows(const Linear* linear, const int64_t* rows, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) {
        const char* panel = static_cast<const char*>(panel_of(*linear, rows[i] / PANEL));
        const float scale = linear->scale ? linear->scale[rows[i]] : 1.0f;
        for (int64_t k = 0; k < linear->inputs; ++k) {
            const int64_t at = packed_index(linear->kind, k, rows[i] % PANEL);
            float value;
            if (linear->kind == FLOAT32) {
                value = reinterpret_cast<const float*>(panel)[at];
            } else if (linear->kind == BFLOAT16) {
                const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const bf16*>(panel)[at]) << 16;
                std::memcpy(&value, &bits, 4);
            } else {
                const uint8_t code = reinterpret_cast<const uint8_t*>(panel)[at];
                value = static_cast<float>(code & 0x7f) * (code & 0x80 ? -1.0f : 1.0f);
            }
            out[i * linear->inputs + k] = value * scale;
        }
    }
}

}  // extern "C"
