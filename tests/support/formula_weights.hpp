// Weights and pictures that any program can make: functions of (tensor name, index), the same in tests/golden/backbones_reference.py; and what
// PyTorch computes from them in float64, from tests/data/backbones_formula.txt. Without doctest: benchmarks use it too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/plan.hpp>

namespace norma::test {

/// Numbers of [0, 1) with 24 bits: SplitMix64 started at FNV-1a of the name.
class FormulaNumbers {
 public:
  explicit FormulaNumbers(std::string_view name) {
    for (const char c : name) seed_ = (seed_ ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  [[nodiscard]] double operator()(std::int64_t index) const {
    std::uint64_t z = seed_ + (static_cast<std::uint64_t>(index) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ z >> 31) >> 40) * 0x1p-24;
  }

 private:
  std::uint64_t seed_ = 0xCBF29CE484222325u;
};

/// Factors on the norms' weights and on the biases.
struct FormulaGains {
  double norm = 1.0, bias = 1.0;
};

inline void fill_formula_weight(std::string_view name, std::span<const std::int64_t> shape, FormulaGains gains, std::span<float> out) {
  const FormulaNumbers u(name);
  std::int64_t fan_in = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
  double scale = 2.0 * std::sqrt(6.0 / static_cast<double>(fan_in)), shift = -0.5;
  if (name.ends_with("running_var")) {
    scale = 1.0, shift = 0.5;
  } else if (shape.size() == 1 && name.ends_with("weight")) {
    scale = 0.5 * gains.norm, shift = 0.5;
  } else if (shape.size() == 1 && name.ends_with("bias")) {
    scale = 0.25 * gains.bias, shift = -0.5;
  } else if (shape.size() == 1 || name == "cls_token" || name == "pos_embed") {
    scale = 0.25, shift = -0.5;
  }
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>((u(static_cast<std::int64_t>(i)) + shift) * scale);
}

/// A weight file in memory with the tensors that the plan needs.
inline Result<io::Weights> formula_weights(const nn::Plan& plan, FormulaGains gains = {}) {
  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t first, count;
  };
  std::vector<Entry> entries;
  std::int64_t floats = 0;
  for (const nn::Step& step : plan.steps()) {
    for (const nn::TensorSpec& tensor : nn::NodeTensors(plan.graph()[step.node], step.in, step.out)) {
      const auto same = [&](const Entry& entry) { return entry.name == tensor.name(); };
      if (std::any_of(entries.begin(), entries.end(), same)) continue;  // two layers may share their weights
      entries.push_back({tensor.name(), {tensor.shape().begin(), tensor.shape().end()}, floats, tensor.count()});
      floats += tensor.count();
    }
  }
  // Written in place: the largest network has half a gigabyte of weights, and a second copy is one too many.
  std::string header = "{";
  for (const Entry& entry : entries) {
    header += (header.size() > 1 ? ",\"" : "\"") + entry.name + "\":{\"dtype\":\"F32\",\"shape\":[";
    for (std::size_t i = 0; i < entry.shape.size(); ++i) header += (i == 0 ? "" : ",") + std::to_string(entry.shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(4 * entry.first) + "," + std::to_string(4 * (entry.first + entry.count)) + "]}";
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = header.size();
  std::vector<std::byte> bytes(8 + header.size() + 4 * static_cast<std::size_t>(floats));
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  auto* payload = reinterpret_cast<float*>(bytes.data() + 8 + header.size());
  for (const Entry& entry : entries) {
    fill_formula_weight(entry.name, entry.shape, gains, {payload + entry.first, static_cast<std::size_t>(entry.count)});
  }
  return io::Weights::from_bytes(std::move(bytes), "formula weights");
}

inline Tensor<float> formula_input(std::int64_t height, std::int64_t width) {
  Tensor<float> input(1, height, width, 3);
  const FormulaNumbers u("input");
  for (std::int64_t i = 0; i < input.shape().count(); ++i) input.data()[i] = static_cast<float>(4.0 * u(i) - 2.0);
  return input;
}

/// What PyTorch computes for one output: its norm, its projections on signs, some of its values.
struct FormulaTap {
  static constexpr int kProjections = 4, kSamples = 4;
  std::string name;
  Shape shape;
  double norm = 0;
  double projections[kProjections] = {};
  double samples[kSamples] = {};

  [[nodiscard]] static std::int64_t sample_index(int k, std::int64_t count) { return (k * std::int64_t{2654435761} + 12345) % count; }
};
struct FormulaNetwork {
  std::string name;
  std::int64_t height = 0, width = 0;
  FormulaGains gains;
  std::vector<FormulaTap> taps;

  [[nodiscard]] const FormulaTap* find(std::string_view tap) const {
    for (const FormulaTap& candidate : taps) {
      if (candidate.name == tap) return &candidate;
    }
    return nullptr;
  }
};

/// All networks of a file of tests/data; none where it is missing or cannot be read.
inline std::vector<FormulaNetwork> read_formula_networks(const std::string& name = "backbones_formula.txt") {
  std::ifstream file(NORMA_SOURCE_DIR "/tests/data/" + name);
  std::vector<FormulaNetwork> all;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "network") {
      FormulaNetwork& network = all.emplace_back();
      words >> network.name >> network.height >> network.width >> network.gains.norm >> network.gains.bias;
    } else if (kind == "tap" && !all.empty()) {
      FormulaTap& tap = all.back().taps.emplace_back();
      words >> tap.name >> tap.shape.height >> tap.shape.width >> tap.shape.channels >> tap.norm;
      for (double& projection : tap.projections) words >> projection;
      for (double& sample : tap.samples) words >> sample;
    } else {
      return {};
    }
    if (!words) return {};
  }
  return all;
}

}  // namespace norma::test
