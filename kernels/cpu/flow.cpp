// The blocks of a flow transformer and its head in one call: patches and captions as one packed sequence, no padding.
#include <vector>

#include "gemm.h"
#include "normalise.h"
#include "softmax.h"
#include "team.h"

namespace stride {

struct FlowBlock {
    Linear qkv, out, up, down;
    const float* modulation;  // [6, width], added to the row's own
    const float* gains;       // [heads], of the normalised queries
    const float* kernel;      // [9, width], the depthwise 3x3 filters
    const float* bias;        // [width]
};

struct Flow {
    const FlowBlock* blocks;
    Linear decode, head;
    const float* cosines;  // [patches, head_dim]
    const float* sines;    // [patches, head_dim], those of the first half negative
    int64_t block_count, width, heads, patches, side;
    float epsilon;
    int32_t reserved;
};

// Tokens are the patches of all rows, then the words of all rows.
struct FlowBatch {
    float* x;                 // [tokens, width], overwritten
    const float* modulation;  // [rows, 6, width]
    const float* last;        // [rows, 2, width]: shift and scale before the head
    const int64_t* words;     // [rows + 1], where a row's words begin, counted from the first word
    float* out;               // [rows * patches, outputs of the head]
    int64_t rows;
};

// A: what the products take.
template <class A>
class FlowForward {
public:
    FlowForward(const Flow& f, const FlowBatch& batch, int threads)
        : f(f), batch(batch), threads(threads), pictures(batch.rows * f.patches), tokens(pictures + batch.words[batch.rows]),
          size(f.width / f.heads), team(7 * f.block_count + 3) {
        fit(a, tokens * f.width);
        fit(b, tokens * f.blocks[0].up.outputs);
        fit(qkv, tokens * 3 * f.width);
        owner.resize(tokens);
        longest = 0;
        for (int64_t row = 0; row < batch.rows; ++row) {
            for (int64_t i = 0; i < f.patches; ++i) owner[row * f.patches + i] = row;
            for (int64_t i = batch.words[row]; i < batch.words[row + 1]; ++i) owner[pictures + i] = row;
            longest = std::max(longest, f.patches + batch.words[row + 1] - batch.words[row]);
        }
        longest = (longest + 31) / 32 * 32;
        scratch_size = std::max((2 * size + 4) * longest, f.patches * f.width);
        fit(scratch, threads * scratch_size);
    }

    void run() {
        Pool::shared().run(threads, [this](int thread) {
            int phase = 0;
            float* mine = scratch.data() + thread * scratch_size;
            for (int64_t i = 0; i < f.block_count; ++i) block(f.blocks[i], i + 1 == f.block_count, phase, mine);
            read(phase);
        });
    }

private:
    enum Part { SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 };

    const Flow& f;
    const FlowBatch& batch;
    const int threads;
    const int64_t pictures, tokens, size;
    int64_t longest, scratch_size;
    std::vector<int64_t> owner;
    static inline std::vector<A> a, b;
    static inline std::vector<float> qkv, scratch;
    Team team;

    template <class T>
    static void fit(std::vector<T>& v, int64_t size) {
        if (static_cast<int64_t>(v.size()) < size) v.resize(size);
    }

    float* x(int64_t token) const { return batch.x + token * f.width; }

    // Sixteen numbers of one of a row's modulations.
    __m512 modulation(const FlowBlock& l, int64_t row, Part part, int64_t i) const {
        return _mm512_add_ps(load(batch.modulation + (row * 6 + part) * f.width + i), load(l.modulation + part * f.width + i));
    }

    template <class Done>
    void product(const Linear& linear, const A* from, int64_t count, int& phase, Done done) {
        const Cut cut(count);
        team.share(phase, cut.pieces(linear), 1, [&](int64_t piece) { multiply(linear, from, count, cut, piece, threads, done); });
    }

    template <class Out>
    void modulated(const FlowBlock& l, int64_t token, Part shift, Part scale, Out* out) {
        const float* from = x(token);
        const __m512 factor = inverse_rms(from, f.width, f.epsilon, _mm512_setzero_ps()), one = _mm512_set1_ps(1.0f);
        for (int64_t i = 0; i < f.width; i += 16) {
            const __m512 weight = _mm512_mul_ps(factor, _mm512_add_ps(one, modulation(l, owner[token], scale, i)));
            store(out + i, _mm512_fmadd_ps(load(from + i), weight, modulation(l, owner[token], shift, i)), 0xffff);
        }
    }

    void block(const FlowBlock& l, bool last, int& phase, float* mine) {
        const int64_t kept = last ? pictures : tokens;
        team.share(phase, tokens, 8, [&](int64_t i) { modulated(l, i, SHIFT1, SCALE1, a.data() + i * f.width); });
        product(l.qkv, a.data(), tokens, phase, [&](int64_t row, int64_t output, const float* values) {
            float* to = qkv.data() + row * 3 * f.width + output;
            for (int j = 0; j < PANEL; j += 16) _mm512_storeu_ps(to + j, _mm512_load_ps(values + j));
        });
        team.share(phase, batch.rows * f.heads, 1, [&](int64_t i) { attend(l, i / f.heads, i % f.heads, last, mine); });
        gated(l, l.out, a.data(), kept, GATE1, phase);
        team.share(phase, batch.rows, 1, [&](int64_t row) { mix(l, row, last, mine); });
        product(l.up, a.data(), kept, phase, [&](int64_t row, int64_t output, const float* values) {
            A* to = b.data() + row * l.up.outputs + output;
            for (int j = 0; j < PANEL; j += 16) store(to + j, activate(_mm512_load_ps(values + j), RELU_SQUARED), 0xffff);
        });
        gated(l, l.down, b.data(), kept, GATE2, phase);
    }

    void gated(const FlowBlock& l, const Linear& linear, const A* from, int64_t count, Part gate, int& phase) {
        product(linear, from, count, phase, [&](int64_t token, int64_t output, const float* values) {
            float* to = x(token) + output;
            for (int j = 0; j < PANEL; j += 16) {
                const __m512 factor = modulation(l, owner[token], gate, output + j);
                _mm512_storeu_ps(to + j, _mm512_fmadd_ps(factor, _mm512_load_ps(values + j), load(to + j)));
            }
        });
    }

    int64_t token_of(int64_t row, int64_t i) const {
        return i < f.patches ? row * f.patches + i : pictures + batch.words[row] + i - f.patches;
    }

    // A head's vector, normalised, turned if it is a patch's, and times `gain`.
    void turned(const float* from, int64_t i, float gain, float* out) const {
        const __m512 factor = _mm512_mul_ps(inverse_rms(from, size, f.epsilon, _mm512_setzero_ps()), _mm512_set1_ps(gain));
        for (int64_t j = 0; j < size; j += 16) {
            __m512 value = load(from + j);
            if (i < f.patches) {
                const int64_t other = (j + size / 2) % size;
                value = _mm512_mul_ps(value, load(f.cosines + i * size + j));
                value = _mm512_fmadd_ps(load(from + other), load(f.sines + i * size + j), value);
            }
            _mm512_storeu_ps(out + j, _mm512_mul_ps(value, factor));
        }
    }

    // One head of one row: every query sees all patches and words of its row.
    void attend(const FlowBlock& l, int64_t row, int64_t head, bool last, float* mine) {
        const int64_t count = f.patches + batch.words[row + 1] - batch.words[row], queries = last ? f.patches : count;
        const int64_t stride = (count + 31) / 32 * 32;
        float *keys = mine, *values = keys + size * stride, *scores = values + size * stride;
        float one[512];
        for (int64_t i = 0; i < stride; ++i) {
            if (i >= count) {
                for (int64_t j = 0; j < size; ++j) keys[j * stride + i] = 0.0f;
                continue;
            }
            const float* from = qkv.data() + token_of(row, i) * 3 * f.width + f.width + head * size;
            turned(from, i, 1.0f, one);
            for (int64_t j = 0; j < size; ++j) keys[j * stride + i] = one[j];
            for (int64_t j = 0; j < size; j += 16) _mm512_storeu_ps(values + i * size + j, load(from + f.width + j));
        }
        const float gain = l.gains[head] / std::sqrt(static_cast<float>(size));
        float four[4 * 512];
        for (int64_t q = 0; q < queries; q += 4) {
            for (int64_t i = 0; i < 4; ++i) {
                const int64_t at = std::min(q + i, queries - 1);
                turned(qkv.data() + token_of(row, at) * 3 * f.width + head * size, at, gain, four + i * size);
            }
            score(four, keys, stride, scores);
            float factors[4];
            for (int64_t i = 0; i < 4; ++i) factors[i] = soften(scores + i * stride, count, 0.0f);
            weigh(values, scores, stride, count, factors, four);
            for (int64_t i = 0; i < 4 && q + i < queries; ++i) {
                A* to = a.data() + token_of(row, q + i) * f.width + head * size;
                for (int64_t j = 0; j < size; j += 16) store(to + j, load(four + i * size + j), 0xffff);
            }
        }
    }

    // Four queries times all keys [size, stride].
    void score(const float* queries, const float* keys, int64_t stride, float* scores) const {
        for (int64_t k = 0; k < stride; k += 32) {
            __m512 sum[4][2] = {};
            for (int64_t j = 0; j < size; ++j) {
                const __m512 low = load(keys + j * stride + k), high = load(keys + j * stride + k + 16);
                for (int i = 0; i < 4; ++i) {
                    const __m512 q = _mm512_set1_ps(queries[i * size + j]);
                    sum[i][0] = _mm512_fmadd_ps(q, low, sum[i][0]);
                    sum[i][1] = _mm512_fmadd_ps(q, high, sum[i][1]);
                }
            }
            for (int i = 0; i < 4; ++i) {
                _mm512_storeu_ps(scores + i * stride + k, sum[i][0]);
                _mm512_storeu_ps(scores + i * stride + k + 16, sum[i][1]);
            }
        }
    }

    // Four rows of weights times the values [count, size].
    void weigh(const float* values, const float* weights, int64_t stride, int64_t count, const float* factors, float* out) const {
        for (int64_t j = 0; j < size; j += 16) {
            __m512 sum[4] = {};
            for (int64_t k = 0; k < count; ++k) {
                const __m512 value = load(values + k * size + j);
                for (int i = 0; i < 4; ++i) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(weights[i * stride + k]), value, sum[i]);
            }
            for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + i * size + j, _mm512_mul_ps(sum[i], _mm512_set1_ps(factors[i])));
        }
    }

    // What the MLP of a row sees: modulated tokens, the patches with their 3x3 neighbourhood's filtered sum added.
    void mix(const FlowBlock& l, int64_t row, bool last, float* plane) {
        for (int64_t i = 0; i < f.patches; ++i) modulated(l, row * f.patches + i, SHIFT2, SCALE2, plane + i * f.width);
        for (int64_t y = 0; y < f.side; ++y)
            for (int64_t z = 0; z < f.side; ++z) {
                const int64_t i = y * f.side + z;
                A* to = a.data() + (row * f.patches + i) * f.width;
                for (int64_t j = 0; j < f.width; j += 16) {
                    __m512 sum = _mm512_add_ps(load(plane + i * f.width + j), load(l.bias + j));
                    for (int64_t dy = -1; dy <= 1; ++dy)
                        for (int64_t dz = -1; dz <= 1; ++dz) {
                            if (y + dy < 0 || y + dy >= f.side || z + dz < 0 || z + dz >= f.side) continue;
                            const int64_t other = i + dy * f.side + dz, tap = (dy + 1) * 3 + dz + 1;
                            sum = _mm512_fmadd_ps(load(plane + other * f.width + j), load(l.kernel + tap * f.width + j), sum);
                        }
                    store(to + j, sum, 0xffff);
                }
            }
        if (last) return;
        for (int64_t i = batch.words[row]; i < batch.words[row + 1]; ++i)
            modulated(l, pictures + i, SHIFT2, SCALE2, a.data() + (pictures + i) * f.width);
    }

    void read(int& phase) {
        team.share(phase, pictures, 8, [&](int64_t i) {
            const float* shift = batch.last + owner[i] * 2 * f.width;
            const __m512 factor = inverse_rms(x(i), f.width, f.epsilon, _mm512_setzero_ps()), one = _mm512_set1_ps(1.0f);
            for (int64_t j = 0; j < f.width; j += 16) {
                const __m512 weight = _mm512_mul_ps(factor, _mm512_add_ps(one, load(shift + f.width + j)));
                store(a.data() + i * f.width + j, _mm512_fmadd_ps(load(x(i) + j), weight, load(shift + j)), 0xffff);
            }
        });
        product(f.decode, a.data(), pictures, phase, [&](int64_t row, int64_t output, const float* values) {
            A* to = b.data() + row * f.decode.outputs + output;
            for (int j = 0; j < PANEL; j += 16) store(to + j, activate(_mm512_load_ps(values + j), RELU_SQUARED), 0xffff);
        });
        product(f.head, b.data(), pictures, phase, [&](int64_t row, int64_t output, const float* values) {
            float* to = batch.out + row * f.head.outputs + output;
            for (int64_t j = 0; j < PANEL && output + j < f.head.outputs; j += 16)
                store(to + j, _mm512_load_ps(values + j), tail(f.head.outputs - output - j));
        });
    }
};

}  // namespace stride

using namespace stride;

// One forward. Width is a multiple of 32, a head's size of 32 and at most 512. Called by one thread at a time. 1: out of
// memory.
extern "C" int stride_flow_forward(const Flow* flow, const FlowBatch* batch, int threads) {
    return guarded([&] {
        if (flow->head.kind == FLOAT32) FlowForward<float>(*flow, *batch, threads).run();
        else FlowForward<bf16>(*flow, *batch, threads).run();
    });
}
