// All layers of a decoder in one call: a few barriers a layer are what is left of the overhead.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "normalise.h"
#include "team.h"

namespace stride {

struct Norm {
    const float* weight;  // null: there is no such norm
    const float* bias;    // null: none
};

struct Layer {
    Norm before_attention, after_attention, before_mlp, after_mlp, query, key;
    Linear qkv, out, up, down;
    const float* frequencies;  // rotary_size / 2 of them; null: positions are not rotated
    float rotary_factor;       // of the cosines and sines
    int32_t window;            // keys that a query sees, itself included; 0: all
    float softcap;             // of the attention scores; 0: none
    int32_t norm_whole;        // query and key norms over all heads together
};

struct Decoder {
    const Layer* layers;
    Norm last;
    Linear head;
    int64_t layer_count, hidden, heads, kv_heads, head_dim, rotary_size, intermediate;
    float epsilon, attention_scale, logit_softcap;
    int32_t centred;     // norms, but for those of queries and keys, subtract the mean
    int32_t gated;       // up holds gate and up, 16 outputs of each in turn
    int32_t activation;  // enum Activation
    int32_t wide_store;  // the cache is float32, not bfloat16
};

struct Batch {
    float* x;                  // [tokens, hidden], the embeddings; overwritten by what the last layer leaves
    void* store;               // [layers, slots, 2, kv_heads, head_dim]
    const int64_t* positions;  // [tokens]
    const int64_t* slots;      // [tokens], where keys and values are written
    const int32_t* rows;       // [tokens], which block table is a token's
    const int32_t* row_start;  // [tokens], place of the first token of its row where the row is not causal, else -1
    const int64_t* last;       // [tokens], the last place that a token sees of those that it sees without a gap
    const uint64_t* visible;   // [tokens], of a tree: bit i is place row_start + i, which it sees too; else 0. Null: no trees
    const int32_t* tables;     // [rows, table_size]
    const int64_t* wanted;     // [wanted_count], tokens whose logits are asked for
    float* logits;             // [wanted_count, outputs of the head]
    int64_t tokens, table_size, block_size, slot_count, wanted_count, longest;
    int64_t states;            // x becomes the final norm of what the last layer leaves
};

constexpr int64_t MOST_ROTATIONS = 4;
constexpr int64_t HEAD_NUMBERS = 2048;  // of heads that attend at once

inline int64_t heads_at_once(const Decoder& d) {
    return std::min(d.heads / d.kv_heads, HEAD_NUMBERS / d.head_dim);
}

// Buffers of one forward. They grow to the largest batch and stay.
struct Workspace {
    std::vector<float> branch, qkv, scores, angles;
    std::vector<int32_t> places;
    std::vector<char> a, b;
    void fit(const Decoder& d, const Batch& batch, int threads, bool wide) {
        const int64_t element = wide ? 4 : 2, up = d.intermediate;
        const int64_t qkv_size = (d.heads + 2 * d.kv_heads) * d.head_dim;
        grow(branch, batch.tokens * d.hidden);
        grow(angles, MOST_ROTATIONS * batch.tokens * d.rotary_size);
        grow(qkv, batch.tokens * qkv_size);
        grow(scores, threads * heads_at_once(d) * (batch.longest + 32));
        grow(places, threads * (batch.longest + 32));
        grow(a, (batch.tokens + batch.wanted_count) * std::max(d.hidden, d.heads * d.head_dim) * element);
        grow(b, batch.tokens * (up + 16) * element);
    }
    template <class T>
    static void grow(std::vector<T>& v, int64_t size) {
        if (static_cast<int64_t>(v.size()) < size) v.resize(size);
    }
};

template <class A>
void normalise(const float* x, int64_t size, const Norm& norm, float epsilon, bool centred, A* out) {
    normalise(x, size, norm.weight, norm.bias, epsilon, centred, out);
}

// `out` may be `x`.
template <class A>
void maybe_normalise(const float* x, int64_t size, const Norm& norm, const Decoder& d, A* out) {
    if (norm.weight) return normalise(x, size, norm, d.epsilon, d.centred, out);
    for (int64_t i = 0; i < size; i += 16) store(out + i, load(x + i, tail(size - i)), tail(size - i));
}

// Halves i and i + rotary_size / 2 of a head turned by the position's angles, then everything times `scale`.
inline void rotate(float* head, const Layer& layer, const Decoder& d, const float* cosines, const float* sines, float scale) {
    const int64_t half = d.rotary_size / 2;
    if (layer.frequencies)
        for (int64_t i = 0; i < half; ++i) {
            const float low = head[i], high = head[i + half];
            head[i] = low * cosines[i] - high * sines[i];
            head[i + half] = high * cosines[i] + low * sines[i];
        }
    if (scale != 1.0f)
        for (int64_t i = 0; i < d.head_dim; ++i) head[i] *= scale;
}

// A: what the products take, T: what the cache holds.
template <class A, class T>
class Forward {
public:
    Forward(const Decoder& d, const Batch& batch, Workspace& space, int threads)
        : d(d), batch(batch), space(space), threads(threads), qkv_size((d.heads + 2 * d.kv_heads) * d.head_dim),
          a(reinterpret_cast<A*>(space.a.data())), b(reinterpret_cast<A*>(space.b.data())), cut(batch.tokens),
          team(PHASES * d.layer_count + 4) {
        for (int64_t i = 0; i < d.layer_count; ++i) {
            const Layer& l = d.layers[i];
            if (l.frequencies == nullptr || rotation_of(l) < static_cast<int64_t>(rotations.size())) continue;
            rotations.push_back(l.frequencies);
            factors.push_back(l.rotary_factor);
        }
    }

    void run() {
        Pool::shared().run(threads, [this](int thread) {
            Place at{thread, 0};
            team.share(at.phase, rotations.size() * batch.tokens, 4, [&](int64_t i) { turn(i / batch.tokens, i % batch.tokens); });
            for (int64_t i = 0; i < d.layer_count; ++i) layer(i, at);
            read(at);
            if (batch.states) team.share(at.phase, batch.tokens, 4, [&](int64_t i) { maybe_normalise(x(i), d.hidden, d.last, d, x(i)); });
        });
    }

private:
    static constexpr int64_t PHASES = 10;
    // A thread, and how many phases it has been through.
    struct Place {
        int thread, phase;
    };

    const Decoder& d;
    const Batch& batch;
    Workspace& space;
    const int threads;
    const int64_t qkv_size;
    A* const a;
    A* const b;
    const Cut cut;
    std::vector<const float*> rotations;
    std::vector<float> factors;
    Team team;

    float* x(int64_t token) const { return batch.x + token * d.hidden; }
    float* branch(int64_t token) const { return space.branch.data() + token * d.hidden; }
    float* qkv(int64_t token) const { return space.qkv.data() + token * qkv_size; }

    template <class Done>
    void product(const Linear& linear, const A* from, Place& at, Done done) {
        team.share(at.phase, cut.pieces(linear), 1, [&](int64_t piece) { multiply(linear, from, batch.tokens, cut, piece, threads, done); });
    }

    void layer(int64_t index, Place& at) {
        const Layer& l = d.layers[index];
        T* store = static_cast<T*>(batch.store) + index * batch.slot_count * 2 * d.kv_heads * d.head_dim;
        team.share(at.phase, batch.tokens, 4, [&](int64_t i) {
            maybe_normalise(x(i), d.hidden, l.before_attention, d, a + i * d.hidden);
        });
        product(l.qkv, a, at, [&](int64_t row, int64_t output, const float* values) {
            put(qkv(row), output, qkv_size, values);
        });
        team.share(at.phase, batch.tokens, 2, [&](int64_t i) { place(l, i, store); });
        // All heads of a token by one thread, since they lie side by side in the cache, unless tokens are too few.
        const int64_t together = batch.tokens >= 2 * threads ? d.kv_heads : 1, parts = d.kv_heads / together;
        team.share(at.phase, batch.tokens * parts, 1, [&](int64_t i) {
            attend_one(l, i / parts, i % parts * together, together, store, at.thread);
        });
        branch_out(l.out, a, l.after_attention, at);
        team.share(at.phase, batch.tokens, 4, [&](int64_t i) {
            maybe_normalise(x(i), d.hidden, l.before_mlp, d, a + i * d.hidden);
        });
        product(l.up, a, at, [&](int64_t row, int64_t output, const float* values) { activated(row, output, values); });
        branch_out(l.down, b, l.after_mlp, at);
    }

    // x += the product, or x += norm(the product).
    void branch_out(const Linear& linear, const A* from, const Norm& norm, Place& at) {
        const bool direct = norm.weight == nullptr;
        product(linear, from, at, [&](int64_t row, int64_t output, const float* values) {
            if (direct)
                add(x(row), output, d.hidden, values);
            else
                put(branch(row), output, d.hidden, values);
        });
        if (direct) return;
        team.share(at.phase, batch.tokens, 4, [&](int64_t i) {
            normalise(branch(i), d.hidden, norm, d.epsilon, d.centred, branch(i));
            for (int64_t j = 0; j < d.hidden; j += 16) {
                const __mmask16 mask = tail(d.hidden - j);
                stride::store(x(i) + j, _mm512_add_ps(load(x(i) + j, mask), load(branch(i) + j, mask)), mask);
            }
        });
    }

    static void put(float* row, int64_t at, int64_t size, const float* values) {
        for (int64_t j = 0; j < PANEL && at + j < size; j += 16)
            stride::store(row + at + j, _mm512_load_ps(values + j), tail(size - at - j));
    }

    static void add(float* row, int64_t at, int64_t size, const float* values) {
        for (int64_t j = 0; j < PANEL && at + j < size; j += 16) {
            const __mmask16 mask = tail(size - at - j);
            stride::store(row + at + j, _mm512_add_ps(load(row + at + j, mask), _mm512_load_ps(values + j)), mask);
        }
    }

    void activated(int64_t row, int64_t output, const float* values) {
        const auto kind = static_cast<Activation>(d.activation);
        A* out = b + row * d.intermediate;
        const __m512 first = activate(_mm512_load_ps(values), kind);
        if (d.gated) {
            const int64_t at = output / 2;
            stride::store(out + at, _mm512_mul_ps(first, _mm512_load_ps(values + 16)), tail(d.intermediate - at));
            return;
        }
        stride::store(out + output, first, tail(d.intermediate - output));
        if (output + 16 < d.intermediate)
            stride::store(out + output + 16, activate(_mm512_load_ps(values + 16), kind), tail(d.intermediate - output - 16));
    }

    float* turned(int64_t rotation, int64_t token) const {
        return space.angles.data() + (rotation * batch.tokens + token) * d.rotary_size;
    }

    int64_t rotation_of(const Layer& l) const {
        return std::find(rotations.begin(), rotations.end(), l.frequencies) - rotations.begin();
    }

    // Cosines and sines of a token's position, once for all layers with the same frequencies.
    void turn(int64_t rotation, int64_t token) {
        const float* frequencies = rotations[rotation];
        const float factor = factors[rotation];
        float* out = turned(rotation, token);
        for (int64_t i = 0; i < d.rotary_size / 2; ++i) {
            const float angle = static_cast<float>(batch.positions[token]) * frequencies[i];
            out[i] = std::cos(angle) * factor;
            out[i + d.rotary_size / 2] = std::sin(angle) * factor;
        }
    }

    // Norms and rotates queries and keys, and writes keys and values to the cache.
    void place(const Layer& l, int64_t token, T* store) {
        float* query = qkv(token);
        float* key = query + d.heads * d.head_dim;
        const float* value = key + d.kv_heads * d.head_dim;
        if (l.norm_whole) {
            normalise(query, d.heads * d.head_dim, l.query, d.epsilon, false, query);
            normalise(key, d.kv_heads * d.head_dim, l.key, d.epsilon, false, key);
        } else if (l.query.weight) {
            for (int64_t h = 0; h < d.heads; ++h)
                normalise(query + h * d.head_dim, d.head_dim, l.query, d.epsilon, false, query + h * d.head_dim);
            for (int64_t h = 0; h < d.kv_heads; ++h)
                normalise(key + h * d.head_dim, d.head_dim, l.key, d.epsilon, false, key + h * d.head_dim);
        }
        const float* cosines = l.frequencies ? turned(rotation_of(l), token) : nullptr;
        const float* sines = cosines ? cosines + d.rotary_size / 2 : nullptr;
        for (int64_t h = 0; h < d.heads; ++h) rotate(query + h * d.head_dim, l, d, cosines, sines, d.attention_scale);
        for (int64_t h = 0; h < d.kv_heads; ++h) rotate(key + h * d.head_dim, l, d, cosines, sines, 1.0f);
        const int64_t size = d.kv_heads * d.head_dim;
        T* slot = store + batch.slots[token] * 2 * size;
        for (int64_t j = 0; j < size; j += 16) {
            const __mmask16 mask = tail(size - j);
            stride::store(slot + j, load(key + j, mask), mask);
            stride::store(slot + size + j, load(value + j, mask), mask);
        }
    }

    void attend_one(const Layer& l, int64_t token, int64_t head, int64_t count, const T* store, int thread) {
        const int64_t group = d.heads / d.kv_heads, position = batch.positions[token], room = batch.longest + 32;
        const int64_t start = batch.row_start[token];
        const uint64_t visible = batch.visible ? batch.visible[token] : 0;
        const int32_t* table = batch.tables + batch.rows[token] * batch.table_size;
        int64_t first = l.window > 0 ? std::max<int64_t>(0, position - l.window + 1) : 0;
        if (!visible && start >= 0) first = std::min(first, start);
        float* scores = space.scores.data() + thread * heads_at_once(d) * room;
        int32_t* places = space.places.data() + thread * room;
        int32_t* end = find_places(table, batch.block_size, first, batch.last[token], places);
        // What a token of a tree sees of it stands at the positions start, start + 1, ... in the order of places.
        if (visible) end = find_places(table, batch.block_size, start, visible, first - start, end);
        for (int64_t behind = count; behind > 0; ++head, --behind) {
            const Context<T> context{
                store + head * d.head_dim, places, end - places, d.kv_heads * d.head_dim, d.head_dim};
            attend_group(l, context, token, head * group, behind == count ? count : 0, scores);
        }
    }

    void attend_group(const Layer& l, const Context<T>& context, int64_t token, int64_t head, int64_t behind, float* scores) {
        const int64_t group = d.heads / d.kv_heads, most = heads_at_once(d);
        float out[HEAD_NUMBERS];
        for (int64_t g = 0; g < group; g += most) {
            const int64_t some = std::min(most, group - g), at = (head + g) * d.head_dim;
            attend_any(context, qkv(token) + at, some, l.softcap, g == 0 ? behind : 0, scores, out);
            A* to = a + token * d.heads * d.head_dim + at;
            for (int64_t j = 0; j < some * d.head_dim; j += 16) {
                const __mmask16 mask = tail(some * d.head_dim - j);
                stride::store(to + j, load(out + j, mask), mask);
            }
        }
    }

    // Logits of the wanted tokens.
    void read(Place& at) {
        const Cut wanted(batch.wanted_count);
        team.share(at.phase, batch.wanted_count, 4, [&](int64_t i) {
            maybe_normalise(x(batch.wanted[i]), d.hidden, d.last, d, a + i * d.hidden);
        });
        const __m512 cap = _mm512_set1_ps(d.logit_softcap);
        const int64_t outputs = d.head.outputs;
        team.share(at.phase, batch.wanted_count ? wanted.pieces(d.head) : 0, 4, [&](int64_t piece) {
            multiply(d.head, a, batch.wanted_count, wanted, piece, threads, [&](int64_t row, int64_t output, float* values) {
                if (d.logit_softcap > 0.0f)
                    for (int j = 0; j < PANEL; j += 16)
                        _mm512_store_ps(values + j, _mm512_mul_ps(cap, tanh(_mm512_div_ps(_mm512_load_ps(values + j), cap))));
                put(batch.logits + row * outputs, output, outputs, values);
            });
        });
    }
};

}  // namespace stride

using namespace stride;

extern "C" {

// One forward: keys and values written, logits of the wanted tokens. Called by one thread at a time. 1: out of memory.
int stride_decoder_forward(const Decoder* decoder, const Batch* batch, int threads) {
    return guarded([&] {
        static Workspace space;
        const bool wide = decoder->layers[0].qkv.kind == FLOAT32;
        space.fit(*decoder, *batch, threads, wide);
        if (wide && decoder->wide_store) Forward<float, float>(*decoder, *batch, space, threads).run();
        else if (wide) Forward<float, bf16>(*decoder, *batch, space, threads).run();
        else if (decoder->wide_store) Forward<bf16, float>(*decoder, *batch, space, threads).run();
        else Forward<bf16, bf16>(*decoder, *batch, space, threads).run();
    });
}

}  // extern "C"
