// edgepeft's custom operators, as ONNX Runtime registers them: LowRankAdd, AdapterAdd, AdapterAddEach, AdapterSiluMul, AdapterSkipNorm
// and BlockMatMul, each in the header of its name.
#include <exception>
#include <mutex>
#include <string>

#include "adapter_add.hpp"
#include "adapter_add_each.hpp"
#include "adapter_silu_mul.hpp"
#include "adapter_skip_norm.hpp"
#include "block_matmul_node.hpp"
#include "low_rank_add.hpp"
#include "ort.hpp"

#if defined(_WIN32)
#define EDGEPEFT_EXPORT extern "C" __declspec(dllexport)
#else
#define EDGEPEFT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace edgepeft::kernels {

const OrtApi* c_api = nullptr;
LookAtShape look_at_shape = nullptr;

namespace {

constexpr const char* kDomain = "edgepeft";

// Inputs and the outputs that may take their memory.
template <typename Op>
struct Shared {
  int from[Op::kShared + 1], to[Op::kShared + 1];  // there are no arrays of none
  Shared() {
    for (std::size_t i = 0; i < Op::kShared; ++i) from[i] = Op::kFrom[i], to[i] = Op::kTo[i];
  }
};

// The shapes of the outputs: the operator's own rule where it has one, else each is an input's.
template <typename Op>
auto infer(OrtShapeInferContext* context, int) -> decltype(Op::infer(context)) {
  return Op::infer(context);
}

template <typename Op>
OrtStatusPtr infer(OrtShapeInferContext* context, long) {
  std::size_t inputs = 0;
  if (auto status = c_api->ShapeInferContext_GetInputCount(context, &inputs)) return status;
  for (std::size_t i = 0; i < Op::outputs(inputs); ++i) {
    OrtTensorTypeAndShapeInfo* of_y = nullptr;
    if (auto status = c_api->ShapeInferContext_GetInputTypeShape(context, Op::y_of(i), &of_y)) return status;
    if (auto status = c_api->ShapeInferContext_SetOutputTypeShape(context, i, of_y)) return status;
  }
  return nullptr;
}

// An operator says what its inputs are, whether the last input and the output are any number, which outputs may take an input's
// memory (kFrom, kTo), and which input has an output's shape (y_of).
template <typename Op>
OrtCustomOp custom_op() {
  OrtCustomOp op{};
  op.version = kApi;
  op.GetName = [](const OrtCustomOp*) { return Op::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Op::kInputs; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t index) { return Op::kTypes[index]; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t index) {
    return index < Op::kRequired ? INPUT_OUTPUT_REQUIRED : Op::kVariadic ? INPUT_OUTPUT_VARIADIC : INPUT_OUTPUT_OPTIONAL;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return Op::kOutputs; };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) {
    return Op::kVariadic ? INPUT_OUTPUT_VARIADIC : INPUT_OUTPUT_REQUIRED;
  };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return Op::kVariadic ? 1 : 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return Op::kVariadic ? 1 : 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return Op::kVariadic ? 1 : 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return Op::kVariadic ? 1 : 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return kVersion; };
  op.GetMayInplace = [](int** input, int** output) -> std::size_t {
    static Shared<Op> shared;  // the C API takes what may be written to, and nobody does
    *input = shared.from, *output = shared.to;
    return Op::kShared;
  };
  op.ReleaseMayInplace = [](int*, int*) {};
  // Only where the result is known to have y's shape does ONNX Runtime let it take y's memory.
  op.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) { return infer<Op>(context, 0); };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) -> OrtStatusPtr {
    try {
      *kernel = new Op(api, info);
      return nullptr;
    } catch (const std::exception& error) {
      return api->CreateStatus(ORT_FAIL, error.what());
    }
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    try {
      return static_cast<Op*>(kernel)->compute(context);
    } catch (const std::exception& error) {  // lists that grow
      return c_api->CreateStatus(ORT_FAIL, error.what());
    }
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
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
  static const OrtCustomOp ops[] = {custom_op<LowRankAdd>(), custom_op<AdapterAdd>(), custom_op<AdapterAddEach>(),
                                    custom_op<AdapterSiluMul>(), custom_op<AdapterSkipNorm>(), custom_op<BlockMatMulNode>()};
  // One domain for all sessions of the process, which ends with it: sessions do not own it.
  static OrtCustomOpDomain* domain = nullptr;
  static std::mutex making;
  std::lock_guard<std::mutex> lock(making);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (auto status = api->CreateCustomOpDomain(kDomain, &made)) return status;
    for (const OrtCustomOp& op : ops)
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

// What BlockMatMul runs with, avx512vnni; empty where it does not run.
EDGEPEFT_EXPORT const char* edgepeft_kernels_matmul() { return block_matmul() == nullptr ? "" : block_matmul()->name; }

// What was chosen for this processor: avx512, avx2 or portable.
EDGEPEFT_EXPORT const char* edgepeft_kernels_isa() { return chosen().name; }

}  // namespace edgepeft::kernels
