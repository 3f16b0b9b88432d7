// Pages that the text names exist, and every page is in the index.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

#include "../support/shared_fixtures.hpp"

namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Targets of Markdown links to files of the repository: no addresses, no places inside the page itself, no lambdas in blocks of code.
std::vector<std::string> links(std::string_view text) {
  std::vector<std::string> result;
  std::size_t code = text.find("```");
  for (std::size_t at = text.find("]("); at != std::string_view::npos; at = text.find("](", at + 2)) {
    bool in_code = false;
    while (code < at && !in_code) {
      const std::size_t end = text.find("```", code + 3);
      in_code = end == std::string_view::npos || end > at;
      if (!in_code) code = text.find("```", end + 3);
    }
    if (in_code) continue;
    std::string_view target = text.substr(at + 2);
    target = target.substr(0, target.find_first_of(")#"));
    if (!target.empty() && target.find("://") == std::string_view::npos) result.emplace_back(target);
  }
  return result;
}

// Pages named in prose or a comment by their path from the repository's root: `docs/... .md`, `bench/results/... .md`.
std::vector<std::string> mentions(std::string_view text) {
  std::vector<std::string> result;
  for (const std::string_view folder : {"docs/", "bench/results/"}) {
    for (std::size_t at = text.find(folder); at != std::string_view::npos; at = text.find(folder, at + 1)) {
      const std::size_t length =
          std::min(text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.-", at), text.size()) - at;
      const std::string_view path = text.substr(at, length);
      const std::size_t end = path.rfind(".md");
      if (end != std::string_view::npos && path.find("..") == std::string_view::npos) result.emplace_back(path.substr(0, end + 3));
    }
  }
  return result;
}

std::vector<fs::path> files_below(const fs::path& folder, const std::set<std::string>& extensions) {
  std::vector<fs::path> result;
  if (!fs::exists(folder)) return result;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && extensions.contains(entry.path().extension().string())) result.push_back(entry.path());
  }
  std::sort(result.begin(), result.end());
  return result;
}

const fs::path kRoot = NORMA_SOURCE_DIR;

std::vector<fs::path> pages() {
  std::vector<fs::path> result{kRoot / "README.md"};
  for (const char* folder : {"docs", "bench", "examples", "tests"}) {
    const auto below = files_below(kRoot / folder, {".md"});
    result.insert(result.end(), below.begin(), below.end());
  }
  return result;
}

}  // namespace

TEST_CASE("links and mentions are found in a text") {
  const std::string text =
      "[a](docs/a.md#part), [b](https://host/x.md), [c](#here) and ![d](d.png); see docs/concepts/e.md. bench/results/f.md, docs/\n"
      "```cpp\nf([&](int i) { g([](int j) {}); });\n```\n[h](h.md)\n```\n[i](i.md)\n```\n[j](j.md) ```\n[k](k.md)";
  CHECK(links(text) == std::vector<std::string>{"docs/a.md", "d.png", "h.md", "j.md"});
  CHECK(mentions(text) == std::vector<std::string>{"docs/a.md", "docs/concepts/e.md", "bench/results/f.md"});
}

TEST_CASE("every link leads to a file") {
  int checked = 0;
  for (const auto& page : pages()) {
    for (const auto& link : links(read(page))) {
      ++checked;
      if (!fs::exists(page.parent_path() / link))
        FAIL_CHECK(fs::relative(page, kRoot).string() << " links to " << link << ", which does not exist");
    }
  }
  CHECK(checked > 0);
}

TEST_CASE("every page that a source names exists") {
  int checked = 0;
  for (const char* folder : {"include", "kernels", "examples", "bench", "tests"}) {
    for (const auto& file : files_below(kRoot / folder, {".hpp", ".inl", ".cuh", ".cpp", ".cu", ".cmake", ".txt"})) {
      if (file.filename() == "documentation_test.cpp") continue;
      for (const auto& page : mentions(read(file))) {
        ++checked;
        if (!fs::exists(kRoot / page)) FAIL_CHECK(fs::relative(file, kRoot).string() << " names " << page << ", which does not exist");
      }
    }
  }
  CHECK(checked > 0);
}

TEST_CASE("every page is in the index") {
  std::set<fs::path> listed;
  for (const auto& link : links(read(kRoot / "docs/README.md"))) listed.insert((kRoot / "docs" / link).lexically_normal());
  for (const auto& page : files_below(kRoot / "docs", {".md"})) {
    if (page == kRoot / "docs/README.md") continue;
    if (!listed.contains(page.lexically_normal())) FAIL_CHECK("docs/README.md does not list " << fs::relative(page, kRoot).string());
  }
  CHECK(listed.size() > 1);
}
