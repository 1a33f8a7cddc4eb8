// The kernels against naive loops in double precision, without Python: what the cross compilers' programs run under
// an emulator. Prints a line per check with its largest error, and leaves with 1 when one is too large.

#include "check.h"

#include <cstdlib>

namespace check {

static int failures = 0, checks = 0;

void report(const std::string& name, double error, double allowed) {
  const bool wrong = !(error <= allowed);
  std::printf("%s %s: error %.3g, allowed %.3g\n", wrong ? "WRONG" : "ok   ", name.c_str(), error, allowed);
  failures += wrong;
  checks++;
}

}  // namespace check

int main() {
  check::vectors();
  check::linears();
  check::attentions();
  check::layers();
  std::printf("%d checks, %d wrong\n", check::checks, check::failures);
  return check::failures || !check::checks ? EXIT_FAILURE : EXIT_SUCCESS;
}
