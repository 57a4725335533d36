// edgepeft's custom operators, as ONNX Runtime registers them: LowRankAdd (low_rank_add.hpp) and AdapterAdd (adapter_add.hpp).
#include <exception>
#include <mutex>
#include <string>

#include "adapter_add.hpp"
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

// y is the first input of both, and the result has its shape.
template <typename Op>
OrtCustomOp custom_op() {
  OrtCustomOp op{};
  op.version = kApi;
  op.GetName = [](const OrtCustomOp*) { return Op::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return Op::kInputs; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t index) { return Op::kTypes[index]; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t index) {
    return index < Op::kRequired ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
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
  static const OrtCustomOp with_inputs = custom_op<LowRankAdd>(), in_one_piece = custom_op<AdapterAdd>();
  // One domain for all sessions of the process, which ends with it: sessions do not own it.
  static OrtCustomOpDomain* domain = nullptr;
  static std::mutex making;
  std::lock_guard<std::mutex> lock(making);
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    if (auto status = api->CreateCustomOpDomain(kDomain, &made)) return status;
    for (const OrtCustomOp* op : {&with_inputs, &in_one_piece})
      if (auto status = api->CustomOpDomain_Add(made, op)) return status;
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
EDGEPEFT_EXPORT const char* edgepeft_kernels_isa() { return chosen().name; }

}  // namespace edgepeft::kernels
