// What the logits of a head mean: `labels`, `problem_type` and `activation` of an adapter's entry in edgepeft.json, else those of
// the manifest itself (read with the app's JSON library). The same scores as the Python and browser runtimes give.
//
//   auto kind = edgepeft::problem_type("multi_label_classification", logits.labels);
//   auto scores = edgepeft::scores(row, edgepeft::activation("", kind));      // "" where the manifest says null
//   for (size_t i : edgepeft::chosen(scores, kind)) std::cout << labels[i];
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgepeft {

enum class ProblemType { single_label, multi_label, regression };
enum class Activation { softmax, sigmoid, identity };

// The problem type of `width` logits; "" is null: one label of several, or one number.
inline ProblemType problem_type(const std::string& said, size_t width) {
  if (said == "multi_label_classification") return ProblemType::multi_label;
  if (said == "regression") return ProblemType::regression;
  if (!said.empty() && said != "single_label_classification") throw std::invalid_argument("unknown problem type '" + said + "'");
  return width > 1 ? ProblemType::single_label : ProblemType::regression;
}

// What makes scores of logits; "" is null: what is usual for the problem type.
inline Activation activation(const std::string& said, ProblemType type) {
  if (said == "softmax") return Activation::softmax;
  if (said == "sigmoid") return Activation::sigmoid;
  if (said == "identity") return Activation::identity;
  if (!said.empty()) throw std::invalid_argument("unknown activation '" + said + "'");
  switch (type) {
    case ProblemType::single_label: return Activation::softmax;
    case ProblemType::multi_label: return Activation::sigmoid;
    default: return Activation::identity;
  }
}

// The scores of one row of logits.
inline std::vector<double> scores(const std::vector<float>& logits, Activation function) {
  std::vector<double> found(logits.begin(), logits.end());
  if (function == Activation::sigmoid) {
    for (double& x : found) x = x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
  } else if (function == Activation::softmax && !found.empty()) {
    const double top = *std::max_element(found.begin(), found.end());
    for (double& x : found) x = std::exp(x - top);
    const double sum = std::accumulate(found.begin(), found.end(), 0.0);
    for (double& x : found) x /= sum;
  }
  return found;
}

// Positions of the labels that are chosen: the best one, or of several labels those above the threshold, likeliest first. None
// of a head of numbers, whose scores are the result.
inline std::vector<size_t> chosen(const std::vector<double>& scores, ProblemType type, double threshold = 0.5) {
  if (type == ProblemType::regression || scores.empty()) return {};
  if (type == ProblemType::single_label) return {static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin())};
  std::vector<size_t> found;
  for (size_t i = 0; i < scores.size(); ++i)
    if (scores[i] > threshold) found.push_back(i);
  std::stable_sort(found.begin(), found.end(), [&scores](size_t a, size_t b) { return scores[a] > scores[b]; });
  return found;
}

}  // namespace edgepeft
