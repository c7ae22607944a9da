/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest program in C: one step of plans, and the version. */
#include <dllm_cache/c_api.h>
#include <stdio.h>

int main(void) {
  dllm_shape shape = {.size = sizeof shape, .prompt = 4, .response = 8};
  dllm_step_input input = {.size = sizeof input, .block_begin = 4, .block_end = 8};
  dllm_step step = {.size = sizeof step};
  dllm_planner* planner = NULL;
  if (dllm_planner_create("fastest", NULL, &shape, 2, &planner) != DLLM_OK ||
      dllm_step_begin(planner, &input, &step) != DLLM_OK || dllm_step_commit(planner) != DLLM_OK) {
    fprintf(stderr, "%s\n", dllm_last_error());
    return 1;
  }
  printf("dllm_cache %s: %d rows\n", dllm_version(), (int)step.row_count);
  dllm_planner_destroy(planner);
  return 0;
}
