/* MBConv blocks of an EfficientNet, in C: what PyTorch's operators, called one by one, cannot do (see fused.py).
   In float32, or in bfloat16 where BFLOAT16 is defined.

   An operator writes its whole result into memory before the next one reads it, and the activations within a
   block are six times as wide as its input. Here:

   1. A thread takes a slice of S channels through the expansion and the depthwise convolution. Channels do not
      meet before squeeze-excite, so what lies between the two is small and stays in the thread's own cache.
   2. Bias, SiLU and residual are computed while the sums are still in registers.
   3. Squeeze-excite's gate is multiplied into the projection's weights: W (g · x) = (W · diag(g)) x.
   4. Threads wait for each other four times a block, rather than after each operator, and take the next piece
      of work when they have finished one: on a busy machine, one that is held up delays the others less.

   The order of numbers in memory, from the slowest index to the fastest:

       input and output of a block       image, pixel, channel
       activations within a block        slice, image, pixel, S channels
       weights of a 1×1 convolution      slice of outputs, input, S outputs (the reduction: output, input)
           in bfloat16                   slice of outputs, two inputs, S outputs, one of the two inputs
       weights of a depthwise one        slice, row, column, S channels

   Where the channels are no multiple of S, the last slice has weights and biases of zero. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifndef LANES  // numbers in a register
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
#define S (2 * LANES)

enum {
    ROWS = LANES == 16 ? 12 : 6,  // pixels of a tile: two registers each, and some are left for weights
    PIXELS = 4,                   // the same, of the depthwise convolution
    CHUNK = 96,                   // pixels that a thread projects at a time
    SPINS = 2000,                 // looks for the others, before a thread that waits lets other programs run
};

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef struct { vec a, b; } pair;  // S numbers

// What lies in memory between two steps, and the weights of expansion and projection. The rest is float32.
#ifdef BFLOAT16
typedef unsigned short number;  // the upper half of a float32
typedef number numbers __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#else
typedef float number;
#endif

typedef struct {  // as Block in fused.py
    int c_in, c, squeezed, c_out;          // channels: input, expanded, between squeeze-excite's layers, output
    int kernel, stride, before, residual;  // before: pixels of padding on the left and on top
    int h, w, h_out, w_out;                // pixels before and after the depthwise convolution
    const number *expand, *project;
    const float *expand_bias, *depthwise, *depthwise_bias;
    const float *reduce, *reduce_bias, *gate, *gate_bias, *project_bias;
} Block;

typedef struct {
    const Block *blocks;
    int count, images;
    const number *x;                  // (images, h, w, c_in) of the first block
    number *y, *between[2];           // output of the last block; of those before it, in turns
    number *hidden;                   // (slices, images, pixels, S)
    float *means, *reduced;           // (images, c), where the gates come later; (images, squeezed)
    float *own;                       // a part of own_size for each thread: its padded slice, or its gated weights
    long own_size;
    atomic_int threads, ids;          // how many there are; how many have begun
    atomic_int next, waiting, round;  // the piece to take; threads in `meet`; how often all have met
} Run;

static long slices(int channels) { return (channels + S - 1) / S; }
static long most(long a, long b) { return a > b ? a : b; }
static int least(int a, int b) { return a < b ? a : b; }

// A slice of an image with the padding around it
static int padded_width(const Block *b) {
    return most(b->before + b->w, (b->w_out - 1) * b->stride + b->kernel);
}
static long padded_size(const Block *b) {
    return most(b->before + b->h, (b->h_out - 1) * b->stride + b->kernel) * padded_width(b) * S;
}

// ---- Threads

// PyTorch's own threads, where they are GNU OpenMP's: between two operators they look for work for a while, and
// threads of ours would have to share the processor with them.
#ifdef __linux__
void GOMP_parallel(void (*)(void *), void *, unsigned threads, unsigned flags) __attribute__((weak));
int omp_get_num_threads(void) __attribute__((weak));
#else
static void (*const GOMP_parallel)(void (*)(void *), void *, unsigned, unsigned) = NULL;
static int (*const omp_get_num_threads)(void) = NULL;
#endif

// Wait until all threads are here. Then the pieces of the next step are counted from 0.
static void meet(Run *run) {
    int round = run->round;
    if (++run->waiting == run->threads) {
        run->waiting = run->next = 0;
        run->round++;
    } else
        for (int i = 0; run->round == round; i++)
            if (i > SPINS) sched_yield();
}

#define FOR_EACH_PIECE(i, count) for (long i; (i = run->next++) < (count);)

// ---- Arithmetic

#define INLINE static inline __attribute__((always_inline))  // so that the number of rows is a constant

INLINE pair load(const float *at) { return (pair){*(const vec *)at, *(const vec *)(at + LANES)}; }
INLINE void store(float *at, pair x) { *(vec *)at = x.a, *(vec *)(at + LANES) = x.b; }
INLINE pair add(pair x, pair y) { return (pair){x.a + y.a, x.b + y.b}; }
INLINE pair times(pair x, float y) { return (pair){x.a * y, x.b * y}; }
INLINE vec choose(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

// x / (1 + exp(-x)). exp(-x) = 2^t = 2^n · 2^f, n an integer, |f| ≤ ½. 2^f by that polynomial of degree 5, with
// 1 at f = 0, whose largest relative error is least: 9e-8.
INLINE vec silu_of(vec x) {
    const vec limit = (vec){0} + 126;  // beyond it, 2^t is no normal number
    const float magic = 3 << 22;       // adding it rounds to an integer, which the lowest bits then hold
    vec t = x * -1.44269504f;
    t = choose(t > limit, limit, t);
    t = choose(t < -limit, -limit, t);
    vec n = t + magic, f = t - (n - magic);
    vec e = f * 0.00132647271f + 0.00967151265f;
    e = e * f + 0.0555073374f;
    e = e * f + 0.240222421f;
    e = e * f + 0.693146978f;
    e = e * f + 1;
    return x / (1 + (vec)((ivec)e + ((ivec)n << 23)));  // n is added to the exponent
}

INLINE pair silu(pair x) { return (pair){silu_of(x.a), silu_of(x.b)}; }

// sums[row] += x[row] · weights, for `rows` rows of x that are `stride` apart and `inputs` long
INLINE void multiply(int rows, pair *sums, const float *x, long stride, long inputs, const float *weights) {
    for (long k = 0; k < inputs; k++, weights += S) {
        pair w = load(weights);
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) {
            float in = x[row * stride + k];
            sums[row].a += in * w.a;
            sums[row].b += in * w.b;
        }
    }
}

#ifdef BFLOAT16
#define UPPER ((ivec){0} - 65536)  // the bits of the upper half

INLINE vec lower_half(ivec x) { return (vec)(x << 16); }
INLINE vec upper_half(ivec x) { return (vec)(x & UPPER); }
// Rounded, ties to even: the bfloat16 is in the upper half.
INLINE ivec rounded(vec x) { return (ivec)x + 0x7fff + (((ivec)x >> 16) & 1); }
INLINE vec get_vec(const number *at) { return lower_half(__builtin_convertvector(*(const numbers *)at, ivec)); }
INLINE void put_vec(number *at, vec x) { *(numbers *)at = __builtin_convertvector(rounded(x) >> 16, numbers); }

INLINE pair get(const number *at) { return (pair){get_vec(at), get_vec(at + LANES)}; }
INLINE void put(number *at, pair x) { put_vec(at, x.a), put_vec(at + LANES, x.b); }
INLINE float get_one(const number *at) { return lower_half((ivec){0} + *at)[0]; }
INLINE void put_one(number *at, float x) { *at = rounded((vec){0} + x)[0] >> 16; }

// sum + x · w in each lane, where x and w are two numbers each
INLINE vec dot(vec sum, ivec x, ivec w) {
#if defined(__AVX512BF16__) && LANES == 16
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    return sum + lower_half(x) * lower_half(w) + upper_half(x) * upper_half(w);
#endif
}

INLINE void multiply_numbers(int rows, pair *sums, const number *x, long stride, long inputs,
                             const number *weights) {
    for (long k = 0; k < inputs; k += 2, weights += 2 * S) {
        ivec a = *(const ivec *)weights, b = *(const ivec *)(weights + S);
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) {
            int two;
            memcpy(&two, x + row * stride + k, sizeof(two));
            sums[row].a = dot(sums[row].a, (ivec){0} + two, a);
            sums[row].b = dot(sums[row].b, (ivec){0} + two, b);
        }
    }
}

INLINE void multiply_by_gates(number *to, const number *weights, const float *gates, long inputs) {
    for (long k = 0; k < inputs; k += 2)
        for (long at = k * S; at < (k + 2) * S; at += S) {
            ivec w = *(const ivec *)(weights + at);
            ivec first = rounded(lower_half(w) * gates[k]), second = rounded(upper_half(w) * gates[k + 1]);
            *(ivec *)(to + at) = ((first >> 16) & ~UPPER) | (second & UPPER);
        }
}
#else
#define get load
#define put store
#define multiply_numbers multiply
INLINE float get_one(const number *at) { return *at; }
INLINE void put_one(number *at, float x) { *at = x; }

INLINE void multiply_by_gates(number *to, const number *weights, const float *gates, long inputs) {
    for (long k = 0; k < inputs; k++) store(to + k * S, times(load(weights + k * S), gates[k]));
}
#endif

// ---- The steps of a block

// A slice of the expansion, for `rows` pixels: x (pixel, c_in) → to[places[pixel]]
INLINE void expand(int rows, const Block *b, long slice, const number *x, const int *places, float *to) {
    pair sums[ROWS];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) sums[row] = load(b->expand_bias + slice * S);
    multiply_numbers(rows, sums, x, b->c_in, b->c_in, b->expand + slice * b->c_in * S);
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) store(to + places[row], silu(sums[row]));
}

// Expand the pixels from `p` to `end`, or a few more. Returns the first that is not expanded yet.
static int expand_until(int end, int p, const Block *b, long slice, const number *x, const int *places,
                        float *to) {
    int pixels = b->h * b->w;
    for (; p < end && !b->expand; p++) {  // a block of ratio 1
        const number *from = x + (long)p * b->c_in + slice * S;
        int channels = least(S, b->c - slice * S);
        if (channels == S)
            store(to + places[p], get(from));
        else
            for (int i = 0; i < S; i++) to[places[p] + i] = i < channels ? get_one(from + i) : 0;
    }
    for (; p < end && pixels < ROWS; p++) expand(1, b, slice, x + p * b->c_in, places + p, to);
    for (; p < end; p += ROWS) {
        int at = least(p, pixels - ROWS);  // the last tile computes some pixels again
        expand(ROWS, b, slice, x + (long)at * b->c_in, places + at, to);
    }
    return p;
}

// `count` neighbouring pixels of the depthwise convolution. x: where the first window begins, in rows of `width`
INLINE void convolve(int count, int kernel, int stride, const float *x, long width, const float *weights,
                     pair bias, number *y) {
    pair sums[PIXELS];
#pragma GCC unroll 16
    for (int p = 0; p < count; p++) sums[p] = bias;
#pragma GCC unroll 1
    for (int row = 0; row < kernel; row++)
        for (int column = 0; column < kernel; column++, weights += S) {
            pair w = load(weights);
#pragma GCC unroll 16
            for (int p = 0; p < count; p++) {
                pair in = load(x + (row * width + column + p * stride) * S);
                sums[p].a += in.a * w.a;
                sums[p].b += in.b * w.b;
            }
        }
#pragma GCC unroll 16
    for (int p = 0; p < count; p++) put(y + p * S, silu(sums[p]));
}

INLINE void convolve_row(int kernel, int stride, const Block *b, long slice, const float *x, number *y) {
    const float *weights = b->depthwise + slice * kernel * kernel * S;
    pair bias = load(b->depthwise_bias + slice * S);
    long width = padded_width(b);
    int p = 0;
    for (; p < b->w_out && b->w_out < PIXELS; p++)
        convolve(1, kernel, stride, x + p * stride * S, width, weights, bias, y + p * S);
    for (; p < b->w_out; p += PIXELS) {
        int at = least(p, b->w_out - PIXELS);
        convolve(PIXELS, kernel, stride, x + at * stride * S, width, weights, bias, y + at * S);
    }
}

// Expand and convolve a slice of an image's channels, and take their means. A row is convolved as soon as the
// rows that it needs are expanded.
static void widen(const Run *run, const Block *b, const number *x, long piece, const int *places,
                  float *padded) {
    long image = piece % run->images, slice = piece / run->images, pixels = (long)b->h_out * b->w_out;
    number *y = run->hidden + piece * pixels * S;
    pair sum = {{0}, {0}};
    x += image * b->h * b->w * b->c_in;
    for (int row = 0, done = 0; row < b->h_out; row++, y += b->w_out * S) {
        int needed = least(row * b->stride - b->before + b->kernel, b->h);
        done = expand_until(needed * b->w, done, b, slice, x, places, padded);
        const float *window = padded + (long)row * b->stride * padded_width(b) * S;
        if (b->kernel == 3 && b->stride == 1)  // constants make better machine code
            convolve_row(3, 1, b, slice, window, y);
        else if (b->kernel == 5 && b->stride == 1)
            convolve_row(5, 1, b, slice, window, y);
        else
            convolve_row(b->kernel, b->stride, b, slice, window, y);
        pair in_row = {{0}, {0}};  // one sum over many equal numbers would round each time the same way
        for (int p = 0; p < b->w_out; p++) in_row = add(in_row, get(y + p * S));
        sum = add(sum, in_row);
    }
    store(run->means + (image * slices(b->c) + slice) * S, times(sum, 1.f / pixels));
}

// Squeeze-excite's first layer: one of the `squeezed` numbers of an image
static void reduce(const Run *run, const Block *b, long piece) {
    long image = piece % run->images, output = piece / run->images, inputs = slices(b->c) * S;
    const float *means = run->means + image * inputs, *weights = b->reduce + output * inputs;
    pair sums = {{0}, {0}};
    for (long k = 0; k < inputs; k += S) {
        pair in = load(means + k), w = load(weights + k);
        sums.a += in.a * w.a;
        sums.b += in.b * w.b;
    }
    float all[S], sum = b->reduce_bias[output];
    store(all, sums);
    for (int i = 0; i < S; i++) sum += all[i];
    run->reduced[image * b->squeezed + output] = sum / (1 + expf(-sum));
}

// Its second layer: a slice of an image's gates, which take the place of the means
static void excite(const Run *run, const Block *b, long piece) {
    long image = piece % run->images, slice = piece / run->images;
    pair sums = load(b->gate_bias + slice * S);
    const float *reduced = run->reduced + image * b->squeezed, *weights = b->gate + slice * b->squeezed * S;
    multiply(1, &sums, reduced, 0, b->squeezed, weights);
    float *gates = run->means + (image * slices(b->c) + slice) * S;
    store(gates, sums);
    for (int i = 0; i < S; i++) gates[i] = 1 / (1 + expf(-gates[i]));
}

// A slice of the projection, for `rows` pixels: hidden, slices `apart` from each other → y (pixel, c_out), plus x
INLINE void project(int rows, const Block *b, long slice, const number *hidden, long apart,
                    const number *weights, const number *x, number *y) {
    pair sums[ROWS];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) sums[row] = load(b->project_bias + slice * S);
    for (long k = 0; k < slices(b->c); k++, hidden += apart) {
        for (int row = 0; row < rows; row++) __builtin_prefetch(hidden + apart + row * S);
        multiply_numbers(rows, sums, hidden, S, S, weights + k * S * S);
    }
    int channels = least(S, b->c_out - slice * S);
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        long at = (long)row * b->c_out + slice * S;
        if (channels == S)
            put(y + at, b->residual ? add(sums[row], get(x + at)) : sums[row]);
        else {
            float all[S];
            store(all, sums[row]);
            for (int i = 0; i < channels; i++)
                put_one(y + at + i, b->residual ? all[i] + get_one(x + at + i) : all[i]);
        }
    }
}

// Gate and project. Where pixels are many, a piece is CHUNK of them and every output; else all of them and a
// slice of the outputs.
static int by_pixels(const Block *b) { return b->h_out * b->w_out > 10 * CHUNK; }
static long parts(const Block *b) {
    return by_pixels(b) ? (b->h_out * b->w_out + CHUNK - 1) / CHUNK : slices(b->c_out);
}

static void narrow(const Run *run, const Block *b, const number *x, number *y, long piece, number *gated) {
    long image = piece % run->images, part = piece / run->images;
    long pixels = (long)b->h_out * b->w_out, inputs = slices(b->c) * S;
    long first = by_pixels(b) ? part * CHUNK : 0, last = by_pixels(b) ? least(first + CHUNK, pixels) : pixels;
    long slice = by_pixels(b) ? 0 : part, end = by_pixels(b) ? slices(b->c_out) : part + 1;
    const float *gates = run->means + image * inputs;
    x += image * pixels * b->c_out, y += image * pixels * b->c_out;
    for (; slice < end; slice++) {
        multiply_by_gates(gated, b->project + slice * inputs * S, gates, inputs);
        for (long p = first; p < last; p += pixels < ROWS ? 1 : ROWS) {
            long at = pixels < ROWS ? p : least(p, pixels - ROWS), apart = run->images * pixels * S;
            const number *hidden = run->hidden + (image * pixels + at) * S;
            if (pixels < ROWS)
                project(1, b, slice, hidden, apart, gated, x + at * b->c_out, y + at * b->c_out);
            else
                project(ROWS, b, slice, hidden, apart, gated, x + at * b->c_out, y + at * b->c_out);
        }
    }
}

// ---- All blocks

static void work(void *argument) {
    Run *run = argument;
    float *own = run->own + run->ids++ * run->own_size;
    const number *x = run->x;
    if (GOMP_parallel) run->threads = omp_get_num_threads();
    while (!run->threads) sched_yield();  // until it is known how many there are
    for (int i = 0; i < run->count; i++) {
        const Block *b = run->blocks + i;
        number *y = i == run->count - 1 ? run->y : run->between[i % 2];
        int *places = (int *)(own + padded_size(b));
        memset(own, 0, padded_size(b) * sizeof(float));
        for (int row = 0, p = 0; row < b->h; row++)
            for (int column = 0; column < b->w; column++, p++)
                places[p] = ((row + b->before) * padded_width(b) + column + b->before) * S;
        FOR_EACH_PIECE(piece, slices(b->c) * run->images) widen(run, b, x, piece, places, own);
        meet(run);
        FOR_EACH_PIECE(piece, (long)b->squeezed * run->images) reduce(run, b, piece);
        meet(run);
        FOR_EACH_PIECE(piece, slices(b->c) * run->images) excite(run, b, piece);
        meet(run);
        FOR_EACH_PIECE(piece, parts(b) * run->images) narrow(run, b, x, y, piece, (number *)own);
        meet(run);
        x = y;
    }
}

static void *start(void *run) {
    work(run);
    return NULL;
}

// Divide `scratch` among what `run` needs. Returns how many numbers that is.
static long divide(Run *run, float *scratch, int threads) {
    long hidden = 0, channels = 0, squeezed = 0, between = 0, own = 0, size = 0;
    for (const Block *b = run->blocks; b < run->blocks + run->count; b++) {
        long pixels = (long)b->h_out * b->w_out;
        hidden = most(hidden, pixels * slices(b->c) * S);
        channels = most(channels, slices(b->c) * S);
        squeezed = most(squeezed, b->squeezed);
        between = most(between, pixels * b->c_out);
        own = most(own, most(padded_size(b) + (long)b->h * b->w, slices(b->c) * S * S));
    }
    run->own_size = (own + 15) / 16 * 16;  // so that no two threads write into one line of the cache
#define TAKE(pointer, count) pointer = (void *)(scratch + size), size += ((count) + 15) / 16 * 16
    TAKE(run->hidden, hidden * run->images);
    TAKE(run->means, channels * run->images);
    TAKE(run->reduced, squeezed * run->images);
    TAKE(run->between[0], between * run->images);
    TAKE(run->between[1], between * run->images);
    TAKE(run->own, run->own_size * threads);
    return size;
}

long slice_size(void) { return S; }

long scratch_size(const Block *blocks, int count, int images, int threads) {
    Run run = {.blocks = blocks, .count = count, .images = images};
    return divide(&run, NULL, threads);
}

// x (images, h, w, c_in) of the first block → y (images, h_out, w_out, c_out) of the last
void run_blocks(const Block *blocks, int count, int images, int threads, const number *x, number *y,
                float *scratch) {
    Run run = {.blocks = blocks, .count = count, .images = images, .x = x, .y = y};
    divide(&run, scratch, threads);
    if (GOMP_parallel) {
        GOMP_parallel(work, &run, threads, 0);
        return;
    }
    pthread_t others[threads];
    int started = 0;
    while (started < threads - 1 && !pthread_create(others + started, NULL, start, &run)) started++;
    run.threads = started + 1;
    work(&run);
    while (started) pthread_join(others[--started], NULL);
}
