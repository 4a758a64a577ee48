// A fake cuBLAS: the batched matrix products that convolution and linear layers call, as plain loops on the stream.
// Column-major like the real one. FAKE_CUBLAS=0 makes cublasCreate fail, as on a machine where it cannot start.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "driver/exports.h"

namespace {

enum cublasStatus_t : int {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_NOT_INITIALIZED = 1,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_EXECUTION_FAILED = 13,
};

/// cublasOperation_t: as stored, transposed, conjugated and transposed.
enum Operation : int { NONE, TRANSPOSED, CONJUGATED };

struct Handle {
  const void* stream = nullptr;
};

struct Handles {
  std::mutex mutex;
  std::set<const Handle*> live;
};

Handles& handles() {
  static auto* one = new Handles;
  return *one;
}

bool exists(const Handle* handle) {
  std::lock_guard lock(handles().mutex);
  return handles().live.count(handle) != 0;
}

using Submit = int (*)(const void* stream, const FakeWork* work);

/// The fake driver's way to enqueue work; null without it.
Submit find_submit() {
  static const auto found = [] {
    void* library = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) library = dlopen("libcuda.so.1", RTLD_NOW);
    return library == nullptr ? nullptr : reinterpret_cast<Submit>(dlsym(library, "fake_submit"));
  }();
  return found;
}

/// A batch of matrices in device memory.
template <class T>
struct Matrices {
  T* data;
  int leading;       // elements from one column to the next
  long long stride;  // elements from one matrix to the next
};

/// C = alpha * op(A) * op(B) + beta * C, for every matrix of the batch.
template <class T>
struct Product {
  bool transpose_a, transpose_b;
  int m, n, k, batch;
  T alpha, beta;
  Matrices<const T> a, b;
  Matrices<T> c;

  T sum(const T* a_data, const T* b_data, int row, int column) const {
    T total = 0;
    for (int i = 0; i < k; i++) {
      const T left = transpose_a ? a_data[i + size_t(row) * a.leading] : a_data[row + size_t(i) * a.leading];
      const T right = transpose_b ? b_data[column + size_t(i) * b.leading] : b_data[i + size_t(column) * b.leading];
      total += left * right;
    }
    return total;
  }

  void run() const {
    for (int batch_index = 0; batch_index < batch; batch_index++) {
      const T* a_data = a.data + batch_index * a.stride;
      const T* b_data = b.data + batch_index * b.stride;
      T* c_data = c.data + batch_index * c.stride;
      for (int column = 0; column < n; column++) {
        for (int row = 0; row < m; row++) {
          T& to = c_data[row + size_t(column) * c.leading];
          // With beta 0 what C held is not read: it may be NaN.
          to = alpha * sum(a_data, b_data, row, column) + (beta == 0 ? T(0) : beta * to);
        }
      }
    }
  }

  bool valid() const {
    const int a_rows = transpose_a ? k : m, b_rows = transpose_b ? n : k;
    return m >= 0 && n >= 0 && k >= 0 && batch >= 0 && a.leading >= std::max(1, a_rows) &&
           b.leading >= std::max(1, b_rows) && c.leading >= std::max(1, m);
  }
};

template <class T>
cublasStatus_t enqueue(const Handle* handle, const Product<T>& product) {
  if (handle == nullptr || !exists(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!product.valid()) return CUBLAS_STATUS_INVALID_VALUE;
  const FakeWork work = {[](void* data) { static_cast<Product<T>*>(data)->run(); },
                         [](void* data) { delete static_cast<Product<T>*>(data); },
                         new Product<T>(product),
                         "a matrix product",
                         {uint64_t(product.a.data), uint64_t(product.b.data), uint64_t(product.c.data)}};
  const Submit submit = find_submit();
  const bool enqueued = submit != nullptr && submit(handle->stream, &work) == 0;
  return enqueued ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // namespace

#define CUBLAS_API extern "C" __attribute__((visibility("default"))) cublasStatus_t

CUBLAS_API cublasCreate_v2(Handle** handle) {
  const char* wanted = std::getenv("FAKE_CUBLAS");
  if (wanted != nullptr && std::strcmp(wanted, "0") == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (find_submit() == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new Handle;
  std::lock_guard lock(handles().mutex);
  handles().live.insert(*handle);
  return CUBLAS_STATUS_SUCCESS;
}

CUBLAS_API cublasDestroy_v2(Handle* handle) {
  {
    std::lock_guard lock(handles().mutex);
    if (handles().live.erase(handle) == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
  }
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

CUBLAS_API cublasGetVersion_v2(const Handle*, int* version) {
  if (version == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *version = 130000;
  return CUBLAS_STATUS_SUCCESS;
}

CUBLAS_API cublasSetStream_v2(Handle* handle, const void* stream) {
  if (!exists(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

/// Every mode computes alike here.
CUBLAS_API cublasSetMathMode(const Handle* handle, int) {
  return exists(handle) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

/// The loops need no workspace; a misaligned one is refused as by cuBLAS.
CUBLAS_API cublasSetWorkspace_v2(const Handle* handle, void* workspace, size_t) {
  constexpr uintptr_t ALIGNMENT = 256;
  if (!exists(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  return reinterpret_cast<uintptr_t>(workspace) % ALIGNMENT == 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

CUBLAS_API cublasSgemmStridedBatched(const Handle* handle, int op_a, int op_b, int m, int n, int k, const float* alpha,
                                     const float* a, int lda, long long stride_a, const float* b, int ldb,
                                     long long stride_b, const float* beta, float* c, int ldc, long long stride_c,
                                     int batch) {
  return enqueue<float>(handle, {op_a != NONE, op_b != NONE, m, n, k, batch, *alpha, *beta, {a, lda, stride_a},
                                 {b, ldb, stride_b}, {c, ldc, stride_c}});
}

CUBLAS_API cublasDgemmStridedBatched(const Handle* handle, int op_a, int op_b, int m, int n, int k, const double* alpha,
                                     const double* a, int lda, long long stride_a, const double* b, int ldb,
                                     long long stride_b, const double* beta, double* c, int ldc, long long stride_c,
                                     int batch) {
  return enqueue<double>(handle, {op_a != NONE, op_b != NONE, m, n, k, batch, *alpha, *beta, {a, lda, stride_a},
                                  {b, ldb, stride_b}, {c, ldc, stride_c}});
}
