// Runs a job from standard input: the base, swaps through adapters, and the base again. See edgepeft/devices/executors/cpp.py for the
// format; the same program serves a PC, a board and, built with the NDK, an Android phone.
//
//   g++ -std=c++17 -O2 edgepeft_run.cpp -I<onnxruntime>/include -L<onnxruntime>/lib -lonnxruntime -o edgepeft_run

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <optional>

#include "edgepeft_generate.hpp"

namespace {

struct Batch {
  std::string adapter;  // "" is the base
  int64_t rows = 0, tokens = 0;
  std::map<std::string, std::vector<int64_t>> inputs;
};

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Peak resident set in MB; 0 where there is no /proc.
double peak_rss_mb() {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) return 0;
  char line[256];
  double kib = 0;
  while (std::fgets(line, sizeof line, file) != nullptr)
    if (std::sscanf(line, "VmHWM: %lf", &kib) == 1) break;
  std::fclose(file);
  return kib * 1024 / 1e6;
}

std::string word() {
  std::string text;
  if (!(std::cin >> text)) throw std::runtime_error("the job ends too early");
  return text;
}

int64_t number() { return std::stoll(word()); }

// Base names are written "-": a word cannot be empty.
std::string name() {
  auto text = word();
  return text == "-" ? "" : text;
}

Batch read_batch() {
  Batch batch;
  batch.adapter = name();
  batch.rows = number();
  batch.tokens = number();
  for (auto count = number(); count > 0; --count) {
    auto& values = batch.inputs[word()];
    values.resize(batch.rows * batch.tokens);
    for (auto& value : values) value = number();
  }
  return batch;
}

struct Prompt {
  std::string adapter;
  int64_t max_new_tokens = 0;
  std::set<int64_t> stops;
  std::vector<int64_t> ids;
};

Prompt read_prompt() {
  Prompt prompt;
  prompt.adapter = name();
  prompt.max_new_tokens = number();
  for (auto count = number(); count > 0; --count) prompt.stops.insert(number());
  for (auto count = number(); count > 0; --count) prompt.ids.push_back(number());
  return prompt;
}

// What `probe` gives with each adapter and then with the base; the base's logits alone may all be zero (an untrained head).
std::map<std::string, std::vector<float>> every_adapter(edgepeft::Model& model, const std::vector<std::string>& adapters,
                                                        const std::function<std::vector<float>()>& probe) {
  std::map<std::string, std::vector<float>> found;
  for (const auto& adapter : adapters) {
    model.use(adapter);
    found[adapter] = probe();
  }
  model.use("");
  found[""] = probe();
  return found;
}

void answer(edgepeft::Model& model, edgepeft::Generator& generator, const Prompt& prompt) {
  model.use(prompt.adapter);
  std::vector<double> at = {now_ms()};
  std::vector<int64_t> tokens;
  try {
    tokens = generator.generate(prompt.ids, prompt.max_new_tokens, prompt.stops, [&at](int64_t) { at.push_back(now_ms()); });
  } catch (const edgepeft::NonFinite&) {
    // An answer of no tokens says so: it is a finding about the model, and the other prompts are answered.
    at.push_back(now_ms());
  }
  const double prefill_ms = at[1] - at[0], seconds = (at.back() - at[1]) / 1e3;
  std::printf("tokens %s %.3f %.3f", prompt.adapter.empty() ? "-" : prompt.adapter.c_str(), prefill_ms,
              tokens.size() > 1 && seconds > 0 ? (tokens.size() - 1) / seconds : 0.0);
  for (auto token : tokens) std::printf(" %lld", static_cast<long long>(token));
  std::printf("\n");
}

int run() {
  if (word() != "edgepeft-job" || number() != 1) throw std::runtime_error("not a job of version 1");
  std::optional<edgepeft::Model> model;
  std::vector<std::string> adapters;
  std::string graph;
  int threads = 1;
  bool restore = false;
  int64_t swaps = 0;
  std::map<std::string, std::vector<float>> before;
  std::optional<edgepeft::Generator> generator;
  std::function<std::vector<float>()> probe;  // the first thing asked, as logits
  std::printf("onnxruntime %s\n", OrtGetApiBase()->GetVersionString());
  for (std::string key; std::cin >> key;) {
    if (key == "threads") {
      threads = static_cast<int>(number());
    } else if (key == "restore") {
      restore = number() != 0;
    } else if (key == "swaps") {
      swaps = number();
    } else if (key == "graph") {
      graph = word();
      auto start = now_ms();
      model.emplace(graph, threads);
      std::printf("load_ms %.3f\n", now_ms() - start);
    } else if (key == "adapter") {
      adapters.push_back(word());
      model.value().load(adapters.back(), word());
    } else if (key == "states") {
      adapters.push_back(word());
      model.value().load_states(adapters.back(), word());
    } else if (key == "prompt") {
      auto prompt = read_prompt();
      if (!generator) generator.emplace(model.value());
      if (!probe) {
        probe = [&generator, ids = prompt.ids] { return generator->begin(ids, 0); };
        if (restore) before = every_adapter(*model, adapters, probe);
      }
      answer(*model, *generator, prompt);
    } else if (key == "batch") {
      auto batch = read_batch();
      if (!probe) {
        probe = [&model, batch] { return model.value().run(batch.inputs, batch.rows, batch.tokens).values; };
        if (restore) before = every_adapter(model.value(), adapters, probe);
      }
      model->use(batch.adapter);
      auto logits = model->run(batch.inputs, batch.rows, batch.tokens);
      std::printf("logits %s %lld %lld", batch.adapter.empty() ? "-" : batch.adapter.c_str(),
                  static_cast<long long>(logits.rows), static_cast<long long>(logits.labels));
      for (float value : logits.values) std::printf(" %.9g", value);  // nine digits name a float exactly
      std::printf("\n");
    } else {
      throw std::runtime_error("unknown key '" + key + "' in the job");
    }
  }
  if (!model) throw std::runtime_error("the job names no graph");
  if (swaps > 0 && !adapters.empty()) {
    std::printf("swap_ms");
    for (int64_t i = 0; i < swaps; ++i) {
      auto start = now_ms();
      model->use(adapters[i % adapters.size()]);
      std::printf(" %.6f", now_ms() - start);
    }
    std::printf("\n");
  }
  if (restore && probe) {
    std::reverse(adapters.begin(), adapters.end());
    auto after = every_adapter(*model, adapters, probe);
    bool same = after.size() == before.size();
    for (const auto& [name, values] : before)
      same = same && after[name].size() == values.size() &&
             std::memcmp(after[name].data(), values.data(), values.size() * sizeof(float)) == 0;
    std::printf("base_restored %d\n", same ? 1 : 0);
  }
  std::printf("peak_rss_mb %.3f\nend\n", peak_rss_mb());
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {  // Ort::Exception is one
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
