// Reads tests/data/backbones_state_dicts.txt: what PyTorch calls the tensors of each backbone.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace norma::test {

struct StateDict {
  std::int64_t parameters = 0;
  std::int64_t multiply_adds = 0;                            // for a side x side input
  std::int64_t side = 0;
  std::map<std::string, std::vector<std::int64_t>> tensors;  // name -> shape; empty where only the digest is kept
  std::int64_t tensor_count = 0;
  std::uint64_t digest = 0;
};

/// FNV-1a of the lines "NAME SIZES", sorted by name: what the data file keeps of most networks.
inline std::uint64_t digest_of(const std::map<std::string, std::vector<std::int64_t>>& tensors) {
  std::uint64_t value = 0xCBF29CE484222325u;
  const auto add = [&value](std::string_view text) {
    for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  };
  for (const auto& [name, shape] : tensors) {
    add(name);
    for (const std::int64_t size : shape) add(" " + std::to_string(size));
    add("\n");
  }
  return value;
}

/// All backbones by name.
inline std::map<std::string, StateDict> read_state_dicts() {
  std::ifstream file(NORMA_SOURCE_DIR "/tests/data/backbones_state_dicts.txt");
  REQUIRE(file.good());
  std::map<std::string, StateDict> all;
  StateDict* current = nullptr;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name, word, kind;
    words >> name;
    if (name == "network") {
      words >> name;
      current = &all[name];
      words >> current->parameters >> current->multiply_adds >> current->side;
      REQUIRE(words);
      continue;
    }
    REQUIRE(current != nullptr);
    if (name == "digest") {
      words >> current->tensor_count >> std::hex >> current->digest;
      REQUIRE(words);
      continue;
    }
    std::vector<std::int64_t> shape;
    while (words >> word) {
      if (word.find_first_not_of("0123456789") == std::string::npos) {
        shape.push_back(std::stoll(word));
      } else {
        kind = word;
      }
    }
    REQUIRE(!shape.empty());
    const std::vector<std::int64_t> vector{shape[0]};
    if (kind == "=") {
      current->tensors[name] = shape;
      continue;
    }
    current->tensors[name + ".weight"] = shape;
    if (kind == "+" || kind == "norm" || kind == "batch_norm") current->tensors[name + ".bias"] = vector;
    if (kind == "batch_norm") {
      current->tensors[name + ".running_mean"] = vector;
      current->tensors[name + ".running_var"] = vector;
    }
  }
  return all;
}

}  // namespace norma::test
