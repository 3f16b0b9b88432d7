// The program as its users meet it: every command, every exit code, every promised field, on a drawn data set and weights made by a formula.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/backbones/any_network.hpp>
#include <norma/image/decode.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/io/tiff.hpp>
#include <tests/support/formula_weights.hpp>
#include <tests/support/program.hpp>

namespace {

namespace fs = std::filesystem;
using norma::io::JsonValue;
using norma::test::Run;
using Words = std::vector<std::string>;

// squeezenet1_1 up to `taps` with weights from a formula.
void write_weights(const std::string& path, std::vector<std::string_view> taps) {
  const norma::SqueezeNet1_1 network;
  const auto plan = norma::nn::Plan::create(network.graph(), std::span<const std::string_view>(taps), 64, 64);
  REQUIRE(plan.ok());
  norma::io::TensorFileWriter writer;
  for (const norma::nn::Step& step : plan->steps()) {
    for (const norma::nn::TensorSpec& tensor : norma::nn::NodeTensors(plan->graph()[step.node], step.in, step.out)) {
      std::vector<float> values(static_cast<std::size_t>(tensor.count()));
      norma::test::fill_formula_weight(tensor.name(), tensor.shape(), {}, values);
      REQUIRE(writer.add(tensor.name(), tensor.shape(), std::span<const float>(values)).ok());
    }
  }
  REQUIRE(writer.write(path).ok());
}

// Made once: a data set with a texture and an object, weights, and a model of each method fitted on the object.
struct World {
  norma::test::TemporaryFolder folder;
  norma::test::Program norma{folder.path()};

  World() {
    if (!norma.exists()) return;
    const Run made = norma.run({"generate", "set", "--size", "64", "--train", "8", "--test-good", "4", "--test-per-kind", "2", "--categories", "weave,bolt"});
    INFO(made.err);
    REQUIRE(made.code == 0);
    write_weights(path("weights.safetensors"), {"avgpool"});
    for (const std::string method : {"padim", "patchcore", "spade"}) {
      const Run fitted = fit(method, {"--output", method + ".norma"});
      INFO(fitted.err);
      REQUIRE(fitted.code == 0);
    }
  }
  [[nodiscard]] std::string path(const std::string& name) const { return folder.path() / name; }
  [[nodiscard]] Run fit(const std::string& method, const Words& more) const {
    Words words{"fit", "--method", method, "--backbone", "squeezenet1_1", "--weights", "weights.safetensors", "--data", "set", "--category", "bolt", "--size", "64"};
    words.insert(words.end(), more.begin(), more.end());
    return norma.run(words);
  }
};
const World& world() {
  static const World made;
  return made;
}
#define NEEDS_PROGRAM() \
  if (!world().norma.exists()) return

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
// The code, and a sentence on standard error alone that says this.
void check_refused(const Words& words, int code, const std::vector<std::string>& parts) {
  const Run run = world().norma.run(words);
  std::string command;
  for (const std::string& word : words) command += word + " ";
  CAPTURE(command);
  CAPTURE(run.err);
  CHECK(run.code == code);
  CHECK(run.out.empty());
  CHECK(run.err.starts_with("norma: "));
  for (const std::string& part : parts) CHECK_MESSAGE(contains(run.err, part), part);
}
Words fit_words(const Words& more) {
  Words words{"fit", "--output", "refused.norma", "--quiet"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}
Words padim_words(const Words& more) {
  Words words = fit_words({"--method", "padim", "--backbone", "squeezenet1_1"});
  words.insert(words.end(), more.begin(), more.end());
  return words;
}
bool is_number(const JsonValue* value) { return value != nullptr && value->number().has_value() && std::isfinite(*value->number()); }
bool is_fraction(const JsonValue* value) { return is_number(value) && *value->number() >= 0.0 && *value->number() <= 1.0; }

}  // namespace

TEST_CASE("help, version and lists go to standard output") {
  NEEDS_PROGRAM();
  const auto& norma = world().norma;
  const Run usage = norma.run({"--help"});
  CHECK(usage.code == 0);
  CHECK(usage.err.empty());
  for (const std::string command : {"fit", "eval", "predict", "calibrate", "selftest", "info", "convert", "generate", "list"}) {
    CAPTURE(command);
    CHECK(contains(usage.out, "norma " + command));
    const Run help = norma.run({command, "--help"});
    CHECK(help.code == 0);
    CHECK(contains(help.out, "norma " + command));
    CHECK(help.err.empty());
  }
  const Run version = norma.run({"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.starts_with("norma "));
  const Run list = norma.run({"list", "--json", "-"});
  CHECK(list.code == 0);
  const JsonValue json = norma::test::parse_json(list.out);
  REQUIRE(json.find("methods") != nullptr);
  const auto& methods = json.find("methods")->items();
  CHECK(methods.size() >= 4);
  // The help names every method that there is.
  const std::string fit_help = norma.run({"fit", "--help"}).out;
  for (const JsonValue& method : methods)
    CHECK_MESSAGE(contains(fit_help, std::string(method.find("name")->string().value_or("?"))), "--help lacks a method");
  REQUIRE(json.find("backbones") != nullptr);
  CHECK(json.find("backbones")->items().size() == norma::AnyNetwork::all().size());
  for (const JsonValue& backbone : json.find("backbones")->items()) {
    for (const char* field : {"parameters", "workspace_bytes", "multiply_adds"}) CHECK(is_number(backbone.find(field)));
  }
  // A backbone that does not fit every method's defaults is listed all the same.
  const Run narrow = norma.run({"list", "methods", "--backbone", "alexnet"});
  CHECK(narrow.code == 0);
  CHECK(contains(narrow.out, "csflow      does not fit: "));
  CHECK(contains(narrow.out, "differnet"));
  const Run settings = norma.run({"list", "settings", "--method", "patchcore"});
  CHECK(settings.code == 0);
  for (const char* option : {"--coreset-ratio", "--num-neighbours", "--layers", "--feature-dims", "--sigma"}) CHECK(contains(settings.out, option));
}

TEST_CASE("wrong usage is 2 and names what is nearest") {
  NEEDS_PROGRAM();
  const Run nothing = world().norma.run({});
  CHECK(nothing.code == 2);
  CHECK(nothing.out.empty());
  CHECK(nothing.err.starts_with("norma: visual anomaly detection"));
  check_refused({"fits"}, 2, {"no command 'fits'", "did you mean 'fit'?"});
  check_refused({"something-else"}, 2, {"no command 'something-else'"});
  check_refused({"fit", "--metod", "padim"}, 2, {"did you mean --method?"});
  check_refused({"predict", "--model", "padim.norma", "--overlay", "x", "set"}, 2, {"--overlay", "did you mean --overlays?"});
  check_refused(fit_words({"--method", "patchcore", "--backbone", "squeezenet1_1", "--data", "set", "--category", "bolt", "--coreset-ration", "0.1"}), 2,
                {"did you mean --coreset-ratio?"});
  check_refused({"fit", "--method"}, 2, {"--method needs a value"});
  check_refused({"fit", "-m", "padim"}, 2, {"-m", "two dashes"});
  check_refused({"fit"}, 2, {"missing option --method", "padim, patchcore, spade, fastflow"});
  check_refused({"fit", "--method", "padim"}, 2, {"missing option --backbone"});
  check_refused({"fit", "--method", "padim", "--backbone", "resnet18"}, 2, {"missing option --data"});
  check_refused({"eval", "--data", "set"}, 2, {"missing option --model", "--method"});
  check_refused({"predict", "set"}, 2, {"missing option --model"});
  check_refused({"predict", "--model", "padim.norma"}, 2, {"no images"});
  check_refused({"calibrate", "--model", "padim.norma"}, 2, {"missing option --normal"});
  check_refused({"selftest"}, 2, {"missing option --model"});
  check_refused({"info"}, 2, {"one file"});
  check_refused({"convert", "weights.safetensors"}, 2, {"found 1"});
  check_refused({"generate"}, 2, {"folder"});
  check_refused({"list", "nonsense"}, 2, {"methods, backbones, settings"});
  check_refused({"list", "--backbone", "nonsense"}, 2, {"nonsense", "nearest"});
  check_refused(fit_words({"--method", "padin", "--backbone", "squeezenet1_1"}), 2, {"padin", "padim, patchcore, spade"});
  check_refused(fit_words({"--method", "padim", "--backbone", "resnet81"}), 2, {"resnet81", "resnet18"});
  const Words data{"--weights", "weights.safetensors", "--data", "set", "--category", "bolt"};
  const auto with_data = [&](Words more) {
    more.insert(more.end(), data.begin(), data.end());
    return padim_words(more);
  };
  check_refused(with_data({"--layers", "features.99"}), 2, {"features.99", "features.12"});
  check_refused(with_data({"--size", "1"}), 2, {"does not fit", "1 x 1"});
  check_refused(with_data({"--size", "64", "--crop", "32"}), 2, {"--size", "--crop"});
  check_refused(with_data({"--threads", "-1"}), 2, {"--threads", "-1"});
  check_refused(with_data({"--threads", "1000000"}), 2, {"--threads", "1000000"});
  check_refused(with_data({"--seed", "18446744073709551616"}), 2, {"--seed", "18446744073709551616"});
  check_refused(with_data({"--interpolation", "nonsense"}), 2, {"interpolation", "nonsense"});
  for (const char* size : {"0", "-5", "1000000", "99999999999999999999", "nan"}) check_refused(with_data({"--size", size}), 2, {size});
  for (const char* dims : {"-1", "5000", "1e3"}) check_refused(with_data({"--feature-dims", dims}), 2, {dims});
  for (const char* rate : {"nan", "0", "1", "-0.1"}) {
    check_refused({"calibrate", "--model", "padim.norma", "--normal", "set/bolt/test/good", "--output", "refused.norma", "--false-reject-rate", rate}, 2, {"false_reject_rate"});
  }
  check_refused({"selftest", "--model", "padim.norma", "--tolerance", "nan"}, 2, {"--tolerance"});
  check_refused({"generate", "drawn", "--train", "99999999999999"}, 2, {"99999999999999"});
  check_refused({"generate", "drawn", "--categories", "nonsense"}, 2, {"nonsense", "weave"});
  check_refused(padim_words({"--data", "set", "--weights", "weights.safetensors"}), 2, {"--category", "bolt, weave"});
  CHECK_FALSE(fs::exists(world().path("refused.norma")));
}

TEST_CASE("files that cannot be used are 3, named, with what was expected") {
  NEEDS_PROGRAM();
  const World& w = world();
  fs::create_directories(w.path("empty"));
  fs::create_directories(w.path("no_images"));
  norma::test::write_file(w.path("no_images/notes.txt"), "hello");
  for (const std::string model : {"missing.norma", "set", "no_images/notes.txt", "weights.safetensors", "set/bolt/test/good/000.png"}) {
    check_refused({"predict", "--model", model, "set/bolt/test/good"}, 3, {model});
    check_refused({"eval", "--model", model, "--data", "set", "--category", "bolt"}, 3, {model});
    check_refused({"calibrate", "--model", model, "--normal", "set/bolt/test/good"}, 3, {model});
  }
  for (const std::string model : {"missing.norma", "set", "weights.safetensors"}) check_refused({"selftest", "--model", model}, 3, {model});
  for (const std::string folder : {"missing", "empty", "no_images"}) {
    check_refused(padim_words({"--weights", "weights.safetensors", "--data", folder}), 3, {folder});
    check_refused({"calibrate", "--model", "padim.norma", "--normal", folder, "--output", "refused.norma"}, 3, {folder});
    check_refused({"eval", "--model", "padim.norma", "--data", folder}, 3, {folder});
  }
  check_refused({"predict", "--model", "padim.norma", "empty"}, 3, {"empty", "no images"});
  check_refused({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolts"}, 3, {"bolts", "bolt, weave"});
  const Words data{"--data", "set", "--category", "bolt", "--size", "64"};
  const auto with_weights = [&](const std::string& weights, const std::string& backbone) {
    Words words = fit_words({"--method", "padim", "--backbone", backbone, "--weights", weights});
    words.insert(words.end(), data.begin(), data.end());
    return words;
  };
  check_refused(with_weights("missing.safetensors", "squeezenet1_1"), 3, {"missing.safetensors"});
  check_refused(with_weights("weights.safetensors", "resnet18"), 3, {"weights.safetensors", "another's"});
  const std::string archive("PK\x03\x04\x14\0\0\0\0\0 what a checkpoint begins with", 46);
  norma::test::write_file(w.path("checkpoint.pth"), archive);
  check_refused(with_weights("checkpoint.pth", "squeezenet1_1"), 3, {"checkpoint.pth", "norma convert"});
  check_refused(padim_words({"--data", "set", "--category", "bolt"}), 3, {"--weights", "squeezenet1_1.safetensors"});
  check_refused({"convert", "no_images/notes.txt", "converted.safetensors"}, 3, {"notes.txt"});
  check_refused({"convert", "checkpoint.pth", "converted.safetensors"}, 3, {"checkpoint.pth"});
  CHECK_FALSE(fs::exists(w.path("converted.safetensors")));
  for (const std::string file : {"missing", "set", "no_images/notes.txt"}) check_refused({"info", file}, 3, {file});
  // A fit that no machine has the memory for is refused before it starts, not ended by the kernel in its middle.
  check_refused(padim_words({"--weights", "weights.safetensors", "--data", "set", "--category", "bolt", "--size", "16384", "--feature-dims", "600"}), 3, {"GB", "--size"});
  // Where to write is looked at first.
  const Words words{"--weights", "weights.safetensors", "--data", "set", "--category", "bolt", "--size", "64"};
  for (const std::string output : {"missing/x.norma", "set"}) {
    Words fit{"fit", "--method", "padim", "--backbone", "squeezenet1_1", "--output", output};
    fit.insert(fit.end(), words.begin(), words.end());
    check_refused(fit, 3, {output});
  }
  check_refused({"predict", "--model", "padim.norma", "--jsonl", "missing/x", "set/bolt/test/good"}, 3, {"missing"});
  check_refused({"predict", "--model", "padim.norma", "--overlays", "padim.norma", "set/bolt/test/good"}, 3, {"padim.norma"});
  CHECK_FALSE(fs::exists(w.path("refused.norma")));
}

TEST_CASE("no input is overwritten") {
  NEEDS_PROGRAM();
  const World& w = world();
  const std::string model = norma::test::file_text(w.path("padim.norma")), weights = norma::test::file_text(w.path("weights.safetensors"));
  const std::string image = norma::test::file_text(w.path("set/bolt/test/good/000.png"));
  check_refused({"predict", "--model", "padim.norma", "--jsonl", "./padim.norma", "set/bolt/test/good"}, 2, {"overwritten"});
  check_refused({"predict", "--model", "padim.norma", "--jsonl", "set/bolt/test/good/000.png", "set/bolt/test/good"}, 2, {"overwritten"});
  check_refused({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolt", "--json", "padim.norma"}, 2, {"overwritten"});
  check_refused({"convert", "weights.safetensors", "set/../weights.safetensors"}, 2, {"overwritten"});
  const Run fit = w.fit("padim", {"--output", "weights.safetensors"});
  CHECK(fit.code == 2);
  CHECK(contains(fit.err, "overwritten"));
  CHECK(w.fit("padim", {"--output", ""}).code == 2);
  check_refused({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolt", "--overlays", "set/../set"}, 2, {"overwritten"});
  // A picture's overlay takes another name where the picture itself lies.
  fs::create_directories(w.path("here"));
  norma::test::write_file(w.path("here/a.png"), image);
  Words predict{"predict", "--model", "padim.norma", "here/a.png", "--overlays", ".", "--json", "-"};
  CHECK(w.norma.run(predict).code == 0);
  CHECK(fs::exists(w.path("here_a.png")));
  predict[3] = "here_a.png";
  CHECK(w.norma.run(predict).code == 0);
  CHECK(fs::exists(w.path("here_a_2.png")));
  CHECK(norma::test::file_text(w.path("here/a.png")) == image);
  CHECK(model == norma::test::file_text(w.path("padim.norma")));
  CHECK(weights == norma::test::file_text(w.path("weights.safetensors")));
  CHECK(image == norma::test::file_text(w.path("set/bolt/test/good/000.png")));
}

TEST_CASE("fit: one seed gives one file, for any number of threads") {
  NEEDS_PROGRAM();
  const World& w = world();
  for (const std::string method : {"padim", "patchcore", "spade"}) {
    CAPTURE(method);
    const std::string expected = norma::test::file_text(w.path(method + ".norma"));
    REQUIRE_FALSE(expected.empty());
    for (const std::string threads : {"1", "2"}) {
      const Run again = w.fit(method, {"--output", "again.norma", "--threads", threads, "--json", "fit.json"});
      CHECK(again.code == 0);
      CHECK(again.out.starts_with("again.norma: " + method + " on squeezenet1_1, 8 images"));
      CHECK(norma::test::file_text(w.path("again.norma")) == expected);
    }
    const JsonValue json = norma::test::parse_json(norma::test::file_text(w.path("fit.json")));
    REQUIRE(json.find("images") != nullptr);
    CHECK(json.find("images")->find("train")->integer() == 8);
    CHECK(is_number(json.find("time")->find("fit_s")));
  }
  const Run other = w.fit("patchcore", {"--output", "again.norma", "--seed", "1"});
  CHECK(other.code == 0);
  CHECK(norma::test::file_text(w.path("again.norma")) != norma::test::file_text(w.path("patchcore.norma")));
  // A plain folder is the same images; so it is the same model but for the names that it remembers.
  const Run plain = w.norma.run({"fit", "--method", "padim", "--backbone", "squeezenet1_1", "--weights", "weights.safetensors", "--data", "set/bolt/train/good", "--size", "64",
                                 "--output", "plain.norma", "--quiet"});
  CHECK(plain.code == 0);
  CHECK(plain.err.empty());
  CHECK(contains(plain.out, "8 images"));
}

TEST_CASE("eval: the fields of the object, and a model gives the figures of the fit") {
  NEEDS_PROGRAM();
  const World& w = world();
  const Run fitted = w.norma.run({"eval", "--method", "patchcore", "--backbone", "squeezenet1_1", "--weights", "weights.safetensors", "--size", "64", "--data", "set", "--category",
                                  "bolt", "--output", "kept.norma", "--json", "-", "--threads", "1", "--quiet"});
  INFO(fitted.err);
  REQUIRE(fitted.code == 0);
  CHECK(fitted.err.empty());
  CHECK(norma::test::file_text(w.path("kept.norma")) == norma::test::file_text(w.path("patchcore.norma")));
  const Run opened = w.norma.run({"eval", "--model", "kept.norma", "--data", "set", "--category", "bolt", "--json", "figures.json", "--maps", "maps", "--overlays", "overlays", "--report",
                                  "report.html", "--csv", "scores.csv"});
  INFO(opened.err);
  REQUIRE(opened.code == 0);
  CHECK(contains(opened.out, "image  AUROC"));
  CHECK_FALSE(contains(opened.err, "AUROC"));

  const JsonValue a = norma::test::parse_json(fitted.out), b = norma::test::parse_json(norma::test::file_text(w.path("figures.json")));
  const std::vector<std::string> promised{"norma_version", "method",      "backbone",    "category",         "seed",         "threads",
                                          "settings",      "images",      "image_AUROC", "image_AP",         "image_F1Max",  "pixel_AUROC",
                                          "pixel_AP",      "pixel_F1Max", "pixel_AUPRO", "pixel_AUPRO_0.05", "pixel_AUPIMO", "evaluation",
                                          "training",      "time",        "memory",      "machine"};
  CHECK(norma::test::keys(a) == promised);
  CHECK(norma::test::keys(b) == promised);
  CHECK(a.find("method")->string() == "patchcore");
  CHECK(a.find("backbone")->string() == "squeezenet1_1");
  CHECK(a.find("category")->string() == "bolt");
  CHECK(a.find("seed")->integer() == 0);
  CHECK(a.find("threads")->integer() == 1);
  CHECK(a.find("settings")->find("coreset_ratio")->number() == 0.1);
  CHECK(norma::test::keys(*a.find("images")) == std::vector<std::string>{"train", "normal", "anomalous", "broken"});
  CHECK(a.find("images")->find("train")->integer() == 8);
  CHECK(a.find("images")->find("normal")->integer() == 4);
  CHECK(a.find("images")->find("anomalous")->integer() == 8);
  CHECK(a.find("images")->find("broken")->integer() == 0);
  for (const char* figure : {"image_AUROC", "image_AP", "image_F1Max", "pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO", "pixel_AUPRO_0.05"}) {
    CAPTURE(figure);
    CHECK(is_fraction(a.find(figure)));
    CHECK(is_fraction(b.find(figure)));
    CHECK(a.find(figure)->number() == b.find(figure)->number());
  }
  CHECK(a.find("pixel_AUPIMO")->is_null() == b.find("pixel_AUPIMO")->is_null());
  CHECK((a.find("pixel_AUPIMO")->is_null() || is_fraction(a.find("pixel_AUPIMO"))));
  for (const char* field : {"resolution", "mask_rule", "pro_rule"}) CHECK(a.find("evaluation")->find(field)->string().has_value());
  CHECK(a.find("training")->is_null());  // patchcore is not trained in epochs
  const JsonValue* time = a.find("time");
  CHECK(norma::test::keys(*time) == std::vector<std::string>{"fit_s", "per_image_ms", "stages_ms", "per_stage_ms", "images_at_once", "threads_per_image"});
  CHECK(is_number(time->find("fit_s")));
  CHECK(b.find("time")->find("fit_s")->is_null());
  CHECK(norma::test::keys(*time->find("per_image_ms")) == std::vector<std::string>{"p50", "p99", "mean"});
  const std::vector<std::string> stages{"read", "decode", "preprocess", "backbone", "features", "estimator", "metric", "verdict"};
  CHECK(norma::test::keys(*time->find("stages_ms")) == stages);
  CHECK(norma::test::keys(*time->find("per_stage_ms")) == stages);
  for (const std::string& stage : stages) {
    CAPTURE(stage);
    const JsonValue* times = time->find("per_stage_ms")->find(stage);
    CHECK(norma::test::keys(*times) == std::vector<std::string>{"p50", "p99", "mean"});
    CHECK(times->find("mean")->number() == time->find("stages_ms")->find(stage)->number());
    CHECK(*times->find("p50")->number() > 0.0);
    CHECK(*times->find("p50")->number() <= *times->find("p99")->number());
    CHECK(contains(opened.out, " " + stage + " "));
  }
  CHECK(contains(opened.out, "by stage"));
  CHECK(time->find("images_at_once")->integer() == 1);
  CHECK(time->find("threads_per_image")->integer() == 1);
  CHECK(norma::test::keys(*a.find("memory")) == std::vector<std::string>{"workspace_bytes", "model_bytes", "peak_rss_bytes"});
  CHECK(a.find("memory")->find("model_bytes")->integer() == static_cast<std::int64_t>(fs::file_size(w.path("kept.norma"))));
  for (const char* field : {"processor", "instruction_set", "compiler", "build_type"}) CHECK(a.find("machine")->find(field)->string().has_value());
  CHECK(a.find("machine")->find("device")->is_null());

  // <maps>/<category>/test/<kind>/<stem>.tiff, and pictures in the same layout.
  std::int64_t maps = 0;
  for (const auto& entry : fs::recursive_directory_iterator(w.path("set/bolt/test"))) {
    if (!entry.is_regular_file()) continue;
    const fs::path relative = fs::relative(entry.path(), w.path("set")).replace_extension();
    CAPTURE(relative);
    const auto map = norma::io::read_tiff(w.path("maps/" + relative.string() + ".tiff"));
    REQUIRE_MESSAGE(map.ok(), map.message());
    CHECK(map->shape() == norma::Shape{64, 64, 1});
    const auto picture = norma::image::read(w.path("overlays/" + relative.string() + ".png"));
    REQUIRE_MESSAGE(picture.ok(), picture.message());
    CHECK(picture->height() == 64);
    CHECK(picture->width() >= 128);
    ++maps;
  }
  CHECK(maps == 12);

  const std::string report = norma::test::file_text(w.path("report.html"));
  CHECK(report.starts_with("<!doctype html>"));
  CHECK(contains(report, "</html>"));
  CHECK(contains(report, "data:image/png;base64,"));
  for (const char* part : {"Time of one image", "99th percentile", "<td>read</td>", "<td>verdict</td>", "<td>all</td>"}) CHECK(contains(report, part));
  for (const char* outside : {"http:", "https:", "file:", "href", "@import", "<script", "url("}) CHECK_FALSE(contains(report, outside));
  for (auto at = report.find("src="); at != std::string::npos; at = report.find("src=", at + 1)) CHECK(report.compare(at, 10, "src='data:") == 0);

  // The page alone on standard output, also for a category with a name that means something to HTML.
  fs::create_directories(w.path("named"));
  fs::copy(w.path("set/bolt"), w.path("named/it's <b>"), fs::copy_options::recursive);
  const Run page = w.norma.run({"eval", "--model", "kept.norma", "--data", "named", "--category", "it's <b>", "--report", "-", "--quiet"});
  CHECK(page.code == 0);
  CHECK(page.err.empty());
  CHECK(page.out.starts_with("<!doctype html>"));
  CHECK_FALSE(contains(page.out, "it's <b>"));
  CHECK(contains(page.out, "it&#39;s &lt;b&gt;"));

  const auto table = norma::test::lines(norma::test::file_text(w.path("scores.csv")));
  REQUIRE(table.size() == 13);
  CHECK(contains(table[0], "path,kind,gt_label,pred_score"));
  CHECK(contains(table[1], "set/bolt/test/"));
}

TEST_CASE("eval: several images at once give the same figures and files") {
  NEEDS_PROGRAM();
  const World& w = world();
  std::vector<JsonValue> found;
  for (const std::string at_once : {"1", "0", "2"}) {
    const Run run = w.norma.run({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolt", "--threads", "4", "--images-at-once", at_once, "--json", "-", "--csv",
                                 "scores" + at_once + ".csv", "--maps", "maps" + at_once, "--overlays", "overlays" + at_once, "--quiet"});
    INFO(run.err);
    REQUIRE(run.code == 0);
    CHECK(run.err.empty());
    found.push_back(norma::test::parse_json(run.out));
    CHECK(found.back().find("threads")->integer() == 4);
    CHECK(found.back().find("time")->find("images_at_once")->integer() == (at_once == "0" ? 4 : std::stoi(at_once)));
    CHECK(found.back().find("image_AUROC")->number() == found.front().find("image_AUROC")->number());
    CHECK(found.back().find("pixel_AUPRO")->number() == found.front().find("pixel_AUPRO")->number());
    for (const auto& entry : fs::recursive_directory_iterator(w.path("maps1"))) {
      if (!entry.is_regular_file()) continue;
      const fs::path relative = fs::relative(entry.path(), w.path("maps1"));
      CAPTURE(relative);
      CHECK(norma::test::file_text(w.path("maps" + at_once + "/" + relative.string())) == norma::test::file_text(entry.path().string()));
      const std::string picture = fs::path(relative).replace_extension(".png").string();
      CHECK(norma::test::file_text(w.path("overlays" + at_once + "/" + picture)) == norma::test::file_text(w.path("overlays1/" + picture)));
    }
  }
  check_refused({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolt", "--images-at-once", "-1"}, 2, {"--images-at-once", "-1"});
}

TEST_CASE("eval: figures that are undefined are null") {
  NEEDS_PROGRAM();
  const World& w = world();
  // No masks: no pixel figures. No good test images: no image AUROC either.
  fs::create_directories(w.path("bare"));
  fs::copy(w.path("set/bolt"), w.path("bare/bolt"), fs::copy_options::recursive);
  fs::remove_all(w.path("bare/bolt/ground_truth"));
  const Run unmasked = w.norma.run({"eval", "--model", "padim.norma", "--data", "bare", "--category", "bolt", "--json", "bare.json"});
  INFO(unmasked.err);
  CHECK(unmasked.code == 0);
  CHECK(contains(unmasked.out, "need masks"));
  JsonValue json = norma::test::parse_json(norma::test::file_text(w.path("bare.json")));
  CHECK(is_fraction(json.find("image_AUROC")));
  for (const char* figure : {"pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO", "pixel_AUPRO_0.05", "pixel_AUPIMO"}) {
    CAPTURE(figure);
    REQUIRE(json.find(figure) != nullptr);
    CHECK(json.find(figure)->is_null());
  }
  fs::remove_all(w.path("bare/bolt/test"));
  fs::create_directories(w.path("bare/bolt/test/good"));
  fs::copy(w.path("set/bolt/test/good"), w.path("bare/bolt/test/good"), fs::copy_options::recursive);
  CHECK(w.norma.run({"eval", "--model", "padim.norma", "--data", "bare", "--category", "bolt", "--json", "bare.json", "--report", "bare.html"}).code == 0);
  json = norma::test::parse_json(norma::test::file_text(w.path("bare.json")));
  CHECK(json.find("image_AUROC")->is_null());
  CHECK(json.find("images")->find("anomalous")->integer() == 0);
  fs::remove_all(w.path("bare/bolt/test"));
  check_refused({"eval", "--model", "padim.norma", "--data", "bare", "--category", "bolt"}, 4, {"no test images"});
}

TEST_CASE("predict: a line an image in input order, results on standard output alone") {
  NEEDS_PROGRAM();
  const World& w = world();
  const Words images{"set/bolt/test/spot/001.png", "set/bolt/test/good/000.png", "set/bolt/test/spot/000.png"};
  Words words{"predict", "--model", "padim.norma", "--jsonl", "-"};
  words.insert(words.end(), images.begin(), images.end());
  const Run run = w.norma.run(words);
  CHECK(run.code == 0);
  const auto lines = norma::test::lines(run.out);
  REQUIRE(lines.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const JsonValue json = norma::test::parse_json(lines[i]);
    CHECK(json.find("path")->string() == images[i]);
    CHECK(is_number(json.find("pred_score")));
    for (const char* field : {"pred_label", "threshold", "anomaly_map", "error"}) {
      REQUIRE(json.find(field) != nullptr);
      CHECK(json.find(field)->is_null());
    }
    REQUIRE(json.find("peak") != nullptr);
    REQUIRE(json.find("peak")->items().size() == 2);
    for (const JsonValue& place : json.find("peak")->items()) CHECK((*place.number() >= 0.0 && *place.number() < 64.0));
    CHECK(is_number(json.find("latency_ms")));
    // The promised fields, in the promised order; others may stand between them.
    const auto names = norma::test::keys(json);
    auto at = names.begin();
    for (const char* field : {"path", "pred_score", "pred_label", "threshold", "anomaly_map", "peak", "latency_ms", "error"}) {
      at = std::find(at, names.end(), field);
      CHECK_MESSAGE(at != names.end(), field);
    }
  }
  const Run text = w.norma.run({"predict", "--model", "padim.norma", "set/bolt/test", "--quiet"});
  CHECK(text.code == 0);
  CHECK(text.err.empty());
  CHECK(norma::test::lines(text.out).size() == 12);
  const Run file = w.norma.run({"predict", "--model", "padim.norma", "set/bolt/test", "--jsonl", "lines.jsonl", "--maps", "flat_maps", "--overlays", "flat_overlays"});
  CHECK(file.code == 0);
  CHECK(file.out.empty());
  for (const std::string& line : norma::test::lines(norma::test::file_text(w.path("lines.jsonl")))) {
    const JsonValue json = norma::test::parse_json(line);
    const auto map = norma::io::read_tiff(w.path(std::string(json.find("anomaly_map")->string().value_or(""))));
    REQUIRE_MESSAGE(map.ok(), map.message());
    CHECK(map->shape() == norma::Shape{64, 64, 1});
    CHECK(fs::exists(w.path(std::string(json.find("overlay")->string().value_or("none")))));
  }
}

TEST_CASE("predict --json: counts as one object") {
  NEEDS_PROGRAM();
  const Run run = world().norma.run({"predict", "--model", "padim.norma", "set/bolt/test/good", "missing.png", "--json", "-"});
  CHECK(run.code == 5);
  CHECK(contains(run.err, "missing.png"));
  const JsonValue json = norma::test::parse_json(run.out);
  REQUIRE(json.find("images") != nullptr);
  CHECK(json.find("images")->find("scored")->integer() == 4);
  CHECK(json.find("images")->find("broken")->integer() == 1);
  CHECK(json.find("images")->find("anomalous")->is_null());
  CHECK(json.find("threshold")->is_null());
  check_refused({"predict", "--model", "padim.norma", "set/bolt/test/good", "--json", "-", "--jsonl", "-"}, 2, {"--json", "--jsonl"});
}

TEST_CASE("broken images among good ones are 5, named, and cost the others nothing") {
  NEEDS_PROGRAM();
  const World& w = world();
  fs::create_directories(w.path("odd"));
  const std::string image = norma::test::file_text(w.path("set/bolt/test/spot/000.png"));
  const Words good{"new\nline.png", "quote\"back\\slash.png", "<b>&amp;.png", "\xc3\xbc\xe2\x82\xac.png", "not utf-8 \xff.png"};
  for (const std::string& name : good) norma::test::write_file(w.path("odd/" + name), image);
  norma::test::write_file(w.path("odd/truncated.png"), image.substr(0, image.size() / 2));
  norma::test::write_file(w.path("odd/nothing.png"), "");
  const Run run = w.norma.run({"predict", "--model", "padim.norma", "odd", "missing.png", "--jsonl", "-", "--overlays", "odd_overlays"});
  CHECK(run.code == 5);
  const auto lines = norma::test::lines(run.out);
  REQUIRE(lines.size() == good.size() + 3);
  int broken = 0;
  double score = -1.0;
  for (const std::string& line : lines) {
    const JsonValue json = norma::test::parse_json(line);
    const std::string path(json.find("path")->string().value_or(""));
    CAPTURE(path);
    if (const auto error = json.find("error")->string()) {
      ++broken;
      CHECK(contains(std::string(*error), path));
      CHECK(contains(run.err, path));
      CHECK(json.find("pred_score")->is_null());
      CHECK(json.find("peak")->is_null());
    } else {
      if (score < 0.0) score = *json.find("pred_score")->number();
      CHECK(json.find("pred_score")->number() == score);  // they are all the same picture
    }
  }
  CHECK(broken == 3);
  check_refused({"fit", "--method", "padim", "--backbone", "squeezenet1_1", "--weights", "weights.safetensors", "--size", "64", "--data", "missing.png", "--output", "refused.norma"}, 3,
                {"missing.png"});

  fs::create_directories(w.path("damaged"));
  fs::copy(w.path("set/bolt"), w.path("damaged/bolt"), fs::copy_options::recursive);
  norma::test::write_file(w.path("damaged/bolt/train/good/003.png"), image.substr(0, 60));
  norma::test::write_file(w.path("damaged/bolt/test/spot/001.png"), image.substr(0, 60));
  const Run fit = w.norma.run({"fit", "--method", "padim", "--backbone", "squeezenet1_1", "--weights", "weights.safetensors", "--size", "64", "--data", "damaged", "--category", "bolt",
                               "--output", "damaged.norma"});
  CHECK(fit.code == 5);
  CHECK(contains(fit.err, "train/good/003.png"));
  CHECK(contains(fit.out, "7 images"));
  CHECK(w.norma.run({"selftest", "--model", "damaged.norma"}).code == 0);
  const Run eval = w.norma.run({"eval", "--model", "padim.norma", "--data", "damaged", "--category", "bolt", "--json", "-"});
  CHECK(eval.code == 5);
  CHECK(contains(eval.err, "test/spot/001.png"));
  const JsonValue json = norma::test::parse_json(eval.out);
  CHECK(json.find("images")->find("broken")->integer() == 1);
  CHECK(json.find("images")->find("anomalous")->integer() == 7);
  const Run calibrate = w.norma.run({"calibrate", "--model", "padim.norma", "--normal", "damaged/bolt/train/good", "--false-reject-rate", "0.25", "--output", "damaged.norma"});
  CHECK(calibrate.code == 5);
  CHECK(contains(calibrate.err, "003.png"));
}

TEST_CASE("calibrate, and the answer no of predict") {
  NEEDS_PROGRAM();
  const World& w = world();
  check_refused({"predict", "--model", "padim.norma", "--fail-on-anomaly", "set/bolt/test/good"}, 4, {"padim.norma", "norma calibrate"});
  const Run few = w.norma.run({"calibrate", "--model", "padim.norma", "--normal", "set/bolt/test/good", "--output", "few.norma"});
  CHECK(few.code == 4);
  CHECK(few.out.empty());
  CHECK(contains(few.err, "99"));
  CHECK(contains(few.err, "found 4"));
  CHECK_FALSE(fs::exists(w.path("few.norma")));
  const Run done = w.norma.run({"calibrate", "--model", "padim.norma", "--normal", "set/bolt/test/good", "--output", "line.norma", "--false-reject-rate", "0.2", "--json", "line.json"});
  CHECK(done.code == 0);
  CHECK(contains(done.out, "threshold"));
  const JsonValue json = norma::test::parse_json(norma::test::file_text(w.path("line.json")));
  REQUIRE(is_number(json.find("threshold")));
  const double threshold = *json.find("threshold")->number();
  CHECK(w.norma.run({"selftest", "--model", "line.norma"}).code == 0);
  CHECK(contains(w.norma.run({"info", "line.norma"}).out, "threshold"));
  CHECK(w.norma.run({"predict", "--model", "line.norma", "--fail-on-anomaly", "set/bolt/test/good", "--quiet"}).code == 0);
  // A white frame is unlike any bolt.
  const std::string white = "P5\n64 64\n255\n" + std::string(64 * 64, '\xff');
  norma::test::write_file(w.path("white.pgm"), white);
  const Run no = w.norma.run({"predict", "--model", "line.norma", "--fail-on-anomaly", "set/bolt/test/good/000.png", "white.pgm", "--jsonl", "-"});
  CHECK(no.code == 1);
  const auto lines = norma::test::lines(no.out);
  REQUIRE(lines.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const JsonValue line = norma::test::parse_json(lines[i]);
    CHECK(line.find("pred_label")->integer() == static_cast<std::int64_t>(i));
    CHECK(line.find("threshold")->number() == threshold);
    CHECK((*line.find("pred_score")->number() > threshold) == (i == 1));
  }
  CHECK(w.norma.run({"predict", "--model", "line.norma", "white.pgm"}).code == 0);
}

TEST_CASE("a damaged model is noticed wherever the damage is") {
  NEEDS_PROGRAM();
  const World& w = world();
  const Run whole = w.norma.run({"selftest", "--model", "patchcore.norma", "--json", "-"});
  CHECK(whole.code == 0);
  CHECK(norma::test::parse_json(whole.out).find("passed")->boolean() == true);
  const std::string model = norma::test::file_text(w.path("patchcore.norma"));
  std::uint64_t header = 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | static_cast<unsigned char>(model[static_cast<std::size_t>(i)]);
  REQUIRE(header < model.size());
  std::vector<std::size_t> places{9, header / 2, header, header + 7, model.size() - 1};
  for (std::size_t i = 1; i < 8; ++i) places.push_back(header + 8 + i * (model.size() - header - 8) / 8);
  for (const std::size_t place : places) {
    std::string damaged = model;
    damaged[place] = static_cast<char>(damaged[place] ^ 0x10);
    norma::test::write_file(w.path("damaged.norma"), damaged);
    CAPTURE(place);
    const Run test = w.norma.run({"selftest", "--model", "damaged.norma"});
    CAPTURE(test.out);
    CHECK(test.code == 1);
    CHECK(contains(test.out, "damaged.norma"));
    const Run predict = w.norma.run({"predict", "--model", "damaged.norma", "set/bolt/test/good/000.png"});
    CHECK(predict.code == 3);
    CHECK(contains(predict.err, "damaged.norma"));
    CHECK(predict.out.empty());
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{5}, std::size_t{8}, static_cast<std::size_t>(header), model.size() / 2, model.size() - 1}) {
    norma::test::write_file(w.path("damaged.norma"), model.substr(0, size));
    CAPTURE(size);
    CHECK(w.norma.run({"selftest", "--model", "damaged.norma"}).code == 1);
    CHECK(w.norma.run({"predict", "--model", "damaged.norma", "set/bolt/test/good/000.png"}).code == 3);
  }
}

TEST_CASE("info and convert") {
  NEEDS_PROGRAM();
  const World& w = world();
  const Run model = w.norma.run({"info", "padim.norma", "--json", "-"});
  CHECK(model.code == 0);
  const JsonValue json = norma::test::parse_json(model.out);
  CHECK(json.find("kind")->string() == "model");
  CHECK(json.find("method")->string() == "padim");
  CHECK(json.find("images")->integer() == 8);
  CHECK(json.find("digest")->string().has_value());
  const Run weights = w.norma.run({"info", "weights.safetensors"});
  CHECK(weights.code == 0);
  CHECK(contains(weights.out, "fits squeezenet1_1"));
  CHECK_FALSE(contains(weights.out, "fits resnet18"));
  const Run image = w.norma.run({"info", "set/weave/test/good/000.png"});
  CHECK(image.code == 0);
  CHECK(contains(image.out, "64 rows, 64 columns"));

  const Run converted = w.norma.run({"convert", "weights.safetensors", "converted.safetensors", "--backbone", "squeezenet1_1"});
  CHECK(converted.code == 0);
  CHECK(contains(converted.out, "fits squeezenet1_1"));
  const Run wrong = w.norma.run({"convert", "weights.safetensors", "wrong.safetensors", "--backbone", "resnet18"});
  CHECK(wrong.code == 3);
  CHECK(contains(wrong.err, "resnet18"));
  CHECK(w.norma.run({"fit", "--method", "padim", "--backbone", "squeezenet1_1", "--weights", "converted.safetensors", "--data", "set", "--category", "bolt", "--size", "64", "--output",
                     "converted.norma"}).code == 0);
  fs::remove(w.path("converted.safetensors"));
  const std::string checkpoint = NORMA_SOURCE_DIR "/tests/data/io/torch_zip.pt";
  check_refused({"info", checkpoint}, 3, {"norma convert"});
  const Run torch = w.norma.run({"convert", checkpoint, "converted.safetensors", "--json", "-"});
  CHECK(torch.code == 0);
  CHECK(norma::test::parse_json(torch.out).find("tensors")->integer().value_or(0) > 0);
  CHECK(w.norma.run({"info", "converted.safetensors"}).code == 0);
  fs::remove(w.path("converted.safetensors"));
  check_refused({"convert", NORMA_SOURCE_DIR "/tests/data/io/torch_object.pt", "converted.safetensors"}, 3, {"torch_object.pt"});  // holds code
  CHECK_FALSE(fs::exists(w.path("converted.safetensors")));
}

TEST_CASE("an interrupt is 130 and leaves no half-written file") {
  NEEDS_PROGRAM();
  const World& w = world();
  fs::create_directories(w.path("many"));
  fs::create_directories(w.path("interrupted"));
  for (int i = 0; i < 2000; ++i) fs::create_symlink("../set/bolt/train/good/00" + std::to_string(i % 8) + ".png", w.path("many/" + std::to_string(i) + ".png"));
  const Run run = w.norma.interrupt({"fit", "--method", "patchcore", "--backbone", "squeezenet1_1", "--weights", "weights.safetensors", "--data", "many", "--size", "256", "--output",
                                     "interrupted/model.norma", "--json", "interrupted/fit.json"},
                                    std::chrono::milliseconds(150));
  CAPTURE(run.err);
  CHECK(run.code == 130);
  CHECK(run.out.empty());
  CHECK(fs::is_empty(w.path("interrupted")));
  const Run predict = w.norma.interrupt({"predict", "--model", "spade.norma", "many", "--jsonl", "interrupted/lines.jsonl"}, std::chrono::milliseconds(150));
  CHECK(predict.code == 130);
  // What was done is complete lines.
  const std::string lines = norma::test::file_text(w.path("interrupted/lines.jsonl"));
  CHECK((lines.empty() || lines.back() == '\n'));
  for (const std::string& line : norma::test::lines(lines)) CHECK(norma::test::parse_json(line).find("pred_score") != nullptr);
}

namespace {

// FastFlow with little to learn: two layers, one block each.
Words flow_words(const std::string& command, const Words& more) {
  Words words{command,
              "--method",
              "fastflow",
              "--backbone",
              "squeezenet1_1",
              "--weights",
              "weights.safetensors",
              "--data",
              "set",
              "--category",
              "bolt",
              "--size",
              "64",
              "--layers",
              "features.4,features.7",
              "--flow-steps",
              "1",
              "--hidden-ratio",
              "0.05",
              "--epochs",
              "60",
              "--batch",
              "3",
              "--holdout",
              "0.25"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}
int lines_with(const std::string& text, const std::string& part) {
  int count = 0;
  for (const std::string& line : norma::test::lines(text)) count += contains(line, part) ? 1 : 0;
  return count;
}

}  // namespace

TEST_CASE("a method that is trained: record, curve, a line for the training, and the same file however often it was stopped") {
  NEEDS_PROGRAM();
  const World& w = world();
  const Run straight = w.norma.run(flow_words("fit", {"--output", "flow.norma", "--curve", "flow.csv", "--json", "flow.json"}));
  INFO(straight.err);
  REQUIRE(straight.code == 0);
  CHECK(straight.out.starts_with("flow.norma: fastflow on squeezenet1_1, 8 images"));
  CHECK_FALSE(fs::exists(w.path("flow.norma.checkpoint")));
  // In a pipe one line tells the whole training.
  CHECK(lines_with(straight.err, "training") == 1);
  CHECK(contains(straight.err, "training: 60 epochs, loss "));
  CHECK(lines_with(straight.err, "features: 8") == 1);
  const std::string expected = norma::test::file_text(w.path("flow.norma"));
  const JsonValue json = norma::test::parse_json(norma::test::file_text(w.path("flow.json")));
  const JsonValue* training = json.find("training");
  REQUIRE(training != nullptr);
  CHECK(norma::test::keys(*training) == Words{"epochs", "best_epoch", "loss", "held_out"});
  CHECK(training->find("epochs")->integer() == 60);
  CHECK(training->find("best_epoch")->integer().value_or(0) >= 1);
  REQUIRE(training->find("loss")->items().size() == 60);
  REQUIRE(training->find("held_out")->items().size() == 60);
  CHECK(*training->find("loss")->items()[59].number() < *training->find("loss")->items()[0].number());
  const auto curve = norma::test::lines(norma::test::file_text(w.path("flow.csv")));
  REQUIRE(curve.size() == 61);
  CHECK(curve[0] == "epoch,loss,held_out");
  CHECK(curve[1].starts_with("1,"));
  CHECK(std::stod(curve[60].substr(3)) == doctest::Approx(*training->find("loss")->items()[59].number()).epsilon(1e-6));
  CHECK(std::stod(curve[60].substr(curve[60].rfind(',') + 1)) == doctest::Approx(*training->find("held_out")->items()[59].number()).epsilon(1e-6));
  const Run info = w.norma.run({"info", "flow.norma"});
  CHECK(lines_with(info.out, "  trained 60 epochs, loss ") == 1);
  CHECK(w.norma.run({"selftest", "--model", "flow.norma"}).code == 0);
  CHECK(norma::test::parse_json(w.norma.run({"info", "flow.norma", "--json", "-"}).out).find("training")->find("epochs")->integer() == 60);
  CHECK(norma::test::parse_json(w.norma.run({"info", "padim.norma", "--json", "-"}).out).find("training")->is_null());

  // Ctrl-C says what is kept; the same command goes on from it. A process that is killed leaves its last checkpoint.
  for (const int signal : {SIGINT, SIGKILL}) {
    CAPTURE(signal);
    const Words words = flow_words("fit", {"--output", "stopped.norma", "--checkpoint-seconds", "0.02", "--cache-mb", "0"});
    fs::remove(w.path("stopped.norma"));
    const Run stopped = w.norma.stop_when(words, "stopped.norma.checkpoint", signal);
    CAPTURE(stopped.err);
    CHECK(stopped.code == (signal == SIGINT ? 130 : 128 + SIGKILL));
    CHECK(stopped.out.empty());
    if (signal == SIGINT) {
      CHECK(contains(stopped.err, "norma: nn::train: stopped on request in epoch "));
      CHECK(contains(stopped.err, "'stopped.norma.checkpoint' keeps what was trained, the same command goes on from it"));
    }
    CHECK_FALSE(fs::exists(w.path("stopped.norma")));
    CHECK(fs::exists(w.path("stopped.norma.checkpoint")));
    const Run again = w.norma.run(words);
    CAPTURE(again.err);
    CHECK(again.code == 0);
    CHECK(contains(again.err, "going on from 'stopped.norma.checkpoint', "));
    CHECK(norma::test::file_text(w.path("stopped.norma")) == expected);
    CHECK_FALSE(fs::exists(w.path("stopped.norma.checkpoint")));
  }
}

TEST_CASE("a checkpoint of another run is refused by name, --restart begins anew, and no other file is taken for one") {
  NEEDS_PROGRAM();
  const World& w = world();
  const Words words = flow_words("fit", {"--output", "other.norma", "--checkpoint", "run.state"});
  Words others = words;
  others.insert(others.end(), {"--seed", "1", "--checkpoint-seconds", "0.02"});
  CHECK(w.norma.stop_when(others, "run.state", SIGINT).code == 130);
  const std::string state = norma::test::file_text(w.path("run.state"));
  REQUIRE_FALSE(state.empty());
  const Run refused = w.norma.run(words);
  CAPTURE(refused.err);
  CHECK(refused.code == 3);
  CHECK(refused.out.empty());
  for (const char* part : {"'run.state'", "delete it", "--restart"}) CHECK_MESSAGE(contains(refused.err, part), part);
  CHECK_FALSE(fs::exists(w.path("other.norma")));
  CHECK(norma::test::file_text(w.path("run.state")) == state);
  Words anew = words;
  anew.emplace_back("--restart");
  CHECK(w.norma.run(anew).code == 0);
  CHECK_FALSE(fs::exists(w.path("run.state")));
  REQUIRE_FALSE(norma::test::file_text(w.path("flow.norma")).empty());
  CHECK(norma::test::file_text(w.path("other.norma")) == norma::test::file_text(w.path("flow.norma")));
  fs::remove(w.path("other.norma"));
  // A damaged checkpoint may be deleted for the user, his own files may not.
  std::string damaged = state;
  damaged[damaged.size() - 9] = static_cast<char>(damaged[damaged.size() - 9] ^ 4);
  norma::test::write_file(w.path("run.state"), damaged);
  check_refused(words, 3, {"run.state", "--restart"});
  norma::test::write_file(w.path("run.state"), "my notes");
  for (const Words& command : {words, anew}) check_refused(command, 3, {"run.state", "another --checkpoint"});
  CHECK(norma::test::file_text(w.path("run.state")) == "my notes");
  const auto with = [&](const std::string& name, const std::string& value) {
    Words changed = flow_words("fit", {"--output", "other.norma", "--restart"});
    changed.insert(changed.end(), {name, value});
    return changed;
  };
  check_refused(with("--checkpoint", "padim.norma"), 3, {"padim.norma", "another --checkpoint"});
  check_refused(with("--checkpoint", "weights.safetensors"), 2, {"overwritten"});
  check_refused(with("--checkpoint", "./other.norma"), 2, {"other.norma"});
  check_refused(with("--curve", "./other.norma"), 2, {"other.norma"});
  check_refused(with("--checkpoint", "missing/run"), 3, {"missing"});
  check_refused(with("--curve", "missing/curve.csv"), 3, {"missing"});
  CHECK(fs::exists(w.path("padim.norma")));
  CHECK_FALSE(fs::exists(w.path("other.norma")));
}

TEST_CASE("options of a training: values that cannot be, and methods that have none") {
  NEEDS_PROGRAM();
  const std::vector<std::pair<Words, std::vector<std::string>>> wrong = {
      {{"--epochs", "0"}, {"epochs", "0"}},
      {{"--epochs", "many"}, {"epochs", "many"}},
      {{"--batch", "0"}, {"batch"}},
      {{"--learning-rate", "-1"}, {"learning_rate"}},
      {{"--learning-rate", "nan"}, {"learning_rate"}},
      {{"--holdout", "0.9"}, {"holdout"}},
      {{"--holdout", "0", "--patience", "3"}, {"patience"}},
      {{"--flow-steps", "-1"}, {"flow_steps"}},
      {{"--normalisation", "some"}, {"normalisation", "some"}},
      {{"--cache-mb", "-1"}, {"--cache-mb", "-1"}},
      {{"--cache-mb", "much"}, {"--cache-mb", "much"}},
      {{"--checkpoint-seconds", "0"}, {"--checkpoint-seconds"}},
      {{"--checkpoint-seconds", "nan"}, {"--checkpoint-seconds"}},
      {{"--curve", "-"}, {"'-'"}},
      {{"--epoch", "3"}, {"did you mean --epochs?"}},
  };
  for (const auto& [words, parts] : wrong) {
    Words all{"--output", "refused.norma"};
    all.insert(all.end(), words.begin(), words.end());
    check_refused(flow_words("fit", all), 2, parts);
  }
  for (const Words& words :
       {Words{"--checkpoint", "x"}, Words{"--restart"}, Words{"--curve", "x.csv"}, Words{"--cache-mb", "5"}, Words{"--checkpoint-seconds", "5"}}) {
    Words all{"--weights", "weights.safetensors", "--data", "set", "--category", "bolt", "--size", "64"};
    all.insert(all.end(), words.begin(), words.end());
    check_refused(padim_words(all), 2, {"padim", words[0]});
  }
  check_refused({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolt", "--checkpoint", "x"}, 2, {"--checkpoint", "--model"});
  check_refused({"eval", "--model", "padim.norma", "--data", "set", "--category", "bolt", "--curve", "x"}, 2, {"--curve", "padim"});
  CHECK_FALSE(fs::exists(world().path("refused.norma")));
}

TEST_CASE("eval of a trained method: no checkpoint without --output, unless it is asked for; the record comes out of a model, too") {
  NEEDS_PROGRAM();
  const World& w = world();
  REQUIRE(fs::exists(w.path("flow.norma")));
  const auto files = [&] {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(w.folder.path())) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  };
  const auto before = files();
  const Run eval = w.norma.run(flow_words("eval", {"--json", "-", "--quiet"}));
  INFO(eval.err);
  REQUIRE(eval.code == 0);
  CHECK(eval.err.empty());
  CHECK(files() == before);
  const JsonValue fitted = norma::test::parse_json(eval.out);
  CHECK(fitted.find("training")->find("epochs")->integer() == 60);
  const Run opened = w.norma.run({"eval", "--model", "flow.norma", "--data", "set", "--category", "bolt", "--json", "opened.json", "--curve",
                                  "opened.csv", "--report", "flow.html"});
  CHECK(opened.code == 0);
  CHECK(norma::test::file_text(w.path("opened.csv")) == norma::test::file_text(w.path("flow.csv")));
  CHECK(contains(norma::test::file_text(w.path("flow.html")), "60 epochs, loss "));
  const JsonValue json = norma::test::parse_json(norma::test::file_text(w.path("opened.json")));
  CHECK(json.find("image_AUROC")->number() == fitted.find("image_AUROC")->number());
  CHECK(json.find("pixel_AUPRO")->number() == fitted.find("pixel_AUPRO")->number());
  CHECK(json.find("training")->find("best_epoch")->integer() == fitted.find("training")->find("best_epoch")->integer());
  // Stopped without a place to keep it in; then with one.
  const Run lost = w.norma.interrupt(flow_words("eval", {"--epochs", "100000"}), std::chrono::milliseconds(500));
  CHECK(lost.code == 130);
  CHECK(contains(lost.err, "nothing is kept (--checkpoint FILE"));
  const Words kept = flow_words("eval", {"--checkpoint", "eval.state", "--checkpoint-seconds", "0.02", "--json", "resumed.json"});
  CHECK(w.norma.stop_when(kept, "eval.state", SIGINT).code == 130);
  CHECK(fs::exists(w.path("eval.state")));
  const Run resumed = w.norma.run(kept);
  CHECK(resumed.code == 0);
  CHECK(contains(resumed.err, "going on from 'eval.state'"));
  CHECK_FALSE(fs::exists(w.path("eval.state")));
  CHECK(norma::test::parse_json(norma::test::file_text(w.path("resumed.json"))).find("pixel_AUPRO")->number() ==
        fitted.find("pixel_AUPRO")->number());
}

TEST_CASE("a full standard output is reported") {
  NEEDS_PROGRAM();
  if (!fs::exists("/dev/full")) {
    MESSAGE("skipped: there is no /dev/full");
    return;
  }
  const std::string command = std::string("'") + std::getenv("NORMA_PROGRAM") + "' list > /dev/full 2> '" + world().path("full") + "'";
  const int status = std::system(command.c_str());
  CHECK(WEXITSTATUS(status) == 3);
  CHECK(contains(norma::test::file_text(world().path("full")), "standard output"));
  check_refused({"predict", "--model", "padim.norma", "set/bolt/test/good", "--jsonl", "/dev/full", "--quiet"}, 3, {"/dev/full"});
}
