// norma calibrate, norma selftest
#include <cstdio>

#include <norma/data/folder.hpp>

#include "commands.hpp"
#include "data_options.hpp"
#include "detectors.hpp"

namespace program {

using namespace norma;

int run_calibrate(Arguments arguments) {
  const Common common = take_common(arguments);
  const std::string model = arguments.take_required("model", "a .norma file");
  const std::string normal = arguments.take_required("normal", "a folder of good images that the fit has not seen");
  CalibrationOptions options;
  options.false_reject_rate = arguments.take_number<double>("false-reject-rate", options.false_reject_rate);
  options.confidence = arguments.take_number<double>("confidence", options.confidence);
  const std::string output = arguments.take("output").value_or(model);
  arguments.finish("calibrate");

  Terminal terminal(common.quiet);
  AnyDetector detector = require_file(open_model(model, common.threads));
  const data::Folder source(normal);
  require(source.status());
  require_writable(output);
  require_writable(common.json, {model, output});
  std::vector<SkippedImage> skipped;
  const Status status = calibrate(detector, source, options, {.threads = common.threads, .observer = terminal.observer(), .skipped = &skipped});
  for (const SkippedImage& image : skipped) terminal.warn("skipped: " + image.reason.message());
  require(status);
  require(detector.save(output));
  const Calibration& done = *detector.calibration();
  if (common.json != "-") std::printf("%s: threshold %.6g. %s\n", output.c_str(), done.threshold, done.statement.c_str());
  if (common.json) {
    io::JsonWriter json(io::JsonLayout::pretty);
    json.begin_object().member("norma_version", kVersion).member("model", output).member("threshold", done.threshold);
    json.member("false_reject_rate", done.false_reject_rate).member("confidence", done.confidence).member("images", done.images);
    json.member("above", done.above).member("statement", done.statement).end_object();
    write_text(*common.json, json.take() + "\n");
  }
  return skipped.empty() ? kDone : kSomeBroken;
}

int run_selftest(Arguments arguments) {
  const Common common = take_common(arguments);
  const std::string model = arguments.take_required("model", "a .norma file");
  const double tolerance = arguments.take_number<double>("tolerance", 1e-3);
  arguments.finish("selftest");
  if (!(tolerance >= 0.0)) throw Failure{kWrongUsage, "option --tolerance: expected a number that is not negative, found " + field_text(tolerance)};
  require_writable(common.json, {model});

  // Damage is the answer "no"; a file that is missing or something else cannot be asked at all.
  const Status status = [&]() -> Status {
    NORMA_TRY(const io::Weights file, io::Weights::open(model));
    if (const auto sealed = file.metadata("digest"); sealed) NORMA_CHECK(file.verify_seal());
    NORMA_TRY(const AnyDetector detector, open_model(model, common.threads));
    return detector.self_test(tolerance);
  }();
  const bool no = status.code() == Errc::mismatch || status.code() == Errc::corrupt || status.code() == Errc::not_finite;
  if (status.code() == Errc::invalid_argument) throw Failure{kUnusable, status.message()};
  if (!status.ok() && !no) require(status);
  if (common.json) {
    io::JsonWriter json(io::JsonLayout::pretty);
    json.begin_object().member("norma_version", kVersion).member("model", model).member("passed", status.ok());
    json.member("reason", status.ok() ? std::optional<std::string>() : std::optional<std::string>(status.message())).end_object();
    write_text(*common.json, json.take() + "\n");
  }
  if (common.json != "-") std::printf("%s: %s\n", model.c_str(), status.ok() ? "the digest is right and every reference frame gives the recorded answer" : status.message().c_str());
  return status.ok() ? kDone : kAnswerIsNo;
}

}  // namespace program
