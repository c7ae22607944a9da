/* SPDX-License-Identifier: Apache-2.0 */
/* What the C tests share. */
#ifndef DLLM_CACHE_TESTS_C_API_CHECK_H
#define DLLM_CACHE_TESTS_C_API_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program where something does not hold, also in builds with NDEBUG. */
#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: %s does not hold; last error: %s\n", __FILE__, __LINE__, #condition, \
              dllm_last_error());                                                                  \
      exit(EXIT_FAILURE);                                                                          \
    }                                                                                              \
  } while (0)

/* The call is refused with this status and a message that holds these words. */
#define REFUSED(call, status, words)                   \
  do {                                                 \
    CHECK((call) == (status));                         \
    CHECK(strstr(dllm_last_error(), (words)) != NULL); \
  } while (0)

#endif
