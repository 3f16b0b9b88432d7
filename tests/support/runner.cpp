// The one doctest runner that every test program links: compiling it costs seconds, its header does not.
// It returns 77 when nothing failed because nothing was checked (files or a device are absent): ctest counts that as skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

namespace {

int checks_made = 0;

struct CountChecks : doctest::IReporter {
  explicit CountChecks(const doctest::ContextOptions&) {}
  void test_run_end(const doctest::TestRunStats& stats) override { checks_made = stats.numAsserts; }
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};

}  // namespace

DOCTEST_REGISTER_LISTENER("count_checks", 1, CountChecks);

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (context.shouldExit() || result != 0) return result;
  return checks_made == 0 ? kSkipped : 0;
}
