// edgepeft.LowRankAdd as a custom operator of ONNX Runtime: its C API only, so that one build serves every later release.
//
//   LowRankAdd(y, x, A, B[, reach]) -> y + (x A) B
//
//   y      float32 [..., out]; where nothing else reads it, the result takes its memory
//   x      float32 [..., in], as many rows as y
//   A      float32 or float16 [adapters, in, rank]; adapters is 1, or x's first dimension: each row of the batch its own
//   B      of A's type [adapters, rank, out]; of rank 0 any width
//   reach  int32 [adapters, rank]: the part of B's columns in which a rank's row has numbers, -1: all, -2: none. Zeros are not read.
//   offsets (attribute) the first column of each part of a packed matrix; one part where it is missing
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

#include "low_rank.hpp"

#if defined(_WIN32)
#define EDGEPEFT_EXPORT extern "C" __declspec(dllexport)
#else
#define EDGEPEFT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using edgepeft::kernels::Function;
using edgepeft::kernels::Problem;

// ONNX Runtime's C API that this build speaks: 1.21 and later have it. The operators' own version is in the graph's domain.
constexpr uint32_t kApi = 21;
constexpr int kVersion = 1;
constexpr const char* kDomain = "edgepeft";
// Below so many multiplications a second thread costs more than it saves.
constexpr std::size_t kAlone = 1 << 17;
constexpr std::size_t kTile = 16;  // rows that one thread takes at once, so that A and B are read once for them

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
const OrtApi* c_api = nullptr;
LookAtShape look_at_shape = nullptr;  // set once, when the library is first registered

struct Shape {
  static constexpr std::size_t kMost = 8;
  std::size_t rank = 0;
  int64_t dims[kMost] = {};
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t last() const { return dims[rank - 1]; }
  int64_t rows() const {
    int64_t product = 1;
    for (std::size_t i = 0; i + 1 < rank; ++i) product *= dims[i];
    return product;
  }
  std::string text() const {
    std::string found = "[";
    for (std::size_t i = 0; i < rank; ++i) found += (i ? ", " : "") + std::to_string(dims[i]);
    return found + "]";
  }
};

class Kernel {
 public:
  Kernel(const OrtApi* api, const OrtKernelInfo* info) : api_(api), run_(edgepeft::kernels::chosen().run) {
    std::size_t size = 0;
    if (!failed(api_->KernelInfo_GetNodeName(info, nullptr, &size)) && size > 1) {
      name_.resize(size);
      failed(api_->KernelInfo_GetNodeName(info, name_.data(), &size));
      name_.resize(std::strlen(name_.c_str()));
    }
    size = 0;
    if (!failed(api_->KernelInfoGetAttributeArray_int64(info, "offsets", nullptr, &size)) && size > 0) {
      offsets_.resize(size);
      failed(api_->KernelInfoGetAttributeArray_int64(info, "offsets", offsets_.data(), &size));
    }
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    const OrtValue *y = nullptr, *x = nullptr, *a = nullptr, *b = nullptr, *reach = nullptr;
    Shape of_y, of_x, of_a, of_b, of_reach;
    if (auto status = api_->KernelContext_GetInput(context, 0, &y)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 2, &a)) return status;
    if (auto status = shape(y, of_y)) return status;
    if (auto status = shape(a, of_a)) return status;
    if (of_y.rank < 1 || of_a.rank != 3) return wrong("y has shape " + of_y.text() + " and A " + of_a.text());
    OrtValue* result = nullptr;
    if (auto status = api_->KernelContext_GetOutput(context, 0, of_y.dims, of_y.rank, &result)) return status;
    Problem problem;
    void* data = nullptr;
    if (auto status = api_->GetTensorMutableData(result, &data)) return status;
    problem.result = static_cast<float*>(data);
    if (auto status = pointer(y, problem.y)) return status;
    const std::size_t rows = of_y.rows(), out = of_y.last();
    if (of_a.dims[2] == 0 || rows == 0) {  // the base
      if (problem.result != problem.y) std::memcpy(problem.result, problem.y, rows * out * sizeof(float));
      return nullptr;
    }
    if (auto status = api_->KernelContext_GetInput(context, 1, &x)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 3, &b)) return status;
    if (auto status = shape(x, of_x)) return status;
    if (auto status = shape(b, of_b)) return status;
    const int64_t adapters = of_a.dims[0], rank = of_a.dims[2];
    problem.half = of_a.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if (of_a.type != of_b.type || (of_a.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && !problem.half))
      return wrong("A and B must both be float32, or both float16");
    if (of_x.rank < 2 || of_x.rows() != static_cast<int64_t>(rows) || of_x.last() != of_a.dims[1] || of_b.rank != 3 ||
        of_b.dims[0] != adapters || of_b.dims[1] != rank || of_b.dims[2] != static_cast<int64_t>(out) ||
        (adapters != 1 && adapters != of_x.dims[0]))
      return wrong("the shapes do not fit: y " + of_y.text() + ", x " + of_x.text() + ", A " + of_a.text() + ", B " + of_b.text() +
                   "; A is [adapters, in, rank], B [adapters, rank, out], and adapters 1 or the batch");
    std::size_t inputs = 0;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (inputs > 4) {
      if (auto status = api_->KernelContext_GetInput(context, 4, &reach)) return status;
    }
    if (reach != nullptr) {
      if (auto status = shape(reach, of_reach)) return status;
      if (of_reach.rows() * of_reach.last() == 0) {
        reach = nullptr;  // the default: nothing is known of zeros
      } else if (of_reach.rank != 2 || of_reach.dims[0] != adapters || of_reach.dims[1] != rank ||
                 of_reach.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
        return wrong("reach is " + of_reach.text() + "; it is int32 [adapters, rank], here [" + std::to_string(adapters) + ", " +
                     std::to_string(rank) + "]");
      }
    }
    if (!offsets_.empty() && offsets_.back() > static_cast<int64_t>(out)) return wrong("a part begins beyond the output");
    const float* from = nullptr;
    if (auto status = pointer(x, from)) return status;
    problem.x = from;
    if (auto status = pointer(a, problem.a)) return status;
    if (auto status = pointer(b, problem.b)) return status;
    if (reach != nullptr) {
      if (auto status = pointer(reach, problem.reach)) return status;
    }
    problem.rows = rows / adapters;
    problem.in = of_a.dims[1], problem.rank = rank, problem.out = out;
    problem.offsets = offsets_.data();
    problem.parts = offsets_.empty() ? 1 : offsets_.size();
    return spread(context, problem, adapters);
  }

 private:
  // What each thread is given: tiles of rows, of one adapter each.
  struct Work {
    const Problem& whole;
    Function run;
    std::size_t tiles, rows;
    bool failed = false;
  };

  static void tile(void* user, std::size_t number) {
    auto& work = *static_cast<Work*>(user);
    try {
      static thread_local std::vector<float> scratch;
      static thread_local std::vector<uint32_t> order;
      Problem mine = work.whole;
      const std::size_t adapter = number / work.tiles, first = number % work.tiles * work.rows;
      const std::size_t row = adapter * mine.rows + first, size = mine.half ? 2 : 4;
      mine.x += row * mine.in, mine.y += row * mine.out, mine.result += row * mine.out;
      mine.a = static_cast<const char*>(mine.a) + adapter * mine.in * mine.rank * size;
      mine.b = static_cast<const char*>(mine.b) + adapter * mine.rank * mine.out * size;
      if (mine.reach != nullptr) mine.reach += adapter * mine.rank;
      mine.rows = mine.rows - first < work.rows ? mine.rows - first : work.rows;
      if (scratch.size() < mine.rows * mine.rank) scratch.resize(mine.rows * mine.rank);
      if (order.size() < mine.rank) order.resize(mine.rank);
      mine.scratch = scratch.data(), mine.order = order.data();
      work.run(mine);
    } catch (const std::bad_alloc&) {
      __atomic_store_n(&work.failed, true, __ATOMIC_RELAXED);
    }
  }

  OrtStatusPtr spread(OrtKernelContext* context, const Problem& problem, std::size_t adapters) const {
    const std::size_t tiles = (problem.rows + kTile - 1) / kTile;
    Work work{problem, run_, tiles, kTile};
    const std::size_t products = problem.rows * adapters * problem.rank * (problem.in + problem.out);
    if (tiles * adapters == 1 || products < kAlone) {
      for (std::size_t i = 0; i < tiles * adapters; ++i) tile(&work, i);
    } else if (auto status = api_->KernelContext_ParallelFor(context, tile, tiles * adapters, 0, &work)) {
      return status;
    }
    return work.failed ? api_->CreateStatus(ORT_FAIL, "LowRankAdd: out of memory") : nullptr;
  }

  bool failed(OrtStatusPtr status) const {
    if (status == nullptr) return false;
    api_->ReleaseStatus(status);
    return true;
  }

  OrtStatusPtr wrong(const std::string& what) const {
    return api_->CreateStatus(ORT_INVALID_ARGUMENT, ("LowRankAdd " + name_ + ": " + what).c_str());
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

  const OrtApi* api_;
  Function run_;
  std::string name_;
  std::vector<int64_t> offsets_;
};

OrtCustomOp low_rank_add() {
  OrtCustomOp op{};
  op.version = kApi;
  op.GetName = [](const OrtCustomOp*) { return "LowRankAdd"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 5; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t index) {
    return index < 2 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
           : index < 4 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED  // float32 or float16
                       : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t index) { return index < 4 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL; };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return kVersion; };
  op.GetEndVersion = [](const OrtCustomOp*) { return kVersion; };
  op.GetMayInplace = [](int** input, int** output) -> std::size_t {
    static int first = 0;
    *input = *output = &first;
    return 1;
  };
  op.ReleaseMayInplace = [](int*, int*) {};
  // Only where the result is known to have y's shape does ONNX Runtime let it take y's memory.
  op.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatusPtr {
    OrtTensorTypeAndShapeInfo* of_y = nullptr;
    if (auto status = c_api->ShapeInferContext_GetInputTypeShape(context, 0, &of_y)) return status;
    return c_api->ShapeInferContext_SetOutputTypeShape(context, 0, of_y);
  };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) -> OrtStatusPtr {
    try {
      *kernel = new Kernel(api, info);
      return nullptr;
    } catch (const std::exception& error) {
      return api->CreateStatus(ORT_FAIL, error.what());
    }
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    return static_cast<Kernel*>(kernel)->compute(context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

// What ONNX Runtime calls when the library is registered with session options.
EDGEPEFT_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kApi);
  if (api == nullptr) {
    const OrtApi* oldest = base->GetApi(1);
    const std::string found = base->GetVersionString();
    return oldest->CreateStatus(ORT_NOT_IMPLEMENTED, ("edgepeft's kernels need ONNX Runtime 1.21 or newer, this is " + found).c_str());
  }
  static const OrtCustomOp op = low_rank_add();
  // One domain for all sessions of the process, which ends with it: sessions do not own it.
  static OrtCustomOpDomain* domain = nullptr;
  static std::mutex making;
  std::lock_guard<std::mutex> lock(making);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (auto status = api->CreateCustomOpDomain(kDomain, &made)) return status;
    if (auto status = api->CustomOpDomain_Add(made, &op)) return status;
    domain = made;
    c_api = api;
    if (const OrtApi* later = base->GetApi(kLookApi))
      std::memcpy(&look_at_shape, reinterpret_cast<const char*>(later) + kLookPlace * sizeof(void*), sizeof(look_at_shape));
  }
  return api->AddCustomOpDomain(options, domain);
}

// The version of the operators' inputs and attributes; a graph made for another one does not fit.
EDGEPEFT_EXPORT int edgepeft_kernels_abi() { return kVersion; }

// What was chosen for this processor: avx512, avx2 or portable.
EDGEPEFT_EXPORT const char* edgepeft_kernels_isa() { return edgepeft::kernels::chosen().name; }
