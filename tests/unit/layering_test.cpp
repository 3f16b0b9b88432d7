// Walks the includes of the library: data flows from left to right, so a folder includes only from its left.
#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../support/shared_fixtures.hpp"

namespace {

namespace fs = std::filesystem;

// A room is a folder under include/norma, or the name of a header that stands there without one. Rooms of one place may include each other.
struct Room {
  std::string_view name;
  int place;
};
constexpr std::array kFlow{
    Room{"config", 0},      Room{"version", 0},   Room{"core", 1},      Room{"image", 2},    Room{"io", 2},          Room{"linalg", 3},
    Room{"search", 4},      Room{"nn", 5},        Room{"backbones", 6}, Room{"features", 7}, Room{"estimators", 8},  Room{"metrics", 9},
    Room{"adaptation", 10}, Room{"detector", 11}, Room{"methods", 12},  Room{"data", 13},    Room{"evaluation", 14}, Room{"norma", 15},
};

// Rooms beside the flow: what each may include besides itself. `anyone` says whether the flow may include it; it then includes what
// the other includes, too.
struct SideRoom {
  std::string_view name;
  std::array<std::string_view, 5> may_include;
  bool anyone;
};
constexpr std::array kSide{
    SideRoom{"concepts", {"config", "core", "image", "nn"}, true},
    SideRoom{"detail", {"config", "core"}, true},
    SideRoom{"interop", {"config", "core"}, false},
    // Policies on a device stand in for the host's and share their settings and layouts.
    SideRoom{"cuda", {"config", "core", "linalg", "search", "nn"}, false},
};

template <class Rooms>
auto find(const Rooms& rooms, std::string_view name) {
  const auto found = std::find_if(rooms.begin(), rooms.end(), [&](const auto& room) { return room.name == name; });
  return found == rooms.end() ? nullptr : &*found;
}

// Empty where `from` may include `to`, else the reason why not.
std::string why_not(std::string_view from, std::string_view to) {
  const SideRoom* from_side = find(kSide, from);
  const SideRoom* to_side = find(kSide, to);
  const Room* from_flow = find(kFlow, from);
  const Room* to_flow = find(kFlow, to);
  if (from_side == nullptr && from_flow == nullptr) return "the room `" + std::string(from) + "` has no place in the flow";
  if (to_side == nullptr && to_flow == nullptr) return "the room `" + std::string(to) + "` has no place in the flow";
  if (from == to || from == "norma") return {};
  if (from_side != nullptr) {
    const auto& allowed = from_side->may_include;
    const bool beside = to_side != nullptr && to_side->anyone && from != "detail";
    if (beside || std::find(allowed.begin(), allowed.end(), to) != allowed.end()) return {};
    return "`" + std::string(from) + "` may not include `" + std::string(to) + "`";
  }
  if (to_side != nullptr) return to_side->anyone ? std::string{} : "nothing in the flow includes `" + std::string(to) + "`";
  if (to_flow->place <= from_flow->place) return {};
  return "against the flow: `" + std::string(from) + "` stands left of `" + std::string(to) + "`";
}

// "norma/core/view.hpp" -> "core"; "norma/detector.hpp" -> "detector".
std::string room_of(std::string_view path_below_norma) {
  return std::string(path_below_norma.substr(0, path_below_norma.find_first_of("/.")));
}

// What stands between < > or " " of an include directive, or nothing.
std::string included(std::string_view line) {
  const auto skip_blanks = [&] { line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size())); };
  skip_blanks();
  if (!line.starts_with('#')) return {};
  line.remove_prefix(1);
  skip_blanks();
  if (!line.starts_with("include")) return {};
  line.remove_prefix(7);
  skip_blanks();
  if (line.empty() || (line.front() != '<' && line.front() != '"')) return {};
  line.remove_prefix(1);
  return std::string(line.substr(0, line.find_first_of(">\"")));
}

// The targets of a file's include directives, in order, with their line numbers.
struct Include {
  int line;
  std::string target;
};
std::vector<Include> includes_of(const fs::path& path) {
  std::vector<Include> result;
  std::ifstream file(path);
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (std::string target = included(line); !target.empty()) result.push_back({number, std::move(target)});
  }
  return result;
}

// Why `me` may not include the concept `target`, because of what that includes in turn.
std::string why_not_through(const std::string& me, const fs::path& root, const std::string& target) {
  for (const auto& [line, next] : includes_of(root / target)) {
    if (!next.starts_with("norma/")) continue;
    std::string reason = why_not(me, room_of(std::string_view(next).substr(6)));
    if (reason.empty() && next.starts_with("norma/concepts/")) reason = why_not_through(me, root, next);
    if (!reason.empty()) return reason + ", through " + target;
  }
  return {};
}

struct Walk {
  int headers = 0;
  int includes = 0;
  std::vector<std::string> violations;
};

// Looks at every .hpp, .inl and .cuh below `root`, a folder that holds `norma`.
void walk(const fs::path& root, Walk& result) {
  if (!fs::exists(root / "norma")) return;
  for (const auto& entry : fs::recursive_directory_iterator(root / "norma")) {
    const std::string extension = entry.path().extension().string();
    if (!entry.is_regular_file() || (extension != ".hpp" && extension != ".inl" && extension != ".cuh")) continue;
    ++result.headers;
    const std::string below = fs::relative(entry.path(), root / "norma").generic_string();
    const std::string me = room_of(below);
    const bool no_eigen = me == "core" || me == "concepts" || extension == ".cuh";
    const auto report = [&](int line, const std::string& reason) {
      result.violations.push_back(below + ":" + std::to_string(line) + ": " + reason);
    };
    for (const auto& [line, target] : includes_of(entry.path())) {
      ++result.includes;
      const bool xtensor = target.starts_with("xtensor/") || target.starts_with("xtl/");
      if (target.starts_with("norma/")) {
        std::string reason = why_not(me, room_of(std::string_view(target).substr(6)));
        if (reason.empty() && me != "concepts" && target.starts_with("norma/concepts/")) reason = why_not_through(me, root, target);
        if (!reason.empty()) report(line, reason);
        if (extension == ".hpp" && target.ends_with(".cuh")) report(line, "a .hpp includes a .cuh");
      } else if (below.starts_with("cuda/detail/") && extension == ".cuh" && target.starts_with("support/simt/")) {
        // What a host compiler reads instead of the CUDA headers: the emulation of the tests.
      } else if (!xtensor && target.ends_with(".hpp")) {
        report(line, "`" + target + "` is not included as <norma/...>");
      }
      if (no_eigen && target.starts_with("Eigen/")) report(line, "includes Eigen");
      if (xtensor && below != "interop/xtensor.hpp") report(line, "includes xtensor");
    }
    std::ifstream file(entry.path());
    int number = 0;
    for (std::string line; std::getline(file, line);) {
      ++number;
      const std::string_view code = std::string_view(line).substr(0, line.find("//"));
      if (no_eigen && code.find("Eigen::") != std::string_view::npos) report(number, "names Eigen");
      if (below != "interop/xtensor.hpp" && code.find(" xt::") != std::string_view::npos) report(number, "names xtensor");
    }
  }
}

void write(const fs::path& path, std::initializer_list<std::string_view> lines) {
  fs::create_directories(path.parent_path());
  std::ofstream file(path);
  for (const auto line : lines) file << line << '\n';
}

}  // namespace

TEST_CASE("includes run with the data flow") {
  Walk result;
  walk(fs::path(NORMA_SOURCE_DIR) / "include", result);
  CHECK(result.headers >= 8);
  CHECK(result.includes >= result.headers);
  walk(fs::path(NORMA_SOURCE_DIR) / "kernels", result);
  for (const auto& violation : result.violations) FAIL_CHECK(violation);
}

TEST_CASE("a tree that breaks each rule once is found out") {
  const norma::test::TemporaryFolder folder;
  const fs::path root = folder.path();
  write(root / "norma/core/view.hpp", {"#include <span>", "#include <norma/config.hpp>", "// Eigen::Matrix in prose is fine"});
  write(root / "norma/image/a.hpp", {"#include <norma/io/b.hpp>", "#include <norma/concepts/c.hpp>"});
  write(root / "norma/io/b.hpp", {"#include <norma/image/a.hpp>"});
  write(root / "norma/concepts/n.hpp", {"#include <norma/nn/graph.hpp>", "#include <norma/concepts/c.hpp>"});
  write(root / "norma/concepts/m.hpp", {"#include <norma/concepts/n.hpp>"});
  write(root / "norma/backbones/f.hpp", {"#include <norma/concepts/m.hpp>"});
  write(root / "norma/linalg/d.hpp", {"#include <Eigen/Core>", "Eigen::MatrixXf m;"});
  write(root / "norma/interop/xtensor.hpp",
        {"#include <xtensor/xarray.hpp>", "#include <norma/core/view.hpp>", "using A = xt::xarray<float>;"});
  write(root / "norma/norma.hpp", {"#include <norma/evaluation/e.hpp>"});
  Walk good;
  walk(root, good);
  CHECK(good.headers == 9);
  CHECK(good.includes == 13);
  CHECK(good.violations.empty());

  // Each of these is one violation.
  const std::vector<std::pair<std::string, std::string>> broken{
      {"norma/core/x.hpp", "#include <norma/image/a.hpp>"},
      {"norma/core/x.hpp", "  #  include \"norma/nn/graph.hpp\"  // with blanks and quotes"},
      {"norma/search/x.hpp", "#include <norma/nn/graph.hpp>"},
      {"norma/features/x.hpp", "#include <norma/estimators/bank.hpp>"},
      {"norma/detector.hpp", "#include <norma/methods/patchcore.hpp>"},
      {"norma/methods/x.hpp", "#include <norma/data/folder.hpp>"},
      {"norma/evaluation/x.hpp", "#include <norma/norma.hpp>"},
      {"norma/image/x.hpp", "#include <norma/interop/xtensor.hpp>"},
      {"norma/nn/x.hpp", "#include <norma/cuda/search.hpp>"},
      {"norma/cuda/x.hpp", "#include <norma/estimators/bank.hpp>"},
      {"norma/interop/x.hpp", "#include <norma/image/a.hpp>"},
      {"norma/concepts/x.hpp", "#include <norma/linalg/d.hpp>"},
      {"norma/search/x.hpp", "#include <norma/concepts/n.hpp>"},
      {"norma/image/x.hpp", "#include <norma/concepts/m.hpp>"},
      {"norma/detail/x.hpp", "#include <norma/concepts/c.hpp>"},
      {"norma/attic/x.hpp", "#include <norma/core/view.hpp>"},
      {"norma/nn/x.hpp", "#include <norma/attic/x.hpp>"},
      {"norma/nn/x.hpp", "#include \"graph.hpp\""},
      {"norma/core/x.hpp", "#include <Eigen/Core>"},
      {"norma/core/x.hpp", "inline Eigen::MatrixXf m;"},
      {"norma/concepts/x.hpp", "#include <Eigen/Dense>"},
      {"norma/nn/x.hpp", "#include <xtensor/xarray.hpp>"},
      {"norma/interop/eigen.hpp", "using A = xt::xarray<float>;"},
      {"norma/cuda/x.cuh", "#include <Eigen/Core>"},
      {"norma/cuda/x.hpp", "#include <norma/cuda/x.cuh>"},
  };
  for (const auto& one : broken) {
    const std::string& path = one.first;
    const std::string& line = one.second;
    CAPTURE(path);
    CAPTURE(line);
    write(root / path, {"#pragma once", line});
    Walk bad;
    walk(root, bad);
    REQUIRE(bad.violations.size() == 1);
    CHECK(bad.violations.front().starts_with(path.substr(6) + ":2: "));
    fs::remove(root / path);
  }
}
