// The element-wise parts of a layer, each in one pass over its rows, which are shared out among the threads of torch.
//
// Compiled and called by fused_kernels.py. Values are float32 or bfloat16 in memory and float32 in between.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bfloat16 {
    uint16_t bits;
    bfloat16() = default;
    explicit bfloat16(float value) {  // to the nearest, ties to even
        uint32_t word;
        std::memcpy(&word, &value, 4);
        bits = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
    explicit operator float() const {
        const uint32_t word = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }
};

enum Rotation { NO_ROTATION, HALVES, INTERLEAVED };
enum NormPlace { NO_NORM, BEFORE_ROTATION, AFTER_ROTATION };
enum Activation { SILU, GELU_TANH };

// e^x by a polynomial of degree 5 on [-ln 2 / 2, ln 2 / 2], which compilers turn into vector code; NaN stays NaN.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: the first has few bits
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t power = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

inline float reciprocal_rms(const float* x, long n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += x[i] * x[i];
    return 1.0f / std::sqrt(sum / n + eps);
}

inline void norm(const float* x, const float* weight, float eps, float* out, long n) {
    const float r = reciprocal_rms(x, n, eps);
    for (long i = 0; i < n; i++) out[i] = x[i] * r * weight[i];
}

// The gradient of x from g, that of the norm's result; g and out may be the same place.
inline void norm_back(const float* g, const float* x, const float* weight, float eps, float* out, long n) {
    const float r = reciprocal_rms(x, n, eps);
    float inner = 0;
#pragma omp simd reduction(+ : inner)
    for (long i = 0; i < n; i++) inner += g[i] * weight[i] * x[i];
    inner *= r * r * r / n;
    for (long i = 0; i < n; i++) out[i] = g[i] * weight[i] * r - x[i] * inner;
}

struct Group {  // _Group of fused_kernels.py
    long heads, rotation, norm_place, norm_size;
    float eps;
    const float* weight;
};

// `direction` is 1 for rotary positions, -1 to take them back.
void rotate(float* x, const Group& group, long size, const float* cos, const float* sin, long half, float direction) {
    if (group.rotation == NO_ROTATION) return;
    for (long head = 0; head < group.heads; head++, x += size) {
        if (group.rotation == HALVES)
            for (long i = 0; i < half; i++) {
                const float a = x[i], b = x[half + i], s = direction * sin[i];
                x[i] = a * cos[i] - b * s;
                x[half + i] = b * cos[i] + a * s;
            }
        else
            for (long i = 0; i < half; i++) {
                const float a = x[2 * i], b = x[2 * i + 1], s = direction * sin[i];
                x[2 * i] = a * cos[i] - b * s;
                x[2 * i + 1] = b * cos[i] + a * s;
            }
    }
}

template <class T>
void split(const T* x, const Group* groups, long count, long size, const float* cos, const float* sin, long half,
           float* const* out, long rows) {
    long width = 0;
    for (long k = 0; k < count; k++) width += groups[k].heads * size;
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        const T* from = x + row * width;
        for (long k = 0; k < count; k++) {
            const Group& group = groups[k];
            const long n = group.heads * size;
            float* states = out[k] + row * n;
            for (long i = 0; i < n; i++) states[i] = float(from[i]);
            const auto normed = [&] {
                for (long i = 0; i < n; i += group.norm_size)
                    norm(states + i, group.weight, group.eps, states + i, group.norm_size);
            };
            if (group.norm_place == BEFORE_ROTATION) normed();
            rotate(states, group, size, cos + row * half, sin + row * half, half, 1);
            if (group.norm_place == AFTER_ROTATION) normed();
            from += n;
        }
    }
}

template <class T>
void split_back(const float* const* g, const T* x, const Group* groups, long count, long size, const float* cos,
                const float* sin, long half, T* out, long rows) {
    long width = 0, widest = 0;
    for (long k = 0; k < count; k++) {
        width += groups[k].heads * size;
        widest = std::max(widest, groups[k].heads * size);
    }
#pragma omp parallel
    {
        std::vector<float> gradient(widest), states(widest);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            long at = row * width;
            for (long k = 0; k < count; k++) {
                const Group& group = groups[k];
                const long n = group.heads * size;
                const float *c = cos + row * half, *s = sin + row * half;
                float* own = gradient.data();
                std::memcpy(own, g[k] + row * n, n * sizeof(float));
                const auto norm_backward = [&](bool turned) {
                    for (long i = 0; i < n; i++) states[i] = float(x[at + i]);
                    if (turned) rotate(states.data(), group, size, c, s, half, 1);
                    for (long i = 0; i < n; i += group.norm_size)
                        norm_back(own + i, states.data() + i, group.weight, group.eps, own + i, group.norm_size);
                };
                if (group.norm_place == AFTER_ROTATION) norm_backward(true);
                rotate(own, group, size, c, s, half, -1);
                if (group.norm_place == BEFORE_ROTATION) norm_backward(false);
                for (long i = 0; i < n; i++) out[at + i] = T(own[i]);
                at += n;
            }
        }
    }
}

// Both activations are x * sigmoid(z(x)): of SiLU z is x, of GELU in its tanh form 2 sqrt(2 / pi) (x + 0.044715 x^3).
constexpr float GELU_SLOPE = 1.5957691216f, GELU_CUBE = 0.044715f;

template <Activation KIND>
inline float sigmoid_of(float x) {
    const float z = KIND == SILU ? x : GELU_SLOPE * (x + GELU_CUBE * x * x * x);
    return 1.0f / (1.0f + exponential(-z));
}

// Results are rounded in a loop of their own: compilers make no vector code of both at once.
template <class T, Activation KIND>
void gated(const T* both, T* out, long rows, long n) {
#pragma omp parallel
    {
        std::vector<float> buffer(n);
        float* __restrict to = buffer.data();
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const T *gate = both + 2 * row * n, *up = gate + n;
            for (long i = 0; i < n; i++) {
                const float x = float(gate[i]), share = sigmoid_of<KIND>(x), own = float(up[i]);
                to[i] = own * x * share;
            }
            for (long i = 0; i < n; i++) out[row * n + i] = T(buffer[i]);
        }
    }
}

template <class T, Activation KIND>
void gated_back(const T* both, const T* g, T* out, long rows, long n) {
#pragma omp parallel
    {
        std::vector<float> buffer(2 * n);
        float *__restrict dgate = buffer.data(), *__restrict dup = dgate + n;
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const T *gate = both + 2 * row * n, *up = gate + n, *from = g + row * n;
            for (long i = 0; i < n; i++) {
                const float x = float(gate[i]), share = sigmoid_of<KIND>(x), own = float(from[i]);
                const float slope = KIND == SILU ? 1.0f : GELU_SLOPE * (1 + 3 * GELU_CUBE * x * x);
                dgate[i] = own * float(up[i]) * share * (1 + x * (1 - share) * slope);
                dup[i] = own * x * share;
            }
            for (long i = 0; i < 2 * n; i++) out[2 * row * n + i] = T(buffer[i]);
        }
    }
}

// A number of 32 bits that looks random and follows from a place and a seed (lowbias32 of C. Wellons).
inline uint32_t hashed(uint32_t place, uint32_t seed) {
    uint32_t h = place * 0x9e3779b1u ^ seed;
    h = (h ^ h >> 16) * 0x7feb352du;
    h = (h ^ h >> 15) * 0x846ca68bu;
    return h ^ h >> 16;
}

template <class T>
void drop(const T* x, long stride, T* out, long rows, long n, uint32_t seed, uint32_t threshold, float scale) {
#pragma omp parallel
    {
        std::vector<float> buffer(n);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const T* from = x + row * stride;
            const uint32_t place = uint32_t(row * n);
            for (long i = 0; i < n; i++) {
                const float kept = hashed(place + uint32_t(i), seed) >= threshold ? scale : 0.0f;
                buffer[i] = kept * float(from[i]);
            }
            for (long i = 0; i < n; i++) out[row * n + i] = T(buffer[i]);
        }
    }
}

}  // namespace

extern "C" {

void norm_forward(const float* x, const float* weight, float eps, float* out, long rows, long n) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) norm(x + row * n, weight, eps, out + row * n, n);
}

void norm_backward(const float* g, const float* x, const float* weight, float eps, float* out, long rows, long n) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) norm_back(g + row * n, x + row * n, weight, eps, out + row * n, n);
}

#define FOR_TYPE(NAME, T)                                                                                             \
    void split_forward_##NAME(const T* x, const Group* groups, long count, long size, const float* cos,              \
                              const float* sin, long half, float* const* out, long rows) {                           \
        split<T>(x, groups, count, size, cos, sin, half, out, rows);                                                  \
    }                                                                                                                 \
    void split_backward_##NAME(const float* const* g, const T* x, const Group* groups, long count, long size,        \
                               const float* cos, const float* sin, long half, T* out, long rows) {                   \
        split_back<T>(g, x, groups, count, size, cos, sin, half, out, rows);                                          \
    }                                                                                                                 \
    void gated_forward_##NAME(long kind, const T* both, T* out, long rows, long n) {                                  \
        kind == SILU ? gated<T, SILU>(both, out, rows, n) : gated<T, GELU_TANH>(both, out, rows, n);                  \
    }                                                                                                                 \
    void gated_backward_##NAME(long kind, const T* both, const T* g, T* out, long rows, long n) {                     \
        kind == SILU ? gated_back<T, SILU>(both, g, out, rows, n) : gated_back<T, GELU_TANH>(both, g, out, rows, n); \
    }                                                                                                                 \
    void dropout_##NAME(const T* x, long stride, T* out, long rows, long n, uint32_t seed, uint32_t threshold,       \
                        float scale) {                                                                                \
        drop<T>(x, stride, out, rows, n, seed, threshold, scale);                                                     \
    }

FOR_TYPE(bfloat16, bfloat16)
FOR_TYPE(float32, float)
}
