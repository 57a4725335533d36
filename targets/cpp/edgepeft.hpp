// A bundle's base and its adapters through ONNX Runtime's C++ API, in one header. Needs ONNX Runtime 1.20 or newer.
//
//   edgepeft::Model model("bundle/onnx/model.onnx");
//   model.load("reviews", "bundle/adapters/reviews.onnx_adapter");
//   model.use("reviews");                                   // or "" for the base
//   auto logits = model.run({{"input_ids", ids}, {"attention_mask", mask}}, rows, tokens);
//   model.use("");
//   model.unload("reviews");                                // its memory is free again
//
// Language models generate with edgepeft_generate.hpp. Hashes are checked by `edgepeft inspect` or the Python runtime; check
// them before shipping, ONNX Runtime does not.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgepeft {

struct Logits {
  std::vector<float> values;  // [rows, labels], row by row; of a task with numbers for each token [rows, tokens, labels]
  int64_t rows = 0, labels = 0, tokens = 1;
};

using Tensors = std::map<std::string, Ort::Value>;

// An environment that reports nothing. From 1.29 on ONNX Runtime sends usage to its makers, unless ORT_DISABLE_TELEMETRY is set
// when the process makes its first environment. A value that the app has set stays. On Windows the system collects the events,
// and the call is what stops them.
inline Ort::Env quiet_environment() {
#ifdef _WIN32
  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "edgepeft");
  if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) environment.DisableTelemetryEvents();
  return environment;
#else
  setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0);
  return Ort::Env(ORT_LOGGING_LEVEL_ERROR, "edgepeft");
#endif
}

class Model {
 public:
  explicit Model(const std::string& graph, int threads = 1) : env_(quiet_environment()) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    session_ = Ort::Session(env_, graph.c_str(), options);
  }

  // Maps an adapter file into memory. ONNX Runtime refers to it while it is active: the model keeps it alive, and the name in use
  // cannot be loaded again.
  void load(const std::string& name, const std::string& file) {
    check_idle(name, "load");
    auto loaded = Ort::LoraAdapter::CreateLoraAdapter(file, nullptr);
    states_.erase(name);
    adapters_.insert_or_assign(name, std::move(loaded));
  }

  // An adapter from its other file, `adapters/<name>.onnx`, a graph without inputs whose outputs are its tensors in float32. That is
  // how two kinds are loaded: those that put states before the sequence (prefix tuning and its kin, `prefix_length` in
  // edgepeft.json), and those stored in float16 or 8 bits (`form` is not "fp32"), which the graph expands.
  void load_states(const std::string& name, const std::string& graph) {
    check_idle(name, "load");
    Ort::Session session(env_, graph.c_str(), Ort::SessionOptions{});
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> names;
    for (size_t i = 0; i < session.GetOutputCount(); ++i) names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
    std::vector<const char*> pointers;
    for (const auto& each : names) pointers.push_back(each.c_str());
    auto values = session.Run(Ort::RunOptions{}, nullptr, nullptr, 0, pointers.data(), pointers.size());
    adapters_.erase(name);
    auto& states = states_[name];
    states.clear();
    for (size_t i = 0; i < names.size(); ++i) states.emplace(names[i], std::move(values[i]));
  }

  // Frees an adapter's memory. The one in use cannot be unloaded: use another, or the base, first.
  void unload(const std::string& name) {
    if (adapters_.count(name) + states_.count(name) == 0) throw std::invalid_argument("no adapter '" + name + "' was loaded");
    check_idle(name, "unload");
    adapters_.erase(name);
    states_.erase(name);
  }

  // Swaps to an adapter, or back to the base with "". One adapter at a time: of two that overlap the first would win silently.
  void use(const std::string& name) {
    Ort::RunOptions options;
    auto states = states_.find(name);
    if (states == states_.end() && !name.empty()) {
      auto found = adapters_.find(name);
      if (found == adapters_.end()) throw std::invalid_argument("no adapter '" + name + "' was loaded");
      options.AddActiveLoraAdapter(found->second);
    }
    run_options_ = std::move(options);
    active_states_ = states == states_.end() ? nullptr : &states->second;
    active_has_states_ = false;
    if (active_states_ != nullptr)
      for (const auto& each : *active_states_) active_has_states_ = active_has_states_ || is_state(each.first);
    active_ = name;
  }

  // Each input is int64 [rows, tokens], row by row. Over a base of several tasks `output` is the adapter's: `tasks.<task>.outputs`
  // in edgepeft.json, for example "token-classification.logits".
  Logits run(const std::map<std::string, std::vector<int64_t>>& inputs, int64_t rows, int64_t tokens,
             const std::string& output = "logits") {
    if (states() != nullptr) throw std::logic_error("this adapter puts states before a sequence: use a Generator");
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
    add_slots(names, values);
    const char* outputs[] = {output.c_str()};
    auto result = session_.Run(run_options_, names.data(), values.data(), values.size(), outputs, 1);
    auto found = result[0].GetTensorTypeAndShapeInfo().GetShape();
    const float* data = result[0].GetTensorData<float>();
    const int64_t middle = found.size() == 3 ? found[1] : 1, labels = found.back();
    return {{data, data + found[0] * middle * labels}, found[0], labels, middle};
  }

  // For what runs the graph otherwise, with the adapter in use: see edgepeft_generate.hpp.
  Ort::Session& session() { return session_; }
  const Ort::RunOptions& run_options() const { return run_options_; }
  // Keys and values before the sequence, by name; null without any.
  const Tensors* states() const { return active_has_states_ ? active_states_ : nullptr; }
  // Adds the slot tensors of an adapter that was loaded from its graph to what a run is fed: views, which the model keeps alive.
  void add_slots(std::vector<const char*>& names, std::vector<Ort::Value>& values) const {
    if (active_states_ == nullptr) return;
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    for (const auto& [name, value] : *active_states_) {
      if (is_state(name)) continue;
      auto info = value.GetTensorTypeAndShapeInfo();
      auto shape = info.GetShape();
      names.push_back(name.c_str());
      auto* data = const_cast<float*>(value.GetTensorData<float>());
      values.push_back(Ort::Value::CreateTensor<float>(memory, data, info.GetElementCount(), shape.data(), shape.size()));
    }
  }

 private:
  static bool is_state(const std::string& name) { return name.rfind("prefix.", 0) == 0; }

  // The run options refer to the adapter in use without keeping it alive.
  void check_idle(const std::string& name, const char* what) const {
    if (!name.empty() && name == active_)
      throw std::logic_error("adapter '" + name + "' is in use, so it cannot be " + what + "ed; use another, or the base with \"\", first");
  }

  Ort::Env env_;
  Ort::Session session_{nullptr};
  Ort::RunOptions run_options_;
  std::map<std::string, Ort::LoraAdapter> adapters_;
  std::map<std::string, Tensors> states_;
  const Tensors* active_states_ = nullptr;
  bool active_has_states_ = false;
  std::string active_;
};

}  // namespace edgepeft
