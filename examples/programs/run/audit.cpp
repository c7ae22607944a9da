// SPDX-License-Identifier: Apache-2.0
#include "programs/run/audit.hpp"

#include <cstdio>

namespace programs {
namespace {

void add(AuditStep& sum, const AuditStep& step) {
  const Index rows = sum.rows + step.rows;
  if (rows > 0)
    sum.mean_error = (sum.mean_error * static_cast<double>(sum.rows) +
                      step.mean_error * static_cast<double>(step.rows)) /
                     static_cast<double>(rows);
  sum.rows = rows;
  sum.largest_error = std::max(sum.largest_error, step.largest_error);
  sum.rows_differing += step.rows_differing;
  sum.committed += step.committed;
  sum.committed_differing += step.committed_differing;
}

std::string line(const std::string& name, const AuditStep& step) {
  char text[128];
  std::snprintf(text, sizeof text, "%5s %8td %13.3g %13.3g %11td %10td %11td\n", name.c_str(),
                step.rows, step.largest_error, step.mean_error, step.rows_differing, step.committed,
                step.committed_differing);
  return text;
}

}  // namespace

std::string audit_table(const std::vector<AuditStep>& steps) {
  std::map<Index, AuditStep> by_step;
  AuditStep all;
  for (const AuditStep& step : steps) {
    add(by_step[step.step], step);
    add(all, step);
  }
  // Which tokens are other than the uncached logits predict.
  std::string text =
      " step     rows largest error    mean error  rows other  committed  other ones\n";
  for (const auto& [number, step] : by_step) text += line(std::to_string(number), step);
  return text + line("all", all);
}

nlohmann::ordered_json audit_json(const std::vector<AuditStep>& steps) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const AuditStep& step : steps)
    list.push_back({{"sequence", step.sequence},
                    {"step", step.step},
                    {"rows", step.rows},
                    {"largest_error", step.largest_error},
                    {"mean_error", step.mean_error},
                    {"rows_differing", step.rows_differing},
                    {"committed", step.committed},
                    {"committed_differing", step.committed_differing}});
  return list;
}

}  // namespace programs
