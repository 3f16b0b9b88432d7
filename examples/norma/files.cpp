// norma info, norma convert, norma generate, norma list
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>

#include <norma/data/generate.hpp>
#include <norma/image/decode.hpp>
#include <norma/io/convert.hpp>
#include <norma/nn/plan.hpp>

#include "commands.hpp"
#include "data_options.hpp"
#include "detectors.hpp"

namespace program {

using namespace norma;

namespace {

// Whether a weight file holds every convolution's and linear layer's weight, in the right shape, that a tap needs.
bool holds(const io::Weights& weights, const AnyNetwork& network, std::string_view tap) {
  const nn::InputSpec input = network.input();
  const auto plan = nn::Plan::create(network.graph(), std::span<const std::string_view>(&tap, 1), input.size, input.size);
  if (!plan.ok()) return false;
  for (const nn::Step& step : plan->steps()) {
    for (const nn::TensorSpec& spec : nn::NodeTensors(network.graph()[step.node], step.in, plan->shape(step.node))) {
      if (spec.role != nn::TensorRole::weight) continue;  // norms may be folded, biases may come from them
      const io::TensorInfo* tensor = weights.find(spec.name());
      if (tensor == nullptr || !std::equal(tensor->shape.begin(), tensor->shape.end(), spec.shape().begin(), spec.shape().end())) return false;
    }
  }
  return true;
}

struct Fit {
  std::string backbone;
  std::string deepest;  // tap
  int taps = 0;
};

std::vector<Fit> fitting_backbones(const io::Weights& weights) {
  std::vector<Fit> fits;
  for (const AnyNetwork& network : AnyNetwork::all()) {
    Fit fit{std::string(network.name()), "", 0};
    for (const nn::Tap& tap : network.graph().taps) {
      if (!holds(weights, network, tap.name.view())) continue;
      fit.deepest = tap.name.view();
      ++fit.taps;
    }
    if (fit.taps > 0 && holds(weights, network, network.default_taps().back())) fits.push_back(fit);
  }
  return fits;
}

std::string text_shape(std::span<const std::int64_t> shape) {
  std::string text;
  for (const auto n : shape) text += (text.empty() ? "" : "x") + std::to_string(n);
  return text.empty() ? "scalar" : text;
}

void describe_model(const io::Weights& file, io::JsonWriter& json, std::string& text) {
  const AnyDetector detector = require(AnyDetector::open(file));
  json.member("kind", "model").member("method", detector.method()).member("backbone", detector.backbone()).member("type", detector.type_name());
  json.member("images", detector.provenance().images).member("seed", detector.provenance().seed).member("weights", detector.provenance().weights);
  json.member("weights_digest", detector.provenance().weights_digest).key("settings").begin_object();
  detector.write_settings(json);
  json.end_object();
  const auto workspace = detector.make_workspace();
  json.member("workspace_bytes", static_cast<std::int64_t>(workspace.bytes()));
  text += "model: " + std::string(detector.method()) + " on " + std::string(detector.backbone()) + ", fitted on " + std::to_string(detector.provenance().images) +
          " images (seed " + std::to_string(detector.provenance().seed) + ")\n  weights " + detector.provenance().weights + ", workspace " +
          std::to_string(workspace.bytes()) + " bytes\n";
  if (const TrainingRecord* record = detector.training()) text += "  trained " + training_text(*record) + "\n";
  text += "  settings\n";
  detector.visit([&](const auto& d) {
    using Settings = std::remove_cvref_t<decltype(d.settings())>;
    Settings::visit(d.settings(), [&](std::string_view name, const auto& value, std::string_view) { text += "    " + std::string(name) + " = " + field_text(value) + "\n"; });
  });
  write_training(json, detector.training());
  if (const auto& calibration = detector.calibration()) {
    json.member("threshold", calibration->threshold).member("statement", calibration->statement);
    text += "  threshold " + field_text(calibration->threshold) + ": " + calibration->statement + "\n";
  } else {
    json.member("threshold", nullptr);
    text += "  no threshold: norma calibrate sets one\n";
  }
}

void describe_weights(const io::Weights& file, io::JsonWriter& json, std::string& text) {
  std::int64_t parameters = 0;
  std::map<std::string_view, std::int64_t> types;
  for (const io::TensorInfo& tensor : file.tensors()) {
    parameters += tensor.count();
    ++types[io::to_string(tensor.dtype)];
  }
  json.member("kind", "weights").member("tensors", static_cast<std::int64_t>(file.tensors().size())).member("elements", parameters).key("types").begin_object();
  text += "weights: " + std::to_string(file.tensors().size()) + " tensors, " + std::to_string(parameters) + " elements (";
  bool first = true;
  for (const auto& [type, count] : types) {
    json.member(type, count);
    text += (first ? "" : ", ") + std::to_string(count) + " x " + std::string(type);
    first = false;
  }
  text += ")\n";
  json.end_object().key("backbones").begin_array();
  const auto fits = fitting_backbones(file);
  for (const Fit& fit : fits) {
    json.begin_object().member("backbone", fit.backbone).member("deepest_layer", fit.deepest).end_object();
    text += "  fits " + fit.backbone + " up to '" + fit.deepest + "'\n";
  }
  if (fits.empty()) text += "  fits none of the built-in backbones\n";
  json.end_array();
  text += "  first tensors\n";
  for (std::size_t i = 0; i < std::min<std::size_t>(5, file.tensors().size()); ++i) {
    const auto& tensor = file.tensors()[i];
    text += "    " + std::string(tensor.name) + " " + std::string(io::to_string(tensor.dtype)) + " " + text_shape(tensor.shape) + "\n";
  }
}

}  // namespace

int run_info(Arguments arguments) {
  const Common common = take_common(arguments);
  const auto positional = arguments.take_positional();
  arguments.finish("info");
  require_writable(common.json, positional);
  if (positional.size() != 1) throw Failure{kWrongUsage, "info takes one file, found " + std::to_string(positional.size())};
  const std::string& path = positional.front();
  std::string text = path + "\n";
  io::JsonWriter json(io::JsonLayout::pretty);
  json.begin_object().member("path", path);
  auto file = io::Weights::open(path);
  if (file.ok()) {
    json.member("bytes", file->total_bytes()).member("digest", file->digest());
    text += "  " + std::to_string(file->total_bytes()) + " bytes, sha256 " + file->digest() + "\n";
    if (file->metadata("norma.format")) {
      describe_model(*file, json, text);
    } else {
      describe_weights(*file, json, text);
    }
    json.key("metadata").begin_object();
    for (const auto& [key, value] : file->metadata()) {
      json.member(key, value);
      if (!key.starts_with("norma.")) text += "  " + std::string(key) + ": " + std::string(value.substr(0, 200)) + "\n";
    }
    json.end_object();
  } else if (file.code() == Errc::not_found || file.code() == Errc::io_error) {
    require(file.status());
  } else {
    const auto image = image::read(path);
    if (!image.ok()) {
      throw Failure{kUnusable, "'" + path + "': neither a model or weight file (" + file.message() + ") nor an image (" + image.message() +
                                   "); a checkpoint (.pth, .pt, .whl) is read by norma convert"};
    }
    json.member("kind", "image").member("height", image->height()).member("width", image->width()).member("channels", image->channels());
    text += "image: " + std::to_string(image->height()) + " rows, " + std::to_string(image->width()) + " columns, " + (image->channels() == 1 ? "gray" : "RGB") + "\n";
  }
  json.end_object();
  if (common.json) write_text(*common.json, json.take() + "\n");
  if (common.json != "-") std::fputs(text.c_str(), stdout);
  return kDone;
}

int run_convert(Arguments arguments) {
  const Common common = take_common(arguments);
  io::ConvertOptions options;
  const auto backbone = arguments.take("backbone");
  if (const auto member = arguments.take("member")) options.member = *member;
  const auto positional = arguments.take_positional();
  arguments.finish("convert");
  if (positional.size() != 2) throw Failure{kWrongUsage, "convert takes the checkpoint and the file to write, found " + std::to_string(positional.size()) + " arguments"};
  require_writable(positional[1], {positional[0]});
  require_writable(common.json, positional);
  std::optional<AnyNetwork> network;
  if (backbone) {
    network = require_usage(AnyNetwork::find(*backbone));
    options.metadata.emplace_back("architecture", *backbone);
  }
  const io::ConvertReport done = require_file(io::convert_with_report(positional[0], positional[1], options));
  const io::Weights result = require(io::Weights::open(positional[1]));
  if (network && !holds(result, *network, network->default_taps().back())) {
    throw Failure{kUnusable, "'" + positional[1] + "' was written, but does not hold the layers of " + *backbone + " (norma info shows what it holds)"};
  }
  if (common.json) {
    io::JsonWriter json(io::JsonLayout::pretty);
    json.begin_object().member("norma_version", kVersion).member("input", positional[0]).member("output", positional[1]).member("tensors", done.tensors);
    json.member("source_format", done.source_format).member("source_member", done.source_member).member("source_sha256", done.source_sha256).end_object();
    write_text(*common.json, json.take() + "\n");
  }
  if (common.json != "-") {
    std::printf("%s: %lld tensors from %s%s\n", positional[1].c_str(), static_cast<long long>(done.tensors), done.source_format.c_str(),
                done.source_member.empty() ? "" : (" " + done.source_member).c_str());
    for (const Fit& fit : fitting_backbones(result)) std::printf("  fits %s up to '%s'\n", fit.backbone.c_str(), fit.deepest.c_str());
  }
  return kDone;
}

namespace {
std::vector<std::string> split(const std::optional<std::string>& text) {
  std::vector<std::string> parts;
  if (!text) return parts;
  std::size_t from = 0;
  for (;;) {
    const auto comma = text->find(',', from);
    parts.push_back(text->substr(from, comma - from));
    if (comma == std::string::npos) return parts;
    from = comma + 1;
  }
}
}  // namespace

int run_generate(Arguments arguments) {
  const Common common = take_common(arguments);
  data::GenerateOptions options;
  options.seed = common.seed;
  options.size = arguments.take_number<std::int64_t>("size", options.size);
  options.train = arguments.take_number<std::int64_t>("train", options.train);
  options.test_good = arguments.take_number<std::int64_t>("test-good", options.test_good);
  options.test_per_kind = arguments.take_number<std::int64_t>("test-per-kind", options.test_per_kind);
  for (const std::int64_t count : {options.train, options.test_good, options.test_per_kind}) {
    if (count > 1'000'000) throw Failure{kWrongUsage, "generate: expected at most 1000000 images of a kind, found " + std::to_string(count)};
  }
  options.categories = split(arguments.take("categories"));
  options.textures = split(arguments.take("textures"));
  const auto positional = arguments.take_positional();
  arguments.finish("generate");
  require_writable(common.json);
  if (positional.size() != 1) throw Failure{kWrongUsage, "generate takes the folder to write to, found " + std::to_string(positional.size()) + " arguments"};
  Terminal terminal(common.quiet);
  ThreadPool pool(common.threads);
  const data::Generated made = require(data::generate(positional.front(), options, terminal.observer(), pool.parallel()));
  if (common.json) {
    io::JsonWriter json(io::JsonLayout::pretty);
    json.begin_object().member("norma_version", kVersion).member("folder", positional.front()).member("seed", common.seed).member("categories", made.categories);
    json.member("images", made.images).member("masks", made.masks).end_object();
    write_text(*common.json, json.take() + "\n");
  }
  if (common.json != "-") {
    std::printf("%s: %lld images and %lld masks in", positional.front().c_str(), static_cast<long long>(made.images), static_cast<long long>(made.masks));
    for (const std::string& category : made.categories) std::printf(" %s", category.c_str());
    std::printf("\n");
  }
  return kDone;
}

int run_list(Arguments arguments) {
  const Common common = take_common(arguments);
  const auto positional = arguments.take_positional();
  const std::string method = arguments.take("method").value_or("");
  const std::string backbone = arguments.take("backbone").value_or("resnet18");
  arguments.finish("list");
  require_writable(common.json);
  const std::string what = positional.empty() ? (method.empty() ? "all" : "settings") : positional.front();
  if (positional.size() > 1 || (what != "all" && what != "methods" && what != "backbones" && what != "settings")) {
    throw Failure{kWrongUsage, "list takes one of methods, backbones, settings"};
  }
  std::string text;
  io::JsonWriter json(io::JsonLayout::pretty);
  json.begin_object();
  char line[256];
  if (what == "all" || what == "methods") {
    json.key("methods").begin_array();
    require_usage(AnyNetwork::find(backbone));
    text += "method      workspace on " + backbone + "\n";
    for (const std::string_view name : AnyDetector::kMethods) {
      // With the method's defaults a backbone may not fit: CS-Flow's maps must halve with the picture.
      const auto bytes = AnyDetector::workspace_bytes(name, backbone);
      json.begin_object().member("name", name).member("backbone", backbone);
      json.member("workspace_bytes", bytes.ok() ? std::optional(static_cast<std::int64_t>(*bytes)) : std::nullopt).end_object();
      if (bytes.ok()) {
        std::snprintf(line, sizeof line, "%-11s %9.2f MB\n", std::string(name).c_str(), static_cast<double>(*bytes) / 1e6);
        text += line;
      } else {
        text += std::string(name) + std::string(12 - std::min<std::size_t>(name.size(), 11), ' ') + "does not fit: " + bytes.message() + "\n";
      }
    }
    json.end_array();
  }
  if (what == "all" || what == "backbones") {
    json.key("backbones").begin_array();
    std::snprintf(line, sizeof line, "%s%-32s %6s %14s %12s %14s  %s\n", text.empty() ? "" : "\n", "backbone", "input", "parameters", "workspace", "multiply-adds", "layers (patchcore: the last two; spade: and a pooled one)");
    text += line;
    for (const AnyNetwork& network : AnyNetwork::all()) {
      const nn::InputSpec input = network.input();
      const auto plan = require(nn::Plan::create(network.graph(), network.default_taps(), input.size, input.size));
      std::string layers;
      for (const auto tap : network.default_taps()) layers += (layers.empty() ? "" : ",") + std::string(tap);
      json.begin_object().member("name", network.name()).member("input", input.size).member("parameters", plan.summary().parameters);
      json.member("workspace_bytes", plan.summary().workspace_bytes).member("multiply_adds", plan.summary().multiply_adds).member("default_layers", layers).end_object();
      std::snprintf(line, sizeof line, "%-32s %6d %12.2f M %9.2f MB %12.2f G  %s\n", std::string(network.name()).c_str(), input.size,
                    static_cast<double>(plan.summary().parameters) / 1e6, static_cast<double>(plan.summary().workspace_bytes) / 1e6,
                    static_cast<double>(plan.summary().multiply_adds) / 1e9, layers.c_str());
      text += line;
    }
    json.end_array();
    text += "(up to the deepest default layer)\n";
  }
  if (what == "settings") {
    json.key("settings").begin_array();
    for (const std::string_view name : AnyDetector::kMethods) {
      if (!method.empty() && method != name) continue;
      text += std::string(name) + " on " + backbone + "\n";
      require_usage(AnyDetector::for_each_setting(name, backbone, [&](std::string_view field, const std::string& value, std::string_view help) {
        std::string option(field);
        std::replace(option.begin(), option.end(), '_', '-');
        json.begin_object().member("method", name).member("setting", field).member("option", "--" + option).member("default", value).member("help", help).end_object();
        std::snprintf(line, sizeof line, "  --%-20s %-28s %s\n", option.c_str(), value.c_str(), std::string(help).c_str());
        text += line;
      }));
    }
    if (!method.empty() && text.empty()) require_usage(AnyDetector::workspace_bytes(method, backbone).status());
    json.end_array();
  }
  json.end_object();
  if (common.json) write_text(*common.json, json.take() + "\n");
  if (common.json != "-") std::fputs(text.c_str(), stdout);
  return kDone;
}

}  // namespace program
