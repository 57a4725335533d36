// Embeddings of texts: a bundle's base, and the small graph that pools what it gives (`embedding.graph` in edgepeft.json; an
// adapter's own under `adapters.<name>.embedding.graph`, where it has one).
//
//   edgepeft::Model model("bundle/onnx/model.onnx");
//   edgepeft::Embedder embedder(model, "bundle/embedding/model.onnx");
//   auto vectors = embedder.embed({{"input_ids", ids}, {"attention_mask", mask}}, rows, tokens);
//
// The app tokenizes: `prompts` and `default_prompt` in edgepeft.json say what stands before a text, `max_length` how long it may be.
#pragma once

#include <algorithm>
#include <cmath>

#include "edgepeft.hpp"

namespace edgepeft {

struct Embeddings {
  std::vector<float> values;  // [rows, dimension], row by row
  int64_t rows = 0, dimension = 0;
};

class Embedder {
 public:
  // `model` must outlive it; embeddings are those of the adapter that the model uses when `embed` is called.
  Embedder(Model& model, const std::string& graph) : model_(model), env_(quiet_environment()) {
    pooling_ = Ort::Session(env_, graph.c_str(), Ort::SessionOptions{});
    skips_prompt_ = pooling_.GetInputCount() == 3;
  }

  // Each input is int64 [rows, tokens], row by row, `attention_mask` among them. `prompt_length` is how many tokens at the begin of
  // every row are the prompt, for graphs that do not pool it (`include_prompt` is false). `dimension` keeps so many numbers of each
  // vector (0: all); `normalize` brings what is kept to length 1.
  Embeddings embed(const std::map<std::string, std::vector<int64_t>>& inputs, int64_t rows, int64_t tokens, int64_t prompt_length = 0,
                   int64_t dimension = 0, bool normalize = false) {
    if (model_.states() != nullptr) throw std::logic_error("this adapter puts states before a sequence: it embeds no texts");
    if (inputs.count("attention_mask") == 0) throw std::invalid_argument("embeddings need an attention_mask");
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t shape[] = {rows, tokens};
    auto tensor = [&](const std::string& name, const std::vector<int64_t>& data) {
      if (static_cast<int64_t>(data.size()) != rows * tokens)
        throw std::invalid_argument(name + " holds " + std::to_string(data.size()) + " numbers, not rows x tokens");
      return Ort::Value::CreateTensor<int64_t>(memory, const_cast<int64_t*>(data.data()), data.size(), shape, 2);
    };
    std::vector<const char*> names;
    std::vector<Ort::Value> values;
    for (const auto& [name, data] : inputs) {
      names.push_back(name.c_str());
      values.push_back(tensor(name, data));
    }
    const char* hidden[] = {"last_hidden_state"};
    auto states = model_.session().Run(model_.run_options(), names.data(), values.data(), values.size(), hidden, 1);

    std::vector<const char*> fed = {"last_hidden_state", "attention_mask"};
    std::vector<Ort::Value> given;
    given.push_back(std::move(states[0]));
    given.push_back(tensor("attention_mask", inputs.at("attention_mask")));
    const int64_t one[] = {1};
    if (skips_prompt_) {
      fed.push_back("prompt_length");
      given.push_back(Ort::Value::CreateTensor<int64_t>(memory, &prompt_length, 1, one, 1));
    }
    const char* outputs[] = {"sentence_embedding"};
    auto pooled = pooling_.Run(Ort::RunOptions{}, fed.data(), given.data(), given.size(), outputs, 1);
    const int64_t size = pooled[0].GetTensorTypeAndShapeInfo().GetShape()[1];
    if (dimension < 0 || dimension > size)
      throw std::invalid_argument("dimension must be 0 to " + std::to_string(size) + ", found " + std::to_string(dimension));
    const int64_t kept = dimension == 0 ? size : dimension;
    const float* data = pooled[0].GetTensorData<float>();
    Embeddings found{{}, rows, kept};
    for (int64_t row = 0; row < rows; ++row) {
      const float* begin = data + row * size;
      double squares = 0;
      for (int64_t i = 0; i < kept; ++i) squares += static_cast<double>(begin[i]) * begin[i];
      const double length = normalize ? std::max(std::sqrt(squares), 1e-12) : 1;
      for (int64_t i = 0; i < kept; ++i) found.values.push_back(static_cast<float>(begin[i] / length));
    }
    return found;
  }

 private:
  Model& model_;
  Ort::Env env_;
  Ort::Session pooling_{nullptr};
  bool skips_prompt_ = false;
};

}  // namespace edgepeft
