// Matrix products of float32 and float64, for machines without cuBLAS: C = op(A)·op(B), or C += op(A)·op(B).
//
// Matrices are row-major with leading dimensions. A block of 16 × 16 threads computes a tile of 64 × 64 elements of C,
// each thread 4 × 4 of them in registers, from tiles of A and B that go through shared memory; the next tiles are
// loaded while the current ones are multiplied. Where C has few tiles, several blocks share the terms of one, and
// `gemm_combine` adds up their partial products in order.

#include "indexing.cuh"

constexpr u32 TILE = 64;   // rows and columns of C a block computes
constexpr u32 DEPTH = 16;  // terms in a tile of A or B
constexpr u32 SIDE = 4;    // rows and columns of C a thread computes
constexpr u32 PAD = 4;     // keeps columns of a transposed tile in different banks, and vectors aligned
constexpr u32 LOADS = TILE * DEPTH / 256;  // elements of each tile a thread loads

struct GemmParams {
  const void* a;  // m × k, or k × m if transposed
  const void* b;  // k × n, or n × k if transposed
  void* c;        // m × n; with several splits [split][batch][m][n]
  u64 m, n, k;
  u64 lda, ldb, ldc;                 // elements from one row in memory to the next
  u64 stride_a, stride_b, stride_c;  // elements from one product of the batch to the next
  u64 batch;
  u64 split_terms;   // terms of one split, a multiple of DEPTH
  u64 split_stride;  // elements from one split's C to the next
  u32 accumulate, unused;
};

/// Some terms of some rows of A, or columns of B.
template <class T> struct alignas(16) Tile {
  T at[DEPTH][TILE + PAD];
};

/// One operand seen as lines × terms, lines being rows of A or columns of B; `ALONG` if terms are neighbours in memory.
/// Of each tile a thread loads elements that are some lines, or some terms, apart.
template <class T, bool ALONG> struct Operand {
  static constexpr u32 APART = 256 / (ALONG ? DEPTH : TILE);
  const T* next;      // the thread's first element of the next tile
  u64 step, advance;  // elements in memory to its next in the tile, and to its first of the tile after
  u32 inside;         // how many of them, in the order of loading, are in lines that exist

  static __device__ __forceinline__ u32 tile_line(u32 n) {
    return ALONG ? threadIdx.x / DEPTH + n * APART : threadIdx.x % TILE;
  }
  static __device__ __forceinline__ u32 tile_term(u32 n) {
    return ALONG ? threadIdx.x % DEPTH : threadIdx.x / TILE + n * APART;
  }

  /// Of tiles of the lines from `line` on, the first at `term`.
  __device__ __forceinline__ Operand(const T* data, u64 leading, u64 lines, u64 line, u64 term) {
    line += tile_line(0);
    term += tile_term(0);
    next = data + (ALONG ? line * leading + term : term * leading + line);
    step = APART * leading;
    advance = ALONG ? DEPTH : DEPTH * leading;
    const u64 left = line < lines ? lines - line : 0;
    inside = static_cast<u32>(lesser<u64>(ALONG ? (left + APART - 1) / APART : left * LOADS, LOADS));
  }

  /// This thread's elements of the next tile, of which `terms` terms exist; 0 outside.
  __device__ __forceinline__ void load(u64 terms, T (&values)[LOADS]) {
#pragma unroll
    for (u32 n = 0; n < LOADS; n++) values[n] = n < inside && tile_term(n) < terms ? next[n * step] : T(0);
    next += advance;
  }

  static __device__ __forceinline__ void store(Tile<T>& tile, const T (&values)[LOADS]) {
#pragma unroll
    for (u32 n = 0; n < LOADS; n++) tile.at[tile_term(n)][tile_line(n)] = values[n];
  }
};

template <class T>
__device__ __forceinline__ void multiply(const Tile<T>& a, const Tile<T>& b, u32 row, u32 column,
                                         T (&sums)[SIDE][SIDE]) {
#pragma unroll 4
  for (u32 k = 0; k < DEPTH; k++) {
    T left[SIDE], right[SIDE];
#pragma unroll
    for (u32 i = 0; i < SIDE; i++) left[i] = a.at[k][row + i], right[i] = b.at[k][column + i];
#pragma unroll
    for (u32 i = 0; i < SIDE; i++) {
#pragma unroll
      for (u32 j = 0; j < SIDE; j++) sums[i][j] += left[i] * right[j];
    }
  }
}

/// Blocks: x counts tiles of C, those of a row of tiles first; y splits of the terms; z walks over the batch.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B> __device__ __forceinline__ void gemm(const GemmParams& p) {
  using A = Operand<T, !TRANSPOSE_A>;
  using B = Operand<T, TRANSPOSE_B>;
  __shared__ Tile<T> a_tile, b_tile;
  // As many tiles as there are blocks, so 32 bits are enough.
  const u32 tiles_across = static_cast<u32>((p.n + TILE - 1) / TILE);
  const u64 row = static_cast<u64>(blockIdx.x / tiles_across) * TILE;
  const u64 column = static_cast<u64>(blockIdx.x % tiles_across) * TILE;
  const u32 thread_row = threadIdx.x / 16 * SIDE, thread_column = threadIdx.x % 16 * SIDE;
  const u64 start = blockIdx.y * p.split_terms;
  for (u64 product = blockIdx.z; product < p.batch; product += gridDim.z) {
    u64 terms = start < p.k ? lesser(p.split_terms, p.k - start) : 0;
    A a(static_cast<const T*>(p.a) + product * p.stride_a, p.lda, p.m, row, start);
    B b(static_cast<const T*>(p.b) + product * p.stride_b, p.ldb, p.n, column, start);
    T sums[SIDE][SIDE] = {}, a_next[LOADS], b_next[LOADS];
    a.load(terms, a_next);
    b.load(terms, b_next);
    while (terms > 0) {
      __syncthreads();  // the tiles before these are used up
      A::store(a_tile, a_next);
      B::store(b_tile, b_next);
      __syncthreads();
      terms -= lesser<u64>(terms, DEPTH);
      a.load(terms, a_next);
      b.load(terms, b_next);
      multiply(a_tile, b_tile, thread_row, thread_column, sums);
    }
    T* c = static_cast<T*>(p.c) + blockIdx.y * p.split_stride + product * p.stride_c;
#pragma unroll
    for (u32 i = 0; i < SIDE; i++) {
#pragma unroll
      for (u32 j = 0; j < SIDE; j++) {
        const u64 y = row + thread_row + i, x = column + thread_column + j;
        if (y >= p.m || x >= p.n) continue;
        T& out = c[y * p.ldc + x];
        out = p.accumulate ? out + sums[i][j] : sums[i][j];
      }
    }
  }
}

struct GemmCombineParams {
  const void* partial;  // [splits][batch][m][n]
  void* c;
  u64 splits, batch, m;
  WideDivider n;
  u64 ldc, stride_c;
  u32 accumulate, unused;
};

/// Blocks: x walks over the elements of a product, y over the batch.
template <class T> __device__ __forceinline__ void gemm_combine(const GemmCombineParams& p) {
  const T* partial = static_cast<const T*>(p.partial);
  const u64 size = p.m * p.n.divisor;
  for (u64 product = blockIdx.y; product < p.batch; product += gridDim.y) {
    for (u64 i = grid_thread(); i < size; i += grid_threads()) {
      T total = 0;
      for (u64 split = 0; split < p.splits; split++) total += partial[(split * p.batch + product) * size + i];
      u64 row = i;
      const u64 column = p.n.split(row);
      T& out = static_cast<T*>(p.c)[product * p.stride_c + row * p.ldc + column];
      out = p.accumulate ? out + total : total;
    }
  }
}

/// One block a multiprocessor is enough: without this, registers are spilled so that more fit.
#define GEMM_THREADS 256, 1

#define GEMM(dtype, T)                                                                  \
  KERNEL(gemm_nn_##dtype, GemmParams, GEMM_THREADS, gemm<T, false, false>(p))           \
  KERNEL(gemm_nt_##dtype, GemmParams, GEMM_THREADS, gemm<T, false, true>(p))            \
  KERNEL(gemm_tn_##dtype, GemmParams, GEMM_THREADS, gemm<T, true, false>(p))            \
  KERNEL(gemm_tt_##dtype, GemmParams, GEMM_THREADS, gemm<T, true, true>(p))             \
  KERNEL(gemm_combine_##dtype, GemmCombineParams, 256, gemm_combine<T>(p))
GEMM(f32, float)
GEMM(f64, double)
