// Classifies tokenized texts with one adapter after the other, over one base that is loaded once.
//
//   classify bundle/onnx/model.onnx reviews=bundle/adapters/reviews.onnx_adapter movies=… < ids.txt
//
// A line of standard input is a text as token ids with spaces between; an app tokenizes with the bundle's tokenizer.json. Written are
// the adapter, the text's number, and the scores of its labels, whose names stand in edgepeft.json. Check files with
// edgepeft_verify.hpp before they are opened where they came over a network.
#include <algorithm>
#include <iostream>
#include <sstream>

#include "edgepeft.hpp"
#include "edgepeft_heads.hpp"

namespace {

std::vector<std::vector<int64_t>> read_texts(std::istream& input) {
  std::vector<std::vector<int64_t>> texts;
  for (std::string line; std::getline(input, line);) {
    std::istringstream numbers(line);
    std::vector<int64_t> ids;
    for (int64_t id; numbers >> id;) ids.push_back(id);
    if (!numbers.eof()) throw std::runtime_error("line " + std::to_string(texts.size() + 1) + " holds something that is no token id");
    if (!ids.empty()) texts.push_back(std::move(ids));
  }
  if (texts.empty()) throw std::runtime_error("no text on standard input");
  return texts;
}

// All texts in one run, padded on the right; the mask hides the padding.
std::map<std::string, std::vector<int64_t>> padded(const std::vector<std::vector<int64_t>>& texts, size_t tokens) {
  std::map<std::string, std::vector<int64_t>> inputs;
  for (const auto& ids : texts)
    for (size_t place = 0; place < tokens; ++place) {
      const bool there = place < ids.size();
      inputs["input_ids"].push_back(there ? ids[place] : 0);
      inputs["attention_mask"].push_back(there);
      inputs["token_type_ids"].push_back(0);
    }
  return inputs;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 3) {
    std::cerr << "usage: classify GRAPH NAME=ADAPTER… < ids.txt\n";
    return 2;
  }
  const auto texts = read_texts(std::cin);
  size_t tokens = 0;
  for (const auto& ids : texts) tokens = std::max(tokens, ids.size());
  const auto inputs = padded(texts, tokens);

  edgepeft::Model model(arguments[1], /*threads=*/2);
  std::cout.precision(6);
  for (int i = 2; i < count; ++i) {
    const std::string argument = arguments[i];
    const auto name = argument.substr(0, argument.find('='));
    model.load(name, argument.substr(std::min(name.size() + 1, argument.size())));
    model.use(name);
    const auto logits = model.run(inputs, static_cast<int64_t>(texts.size()), static_cast<int64_t>(tokens));
    const auto kind = edgepeft::problem_type("", logits.labels);
    for (int64_t row = 0; row < logits.rows; ++row) {
      const auto begin = logits.values.begin() + row * logits.labels;
      std::cout << name << '\t' << row;
      for (double score : edgepeft::scores({begin, begin + logits.labels}, edgepeft::activation("", kind))) std::cout << '\t' << score;
      std::cout << '\n';
    }
    model.use("");  // the base; the adapter is unused now
    model.unload(name);
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
