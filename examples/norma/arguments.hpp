// The command line: `--name value`, `--name=value`, `--flag`, and positional words.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <norma/backbones/any_network.hpp>
#include <norma/core/settings.hpp>

#include "failure.hpp"

namespace program {

class Arguments {
 public:
  Arguments(std::vector<std::string> words) {  // NOLINT(google-explicit-constructor)
    for (std::size_t i = 0; i < words.size(); ++i) {
      const std::string& word = words[i];
      if (word.size() < 2 || word[0] != '-' || word == "-") {
        positional_.push_back(word);
      } else if (word == "--") {
        positional_.insert(positional_.end(), words.begin() + static_cast<std::ptrdiff_t>(i) + 1, words.end());
        break;
      } else if (word == "-h") {
        options_.push_back({"help", "", false});
      } else if (word[1] != '-') {
        throw Failure{kWrongUsage, "unknown option " + word + ", options begin with two dashes"};
      } else if (const auto equals = word.find('='); equals != std::string::npos) {
        options_.push_back({word.substr(2, equals - 2), word.substr(equals + 1), false});
      } else {
        const std::string name = word.substr(2);
        const bool flag = std::find(kFlags.begin(), kFlags.end(), name) != kFlags.end();
        if (flag) {
          options_.push_back({name, "true", false});
        } else {
          // A value may begin with one dash ("-" for standard output, negative numbers), not with two.
          if (i + 1 == words.size() || words[i + 1].starts_with("--")) throw Failure{kWrongUsage, "option --" + name + " needs a value"};
          options_.push_back({name, words[++i], false});
        }
      }
    }
  }

  /// The value of an option, or nothing. The last one counts. Marks it as known.
  std::optional<std::string> take(std::string_view name) {
    std::optional<std::string> value;
    known_.emplace_back(name);
    for (Option& option : options_) {
      if (option.name != name) continue;
      option.used = true;
      value = option.value;
    }
    return value;
  }
  std::string take_required(std::string_view name, std::string_view what) {
    auto value = take(name);
    if (value) return *value;
    for (const Option& option : options_) {  // misspelt rather than missing
      if (!option.used && norma::backbones::detail::edit_distance(option.name, name) <= 2) {
        throw Failure{kWrongUsage, "no option --" + option.name + ", did you mean --" + std::string(name) + "?"};
      }
    }
    throw Failure{kWrongUsage, "missing option --" + std::string(name) + " (" + std::string(what) + ")"};
  }
  bool take_flag(std::string_view name) { return take(name).has_value(); }
  template <class T>
  T take_number(std::string_view name, T fallback) {
    const auto text = take(name);
    if (!text) return fallback;
    T value{};
    if (!norma::field_from_text(*text, value)) throw Failure{kWrongUsage, "option --" + std::string(name) + ": expected a number, found '" + *text + "'"};
    return value;
  }
  std::vector<std::string> take_positional() { return std::exchange(positional_, {}); }
  /// Options with these names (dashes for underscores) that were given, as pairs for a detector's settings.
  template <class Pairs>
  void take_settings(const std::vector<std::string>& names, Pairs& out) {
    for (const std::string& name : names) {
      std::string dashed = name;
      std::replace(dashed.begin(), dashed.end(), '_', '-');
      if (auto value = take(dashed)) out.emplace_back(name, *value);
    }
  }

  /// Everything must have been taken: anything else is a mistake, answered with the nearest right name.
  void finish(std::string_view command) const {
    for (const Option& option : options_) {
      if (option.used) continue;
      std::string nearest;
      std::size_t best = 4;  // further away it is no misspelling
      for (const std::string& candidate : known_) {
        const std::size_t distance = norma::backbones::detail::edit_distance(option.name, candidate);
        if (distance < best) best = distance, nearest = candidate;
      }
      throw Failure{kWrongUsage, std::string(command) + " has no option --" + option.name +
                                     (nearest.empty() ? "" : ", did you mean --" + nearest + "?") + " (norma " + std::string(command) + " --help lists them)"};
    }
    if (!positional_.empty()) throw Failure{kWrongUsage, std::string(command) + ": unexpected argument '" + positional_.front() + "'"};
  }
  [[nodiscard]] bool has(std::string_view name) const {
    return std::any_of(options_.begin(), options_.end(), [&](const Option& o) { return o.name == name; });
  }

 private:
  struct Option {
    std::string name;
    std::string value;
    bool used;
  };
  // Options without a value; every other one takes the next word.
  static constexpr std::array<std::string_view, 5> kFlags{"help", "quiet", "restart", "fail-on-anomaly", "version"};
  std::vector<Option> options_;
  std::vector<std::string> positional_;
  std::vector<std::string> known_;
};

}  // namespace program
