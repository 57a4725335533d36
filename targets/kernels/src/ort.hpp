// What the operators share: ONNX Runtime's C API only, so that one build serves every later release; shapes, messages, threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

#include "tiles.hpp"

namespace edgepeft::kernels {

// ONNX Runtime's C API that this build speaks: 1.21 and later have it. The operators' own version is in the graph's domain.
constexpr uint32_t kApi = 21;
constexpr int kVersion = 4;

// From API 24 on a tensor's shape can be looked at where it lies; before, each look is three allocations, half a microsecond a slot.
// OrtApi only grows, so its place is known to older headers too (onnxruntime asserts the same offset).
using LookAtShape = OrtStatus*(ORT_API_CALL*)(const OrtValue*, ONNXTensorElementDataType*, const int64_t**, std::size_t*);
constexpr uint32_t kLookApi = 24;
constexpr std::size_t kLookPlace = 414;
#if ORT_API_VERSION >= 24
static_assert(offsetof(OrtApi, GetTensorElementTypeAndShapeDataReference) == kLookPlace * sizeof(void*));
#else
static_assert(sizeof(OrtApi) <= kLookPlace * sizeof(void*));
#endif

// Set once, when the library is first registered.
extern const OrtApi* c_api;
extern LookAtShape look_at_shape;

struct Shape {
  static constexpr std::size_t kMost = 8;
  std::size_t rank = 0;
  int64_t dims[kMost];
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t last() const { return dims[rank - 1]; }
  int64_t rows() const {
    int64_t product = 1;
    for (std::size_t i = 0; i + 1 < rank; ++i) product *= dims[i];
    return product;
  }
  int64_t size() const { return rank < 1 ? 1 : rows() * last(); }
  std::string text() const {
    std::string found = "[";
    for (std::size_t i = 0; i < rank; ++i) found += (i ? ", " : "") + std::to_string(dims[i]);
    return found + "]";
  }
};

// A node of one of the operators.
class Node {
 public:
  Node(const OrtApi* api, const OrtKernelInfo* info, const char* op) : api_(api), functions_(chosen()), op_(op) {
    std::size_t size = 0;
    if (!failed(api_->KernelInfo_GetNodeName(info, nullptr, &size)) && size > 1) {
      name_.resize(size);
      failed(api_->KernelInfo_GetNodeName(info, name_.data(), &size));
      name_.resize(std::strlen(name_.c_str()));
    }
  }

 protected:
  // Below so many multiplications a second thread costs more than it saves.
  static constexpr std::size_t kAlone = 1 << 17;

  // And below so many numbers that are only read and written.
  static constexpr std::size_t kFew = 1 << 14;

  // Runs the problems over the session's own threads, in tiles of rows.
  OrtStatusPtr spread(OrtKernelContext* context, Group* groups, std::size_t count) const {
    std::size_t tiles = 0, products = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const Problem& p = groups[i].problem;
      groups[i].tiles = (p.rows + kTile - 1) / kTile;
      tiles += groups[i].tiles;
      products += p.rows * p.rank * (p.in + p.out);
    }
    if (auto status = widen(context, groups, count)) return status;
    auto tile = [&](std::size_t number) {
      const Group* group = groups;
      while (number >= group->tiles) number -= group++->tiles;
      run_tile(functions_, *group, number, nullptr);
    };
    return in_parallel(context, tiles, products >= kAlone, tile);
  }

  // Runs problems over the same rows, and behind them `last(row, end, apart)`, tile by tile: what it reads is still near. `apart` is the
  // tile of the one group whose result is in the thread's memory. `out` is how many numbers `last` writes in a row.
  template <typename Last>
  OrtStatusPtr spread_rows(OrtKernelContext* context, Group* groups, std::size_t count, std::size_t rows, std::size_t out,
                           const Last& last) const {
    std::size_t products = 0, apart = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const Problem& p = groups[i].problem;
      products += p.rows * p.rank * (p.in + p.out);
      if (groups[i].apart) apart = kTile * p.out;
    }
    if (auto status = widen(context, groups, count)) return status;
    auto tile = [&](std::size_t number) {
      float* room = apart > 0 ? room_apart(apart) : nullptr;
      for (std::size_t i = 0; i < count; ++i) run_tile(functions_, groups[i], number, room);
      const std::size_t row = number * kTile;
      last(row, rows - row < kTile ? rows : row + kTile, room);
    };
    return in_parallel(context, (rows + kTile - 1) / kTile, rows * out >= kFew || products >= kAlone, tile);
  }

  bool failed(OrtStatusPtr status) const {
    if (status == nullptr) return false;
    api_->ReleaseStatus(status);
    return true;
  }

  OrtStatusPtr wrong(const std::string& what) const {
    return api_->CreateStatus(ORT_INVALID_ARGUMENT, (std::string(op_) + " " + name_ + ": " + what).c_str());
  }

  OrtStatusPtr shape(const OrtValue* value, Shape& found) const {
    if (look_at_shape != nullptr) {
      const int64_t* dims = nullptr;
      if (auto status = look_at_shape(value, &found.type, &dims, &found.rank)) return status;
      if (found.rank > Shape::kMost) return wrong("a tensor of more than 8 dimensions");
      for (std::size_t i = 0; i < found.rank; ++i) found.dims[i] = dims[i];
      return nullptr;
    }
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (auto status = api_->GetTensorTypeAndShape(value, &info)) return status;
    auto status = api_->GetDimensionsCount(info, &found.rank);
    if (status == nullptr && found.rank > Shape::kMost) status = wrong("a tensor of more than 8 dimensions");
    if (status == nullptr) status = api_->GetDimensions(info, found.dims, found.rank);
    if (status == nullptr) status = api_->GetTensorElementType(info, &found.type);
    api_->ReleaseTensorTypeAndShapeInfo(info);
    return status;
  }

  template <typename T>
  OrtStatusPtr pointer(const OrtValue* value, const T*& found) const {
    void* data = nullptr;  // the C API has one getter, for reading and writing
    auto status = api_->GetTensorMutableData(const_cast<OrtValue*>(value), &data);
    found = static_cast<const T*>(data);
    return status;
  }

  // y, and the result, which takes y's memory where nothing else reads y.
  OrtStatusPtr begin(OrtKernelContext* context, std::size_t input, std::size_t output, Shape& of_y, Problem& problem) const {
    const OrtValue* y = nullptr;
    if (auto status = api_->KernelContext_GetInput(context, input, &y)) return status;
    if (auto status = shape(y, of_y)) return status;
    if (of_y.rank < 1) return wrong("y has shape []");
    OrtValue* result = nullptr;
    if (auto status = api_->KernelContext_GetOutput(context, output, of_y.dims, of_y.rank, &result)) return status;
    void* data = nullptr;
    if (auto status = api_->GetTensorMutableData(result, &data)) return status;
    problem.result = static_cast<float*>(data);
    problem.rows = of_y.rows(), problem.out = of_y.last();
    return pointer(y, problem.y);
  }

  // Without an adapter the result is y.
  static void copy(const Problem& p) {
    if (p.result != p.y) std::memcpy(p.result, p.y, p.rows * p.out * sizeof(float));
  }

  const OrtApi* api_;
  const Functions& functions_;

 private:
  // Lays out the factors of groups of many rows.
  OrtStatusPtr widen(OrtKernelContext* context, Group* groups, std::size_t count) const {
    plan_groups(functions_, groups, count);
    for (std::size_t i = 0; i < count; ++i) {
      if (groups[i].wide == nullptr) continue;
      auto piece = [&](std::size_t number) { functions_.widen(groups[i].problem, *groups[i].wide, number); };
      if (auto status = in_parallel(context, kPieces, true, piece)) return status;
    }
    return nullptr;
  }

  // Calls `work` with each number below `count`, on the session's threads where there is much of it.
  template <typename Work>
  OrtStatusPtr in_parallel(OrtKernelContext* context, std::size_t count, bool much, const Work& work) const {
    struct Shared {
      const Work& work;
      bool failed;
    } shared{work, false};
    auto one = [](void* user, std::size_t number) {
      auto& shared = *static_cast<Shared*>(user);
      try {
        shared.work(number);
      } catch (const std::bad_alloc&) {  // an exception must not leave the session's thread
        __atomic_store_n(&shared.failed, true, __ATOMIC_RELAXED);
      }
    };
    if (count <= 1 || !much) {
      for (std::size_t i = 0; i < count; ++i) one(&shared, i);
    } else if (auto status = api_->KernelContext_ParallelFor(context, one, count, 0, &shared)) {
      return status;
    }
    return shared.failed ? api_->CreateStatus(ORT_FAIL, (std::string(op_) + ": out of memory").c_str()) : nullptr;
  }

  const char* op_;
  std::string name_;
};

}  // namespace edgepeft::kernels
