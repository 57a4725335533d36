// A bundle's base and its adapters through ONNX Runtime's C++ API, in one header. Needs ONNX Runtime 1.20 or newer.
//
//   edgepeft::Model model("bundle/onnx/model.onnx");
//   model.load("reviews", "bundle/adapters/reviews.onnx_adapter");
//   model.use("reviews");                                   // or "" for the base
//   auto logits = model.run({{"input_ids", ids}, {"attention_mask", mask}}, rows, tokens);
//
// Hashes are checked by `edgepeft inspect` or the Python runtime; check them before shipping, ONNX Runtime does not.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgepeft {

struct Logits {
  std::vector<float> values;  // [rows, labels], row by row
  int64_t rows = 0, labels = 0;
};

class Model {
 public:
  explicit Model(const std::string& graph, int threads = 1) : env_(ORT_LOGGING_LEVEL_ERROR, "edgepeft") {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    session_ = Ort::Session(env_, graph.c_str(), options);
  }

  // Maps an adapter file into memory. ONNX Runtime refers to it while it is active: the model keeps it alive.
  void load(const std::string& name, const std::string& file) {
    adapters_.insert_or_assign(name, Ort::LoraAdapter::CreateLoraAdapter(file, nullptr));
  }

  // Swaps to an adapter, or back to the base with "". One adapter at a time: of two that overlap the first would win silently.
  void use(const std::string& name) {
    Ort::RunOptions options;
    if (!name.empty()) {
      auto found = adapters_.find(name);
      if (found == adapters_.end()) throw std::invalid_argument("no adapter '" + name + "' was loaded");
      options.AddActiveLoraAdapter(found->second);
    }
    run_options_ = std::move(options);
  }

  // Each input is int64 [rows, tokens], row by row.
  Logits run(const std::map<std::string, std::vector<int64_t>>& inputs, int64_t rows, int64_t tokens) {
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t shape[] = {rows, tokens};
    std::vector<const char*> names;
    std::vector<Ort::Value> values;
    for (const auto& [name, data] : inputs) {
      if (static_cast<int64_t>(data.size()) != rows * tokens)
        throw std::invalid_argument(name + " holds " + std::to_string(data.size()) + " numbers, not rows x tokens");
      names.push_back(name.c_str());
      values.push_back(Ort::Value::CreateTensor<int64_t>(memory, const_cast<int64_t*>(data.data()), data.size(), shape, 2));
    }
    const char* outputs[] = {"logits"};
    auto result = session_.Run(run_options_, names.data(), values.data(), values.size(), outputs, 1);
    auto found = result[0].GetTensorTypeAndShapeInfo().GetShape();
    const float* data = result[0].GetTensorData<float>();
    return {{data, data + found[0] * found[1]}, found[0], found[1]};
  }

 private:
  Ort::Env env_;
  Ort::Session session_{nullptr};
  Ort::RunOptions run_options_;
  std::map<std::string, Ort::LoraAdapter> adapters_;
};

}  // namespace edgepeft
