#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include <norma/image/decode.hpp>
#include <norma/image/encode.hpp>
#include <norma/image/overlay.hpp>
#include <norma/image/resample.hpp>

namespace program {

using namespace norma;
using evaluation::ImageResult;
using evaluation::Report;

namespace {

float map_peak(const ImageResult& image) { return *std::max_element(image.map.data(), image.map.data() + image.map.rows() * image.map.cols()); }

float quantile(std::vector<float> values, double q) {
  if (values.empty()) return 0.0f;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}

}  // namespace

HeatMaps::HeatMaps(const AnyDetector& detector, const Report& report) : detector_(detector) {
  std::vector<float> normal, all;
  for (const ImageResult& image : report.images) {
    all.push_back(map_peak(image));
    if (image.label == 0) normal.push_back(all.back());
  }
  // Colours begin where a typical good image ends.
  low_ = quantile(normal.empty() ? all : normal, 0.5);
  high_ = std::max(quantile(all, 0.9), low_ * 1.25f + 1e-12f);
}

Result<Image> HeatMaps::panel(const ImageResult& result, std::int64_t side) const {
  NORMA_TRY(Image frame, image::read(result.path));
  NORMA_TRY(Map<float> map, detector_.map_to_original(result.map.view(), frame.height(), frame.width()));
  if (const auto longest = std::max(frame.height(), frame.width()); side > 0 && longest > side) {
    const auto scaled = [&](std::int64_t n) { return std::max<std::int64_t>(1, n * side / longest); };
    NORMA_TRY(Image small, image::resize(frame, scaled(frame.height()), scaled(frame.width()), Interpolation::pillow_bilinear));
    Map<float> small_map(small.height(), small.width());
    NORMA_CHECK(image::resize_bilinear(map.view(), small_map.view(), AlignCorners::no));
    frame = std::move(small);
    map = std::move(small_map);
  }
  OverlayOptions options;
  options.low = low_;
  options.high = high_;
  options.mark_peak = map_peak(result) > low_;
  NORMA_TRY(const Image drawn, image::overlay(frame.view(), map.view(), options));
  return image::side_by_side({frame.view(), drawn.view()}, 4);
}

namespace {

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string format(const char* pattern, double value) {
  char text[48];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}
std::string percent(const std::optional<double>& value) { return value ? format("%.2f", 100.0 * *value) : "n/a"; }

std::string base64(std::span<const std::byte> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t word = 0;
    for (std::size_t j = 0; j < 3; ++j) word = word << 8 | (i + j < bytes.size() ? std::to_integer<std::uint32_t>(bytes[i + j]) : 0u);
    for (std::size_t j = 0; j < 4; ++j) out += i + j > bytes.size() ? '=' : kDigits[word >> (18 - 6 * j) & 63u];
  }
  return out;
}

struct Polyline {
  std::string name;
  std::string colour;
  std::vector<double> x, y;
};

// A square chart with axes from 0 to `limit_x` and 0 to 1.
std::string chart(const std::string& title, const std::string& x_name, const std::string& y_name, const std::vector<Polyline>& lines, double limit_x = 1.0) {
  constexpr double kSize = 260.0, kLeft = 42.0, kTop = 26.0;
  const auto px = [&](double x) { return kLeft + std::min(x / limit_x, 1.0) * kSize; };
  const auto py = [&](double y) { return kTop + (1.0 - y) * kSize; };
  std::string svg = "<svg viewBox='0 0 320 340' width='320' height='340' role='img' aria-label='" + escape(title) + "'><text x='" + format("%.0f", kLeft) +
                    "' y='16' class='t'>" + escape(title) + "</text>";
  for (int i = 0; i <= 4; ++i) {
    const double f = i / 4.0;
    svg += "<line class='g' x1='" + format("%.1f", px(f * limit_x)) + "' x2='" + format("%.1f", px(f * limit_x)) + "' y1='" + format("%.1f", py(0)) + "' y2='" +
           format("%.1f", py(1)) + "'/><line class='g' x1='" + format("%.1f", px(0)) + "' x2='" + format("%.1f", px(limit_x)) + "' y1='" + format("%.1f", py(f)) +
           "' y2='" + format("%.1f", py(f)) + "'/><text class='a' text-anchor='middle' x='" + format("%.1f", px(f * limit_x)) + "' y='" + format("%.1f", py(0) + 14) +
           "'>" + format("%g", f * limit_x) + "</text><text class='a' text-anchor='end' x='" + format("%.1f", px(0) - 5) + "' y='" + format("%.1f", py(f) + 4) + "'>" +
           format("%g", f) + "</text>";
  }
  for (const Polyline& line : lines) {
    svg += "<polyline fill='none' stroke='" + line.colour + "' stroke-width='2' points='";
    for (std::size_t i = 0; i < line.x.size(); ++i) {
      if (i > 0 && line.x[i - 1] > limit_x) break;
      svg += format("%.1f", px(line.x[i])) + "," + format("%.1f", py(line.y[i])) + " ";
    }
    svg += "'/>";
  }
  svg += "<text class='a' text-anchor='middle' x='" + format("%.0f", kLeft + kSize / 2) + "' y='" + format("%.0f", kTop + kSize + 30) + "'>" + escape(x_name) +
         "</text><text class='a' text-anchor='middle' transform='rotate(-90 10 " + format("%.0f", kTop + kSize / 2) + ")' x='10' y='" +
         format("%.0f", kTop + kSize / 2) + "'>" + escape(y_name) + "</text></svg>";
  return svg;
}

// Image scores as a strip plot: one row a kind, good images first.
std::string strip_plot(const Report& report) {
  std::map<std::string, std::vector<const ImageResult*>> kinds;
  float low = report.images.front().score, high = low;
  for (const ImageResult& image : report.images) {
    kinds[image.kind].push_back(&image);
    low = std::min(low, image.score);
    high = std::max(high, image.score);
  }
  std::vector<std::string> order;
  for (const auto& [kind, images] : kinds) {
    if (images.front()->label == 0) order.insert(order.begin(), kind);
    else order.push_back(kind);
  }
  const double height = 30.0 * static_cast<double>(order.size()) + 30.0;
  const auto px = [&](double score) { return 150.0 + 540.0 * (high > low ? (score - static_cast<double>(low)) / static_cast<double>(high - low) : 0.5); };
  std::string svg = "<svg viewBox='0 0 720 " + format("%.0f", height) + "' width='720' height='" + format("%.0f", height) + "' role='img' aria-label='image scores'>";
  if (report.image.f1_max) {
    const double x = px(report.image.f1_max->threshold);
    svg += "<line x1='" + format("%.1f", x) + "' x2='" + format("%.1f", x) + "' y1='4' y2='" + format("%.0f", height - 22) +
           "' stroke='#888' stroke-dasharray='4 3'/><text class='a' text-anchor='middle' x='" + format("%.1f", x) + "' y='" + format("%.0f", height - 6) +
           "'>best F1 at " + format("%.4g", report.image.f1_max->threshold) + "</text>";
  }
  for (std::size_t k = 0; k < order.size(); ++k) {
    const double y = 20.0 + 30.0 * static_cast<double>(k);
    svg += "<text x='142' y='" + format("%.0f", y + 4) + "' text-anchor='end' class='a'>" + escape(order[k]) + "</text>";
    std::size_t i = 0;
    for (const ImageResult* image : kinds[order[k]]) {
      const double jitter = static_cast<double>(i++ * 7 % 13) - 6.0;  // so that equal scores can be counted
      svg += "<circle cx='" + format("%.1f", px(static_cast<double>(image->score))) + "' cy='" + format("%.1f", y + jitter * 0.8) + "' r='3.2' fill='" +
             (image->label == 0 ? "#2a7de1" : "#d9480f") + "' fill-opacity='0.65'><title>" + escape(image->path) + " " +
             format("%.4f", static_cast<double>(image->score)) + "</title></circle>";
    }
  }
  return svg + "</svg>";
}

Result<std::string> figure(const HeatMaps& heat, const ImageResult& image, const std::string& note) {
  NORMA_TRY(const Image panel, heat.panel(image, 260));
  NORMA_TRY(const auto png, image::encode_png(panel.view()));
  const auto slash = image.path.find_last_of('/', image.path.find_last_of('/') - 1);
  return "<figure><img loading='lazy' alt='image and heat map' src='data:image/png;base64," + base64(png) + "'><figcaption><b>" +
         escape(image.path.substr(slash == std::string::npos ? 0 : slash + 1)) + "</b> score " + format("%.4f", static_cast<double>(image.score)) +
         (note.empty() ? "" : "<br>" + note) + "</figcaption></figure>";
}

constexpr std::string_view kStyle = R"(
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--soft:#f3f5f7;--line:#d8dee4;--accent:#d9480f}
@media(prefers-color-scheme:dark){:root{--fg:#e6e8eb;--bg:#15181c;--soft:#1f242a;--line:#363d45}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1180px;margin:2em auto;padding:0 1.2em}
h1{font-size:1.6em;margin-bottom:.1em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid var(--line);padding-bottom:.25em}
p.sub{margin-top:0;opacity:.75}.cards{display:flex;flex-wrap:wrap;gap:.8em;margin:1.2em 0}
.card{background:var(--soft);border-radius:8px;padding:.7em 1.1em;min-width:7.5em}.card b{display:block;font-size:1.5em}.card span{font-size:.85em;opacity:.75}
.charts{display:flex;flex-wrap:wrap;gap:1em}svg text{fill:var(--fg)}svg .t{font-size:13px;font-weight:600}svg .a{font-size:11px;opacity:.85}svg .g{stroke:var(--line);stroke-width:1}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:1em}figure{margin:0;background:var(--soft);border-radius:8px;padding:.6em}
figure img{max-width:100%;border-radius:4px}figcaption{font-size:.85em}table{border-collapse:collapse}td,th{padding:.25em .9em .25em 0;text-align:left;border-bottom:1px solid var(--line)}
td.n{text-align:right;font-variant-numeric:tabular-nums}code{background:var(--soft);padding:.1em .3em;border-radius:4px}
)";

void card(std::string& html, const std::string& value, const std::string& name) {
  html += "<div class='card'><b>" + value + "</b><span>" + escape(name) + "</span></div>";
}

}  // namespace

Result<std::string> report_page(const AnyDetector& detector, const Report& report, const HeatMaps& heat, std::optional<double> fit_seconds,
                                const std::string& data_digest) {
  const auto f1 = [](const std::optional<evaluation::F1Max>& best) { return best ? std::optional<double>(best->value) : std::nullopt; };
  const std::string title = std::string(detector.method()) + " on " + std::string(detector.backbone()) + ": " + report.category;
  std::string html = "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'><title>" + escape(title) +
                     "</title><style>" + std::string(kStyle) + "</style><h1>" + escape(title) + "</h1><p class='sub'>" +
                     std::to_string(detector.provenance().images) + " training images; " + std::to_string(report.normal) + " normal and " +
                     std::to_string(report.anomalous) + " anomalous test images. Figures in percent.</p><div class='cards'>";
  card(html, percent(report.image.auroc), "image AUROC");
  card(html, percent(report.image.average_precision), "image AP");
  card(html, percent(f1(report.image.f1_max)), "image F1-max");
  card(html, percent(report.pixel.auroc), "pixel AUROC");
  card(html, percent(report.au_pro_30), "AU-PRO to 0.3");
  card(html, percent(report.au_pro_05), "AU-PRO to 0.05");
  card(html, percent(report.aupimo), "AUPIMO");
  card(html, format("%.1f ms", report.latency.p50), "per image, median");
  card(html, format("%.1f ms", report.latency.p99), "per image, 99th percentile");
  if (fit_seconds) card(html, format("%.1f s", *fit_seconds), "fit");
  html += "</div><h2>Scores</h2>" + strip_plot(report) + "<h2>Curves</h2><div class='charts'>";

  std::vector<float> scores;
  std::vector<std::uint8_t> labels;
  for (const ImageResult& image : report.images) {
    scores.push_back(image.score);
    labels.push_back(image.label);
  }
  NORMA_TRY(const auto ranking, evaluation::Ranking<float>::create(scores, labels));
  if (report.image.auroc) {
    const auto roc = ranking.roc_curve();
    const auto pr = ranking.precision_recall_curve();
    html += chart("Image ROC", "false positive rate", "true positive rate", {{"", "#d9480f", roc.false_positive_rate, roc.true_positive_rate}});
    html += chart("Image precision and recall", "recall", "precision", {{"", "#2a7de1", pr.recall, pr.precision}});
  }
  if (!report.pro_curve.overlap.empty()) {
    html += chart("Per-region overlap", "pixel false positive rate", "mean overlap", {{"", "#2b8a3e", report.pro_curve.false_positive_rate, report.pro_curve.overlap}}, 0.3);
  }
  html += "</div>";

  // Worst misses: anomalous images with the lowest scores, good ones with the highest.
  std::vector<const ImageResult*> missed, alarms;
  for (const ImageResult& image : report.images) (image.label != 0 ? missed : alarms).push_back(&image);
  std::stable_sort(missed.begin(), missed.end(), [](auto* a, auto* b) { return a->score < b->score; });
  std::stable_sort(alarms.begin(), alarms.end(), [](auto* a, auto* b) { return a->score > b->score; });
  const auto gallery = [&](const std::vector<const ImageResult*>& images, std::size_t most, const auto& note) -> Status {
    html += "<div class='grid'>";
    for (std::size_t i = 0; i < std::min(most, images.size()); ++i) {
      NORMA_TRY(const std::string picture, figure(heat, *images[i], note(*images[i])));
      html += picture;
    }
    html += "</div>";
    return {};
  };
  const auto share = [](const std::vector<const ImageResult*>& others, float score, bool above) {
    const auto count = std::count_if(others.begin(), others.end(), [&](auto* o) { return above ? o->score >= score : o->score <= score; });
    return std::to_string(count) + " of " + std::to_string(others.size());
  };
  html += "<h2>Anomalous images with the lowest scores</h2>";
  NORMA_CHECK(gallery(missed, 6, [&](const ImageResult& image) { return share(alarms, image.score, true) + " good images score as high"; }));
  html += "<h2>Good images with the highest scores</h2>";
  NORMA_CHECK(gallery(alarms, 6, [&](const ImageResult& image) { return share(missed, image.score, false) + " anomalous images score as low"; }));
  std::map<std::string, std::vector<const ImageResult*>> kinds;
  for (const ImageResult* image : missed) kinds[image->kind].push_back(image);
  for (const auto& [kind, images] : kinds) {
    html += "<h2>" + escape(kind) + "</h2>";
    std::vector<const ImageResult*> spread;  // from the lowest to the highest score
    const std::size_t count = std::min<std::size_t>(6, images.size());
    for (std::size_t i = 0; i < count; ++i) spread.push_back(images[count == 1 ? 0 : i * (images.size() - 1) / (count - 1)]);
    NORMA_CHECK(gallery(spread, count, [](const ImageResult&) { return std::string(); }));
  }

  const std::string at_once = report.images_at_once == 1 ? "one image at a time" : std::to_string(report.images_at_once) + " images at once";
  html += "<h2>Time of one image</h2><p class='sub'>Milliseconds from the file to the verdict; " + at_once + ", threads of each: " +
          std::to_string(report.threads_per_image) + ".</p><table><tr><th>stage</th><th>median</th><th>99th percentile</th><th>mean</th></tr>";
  const auto times = [&](const std::string& name, const evaluation::LatencySummary& ms) {
    html += "<tr><td>" + name + "</td>";
    for (const double value : {ms.p50, ms.p99, ms.mean}) html += "<td class='n'>" + format("%.2f", value) + "</td>";
    html += "</tr>";
  };
  for (std::size_t s = 0; s < kStageNames.size(); ++s) times(kStageNames[s], report.stages[s]);
  times("all", report.latency);

  html += "</table><h2>How these figures were made</h2><table>";
  const auto row = [&](const std::string& name, const std::string& value) { html += "<tr><td>" + escape(name) + "</td><td>" + escape(value) + "</td></tr>"; };
  row("norma", std::string(kVersion));
  row("type", detector.type_name());
  detector.visit([&](const auto& d) {
    using Settings = std::remove_cvref_t<decltype(d.settings())>;
    Settings::visit(d.settings(), [&](std::string_view name, const auto& value, std::string_view) { row(std::string(name), field_text(value)); });
  });
  row("seed", std::to_string(detector.provenance().seed));
  row("weights", detector.provenance().weights);
  if (const TrainingRecord* record = detector.training()) row("training", training_text(*record));
  row("pixel figures", std::to_string(report.pixel_images) + " images, " + std::to_string(report.regions) + " regions, " + std::string(to_string(report.resolution)) +
                           " resolution; masks " + report.mask_rule);
  row("AU-PRO", "exact rule, 8-connected regions, each region weighs the same");
  if (!report.aupimo_note.empty()) row("AUPIMO", report.aupimo_note);
  row("data digest", data_digest);
  for (const std::string& warning : report.warnings) row("note", warning);
  for (const auto& broken : report.broken) row("broken", broken.reason.message());
  return html + "</table></html>\n";
}

}  // namespace program
