/// \file
/// The state of a training run in one file, so that a run that was interrupted goes on bit for bit. A safetensors file: flat buffers as
/// tensors, counters and texts in the metadata, sealed by a digest. It appears under its name only when it is complete. What must be the
/// same (the network, the settings, the data) is written as a text and compared when the file is read.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/settings.hpp>
#include <norma/core/status.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/training/parameters.hpp>

namespace norma::nn {

namespace detail {
inline constexpr std::string_view kCheckpointKind = "norma training checkpoint 1";
}  // namespace detail

/// Collects a run's state. Buffers are not copied: they must live until `write`.
class CheckpointWriter {
 public:
  /// Something that must be equal when the run goes on.
  Status must_match(std::string_view name, std::string_view text) { return file_.set_metadata("same." + std::string(name), text); }
  Status number(std::string_view name, std::int64_t value) { return file_.set_metadata("number." + std::string(name), field_text(value)); }
  Status number(std::string_view name, std::uint64_t value) { return file_.set_metadata("number." + std::string(name), field_text(value)); }
  Status number(std::string_view name, double value) { return file_.set_metadata("number." + std::string(name), field_text(value)); }
  Status buffer(std::string_view name, std::span<const float> values) {
    return file_.add_view(name, {static_cast<std::int64_t>(values.size())}, values);
  }
  /// A network's tensors under `prefix` and their names, as other tools can read them, and what they must match.
  Status parameters(std::string_view prefix, const Parameters& parameters) {
    NORMA_CHECK(must_match(prefix, layout_text(parameters.layout())));
    return parameters.save(file_, std::string(prefix) + ".");
  }
  /// An optimiser's moments, its number of steps, and its settings, which must match.
  template <class Optimiser>
  Status optimiser(std::string_view prefix, const Optimiser& optimiser) {
    NORMA_CHECK(must_match(prefix, settings_text(optimiser)));
    NORMA_CHECK(number(std::string(prefix) + ".steps", optimiser.steps()));
    Status status;
    Optimiser::visit_state(optimiser, [&](std::string_view name, std::span<const float> values) {
      if (status) status = buffer(std::string(prefix) + "." + std::string(name), values);
    });
    return status;
  }
  /// Writes under a temporary name, then renames.
  Status write(const std::string& path) {
    NORMA_CHECK(file_.set_metadata("kind", detail::kCheckpointKind));
    return file_.write_sealed(path);
  }

  /// Names, shapes and what learns, in the order of the network.
  static std::string layout_text(const ParameterTable& layout) {
    std::string text;
    for (const ParameterPiece& piece : layout.pieces()) {
      text += piece.name + io::detail::shape_text(piece.shape) + (piece.trained ? "" : " frozen") + ";";
    }
    return text;
  }
  /// "adam learning_rate=0.001 ...", then the groups.
  template <class Optimiser>
  static std::string settings_text(const Optimiser& optimiser) {
    std::string text(Optimiser::name);
    const auto settings = optimiser.settings();
    Optimiser::Settings::visit(settings, [&](std::string_view name, const auto& value, std::string_view) {
      text += " " + std::string(name) + "=" + field_text(value);
    });
    for (const auto& group : optimiser.groups()) {
      text += " " + std::to_string(group.first) + "-" + std::to_string(group.last) + ":" + field_text(group.rate) + "," +
              field_text(group.decay);
    }
    return text;
  }

 private:
  io::TensorFileWriter file_;
};

/// Reads what CheckpointWriter wrote. Errors name the file, the item, what was expected and what was found.
class CheckpointReader {
 public:
  /// Errors: not_found, io_error, corrupt (the digest differs), wrong_type (no checkpoint).
  static Result<CheckpointReader> open(const std::string& path) {
    NORMA_TRY(auto file, io::Weights::open(path));
    const auto kind = file.metadata("kind");
    if (kind != detail::kCheckpointKind) {
      return Status(Errc::wrong_type, "nn::CheckpointReader::open: '" + path + "': expected a " + std::string(detail::kCheckpointKind) +
                                          ", found " + (kind ? io::detail::quoted(*kind) : std::string("another kind of tensor file")));
    }
    NORMA_CHECK(file.verify_seal());
    return CheckpointReader(std::move(file));
  }

  Status must_match(std::string_view name, std::string_view text) const {
    const auto found = file_.metadata("same." + std::string(name));
    if (!found) return {Errc::wrong_type, where() + "holds nothing called '" + std::string(name) + "'"};
    if (*found == text) return {};
    std::size_t same = 0;
    while (same < found->size() && same < text.size() && (*found)[same] == text[same]) ++same;
    const std::size_t from = same > 40 ? same - 40 : 0;
    return {Errc::wrong_type, where() + "'" + std::string(name) + "' is another one's: expected " + io::detail::quoted(text.substr(from)) +
                                  ", found " + io::detail::quoted(found->substr(from))};
  }
  template <class Number>
  Status number(std::string_view name, Number& value) const {
    const auto text = file_.metadata("number." + std::string(name));
    if (!text) return {Errc::wrong_type, where() + "holds no number '" + std::string(name) + "'"};
    if (!field_from_text(*text, value))
      return {Errc::corrupt, where() + "number '" + std::string(name) + "' is " + io::detail::quoted(*text)};
    return {};
  }
  [[nodiscard]] bool has_buffer(std::string_view name) const noexcept { return file_.find(name) != nullptr; }
  Status buffer(std::string_view name, std::span<float> to) const {
    return file_.read(name, {static_cast<std::int64_t>(to.size())}, to).with_context("nn::CheckpointReader");
  }
  /// Nothing is changed on an error.
  Status parameters(std::string_view prefix, Parameters& parameters) const {
    NORMA_CHECK(must_match(prefix, CheckpointWriter::layout_text(parameters.layout())));
    return parameters.load(file_, std::string(prefix) + ".");
  }
  /// Nothing is changed on an error.
  template <class Optimiser>
  Status optimiser(std::string_view prefix, Optimiser& optimiser) const {
    NORMA_CHECK(must_match(prefix, CheckpointWriter::settings_text(optimiser)));
    std::int64_t steps = 0;
    NORMA_CHECK(number(std::string(prefix) + ".steps", steps));
    Optimiser read = optimiser;
    Status status;
    Optimiser::visit_state(read, [&](std::string_view name, std::span<float> values) {
      if (status) status = buffer(std::string(prefix) + "." + std::string(name), values);
    });
    NORMA_CHECK(status);
    read.set_steps(steps);
    optimiser = std::move(read);
    return {};
  }

 private:
  explicit CheckpointReader(io::Weights file) : file_(std::move(file)) {}
  [[nodiscard]] std::string where() const { return "nn::CheckpointReader: '" + file_.name() + "': "; }
  io::Weights file_;
};

}  // namespace norma::nn
