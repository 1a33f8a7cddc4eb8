// Paged attention for sequences with one new token each: no gather, one pass over keys and values.
//
// The query heads of a group share each load of a key or value. Scores of up to 16 tokens are one vector; the
// softmax is online (Milakov and Gimelshein 2018). Vectors are the compiler's own, so any target can build this.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 16;
constexpr int kMaxGroup = 16;
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

template <typename To, typename From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// bfloat16 is the upper half of a float.
inline Vector load(const uint16_t* from) {
  Halves h;
  std::memcpy(&h, from, sizeof(h));
  return bits_of<Vector>(__builtin_convertvector(h, Bits) << 16);
}

inline void store(float* to, const Vector& v) { std::memcpy(to, &v, sizeof(v)); }

inline void store(uint16_t* to, const Vector& v) {
  Bits b = bits_of<Bits>(v);
  b += 0x7fffu + ((b >> 16) & 1u);  // round to nearest, ties to even
  Halves h = __builtin_convertvector(b >> 16, Halves);
  std::memcpy(to, &h, sizeof(h));
}

inline float sum(const Vector& v) {
  Eight halves[2];
  std::memcpy(halves, &v, sizeof(v));
  const Eight eight = halves[0] + halves[1];
  Four quarters[2];
  std::memcpy(quarters, &eight, sizeof(eight));
  const Four four = quarters[0] + quarters[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// exp(x) for x <= 0, to about 2 units in the last place: 2^n * p(r) with |r| <= 1/2, p a Taylor polynomial of 2^r.
inline Vector exponential(Vector x) {
  const Vector lowest = Vector{} - 87.0f;
  x = x < lowest ? lowest : x;
  const Vector t = x * 1.44269504088896341f;
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector n = (t + magic) - magic;
  const Vector r = t - n;
  Vector p = Vector{} + 1.5403530e-4f;
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  const Integers exponent = __builtin_convertvector(n, Integers) << 23;
  return bits_of<Vector>(bits_of<Integers>(p) + exponent);
}

// Scores of up to 16 tokens against HEADS query heads: [HEADS] vectors, a lane per token.
template <int HEADS, int WIDTH, typename T>
inline void score(const Vector* query, const T* keys, int64_t count, Vector* scores) {
  Vector q[HEADS][WIDTH];
  for (int h = 0; h < HEADS; ++h)
    for (int d = 0; d < WIDTH; ++d) q[h][d] = query[h * WIDTH + d];
  float out[HEADS][kLanes];
  for (int64_t t = 0; t < count; ++t) {
    Vector k = load(keys + t * WIDTH * kLanes);
    Vector dot[HEADS];
    for (int h = 0; h < HEADS; ++h) dot[h] = q[h][0] * k;
    for (int d = 1; d < WIDTH; ++d) {
      k = load(keys + (t * WIDTH + d) * kLanes);
      for (int h = 0; h < HEADS; ++h) dot[h] += q[h][d] * k;
    }
    for (int h = 0; h < HEADS; ++h) out[h][t] = sum(dot[h]);
  }
  for (int h = 0; h < HEADS; ++h) {
    for (int64_t t = count; t < kLanes; ++t) out[h][t] = -INFINITY;
    scores[h] = load(out[h]);
  }
}

// The online softmax: scores become weights, and what was accumulated so far shrinks to the new maximum.
template <int WIDTH>
inline void weigh(Vector& scores, float& maximum, float& total, Vector* accumulated) {
  float highest = maximum;
  for (int t = 0; t < kLanes; ++t) highest = scores[t] > highest ? scores[t] : highest;
  if (highest != maximum) {
    const float shrink = std::exp(maximum - highest);
    total *= shrink;
    for (int d = 0; d < WIDTH; ++d) accumulated[d] *= shrink;
    maximum = highest;
  }
  const Vector weights = exponential(scores - highest);
  scores = scores == Vector{} - INFINITY ? Vector{} : weights;
  total += sum(scores);
}

template <int HEADS, int WIDTH, typename T>
inline void accumulate(const Vector* weights, const T* values, int64_t count, Vector* accumulated) {
  Vector sums[HEADS][WIDTH];
  float w[HEADS][kLanes];
  for (int h = 0; h < HEADS; ++h) {
    store(w[h], weights[h]);
    for (int d = 0; d < WIDTH; ++d) sums[h][d] = accumulated[h * WIDTH + d];
  }
  for (int64_t t = 0; t < count; ++t)
    for (int d = 0; d < WIDTH; ++d) {
      const Vector v = load(values + (t * WIDTH + d) * kLanes);
      for (int h = 0; h < HEADS; ++h) sums[h][d] += v * w[h][t];
    }
  for (int h = 0; h < HEADS; ++h)
    for (int d = 0; d < WIDTH; ++d) accumulated[h * WIDTH + d] = sums[h][d];
}

// Query heads are taken as many at a time as leave the registers room; the tile of keys stays in the first cache.
template <int HEADS, int WIDTH, typename T>
inline int64_t take(int64_t h, int64_t group, const Vector* q, const T* keys, const T* values, int64_t count,
                    float* maxima, float* totals, Vector* accumulated) {
  for (; h + HEADS <= group; h += HEADS) {
    Vector scores[HEADS];
    score<HEADS, WIDTH>(q + h * WIDTH, keys, count, scores);
    for (int i = 0; i < HEADS; ++i)
      weigh<WIDTH>(scores[i], maxima[h + i], totals[h + i], accumulated + (h + i) * WIDTH);
    accumulate<HEADS, WIDTH>(scores, values, count, accumulated + h * WIDTH);
  }
  return h;
}

// One sequence, one key/value head, the `group` query heads that share it.
template <int WIDTH, typename T>
void attend(const T* query, const T* keys, const T* values, const int32_t* blocks, T* output, int64_t first,
            int64_t length, int64_t group, int64_t block_size, float scale) {
  constexpr int64_t dim = WIDTH * kLanes;
  Vector q[kMaxGroup * WIDTH], accumulated[kMaxGroup * WIDTH];
  float maxima[kMaxGroup], totals[kMaxGroup];
  for (int64_t g = 0; g < group; ++g) {
    maxima[g] = -INFINITY;
    totals[g] = 0.0f;
  }
  for (int64_t d = 0; d < group * WIDTH; ++d) {
    q[d] = load(query + d * kLanes) * scale;
    accumulated[d] = Vector{};
  }
  for (int64_t position = first, count; position < length; position += count) {
    const int64_t offset = position % block_size;
    count = std::min({block_size - offset, int64_t{kLanes}, length - position});
    const int64_t start = (blocks[position / block_size] * block_size + offset) * dim;
    int64_t h = take<3, WIDTH>(0, group, q, keys + start, values + start, count, maxima, totals, accumulated);
    take<1, WIDTH>(h, group, q, keys + start, values + start, count, maxima, totals, accumulated);
  }
  for (int64_t g = 0; g < group; ++g)
    for (int64_t d = g * WIDTH; d < (g + 1) * WIDTH; ++d) store(output + d * kLanes, accumulated[d] / totals[g]);
}

template <int WIDTH, typename T>
void decode(const T* query, const T* keys, const T* values, const int32_t* block_tables, const int32_t* lengths,
            T* output, int64_t batch, int64_t table_width, int64_t num_heads, int64_t num_kv_heads,
            int64_t num_blocks, int64_t block_size, int64_t window, float scale) {
  constexpr int64_t dim = WIDTH * kLanes;
  const int64_t group = num_heads / num_kv_heads, head_stride = num_blocks * block_size * dim;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t task = 0; task < batch * num_kv_heads; ++task) {
    const int64_t sequence = task / num_kv_heads, head = task % num_kv_heads;
    const int64_t length = lengths[sequence];
    const int64_t first = window > 0 && length > window ? length - window : 0;
    const int64_t row = (sequence * num_heads + head * group) * dim;
    attend<WIDTH>(query + row, keys + head * head_stride, values + head * head_stride,
                  block_tables + sequence * table_width, output + row, first, length, group, block_size, scale);
  }
}

}  // namespace

// query, output  [batch, num_heads, dim]; keys, values  [num_kv_heads, num_blocks, block_size, dim]
// block_tables   [batch, table_width]; lengths  [batch]; window 0 sees everything
// A key/value head serves at most 16 query heads.
#define DECODE(NAME, TYPE, WIDTH)                                                                                    \
  extern "C" void NAME##_##WIDTH(const TYPE* query, const TYPE* keys, const TYPE* values,                            \
                                 const int32_t* block_tables, const int32_t* lengths, TYPE* output, int64_t batch,   \
                                 int64_t table_width, int64_t num_heads, int64_t num_kv_heads, int64_t num_blocks,   \
                                 int64_t block_size, int64_t window, float scale) {                                  \
    decode<WIDTH / kLanes>(query, keys, values, block_tables, lengths, output, batch, table_width, num_heads,        \
                           num_kv_heads, num_blocks, block_size, window, scale);                                     \
  }

#define DECODE_BOTH(WIDTH)                  \
  DECODE(decode_bfloat16, uint16_t, WIDTH) \
  DECODE(decode_float32, float, WIDTH)

DECODE_BOTH(16)
DECODE_BOTH(32)
DECODE_BOTH(64)
DECODE_BOTH(96)
DECODE_BOTH(128)
