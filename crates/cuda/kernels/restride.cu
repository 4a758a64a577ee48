// Copies with other strides, of elements of 2, 4 or 8 bytes: changes of memory format, broadcasts, transpositions.
//
// `restride` reads with the strides of one tensor and writes with those of another, in the order of the output.
// `transpose` is for a dimension that is dense in the input and another that is dense in the output, such as channels
// last to contiguous and back: tiles go through shared memory, so that both sides move whole lines.

#include "indexing.cuh"

struct RestrideParams {
  const void* input;
  void* output;
  u64 len;
  Space<2> space;  // input, output
};

template <class T> __device__ __forceinline__ void restride(const RestrideParams& p) {
  const T* input = static_cast<const T*>(p.input);
  T* output = static_cast<T*>(p.output);
  for_each(p.len, [&](u64 i) {
    u64 offsets[2];
    locate(p.space, i, offsets);
    output[offsets[1]] = input[offsets[0]];
  });
}

KERNEL(restride_b16, RestrideParams, 256, restride<unsigned short>(p))
KERNEL(restride_b32, RestrideParams, 256, restride<u32>(p))
KERNEL(restride_b64, RestrideParams, 256, restride<u64>(p))

constexpr u32 TILE = 32;
constexpr u32 TILE_ROWS = 8;  // rows of a tile that a block moves at once

/// input[i + j·input_stride] goes to output[i·output_stride + j] for i below `rows`, j below `columns`; once for each
/// position of `outer`.
struct TransposeParams {
  const void* input;
  void* output;
  u64 rows, columns;
  u64 input_stride, output_stride;
  u64 outer_len;
  Space<2> outer;  // input, output
};

/// Blocks: x counts tiles, those of a row of tiles first; y walks over `outer`.
template <class T> __device__ __forceinline__ void transpose(const TransposeParams& p) {
  __shared__ T tile[TILE][TILE + 1];
  // As many tiles as there are blocks, so 32 bits are enough.
  const u32 tiles_across = static_cast<u32>((p.columns + TILE - 1) / TILE);
  const u64 row = static_cast<u64>(blockIdx.x / tiles_across) * TILE;
  const u64 column = static_cast<u64>(blockIdx.x % tiles_across) * TILE;
  for (u64 o = blockIdx.y; o < p.outer_len; o += gridDim.y) {
    u64 offsets[2];
    locate(p.outer, o, offsets);
    const T* input = static_cast<const T*>(p.input) + offsets[0];
    T* output = static_cast<T*>(p.output) + offsets[1];
    for (u32 j = threadIdx.y; j < TILE; j += TILE_ROWS) {
      const u64 i = row + threadIdx.x;
      if (i < p.rows && column + j < p.columns) tile[j][threadIdx.x] = input[i + (column + j) * p.input_stride];
    }
    __syncthreads();
    for (u32 i = threadIdx.y; i < TILE; i += TILE_ROWS) {
      const u64 j = column + threadIdx.x;
      if (row + i < p.rows && j < p.columns) output[(row + i) * p.output_stride + j] = tile[threadIdx.x][i];
    }
    __syncthreads();  // the tile is free for the next position of `outer`
  }
}

KERNEL(transpose_b16, TransposeParams, 256, transpose<unsigned short>(p))
KERNEL(transpose_b32, TransposeParams, 256, transpose<u32>(p))
KERNEL(transpose_b64, TransposeParams, 256, transpose<u64>(p))
